// SPDX-License-Identifier: Apache-2.0

package qemu

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// Process is a running machine.
type Process struct {
	// Control, Console and SEV are the host's ends of the guest's channels;
	// SEV is nil without an emulated secure processor. The guest is hostile:
	// it may write anything, or nothing.
	Control, Console, SEV net.Conn

	pid    int
	done   chan struct{} // closed when QEMU has ended; then err is valid
	err    error
	stderr *tail
}

// Start starts QEMU. It dies when this process does. The caller closes the
// channels.
func Start(m *Machine) (*Process, error) {
	args, err := m.Args()
	if err != nil {
		return nil, err
	}
	p := &Process{done: make(chan struct{}), stderr: &tail{max: 8 << 10}}
	cmd := exec.Command(m.Binary, args...)
	cmd.Stderr = p.stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	// QEMU needs nothing of our environment but a place for temporary files.
	cmd.Env = []string{"PATH=/usr/bin:/bin", "TMPDIR=" + os.TempDir()}
	defer func() {
		for _, f := range cmd.ExtraFiles {
			f.Close()
		}
	}()
	ends := []*net.Conn{&p.Control, &p.Console}
	if strings.Contains(strings.Join(args, " "), "id=sev,") {
		ends = append(ends, &p.SEV)
	}
	for _, end := range ends {
		ours, theirs, err := socketpair()
		if err != nil {
			p.Close()
			return nil, fmt.Errorf("starting %s: %w", m.Binary, err)
		}
		*end = ours
		cmd.ExtraFiles = append(cmd.ExtraFiles, theirs)
	}
	started := make(chan error, 1)
	go p.run(cmd, started)
	if err := <-started; err != nil {
		p.Close()
		return nil, fmt.Errorf("starting %s: %w", m.Binary, err)
	}
	return p, nil
}

// run starts and waits on one OS thread: the kernel sends the parent-death
// signal when the thread that forked ends, not the process.
func (p *Process) run(cmd *exec.Cmd, started chan<- error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	defer close(p.done)
	err := cmd.Start()
	if err == nil {
		p.pid = cmd.Process.Pid
	}
	started <- err
	if err != nil {
		return
	}
	if err := cmd.Wait(); err != nil {
		p.err = fmt.Errorf("QEMU ended: %w", err)
	}
}

// PID is QEMU's process ID.
func (p *Process) PID() int { return p.pid }

// Done is closed when QEMU has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Err is nil after an orderly end. It is valid once Done is closed.
func (p *Process) Err() error {
	if p.err == nil {
		return nil
	}
	if text := p.stderr.String(); text != "" {
		return fmt.Errorf("%w: %s", p.err, lastLine(text))
	}
	return p.err
}

// Stderr is the end of what QEMU wrote there.
func (p *Process) Stderr() string { return p.stderr.String() }

// Kill ends QEMU at once and waits until it is gone. It loses nothing: all
// that a guest keeps dies with it anyway.
func (p *Process) Kill() {
	select {
	case <-p.done:
		return
	default:
	}
	// The process has not been waited for, or done would be closed soon; a
	// signal to a zombie does nothing.
	_ = unix.Kill(p.pid, unix.SIGKILL)
	<-p.done
}

// Close closes the channels.
func (p *Process) Close() error {
	var err error
	for _, c := range []net.Conn{p.Control, p.Console, p.SEV} {
		if c != nil {
			err = errors.Join(err, c.Close())
		}
	}
	return err
}

func socketpair() (net.Conn, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("making a socket pair: %w", err)
	}
	f := os.NewFile(uintptr(fds[0]), "channel")
	defer f.Close()
	conn, err := net.FileConn(f)
	if err != nil {
		unix.Close(fds[1])
		return nil, nil, fmt.Errorf("making a socket pair: %w", err)
	}
	return conn, os.NewFile(uintptr(fds[1]), "channel"), nil
}

// tail keeps the end of what is written to it.
type tail struct {
	max int
	mu  sync.Mutex // guards b
	b   []byte
}

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.b = append(t.b, p...)
	if over := len(t.b) - t.max; over > 0 {
		t.b = append(t.b[:0], t.b[over:]...)
	}
	return len(p), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(bytes.TrimSpace(t.b))
}

// lastLine returns the last line of QEMU's messages without its name in front.
func lastLine(s string) string {
	s = s[strings.LastIndexByte(s, '\n')+1:]
	if name, rest, ok := strings.Cut(s, ": "); ok && strings.Contains(name, "qemu-system") {
		return rest
	}
	return s
}
