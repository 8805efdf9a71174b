// SPDX-License-Identifier: Apache-2.0

package launch

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	"github.com/coffer-dev/coffer/wire"
)

// ErrNotRunning means that nobody supervises the group.
var ErrNotRunning = errors.New("container is not running")

// dial connects to the supervisor of the group in dir.
func dial(ctx context.Context, dir string) (net.Conn, error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, fmt.Errorf("reaching the supervisor: %w", err)
	}
	defer d.Close()
	var nd net.Dialer
	conn, err := nd.DialContext(ctx, "unix", address(d))
	if err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return nil, ErrNotRunning
	}
	return conn, nil
}

// ask sends a request and returns the open connection after its answer.
func ask(ctx context.Context, dir string, q request, out any) (net.Conn, error) {
	conn, err := dial(ctx, dir)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	var r reply
	err = writeJSON(conn, kindRequest, q)
	if err == nil {
		err = readJSON(conn, kindReply, &r)
	}
	switch {
	case ctx.Err() != nil:
		err = ctx.Err()
	case err != nil:
		err = fmt.Errorf("asking the supervisor: %w", ErrNotRunning)
	case r.Error != nil:
		err = r.Error
	case out != nil:
		if err = json.Unmarshal(r.Result, out); err != nil {
			err = fmt.Errorf("asking the supervisor: %w", err)
		}
	}
	if err != nil {
		conn.Close()
		return nil, err
	}
	return conn, nil
}

func call(ctx context.Context, dir string, q request, out any) error {
	conn, err := ask(ctx, dir, q, out)
	if err != nil {
		return err
	}
	return conn.Close()
}

// Kill sends a signal to the init process of the group in dir.
func Kill(ctx context.Context, dir string, sig int) error {
	return call(ctx, dir, request{Op: opKill, Signal: sig}, nil)
}

// Stop asks the container to end, and makes it after timeout.
func Stop(ctx context.Context, dir string, timeout time.Duration) (Exit, error) {
	var e Exit
	err := call(ctx, dir, request{Op: opStop, Timeout: timeout.Seconds()}, &e)
	return e, err
}

// Wait waits for the container's end.
func Wait(ctx context.Context, dir string) (Exit, error) {
	var e Exit
	err := call(ctx, dir, request{Op: opWait}, &e)
	return e, err
}

// Stats asks the guest what the container uses. It may lie.
func Stats(ctx context.Context, dir string) (wire.Stats, error) {
	var s wire.Stats
	err := call(ctx, dir, request{Op: opStats}, &s)
	return s, err
}

// Attest returns an evidence document that answers nonce, without the policy.
func Attest(ctx context.Context, dir string, nonce []byte) ([]byte, error) {
	var raw json.RawMessage
	err := call(ctx, dir, request{Op: opAttest, Nonce: nonce}, &raw)
	return raw, err
}

// Follow calls grew whenever the group's log may have grown, until the group ends.
func Follow(ctx context.Context, dir string, grew func() error) error {
	conn, err := ask(ctx, dir, request{Op: opFollow}, nil)
	if err != nil {
		return err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	for {
		if _, _, err := readFrame(conn); err != nil {
			return ctx.Err()
		}
		if err := grew(); err != nil {
			return err
		}
	}
}

// Stream is the connection to a process's standard files.
type Stream struct {
	conn net.Conn
	mu   sync.Mutex // guards writes to conn
}

// Attach connects to the container's init process. Output from before is in the log.
func Attach(ctx context.Context, dir string, stdin bool) (*Stream, error) {
	conn, err := ask(ctx, dir, request{Op: opAttach, NoStdin: !stdin}, nil)
	if err != nil {
		return nil, err
	}
	return &Stream{conn: conn}, nil
}

// Exec starts one more process in the container and connects to it.
func Exec(ctx context.Context, dir string, p Program) (*Stream, error) {
	conn, err := ask(ctx, dir, request{Op: opExec, Exec: &p}, nil)
	if err != nil {
		return nil, err
	}
	return &Stream{conn: conn}, nil
}

func (s *Stream) send(k kind, b []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return writeFrame(s.conn, k, b)
}

// Input sends bytes to the process's standard input.
func (s *Stream) Input(b []byte) error {
	for len(b) > 0 {
		n := min(len(b), maxData)
		if err := s.send(kindStdin, b[:n]); err != nil {
			return fmt.Errorf("sending input: %w", err)
		}
		b = b[n:]
	}
	return nil
}

// EndInput says that there is no more input.
func (s *Stream) EndInput() error { return s.send(kindStdin, nil) }

// Resize sets the size of the process's terminal.
func (s *Stream) Resize(cols, rows uint16) error {
	b, err := json.Marshal(size{cols, rows})
	if err != nil {
		return fmt.Errorf("resizing: %w", err)
	}
	return s.send(kindResize, b)
}

// Copy calls out for all output until the process ends. Without an exit the
// connection, and so the group, ended first.
func (s *Stream) Copy(out func(stderr bool, b []byte) error) (Exit, error) {
	for {
		k, b, err := readFrame(s.conn)
		if err != nil {
			return Exit{}, fmt.Errorf("reading output: %w", err)
		}
		switch k {
		case kindStdout, kindStderr:
			if err := out(k == kindStderr, b); err != nil {
				return Exit{}, err
			}
		case kindExit:
			var e Exit
			if err := json.Unmarshal(b, &e); err != nil {
				return Exit{}, fmt.Errorf("reading output: %w", err)
			}
			return e, nil
		default:
			return Exit{}, errors.New("reading output: unexpected frame")
		}
	}
}

// Close disconnects; the process goes on.
func (s *Stream) Close() error { return s.conn.Close() }
