// SPDX-License-Identifier: Apache-2.0

package launch

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/coffer-dev/coffer/host/state"
)

// Descriptors that a supervisor inherits; what follows only needs to stay open.
const (
	lockFD  = 3
	readyFD = 4
	firstFD = 5
)

// maxReady bounds what a supervisor says of its start, in bytes.
const maxReady = 1 << 20

// Started is a group whose container runs.
type Started struct {
	// First is attached from the container's first byte; nil if not asked for.
	First *Stream
	cmd   *exec.Cmd
}

// Wait waits until the supervisor has ended. The record says how the group did.
func (s *Started) Wait() { _ = s.cmd.Wait() }

// Launch tells how to start a supervisor.
type Launch struct {
	// Command is the program and its arguments; the group's directory is added.
	Command []string
	// Attach wants the output from the start.
	Attach bool
	// Keep are files that the supervisor holds open for as long as it lives.
	Keep []*os.File
}

// Spawn starts a detached supervisor for the group, whose directory holds what
// Write put there, and waits until its container runs. The error is a
// *Failure if the group could not start; the group is gone then if it was to
// be removed. The lock passes to the supervisor either way. When ctx ends first,
// the group is killed.
func Spawn(ctx context.Context, g *state.Handle, l Launch) (*Started, error) {
	ready, readyOut, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("starting supervisor: %w", err)
	}
	defer ready.Close()
	first, firstIn, err := firstClient(l.Attach)
	if err != nil {
		readyOut.Close()
		return nil, fmt.Errorf("starting supervisor: %w", err)
	}
	own, err := os.OpenFile(filepath.Join(g.Path(), ownLogFile), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("starting supervisor: %w", err), readyOut.Close(), firstIn.Close())
	}
	cmd := exec.Command(l.Command[0], append(l.Command[1:len(l.Command):len(l.Command)], g.Path())...)
	cmd.Stdout, cmd.Stderr = own, own
	cmd.Dir = "/"
	cmd.ExtraFiles = append([]*os.File{g.Lock, readyOut, firstIn}, l.Keep...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = cmd.Start()
	// Ours are closed, so that the supervisor's end is seen, and the lock is its alone.
	err = errors.Join(err, own.Close(), readyOut.Close(), firstIn.Close(), g.Lock.Close())
	if err != nil {
		return nil, fmt.Errorf("starting supervisor: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { _ = cmd.Process.Signal(unix.SIGTERM) }) // it may have ended
	defer stop()
	s := &Started{First: first, cmd: cmd}
	if err := awaitReady(ready); err != nil {
		if first != nil {
			first.Close()
		}
		s.Wait()
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		return nil, err
	}
	return s, nil
}

// firstClient makes a connection to a supervisor that does not exist yet.
// Without one the supervisor gets /dev/null.
func firstClient(attach bool) (*Stream, *os.File, error) {
	if !attach {
		f, err := os.Open(os.DevNull)
		return nil, f, err
	}
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("making a socket pair: %w", err)
	}
	theirs := os.NewFile(uintptr(fds[1]), "first client")
	ours := os.NewFile(uintptr(fds[0]), "supervisor")
	conn, err := net.FileConn(ours)
	if err = errors.Join(err, ours.Close()); err != nil {
		theirs.Close()
		return nil, nil, fmt.Errorf("making a socket pair: %w", err)
	}
	return &Stream{conn: conn}, theirs, nil
}

// awaitReady reads what the supervisor says of its start.
func awaitReady(r io.Reader) error {
	b, err := io.ReadAll(io.LimitReader(r, maxReady))
	if err != nil {
		return fmt.Errorf("waiting for supervisor: %w", err)
	}
	var out reply
	if err := json.Unmarshal(b, &out); err != nil {
		return &Failure{Text: "the supervisor ended without a word", Status: StatusFailed}
	}
	if out.Error != nil {
		return out.Error
	}
	return nil
}

// Supervise is the supervisor process: it runs the group in dir, with the
// descriptors that Spawn gave it, and returns when the group has ended.
func Supervise(ctx context.Context, dir string) error {
	ctx, stop := signal.NotifyContext(ctx, unix.SIGTERM, unix.SIGINT)
	defer stop()
	signal.Ignore(unix.SIGHUP, unix.SIGPIPE)
	// None of these may pass to QEMU: a lock would outlive us.
	for fd := range maxInherited {
		if fd >= lockFD {
			unix.CloseOnExec(fd)
		}
	}
	log := slog.New(slog.NewJSONHandler(&bounded{w: os.Stderr, room: maxConsole}, nil))
	lock, ready := os.NewFile(lockFD, "lock"), os.NewFile(readyFD, "ready")
	if lock == nil || ready == nil {
		return errors.New("supervising: it is coffer run that starts this")
	}
	said := false
	say := func(f *Failure) {
		if said {
			return
		}
		said = true
		if err := json.NewEncoder(ready).Encode(reply{Error: f}); err != nil {
			log.Debug("nobody waits for the group's start", slog.Any("error", err))
		}
		ready.Close()
	}
	g, err := state.Adopt(dir, lock)
	if err != nil {
		say(failure(err))
		return err
	}
	s, err := NewSupervisor(g, log)
	if err != nil {
		say(failure(err))
		return err
	}
	return s.Run(ctx, inheritedClient(), say)
}

// maxInherited is one more than the highest descriptor that Spawn may pass.
const maxInherited = 1024

// inheritedClient is nil if the descriptor is no socket.
func inheritedClient() net.Conn {
	f := os.NewFile(firstFD, "first client")
	if f == nil {
		return nil
	}
	defer f.Close()
	conn, err := net.FileConn(f)
	if err != nil {
		return nil
	}
	return conn
}

// bounded stops writing when there is no more room: guests can cause lines.
type bounded struct {
	mu   sync.Mutex // guards room
	w    io.Writer
	room int
}

func (b *bounded) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.room < len(p) {
		return len(p), nil
	}
	b.room -= len(p)
	return b.w.Write(p)
}
