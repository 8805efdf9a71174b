// SPDX-License-Identifier: Apache-2.0

package container

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Stdio is where a process's standard files lead. Nil is /dev/null. With
// Terminal, which goes both ways, the other three are nil. All are closed when
// they are no longer used.
type Stdio struct {
	Stdin    io.ReadCloser
	Stdout   io.WriteCloser
	Stderr   io.WriteCloser
	Terminal io.ReadWriteCloser
	// Cols and Rows are the first size of the terminal; 0 leaves the default.
	Cols, Rows uint16
}

// Close closes all that is there.
func (s *Stdio) Close() {
	for _, c := range []io.Closer{s.Stdin, s.Stdout, s.Stderr, s.Terminal} {
		if c != nil {
			_ = c.Close() // the host's end; nothing to do about it
		}
	}
}

// drainTime is how long output that the host does not take, or that a process
// left behind keeps open, delays the news that its process has ended.
const drainTime = 5 * time.Second

// plumbing connects the descriptors of one process with its Stdio.
type plumbing struct {
	stdio  Stdio
	child  []*os.File // descriptors 0, 1, 2 of runc; ours to close after the start
	stdin  *os.File   // write end; nil if none
	output []outlet
	copies sync.WaitGroup // copies of output

	console *net.UnixListener // nil without a terminal
	master  *os.File          // the terminal, once runc has sent it
}

// outlet is one direction from the container to the host.
type outlet struct {
	from *os.File
	to   io.WriteCloser
}

func newPlumbing(stdio Stdio, dir string) (*plumbing, error) {
	p := &plumbing{stdio: stdio}
	if stdio.Terminal != nil {
		l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(dir, "console"), Net: "unix"})
		if err != nil {
			return nil, fmt.Errorf("listening for a terminal: %w", err)
		}
		p.console = l
	}
	if err := p.open(); err != nil {
		p.abandon()
		return nil, fmt.Errorf("making standard files: %w", err)
	}
	return p, nil
}

func (p *plumbing) open() error {
	if err := p.input(); err != nil {
		return err
	}
	for _, to := range []io.WriteCloser{p.stdio.Stdout, p.stdio.Stderr} {
		if to == nil {
			if err := p.null(); err != nil {
				return err
			}
			continue
		}
		r, w, err := os.Pipe()
		if err != nil {
			return err
		}
		p.child = append(p.child, w)
		p.output = append(p.output, outlet{r, to})
	}
	return nil
}

func (p *plumbing) input() error {
	if p.stdio.Stdin == nil {
		return p.null()
	}
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	p.child, p.stdin = append(p.child, r), w
	return nil
}

func (p *plumbing) null() error {
	f, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	p.child = append(p.child, f)
	return nil
}

// started gives the child's ends up and begins to copy.
func (p *plumbing) started() error {
	p.closeChild()
	if p.console != nil {
		if err := p.receiveTerminal(); err != nil {
			return err
		}
	}
	if p.stdin != nil {
		go func() { // ends with the stream or the pipe, both closed by finish
			_, _ = io.Copy(p.stdin, p.stdio.Stdin)
			p.stdin.Close()
		}()
	}
	if p.master != nil {
		p.output = append(p.output, outlet{p.master, p.stdio.Terminal})
		go func() { _, _ = io.Copy(p.master, p.stdio.Terminal) }() // ends as above
	}
	for _, o := range p.output {
		p.copies.Go(func() {
			_, _ = io.Copy(o.to, o.from) // a terminal ends with EIO; a gone host ends the copy too
			_ = o.to.Close()
		})
	}
	return nil
}

// finish is called when the process has ended. It waits for its output, but
// not for ever.
func (p *plumbing) finish() {
	copied := make(chan struct{})
	go func() {
		p.copies.Wait()
		close(copied)
	}()
	select {
	case <-copied:
	case <-time.After(drainTime):
	}
	p.abandon()
	<-copied
}

// abandon closes everything.
func (p *plumbing) abandon() {
	p.closeChild()
	p.stdio.Close()
	if p.stdin != nil {
		p.stdin.Close()
	}
	for _, o := range p.output {
		o.from.Close()
	}
	if p.console != nil {
		p.console.Close() // removes its path too
	}
	if p.master != nil {
		p.master.Close()
	}
}

func (p *plumbing) closeChild() {
	for _, f := range p.child {
		f.Close()
	}
	p.child = nil
}

// receiveTerminal takes the terminal's master from runc, which has sent it
// before it returned.
func (p *plumbing) receiveTerminal() error {
	if err := p.console.SetDeadline(time.Now().Add(drainTime)); err != nil {
		return fmt.Errorf("receiving the terminal: %w", err)
	}
	conn, err := p.console.AcceptUnix()
	if err != nil {
		return fmt.Errorf("receiving the terminal: %w", err)
	}
	defer conn.Close()
	name, oob := make([]byte, 4096), make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := conn.ReadMsgUnix(name, oob)
	if err != nil {
		return fmt.Errorf("receiving the terminal: %w", err)
	}
	fd, err := oneDescriptor(oob[:n])
	if err != nil {
		return fmt.Errorf("receiving the terminal: %w", err)
	}
	if err := unix.SetNonblock(fd, true); err != nil { // so that Close ends a Read
		return errors.Join(fmt.Errorf("receiving the terminal: %w", err), unix.Close(fd))
	}
	p.master = os.NewFile(uintptr(fd), "terminal")
	return p.resize(p.stdio.Cols, p.stdio.Rows)
}

func oneDescriptor(oob []byte) (int, error) {
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return -1, err
	}
	if len(msgs) != 1 {
		return -1, fmt.Errorf("%d control messages came with it, want 1", len(msgs))
	}
	fds, err := unix.ParseUnixRights(&msgs[0])
	if err != nil {
		return -1, err
	}
	if len(fds) != 1 {
		return -1, fmt.Errorf("%d descriptors came with it, want 1", len(fds))
	}
	return fds[0], nil
}

func (p *plumbing) resize(cols, rows uint16) error {
	if p.master == nil {
		return errors.New("resizing: the process has no terminal")
	}
	if cols == 0 || rows == 0 {
		return nil
	}
	c, err := p.master.SyscallConn()
	if err != nil {
		return fmt.Errorf("resizing: %w", err)
	}
	var ioctl error
	err = c.Control(func(fd uintptr) {
		ioctl = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Col: cols, Row: rows})
	})
	return errors.Join(err, ioctl)
}
