// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/coffer-dev/coffer/host/state"
)

// terminal is a real terminal, with coffer at it.
type terminal struct {
	t      *testing.T
	master *os.File
	screen *syncBuffer
	read   int // how much of the screen was looked at
	cmd    *exec.Cmd
	ended  chan error
}

// openTerminal makes a pseudo-terminal of this size.
func openTerminal(t *testing.T, cols, rows uint16) (master, slave *os.File) {
	t.Helper()
	master, err := os.OpenFile(need(t, "/dev/ptmx", "mount devpts"), os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	fd := int(master.Fd())
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Col: cols, Row: rows}); err != nil {
		t.Fatal(err)
	}
	slave, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	return master, slave
}

// at starts coffer at a new terminal.
func (u *user) at(cols, rows uint16, args ...string) *terminal {
	u.t.Helper()
	master, slave := openTerminal(u.t, cols, rows)
	ctx, cancel := context.WithTimeout(context.Background(), 3*patience)
	w := &terminal{t: u.t, master: master, screen: &syncBuffer{}, cmd: u.command(ctx, args...), ended: make(chan error, 1)}
	w.cmd.Stdin, w.cmd.Stdout, w.cmd.Stderr = slave, slave, slave
	w.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	err := w.cmd.Start()
	slave.Close()
	if err != nil {
		u.t.Fatal(err)
	}
	copied := make(chan struct{})
	go func() {
		defer close(copied)
		b := make([]byte, 4096)
		for {
			n, err := master.Read(b)
			_, _ = w.screen.Write(b[:n])
			if err != nil {
				return // EIO: nobody has the other side any more
			}
		}
	}()
	go func() { w.ended <- w.cmd.Wait() }()
	u.t.Cleanup(func() {
		cancel()
		<-copied
		master.Close()
		if u.t.Failed() {
			u.t.Logf("terminal of coffer %q:\n%s", args, w.screen)
		}
	})
	return w
}

// types sends keys.
func (w *terminal) types(keys string) {
	w.t.Helper()
	if _, err := w.master.WriteString(keys); err != nil {
		w.t.Fatal(err)
	}
}

// sees waits until text is shown that was not looked at before.
func (w *terminal) sees(text string) {
	w.t.Helper()
	eventually(w.t, fmt.Sprintf("waiting for %q on the terminal", text), func() bool {
		all := w.screen.String()
		i := strings.Index(all[w.read:], text)
		if i >= 0 {
			w.read += i + len(text)
		}
		return i >= 0
	})
}

// ends waits for coffer's end and returns its status.
func (w *terminal) ends() int {
	w.t.Helper()
	err := <-w.ended
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		w.t.Fatal(err)
	}
	return w.cmd.ProcessState.ExitCode()
}

func (w *terminal) resize(cols, rows uint16) {
	w.t.Helper()
	if err := unix.IoctlSetWinsize(int(w.master.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Col: cols, Row: rows}); err != nil {
		w.t.Fatal(err)
	}
}

// One VM, because each takes seconds: what is tested follows what a person does.
func TestTerminal(t *testing.T) {
	t.Parallel()
	u := newUser(t)
	w := u.at(101, 37, "run", "-it", "--name", "term", "--allow-exec", "sh", "-e", "PS1=ready> ", "oci:"+image(t, "busybox"), "sh")
	w.sees("ready> ")
	w.types("tty; echo size=$(stty size) term=$TERM.\n")
	w.sees("/dev/")
	w.sees("size=37 101 term=xterm.")
	w.resize(60, 20)
	w.types("until [ \"$(stty size)\" = '20 60' ]; do :; done; echo resi''zed\n")
	w.sees("resized")
	w.types("echo rea''dy; cat\n") // the shell takes what is typed before that for itself
	w.sees("ready\r\n")
	w.types("echoed\n")
	w.sees("echoed\r\nechoed\r\n")
	w.types("\x03")
	w.sees("ready> ")
	w.types("echo after=$?.\n")
	w.sees("after=130.")
	w.sees("ready> ")
	w.types("\x10\x05-again\n") // ctrl-p, the last command, goes through when ctrl-q does not follow
	w.sees("after=0.-again\r\n")
	w.types("\x10\x11")
	if code := w.ends(); code != 0 {
		t.Errorf("detaching: status %d", code)
	}
	if g := u.group("term"); g.Status != state.Running || !g.Terminal {
		t.Errorf("after detaching the group is %+v", g)
	}

	e := u.at(80, 24, "exec", "-it", "-e", "PS1=ready> ", "term", "sh")
	e.sees("ready> ")
	e.types("echo term=$(env | grep -c ^TERM=xterm).$(env | grep -c ^PS1=) pid1=$(tr '\\000' ' ' </proc/1/cmdline) size=$(stty size).; exit 3\n")
	e.sees("term=1.1 pid1=sh size=24 80.")
	if code := e.ends(); code != 3 {
		t.Errorf("exec: status %d; want 3", code)
	}
	u.refused(125, []string{"denied by policy", "exec"}, "exec", "term", "cat", "/etc/passwd")

	a := u.at(90, 30, "attach", "term")
	a.types("until [ \"$(stty size)\" = '30 90' ]; do :; done; echo atta''ched\n")
	a.sees("attached")
	a.types("exit 5\n")
	if code := a.ends(); code != 5 {
		t.Errorf("attach: status %d; want 5", code)
	}
	if log := u.must("logs", "term"); !strings.Contains(log, "after=0.-again") || !strings.Contains(log, "attached") {
		t.Errorf("the log misses what the terminal showed: %q", log)
	}
	u.must("rm", "term")
}
