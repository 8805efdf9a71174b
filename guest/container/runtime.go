// SPDX-License-Identifier: Apache-2.0

package container

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/coffer-dev/coffer/guest/reap"
)

// Errors that the host's user must be able to tell apart, as docker does.
var (
	ErrCommandNotFound   = errors.New("command not found")
	ErrCommandNotStarted = errors.New("command cannot be executed")
	// ErrStuck means that a start was given up. What was to be started may
	// still run, in its container, which somebody else in it can hold up.
	ErrStuck = errors.New("the process did not start in time")
)

// startTime bounds a start: whoever is root in a container can stop what joins
// it, and image content can make it wait. It is less than a host's patience.
const startTime = 100 * time.Second

// Runtime runs containers by the runc binary at Runc. All fields must be set.
type Runtime struct {
	Runc   string       // absolute path of the binary
	State  string       // runc's state directory
	Temp   string       // directory for logs, sockets and pid files
	Reaper *reap.Reaper // of this process

	serial   atomic.Uint64 // numbers the directories below Temp
	patience time.Duration // 0 is startTime; tests have less
}

// Running is a process that was started. Its output is drained, and its Stdio
// closed, by the time Done is closed.
type Running struct {
	Args []string
	io   *plumbing
	done chan struct{}
	end  reap.Status // valid when done is closed

	mu sync.Mutex // guards fd
	fd int        // pidfd: a signal never reaches a later process of the same number; -1 once it has ended
}

// Done is closed when the process has ended.
func (p *Running) Done() <-chan struct{} { return p.done }

// Status is how the process ended; it is valid once Done is closed.
func (p *Running) Status() reap.Status { return p.end }

// Signal sends a signal. A process that has ended is no error.
func (p *Running) Signal(sig unix.Signal) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.fd < 0 {
		return nil
	}
	err := unix.PidfdSendSignal(p.fd, sig, nil, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	return err
}

// Resize sets the size of the process's terminal.
func (p *Running) Resize(cols, rows uint16) error { return p.io.resize(cols, rows) }

// Run creates and starts a container whose bundle directory, which must exist,
// gets its config.json. It takes stdio over. After an error nothing is left.
func (r *Runtime) Run(ctx context.Context, c *Config, bundle string, stdio Stdio) (*Running, error) {
	spec, err := c.spec()
	if err != nil {
		stdio.Close()
		return nil, fmt.Errorf("creating container: %w", err)
	}
	if err := writeJSON(filepath.Join(bundle, "config.json"), spec); err != nil {
		stdio.Close()
		return nil, fmt.Errorf("creating container: %w", err)
	}
	p, err := r.launch(ctx, stdio, func(flags []string) []string {
		return append(append([]string{"run", "--detach", "--bundle", bundle}, flags...), c.ID)
	})
	if err != nil {
		if derr := r.Delete(ctx, c.ID); derr != nil {
			err = errors.Join(err, derr)
		}
		return nil, err
	}
	p.Args = c.Process.Args
	return p, nil
}

// Exec starts one more process in a running container. It takes stdio over.
func (r *Runtime) Exec(ctx context.Context, id string, proc *Process, stdio Stdio) (*Running, error) {
	file, err := r.scratchFile("process")
	if err != nil {
		stdio.Close()
		return nil, err
	}
	defer os.Remove(file)
	if err := writeJSON(file, proc.spec()); err != nil {
		stdio.Close()
		return nil, fmt.Errorf("starting a process: %w", err)
	}
	p, err := r.launch(ctx, stdio, func(flags []string) []string {
		return append(append([]string{"exec", "--detach", "--process", file}, flags...), id)
	})
	if err != nil {
		return nil, err
	}
	p.Args = proc.Args
	return p, nil
}

// Delete kills what is left of a container and forgets it. One that does not
// exist is no error.
func (r *Runtime) Delete(ctx context.Context, id string) error {
	_, err := r.Reaper.Run(ctx, r.Runc, []string{"--root", r.State, "delete", "--force", id}, nil)
	if err != nil {
		return fmt.Errorf("deleting container: %w", err)
	}
	return nil
}

// launch runs runc with the process's descriptors as its own; runc hands them
// on and leaves the process to us.
func (r *Runtime) launch(ctx context.Context, stdio Stdio, args func(flags []string) []string) (*Running, error) {
	dir, err := r.scratchFile("run")
	if err != nil {
		stdio.Close()
		return nil, err
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		stdio.Close()
		return nil, fmt.Errorf("starting a process: %w", err)
	}
	defer os.RemoveAll(dir)
	pipes, err := newPlumbing(stdio, dir)
	if err != nil {
		stdio.Close()
		return nil, err
	}
	pid, err := r.runc(ctx, dir, pipes, args)
	if err != nil {
		pipes.abandon()
		return nil, err
	}
	p, err := r.follow(pid, pipes)
	if err != nil {
		_ = unix.Kill(pid, unix.SIGKILL) // err is what matters
		pipes.abandon()
		return nil, err
	}
	return p, nil
}

func (r *Runtime) runc(ctx context.Context, dir string, pipes *plumbing, args func([]string) []string) (int, error) {
	log, pidFile := filepath.Join(dir, "log"), filepath.Join(dir, "pid")
	flags := []string{"--pid-file", pidFile}
	if pipes.console != nil {
		flags = append(flags, "--console-socket", pipes.console.Addr().String())
	}
	argv := append([]string{"runc", "--root", r.State, "--log", log, "--log-format", "json"}, args(flags)...)
	pid, done, err := r.Reaper.Start(reap.Command{Path: r.Runc, Args: argv, Files: pipes.child})
	if err != nil {
		return 0, err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, cmp.Or(r.patience, startTime), ErrStuck)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { _ = unix.Kill(pid, unix.SIGKILL) })
	s := <-done
	stop()
	if s.Code != 0 && ctx.Err() != nil {
		return 0, fmt.Errorf("starting a process: %w", context.Cause(ctx))
	}
	if s.Code != 0 {
		return 0, runcError(log, s)
	}
	b, err := os.ReadFile(pidFile)
	if err != nil {
		return 0, fmt.Errorf("reading the process number: %w", err)
	}
	return strconv.Atoi(strings.TrimSpace(string(b)))
}

// follow begins to copy, and waits for the end in its own goroutine, which
// ends when the process does.
func (r *Runtime) follow(pid int, pipes *plumbing) (*Running, error) {
	ended := r.Reaper.Adopt(pid)
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil && !errors.Is(err, unix.ESRCH) { // ESRCH: it has ended already
		return nil, fmt.Errorf("following process: %w", err)
	}
	p := &Running{fd: fd, io: pipes, done: make(chan struct{})}
	if err := pipes.started(); err != nil {
		p.release()
		return nil, err
	}
	go func() {
		p.end = <-ended
		p.release()
		pipes.finish()
		close(p.done)
	}()
	return p, nil
}

// release gives the pidfd up, so that no signal can take its number for it.
func (p *Running) release() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.fd >= 0 {
		_ = unix.Close(p.fd) // a pidfd's close cannot fail in a way that matters
		p.fd = -1
	}
}

func (r *Runtime) scratchFile(kind string) (string, error) {
	if err := os.MkdirAll(r.Temp, 0o700); err != nil {
		return "", fmt.Errorf("making a temporary file: %w", err)
	}
	return filepath.Join(r.Temp, kind+strconv.FormatUint(r.serial.Add(1), 10)), nil
}

func writeJSON(path string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return os.WriteFile(path, b, 0o600)
}

// runcError makes an error of runc's log.
func runcError(log string, s reap.Status) error {
	b, err := os.ReadFile(log)
	if err != nil {
		return fmt.Errorf("starting a process: runc ended with status %d", s.Code)
	}
	msg := lastError(b)
	if msg == "" {
		return fmt.Errorf("starting a process: runc ended with status %d", s.Code)
	}
	if _, why, ok := strings.Cut(msg, "unable to start container process: "); ok {
		msg = strings.TrimPrefix(why, "error during container init: ")
		if kind := startFailure(msg); kind != nil {
			return fmt.Errorf("%w: %s", kind, msg)
		}
	}
	return fmt.Errorf("starting a process: %s", msg)
}

// startFailure tells by runc's words, which is pinned with the guest, whether
// the command is missing or cannot be executed; nil is neither.
func startFailure(msg string) error {
	if strings.Contains(msg, "executable file not found in $PATH") || strings.HasSuffix(msg, ": no such file or directory") {
		return ErrCommandNotFound
	}
	for _, words := range []string{"permission denied", "exec format error", "is a directory", "not a directory"} {
		if strings.Contains(msg, words) {
			return ErrCommandNotStarted
		}
	}
	return nil
}

// lastError is the last message at error level in runc's JSON log.
func lastError(log []byte) string {
	last := ""
	for line := range strings.Lines(string(log)) {
		var entry struct{ Level, Msg string }
		if json.Unmarshal([]byte(line), &entry) == nil && entry.Level == "error" {
			last = entry.Msg
		}
	}
	return last
}
