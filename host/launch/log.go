// SPDX-License-Identifier: Apache-2.0

package launch

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"
	"unicode/utf8"
)

// maxLog bounds one file of a container's log; there are at most two.
const maxLog = 16 << 20

// Entry is one line, or part of one, of a container's output.
type Entry struct {
	Time   time.Time `json:"time"`
	Stream string    `json:"stream"` // stdout or stderr
	Text   string    `json:"text,omitempty"`
	// Bytes stands in for Text if it is not UTF-8.
	Bytes []byte `json:"bytes,omitempty"`
}

// Data is what the container wrote.
func (e *Entry) Data() []byte {
	if e.Bytes != nil {
		return e.Bytes
	}
	return []byte(e.Text)
}

// record is a container's log while it is written.
type record struct {
	name string
	mu   sync.Mutex // guards the fields below
	file *os.File
	size int64
	max  int64         // of one file
	grew chan struct{} // closed and replaced when the log has grown
	done bool
}

func newRecord(dir string) (*record, error) {
	r := &record{max: maxLog, name: filepath.Join(dir, logFile), grew: make(chan struct{})}
	f, err := os.OpenFile(r.name, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("opening container log: %w", err)
	}
	r.file = f
	return r, nil
}

// write keeps what a stream said. Errors cost the log, not the container.
func (r *record) write(stream string, b []byte) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out bytes.Buffer
	enc := json.NewEncoder(&out)
	enc.SetEscapeHTML(false)
	now := time.Now().UTC()
	for len(b) > 0 {
		n := bytes.IndexByte(b, '\n') + 1
		if n == 0 {
			n = len(b)
		}
		e := Entry{Time: now, Stream: stream}
		if utf8.Valid(b[:n]) {
			e.Text = string(b[:n])
		} else {
			e.Bytes = b[:n]
		}
		if err := enc.Encode(e); err != nil {
			return fmt.Errorf("writing container log: %w", err)
		}
		b = b[n:]
	}
	if r.size+int64(out.Len()) > r.max {
		if err := r.rotate(); err != nil {
			return err
		}
	}
	n, err := r.file.Write(out.Bytes())
	r.size += int64(n)
	close(r.grew)
	r.grew = make(chan struct{})
	if err != nil {
		return fmt.Errorf("writing container log: %w", err)
	}
	return nil
}

func (r *record) rotate() error {
	f, err := os.OpenFile(r.name+".new", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("rotating container log: %w", err)
	}
	if err := errors.Join(os.Rename(r.name, r.name+".1"), os.Rename(r.name+".new", r.name)); err != nil {
		f.Close()
		return fmt.Errorf("rotating container log: %w", err)
	}
	r.file.Close()
	r.file, r.size = f, 0
	return nil
}

// more returns a channel that is closed when the log has grown, or false when it never will.
func (r *record) more() (<-chan struct{}, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.grew, !r.done
}

func (r *record) close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.done {
		return nil
	}
	r.done = true
	close(r.grew)
	return r.file.Close()
}

// LogReader reads a group's log from its start, while it grows.
type LogReader struct {
	dir  string
	file *os.File
	buf  *bufio.Reader
	part []byte
}

// OpenLog opens the log in a group's directory. A group that has not started has an empty one.
func OpenLog(dir string) (*LogReader, error) {
	l := &LogReader{dir: dir}
	for _, suffix := range []string{".1", ""} {
		f, err := os.Open(filepath.Join(dir, logFile+suffix))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("opening container log: %w", err)
		}
		l.use(f)
		break
	}
	return l, nil
}

func (l *LogReader) use(f *os.File) {
	if l.file != nil {
		l.file.Close()
	}
	l.file, l.buf, l.part = f, bufio.NewReader(f), nil
}

// Next returns the next entry; io.EOF means that there is none yet.
func (l *LogReader) Next() (*Entry, error) {
	for {
		if l.file == nil {
			f, err := os.Open(filepath.Join(l.dir, logFile))
			if errors.Is(err, fs.ErrNotExist) {
				return nil, io.EOF
			}
			if err != nil {
				return nil, fmt.Errorf("opening container log: %w", err)
			}
			l.use(f)
		}
		line, err := l.buf.ReadSlice('\n')
		l.part = append(l.part, line...)
		if errors.Is(err, bufio.ErrBufferFull) {
			continue
		}
		if errors.Is(err, io.EOF) && !l.rotated() {
			return nil, io.EOF
		}
		if errors.Is(err, io.EOF) {
			f, err := os.Open(filepath.Join(l.dir, logFile))
			if err != nil {
				return nil, fmt.Errorf("opening container log: %w", err)
			}
			l.use(f)
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("reading container log: %w", err)
		}
		var e Entry
		err = json.Unmarshal(l.part, &e)
		l.part = l.part[:0]
		if err != nil {
			return nil, fmt.Errorf("reading container log: %w", err)
		}
		return &e, nil
	}
}

// rotated reports whether the log goes on in another file.
func (l *LogReader) rotated() bool {
	a, err := l.file.Stat()
	if err != nil {
		return false
	}
	b, err := os.Stat(filepath.Join(l.dir, logFile))
	return err == nil && !os.SameFile(a, b)
}

// Close closes the log.
func (l *LogReader) Close() error {
	if l.file == nil {
		return nil
	}
	return l.file.Close()
}
