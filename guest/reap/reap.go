// SPDX-License-Identifier: Apache-2.0

// Package reap starts processes and collects every process that ends. PID 1
// inherits orphans, so there must be exactly one place that waits: this one.
// It is trusted with nothing but not losing an exit status; os/exec must not be
// used beside it, since both would wait for the same processes.
package reap

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// maxUnclaimed bounds the exit statuses kept for processes nobody asked about
// yet. Orphans of containers come here too, so the oldest are forgotten.
const maxUnclaimed = 4096

// maxOutput bounds what Run keeps of a program's output.
const maxOutput = 256 << 10

// Status is how a process ended.
type Status struct {
	Code   int            // exit status; 128 + Signal if a signal ended it
	Signal syscall.Signal // 0 if it exited by itself
}

// Reaper waits for all children of this process. The zero value is not usable.
type Reaper struct {
	mu        sync.Mutex // guards the fields below, and is held from fork to registration
	waiting   map[int]chan Status
	unclaimed map[int]Status
	order     []int // keys of unclaimed, oldest first
}

// New starts to reap. It is called once, by PID 1 (or a child subreaper), and
// never stops: the reaping goroutine lives as long as the process.
func New() *Reaper {
	r := &Reaper{waiting: make(map[int]chan Status), unclaimed: make(map[int]Status)}
	child := make(chan os.Signal, 1)
	signal.Notify(child, syscall.SIGCHLD)
	go func() {
		for range child {
			r.collect()
		}
	}()
	return r
}

func (r *Reaper) collect() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for {
		var ws unix.WaitStatus
		pid, err := unix.Wait4(-1, &ws, unix.WNOHANG, nil)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || pid <= 0 {
			return
		}
		r.ended(pid, status(ws))
	}
}

func status(ws unix.WaitStatus) Status {
	if ws.Signaled() {
		return Status{Code: 128 + int(ws.Signal()), Signal: syscall.Signal(ws.Signal())}
	}
	return Status{Code: ws.ExitStatus()}
}

func (r *Reaper) ended(pid int, s Status) {
	if c, ok := r.waiting[pid]; ok {
		delete(r.waiting, pid)
		c <- s
		return
	}
	if _, known := r.unclaimed[pid]; !known {
		r.order = append(r.order, pid)
	}
	r.unclaimed[pid] = s
	for len(r.order) > maxUnclaimed {
		delete(r.unclaimed, r.order[0])
		r.order = r.order[1:]
	}
}

// Adopt returns the channel on which the status of pid comes, once. pid is a
// process that this one has inherited or will inherit, for instance a
// container's init that runc left behind; it may have ended already.
func (r *Reaper) Adopt(pid int) <-chan Status {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.adopt(pid)
}

func (r *Reaper) adopt(pid int) <-chan Status {
	c := make(chan Status, 1)
	if s, ok := r.unclaimed[pid]; ok {
		delete(r.unclaimed, pid)
		for i, p := range r.order {
			if p == pid {
				r.order = append(r.order[:i], r.order[i+1:]...)
				break
			}
		}
		c <- s
		return c
	}
	r.waiting[pid] = c
	return c
}

// Command is a program to start. Path is absolute; Args include argv[0].
type Command struct {
	Path string
	Args []string
	Env  []string
	// Files are the descriptors 0, 1, 2, ... ; nil entries are closed.
	Files []*os.File
	// Kill is sent to the program when this process's starting thread ends; 0 is none.
	Kill syscall.Signal
}

// Start starts a program and returns its process ID and the channel of its
// status.
func (r *Reaper) Start(c Command) (int, <-chan Status, error) {
	r.mu.Lock() // until registered, so that a quick end is not lost
	defer r.mu.Unlock()
	p, err := os.StartProcess(c.Path, c.Args, &os.ProcAttr{Env: c.Env, Files: c.Files,
		Sys: &syscall.SysProcAttr{Pdeathsig: c.Kill, Setsid: true}})
	if err != nil {
		return 0, nil, fmt.Errorf("starting %s: %w", c.Path, err)
	}
	pid := p.Pid
	_ = p.Release() // we wait by ourselves; releasing cannot fail in a way that matters
	return pid, r.adopt(pid), nil
}

// Run runs a program to its end with stdin as its input, and returns what it
// wrote to standard output and standard error, at most 256 KiB of it. A status
// other than 0 is an *ExitError. When ctx ends, the program is killed.
func (r *Reaper) Run(ctx context.Context, path string, args []string, stdin []byte) ([]byte, error) {
	in, err := inputFile(stdin)
	if err != nil {
		return nil, fmt.Errorf("running %s: %w", path, err)
	}
	defer in.Close()
	out, w, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("running %s: %w", path, err)
	}
	defer out.Close()
	pid, done, err := r.Start(Command{Path: path, Args: append([]string{path}, args...), Files: []*os.File{in, w, w}})
	w.Close()
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = unix.Kill(pid, unix.SIGKILL) })
	defer stop()
	// The status comes first: a child that the program left behind may keep
	// the pipe open, and must not be waited for.
	collected := make(chan []byte, 1)
	go func() {
		var b bytes.Buffer
		_, _ = io.Copy(&limited{w: &b, left: maxOutput}, out)
		collected <- b.Bytes()
	}()
	s := <-done
	var output []byte
	select {
	case output = <-collected:
	case <-ctx.Done():
		out.Close()
		output = <-collected
	}
	if s.Code != 0 {
		return output, &ExitError{Path: path, Status: s, Output: string(bytes.TrimSpace(output))}
	}
	return output, nil
}

// ExitError says that a program ended with a status other than 0.
type ExitError struct {
	Path   string
	Status Status
	Output string // both outputs, bounded
}

func (e *ExitError) Error() string {
	return fmt.Sprintf("running %s: exit status %d: %s", e.Path, e.Status.Code, e.Output)
}

// inputFile gives content as an open file, without a goroutine to feed it.
func inputFile(content []byte) (*os.File, error) {
	if len(content) == 0 {
		return os.Open(os.DevNull)
	}
	fd, err := unix.MemfdCreate("stdin", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("making an input file: %w", err)
	}
	f := os.NewFile(uintptr(fd), "stdin")
	if _, err := f.Write(content); err != nil {
		f.Close()
		return nil, fmt.Errorf("making an input file: %w", err)
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		f.Close()
		return nil, fmt.Errorf("making an input file: %w", err)
	}
	return f, nil
}

// limited drops what exceeds its limit, so that the writer never blocks.
type limited struct {
	w    io.Writer
	left int
}

func (l *limited) Write(p []byte) (int, error) {
	n := min(len(p), l.left)
	l.left -= n
	if _, err := l.w.Write(p[:n]); err != nil {
		return 0, err
	}
	return len(p), nil
}
