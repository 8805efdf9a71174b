// SPDX-License-Identifier: Apache-2.0

package launch

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"regexp"
	"strconv"
	"strings"
	"sync"
)

const (
	maxConsole     = 1 << 20 // bytes of a console kept on disk
	maxConsoleLine = 2 << 10 // bytes of a line that is looked at
	maxTail        = 12      // lines kept for messages
	fatalPrefix    = "coffer-guest: fatal: "
)

// console reads what the guest writes to its serial port: it keeps the
// beginning on disk, the end in memory, and notices last words.
type console struct {
	file    *os.File
	disks   []Disk
	scratch bool // a scratch disk comes before them

	mu       sync.Mutex // guards the fields below
	kept     int
	line     []byte
	tail     []string
	fatal    string // the agent's last word
	panicked string // the kernel's
	corrupt  string // dm-verity's
	done     chan struct{}
}

func newConsole(name string, disks []Disk, scratch bool) (*console, error) {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("opening console log: %w", err)
	}
	return &console{file: f, disks: disks, scratch: scratch, done: make(chan struct{})}, nil
}

// read runs until r ends.
func (c *console) read(r io.Reader) {
	defer close(c.done)
	defer c.file.Close()
	b := make([]byte, 4096)
	for {
		n, err := r.Read(b)
		c.add(b[:n])
		if err != nil {
			c.mu.Lock()
			c.endLine()
			c.mu.Unlock()
			return
		}
	}
}

func (c *console) add(b []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if room := maxConsole - c.kept; room > 0 {
		n, _ := c.file.Write(b[:min(len(b), room)]) // a full disk costs the log, not the group
		c.kept += n
	}
	for len(b) > 0 {
		i := bytes.IndexByte(b, '\n')
		part := b
		if i >= 0 {
			part = b[:i]
		}
		if room := maxConsoleLine - len(c.line); room > 0 {
			c.line = append(c.line, part[:min(len(part), room)]...)
		}
		if i < 0 {
			return
		}
		c.endLine()
		b = b[i+1:]
	}
}

// endLine looks at one whole line.
func (c *console) endLine() {
	line := printable(strings.TrimRight(string(c.line), "\r \t"), maxConsoleLine)
	c.line = c.line[:0]
	if line == "" {
		return
	}
	if c.tail = append(c.tail, line); len(c.tail) > maxTail {
		c.tail = c.tail[1:]
	}
	if i := strings.Index(line, fatalPrefix); i >= 0 && c.fatal == "" {
		c.fatal = line[i+len(fatalPrefix):]
	}
	if i := strings.Index(line, "Kernel panic - not syncing: "); i >= 0 && c.panicked == "" {
		c.panicked = line[i+len("Kernel panic - not syncing: "):]
	}
	if c.corrupt == "" {
		c.corrupt = c.corruption(line)
	}
}

// minors is how many minor numbers Linux gives each virtio disk.
const minors = 16

// corruption recognises dm-verity's message, which names the disk by its
// numbers: "device-mapper: verity: 254:16: data block 7 is corrupted". The guest
// numbers disks in the order of their slots, where a scratch disk is the first.
func (c *console) corruption(line string) string {
	m := regexp.MustCompile(`device-mapper: verity: \d{1,4}:(\d{1,4}): (data|metadata) block (\d{1,20}) is corrupted`).FindStringSubmatch(line)
	if m == nil {
		return ""
	}
	what := "a disk"
	if minor, err := strconv.Atoi(m[1]); err == nil {
		n := minor / minors
		if c.scratch {
			n--
		}
		if n >= 0 && n < len(c.disks) {
			what = fmt.Sprintf("layer %d (%s)", n, c.disks[n].Label)
		}
	}
	return fmt.Sprintf("%s is corrupted: %s block %s does not match its root hash; the guest refused it and ended", what, m[2], m[3])
}

// lastWords says why the guest ended, or "" if it did not say.
func (c *console) lastWords() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.corrupt != "":
		return c.corrupt
	case c.fatal != "":
		return "the guest ended: " + c.fatal
	case c.panicked != "":
		return "the guest's kernel panicked: " + c.panicked
	}
	return ""
}

// lastLines are for a reader who has nothing else.
func (c *console) lastLines() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.tail) == 0 {
		return []string{"  the guest wrote nothing to its console"}
	}
	out := []string{"  the last lines of the guest's console:"}
	for _, l := range c.tail {
		out = append(out, "    "+l)
	}
	return out
}
