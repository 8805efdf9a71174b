// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"

	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"github.com/coffer-dev/coffer/host/launch"
)

// errDetached means that the user left and the container goes on.
var errDetached = errors.New("detached")

// conversation says how to talk with a process.
type conversation struct {
	dir      string // of the group
	terminal bool
	stdin    bool
	signals  bool // pass signals on to the container's init
}

// talk connects this process's standard files with a process in the guest
// until that ends.
func (a *app) talk(ctx context.Context, s *launch.Stream, c conversation) (launch.Exit, error) {
	defer s.Close()
	if c.terminal {
		restore, err := a.raw(s, c.stdin)
		if err != nil {
			return launch.Exit{}, err
		}
		defer restore()
	}
	stop := func() {}
	if c.signals {
		stop = a.forwardSignals(ctx, c)
	}
	defer stop()
	detached := make(chan struct{})
	if c.stdin {
		// It ends with standard input, or with this process.
		go func() {
			if a.sendInput(s, c.terminal) {
				close(detached)
				s.Close()
			}
		}()
	}
	exit, err := s.Copy(func(stderr bool, b []byte) error {
		out := a.stdout
		if stderr {
			out = a.stderr
		}
		_, err := out.Write(b)
		return err
	})
	select {
	case <-detached:
		return launch.Exit{}, errDetached
	default:
		return exit, err
	}
}

// sendInput copies standard input; it reports whether the user asked to detach.
func (a *app) sendInput(s *launch.Stream, terminal bool) bool {
	b := make([]byte, 32<<10)
	var keys detachKeys
	for {
		n, err := a.stdin.Read(b)
		in := b[:n]
		if terminal {
			var leave bool
			if in, leave = keys.scan(in); leave {
				return true
			}
		}
		if len(in) > 0 && s.Input(in) != nil {
			return false // the process has gone
		}
		if err != nil {
			_ = s.EndInput() // whether it was io.EOF or not, there is no more
			return false
		}
	}
}

// detachKeys finds docker's ctrl-p ctrl-q in what is typed.
type detachKeys struct{ held bool }

// scan returns what to pass on. A ctrl-p is held back until the next key.
func (d *detachKeys) scan(in []byte) (out []byte, leave bool) {
	const ctrlP, ctrlQ = 0x10, 0x11
	for _, c := range in {
		if d.held {
			d.held = false
			if c == ctrlQ {
				return out, true
			}
			out = append(out, ctrlP)
		}
		if c == ctrlP {
			d.held = true
			continue
		}
		out = append(out, c)
	}
	return out, false
}

// raw hands the terminal over to the guest's: keys go there one by one, and
// sizes follow the window. Without a terminal here it does nothing.
func (a *app) raw(s *launch.Stream, stdin bool) (func(), error) {
	undo := func() {}
	if in, ok := a.stdin.(*os.File); ok && stdin && term.IsTerminal(int(in.Fd())) {
		old, err := term.MakeRaw(int(in.Fd()))
		if err != nil {
			return nil, fmt.Errorf("setting up the terminal: %w", err)
		}
		undo = func() { _ = term.Restore(int(in.Fd()), old) } // there is nothing left to try
	}
	out, ok := a.stdout.(*os.File)
	if !ok || !term.IsTerminal(int(out.Fd())) {
		return undo, nil
	}
	winch := make(chan os.Signal, 1)
	signal.Notify(winch, unix.SIGWINCH)
	done := make(chan struct{})
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			if cols, rows, err := term.GetSize(int(out.Fd())); err == nil {
				_ = s.Resize(uint16(cols), uint16(rows)) // the process may have ended
			}
			select {
			case <-winch:
			case <-done:
				return
			}
		}
	}()
	return func() {
		signal.Stop(winch)
		close(done)
		<-ended
		undo()
	}, nil
}

// windowSize is the size of this process's terminal, or zeros.
func (a *app) windowSize() (cols, rows uint16) {
	out, ok := a.stdout.(*os.File)
	if !ok {
		return 0, 0
	}
	c, r, err := term.GetSize(int(out.Fd()))
	if err != nil {
		return 0, 0
	}
	return uint16(c), uint16(r)
}

// forwardSignals passes signals on, as docker does in the foreground.
func (a *app) forwardSignals(ctx context.Context, c conversation) func() {
	sigs := make(chan os.Signal, 8)
	signal.Notify(sigs, unix.SIGINT, unix.SIGTERM, unix.SIGHUP, unix.SIGQUIT, unix.SIGUSR1, unix.SIGUSR2)
	done := make(chan struct{})
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			select {
			case sig := <-sigs:
				n, ok := sig.(unix.Signal)
				if !ok {
					continue
				}
				if err := launch.Kill(ctx, c.dir, int(n)); err != nil && !errors.Is(err, launch.ErrNotRunning) {
					fmt.Fprintf(a.stderr, "coffer: the container did not get %s: %v\n", unix.SignalName(n), err)
					fmt.Fprintln(a.stderr, "coffer: hint: `coffer stop` ends it whatever its policy says")
				}
			case <-done:
				return
			}
		}
	}()
	return func() {
		signal.Stop(sigs)
		close(done)
		<-ended
	}
}
