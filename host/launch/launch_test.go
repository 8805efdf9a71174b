// SPDX-License-Identifier: Apache-2.0

package launch

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/coffer-dev/coffer/host/qemu"
	"github.com/coffer-dev/coffer/host/state"
	"github.com/coffer-dev/coffer/tee"
	"github.com/coffer-dev/coffer/wire"
)

// fakeGuest plays the guest over the real protocol: its container is cat with
// an exit status, and exec echoes its arguments.
type fakeGuest struct {
	mu    sync.Mutex // guards the fields below
	srv   *wire.Server
	asked []wire.Op
	stdio wire.Stdio
	id    string
	outs  []io.Closer
	// answer, if not nil, may refuse a request.
	answer  func(wire.Op) error
	console net.Conn
	served  chan struct{} // closed when the session is not served any more
	off     func()
}

func (g *fakeGuest) Handle(ctx context.Context, op wire.Op, body []byte) (any, *wire.Error) {
	v, err := g.handle(ctx, op, body)
	if err == nil {
		return v, nil
	}
	var w *wire.Error
	if !errors.As(err, &w) {
		w = &wire.Error{Code: wire.CodeFailed, Text: err.Error()}
	}
	return nil, w
}

func (g *fakeGuest) handle(ctx context.Context, op wire.Op, body []byte) (any, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.asked = append(g.asked, op)
	if g.answer != nil {
		if err := g.answer(op); err != nil {
			return nil, err
		}
	}
	switch op {
	case wire.OpHello:
		return wire.HelloReply{Version: wire.Version, Guest: "fake", TEE: tee.Emulated}, nil
	case wire.OpCreateContainer:
		var c wire.CreateContainer
		if err := wire.Decode(body, &c); err != nil {
			return nil, err
		}
		g.stdio, g.id = c.Stdio, c.Container
	case wire.OpStartContainer:
		in, err := g.srv.Claim(ctx, g.stdio.Stdin)
		if err != nil {
			return nil, err
		}
		out, err := g.srv.Claim(ctx, g.stdio.Stdout)
		if err != nil {
			return nil, err
		}
		errs, err := g.srv.Claim(ctx, g.stdio.Stderr)
		if err != nil {
			return nil, err
		}
		g.outs = []io.Closer{out, errs}
		go g.cat(in, out, errs)
	case wire.OpExec:
		var e wire.Exec
		if err := wire.Decode(body, &e); err != nil {
			return nil, err
		}
		if e.Args[0] == "none" {
			return nil, &wire.Error{Code: wire.CodeNotFound, Text: "none: not found"}
		}
		out, err := g.srv.Claim(ctx, e.Stdio.Stdout)
		if err != nil {
			return nil, err
		}
		errs, err := g.srv.Claim(ctx, e.Stdio.Stderr)
		if err != nil {
			return nil, err
		}
		go func() {
			fmt.Fprintln(out, strings.Join(e.Args, " "))
			out.Close()
			errs.Close()
			g.srv.Send(wire.EventExit, wire.Exit{Container: g.id, Process: e.Process, Status: 7})
		}()
	case wire.OpSignal:
		var s wire.Signal
		if err := wire.Decode(body, &s); err != nil {
			return nil, err
		}
		if s.Signal == int(unix.SIGKILL) {
			for _, f := range g.outs {
				f.Close()
			}
			go g.exit(137)
		}
	case wire.OpStats:
		return wire.Stats{Pids: 3}, nil
	case wire.OpAttest:
		return wire.AttestReply{Kind: tee.Emulated, Report: make([]byte, 1184)}, nil
	}
	return nil, nil
}

func (g *fakeGuest) cat(in, out, errs wire.Stream) {
	io.Copy(out, in)
	fmt.Fprint(errs, "bye")
	out.Close()
	errs.Close()
	g.exit(3)
}

func (g *fakeGuest) exit(status int) {
	g.srv.Send(wire.EventExit, wire.Exit{Container: g.id, Status: status})
}

// start is a machine whose processor is this process.
func (g *fakeGuest) start(*Spec, string, [32]byte) (*machine, error) {
	control, theirs := net.Pipe()
	console, serial := net.Pipe()
	done := make(chan struct{})
	var once sync.Once
	g.console, g.served = serial, make(chan struct{})
	g.off = func() {
		once.Do(func() {
			theirs.Close()
			serial.Close()
			close(done)
		})
	}
	go func() { // ends when the machine is off
		srv, err := wire.Accept(theirs)
		if err != nil {
			return
		}
		g.mu.Lock()
		g.srv = srv
		g.mu.Unlock()
		srv.Serve(context.Background(), g)
		close(g.served)
	}()
	return &machine{control: control, console: console, done: done, err: func() error { return nil }, kill: g.off, pid: 1}, nil
}

type group struct {
	dir   *state.Dir
	path  string
	id    string
	guest *fakeGuest
	ended chan error
	ready chan *Failure
	first *Stream
}

func launchFake(t *testing.T, g *fakeGuest, first bool, change func(*Spec)) *group {
	t.Helper()
	d, err := state.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	h, err := d.Create(state.Group{Name: "x"})
	if err != nil {
		t.Fatal(err)
	}
	spec := &Spec{TEE: tee.Emulated, Machine: qemu.Machine{Network: true}, Hostname: "x",
		Disks:     []Disk{{Path: "/l0", RootHash: strings.Repeat("a", 64), DataBlocks: 1, Label: "sha256:aa"}},
		Container: Container{Layers: []int{0}, Args: []string{"cat"}, Stdin: true, StdinOnce: true}}
	if change != nil {
		change(spec)
	}
	if err := Write(h.Path(), spec, []byte("policy")); err != nil {
		t.Fatal(err)
	}
	s, err := NewSupervisor(h, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	s.start = g.start
	out := &group{dir: d, path: h.Path(), id: h.Group.ID, guest: g, ended: make(chan error, 1), ready: make(chan *Failure, 2)}
	var conn net.Conn
	if first {
		ours, theirs := net.Pipe()
		out.first, conn = &Stream{conn: ours}, theirs
	}
	ctx, cancel := context.WithCancel(context.Background())
	var once sync.Once
	go func() {
		out.ended <- s.Run(ctx, conn, func(f *Failure) { once.Do(func() { out.ready <- f }) })
	}()
	t.Cleanup(cancel)
	return out
}

func (g *group) await(t *testing.T) {
	t.Helper()
	if f := <-g.ready; f != nil {
		t.Fatalf("start: %v %v", f, f.Hints)
	}
}

func (g *group) record(t *testing.T) state.Group {
	t.Helper()
	r, err := g.dir.Find(g.id)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestForeground(t *testing.T) {
	g := launchFake(t, &fakeGuest{}, true, nil)
	g.await(t)
	go func() {
		g.first.Input([]byte("hello\nworld"))
		g.first.EndInput()
	}()
	var out, errs bytes.Buffer
	exit, err := g.first.Copy(func(stderr bool, b []byte) error {
		if stderr {
			errs.Write(b)
		} else {
			out.Write(b)
		}
		return nil
	})
	if err != nil || exit.Status != 3 {
		t.Errorf("Copy = %+v, %v; want status 3", exit, err)
	}
	if out.String() != "hello\nworld" || errs.String() != "bye" {
		t.Errorf("output %q, %q; want the input and bye", out.String(), errs.String())
	}
	if err := <-g.ended; err != nil {
		t.Errorf("Run: %v", err)
	}
	if r := g.record(t); r.Status != state.Exited || r.ExitCode != 3 || r.Error != "" {
		t.Errorf("record = %+v; want it exited with 3", r)
	}
	want := []wire.Op{wire.OpHello, wire.OpSetPolicy, wire.OpConfigureNetwork, wire.OpMountDevice, wire.OpPrepareScratch,
		wire.OpMountOverlay, wire.OpCreateContainer, wire.OpStartContainer}
	if diff := cmp.Diff(want, g.guest.asked); diff != "" {
		t.Errorf("requests (-want +got):\n%s", diff)
	}
	l, err := OpenLog(g.path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	var logged bytes.Buffer
	for {
		e, err := l.Next()
		if err != nil {
			break
		}
		if e.Stream == "stdout" {
			logged.Write(e.Data())
		}
	}
	if logged.String() != "hello\nworld" {
		t.Errorf("log = %q; want the output", logged.String())
	}
	if _, err := Wait(t.Context(), g.path); !errors.Is(err, ErrNotRunning) {
		t.Errorf("Wait after the end: %v; want ErrNotRunning", err)
	}
}

func TestDetached(t *testing.T) {
	g := launchFake(t, &fakeGuest{}, false, nil)
	g.await(t)
	ctx := t.Context()
	if st, err := Stats(ctx, g.path); err != nil || st.Pids != 3 {
		t.Errorf("Stats = %+v, %v; want 3 processes", st, err)
	}
	raw, err := Attest(ctx, g.path, make([]byte, 32))
	if err != nil {
		t.Fatal(err)
	}
	if e, err := tee.DecodeEvidence(raw); err != nil || e.Kind != tee.Emulated {
		t.Errorf("Attest = %s, %v; want evidence", raw, err)
	}
	x, err := Exec(ctx, g.path, Program{Args: []string{"echo", "hi"}})
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	exit, err := x.Copy(func(_ bool, b []byte) error { out.Write(b); return nil })
	if err != nil || exit.Status != 7 || out.String() != "echo hi\n" {
		t.Errorf("Exec = %+v, %v, %q; want status 7 and the echo", exit, err, out.String())
	}
	var f *Failure
	if _, err := Exec(ctx, g.path, Program{Args: []string{"none"}}); !errors.As(err, &f) || f.Status != StatusNotFound {
		t.Errorf("Exec of nothing: %v; want status %d", err, StatusNotFound)
	}
	// The fake ignores SIGTERM and so is killed.
	if e, err := Stop(ctx, g.path, 0); err != nil || e.Status != 137 {
		t.Errorf("Stop = %+v, %v; want 137", e, err)
	}
	if err := <-g.ended; err != nil {
		t.Error(err)
	}
	if r := g.record(t); r.ExitCode != 137 {
		t.Errorf("record = %+v; want 137", r)
	}
}

// TestDrainIsBounded has a guest that says a process has ended and keeps its output open.
func TestDrainIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, w := io.Pipe()
		p := newProcess("x", nil)
		p.pump(kindStdout, r)
		fmt.Fprint(w, "x")
		p.end(Exit{})
		p.finish()
		w.Close()
	})
}

// TestAttachTwice has two clients see the same output.
func TestAttachTwice(t *testing.T) {
	g := launchFake(t, &fakeGuest{}, false, nil)
	g.await(t)
	var streams []*Stream
	for range 2 {
		s, err := Attach(t.Context(), g.path, true)
		if err != nil {
			t.Fatal(err)
		}
		streams = append(streams, s)
	}
	if err := streams[0].Input([]byte("x")); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for i, s := range streams {
		seen := make(chan struct{})
		wg.Go(func() {
			var once sync.Once
			exit, err := s.Copy(func(stderr bool, b []byte) error {
				once.Do(func() { close(seen) })
				return nil
			})
			if err != nil || exit.Status != 3 {
				t.Errorf("client %d: %+v, %v; want status 3", i, exit, err)
			}
		})
		if i == 0 {
			<-seen
			defer s.Close()
		}
	}
	streams[1].EndInput()
	wg.Wait()
	<-g.ended
}

func TestStartFails(t *testing.T) {
	denial := &wire.Error{Code: wire.CodeDenied, Text: "create_container: no container allows it",
		Denial: &wire.Denial{Explanation: "nearest: web\n  command differs\x1b[2J"}}
	for _, tt := range []struct {
		name   string
		at     wire.Op
		err    error
		status int
		text   string
		line   string
	}{
		{"denied", wire.OpCreateContainer, denial, 125, "denied by policy: create_container", "  command differs?[2J"},
		{"not found", wire.OpStartContainer, &wire.Error{Code: wire.CodeNotFound, Text: "no such file"}, 127, "no such file", ""},
		{"not executable", wire.OpStartContainer, &wire.Error{Code: wire.CodeNotExec, Text: "no"}, 126, "starting the container", ""},
		{"wrong policy", wire.OpSetPolicy, &wire.Error{Code: wire.CodeFatal, Text: "its SHA-256 is another"}, 125, "its SHA-256 is another", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			fake := &fakeGuest{}
			fake.answer = func(o wire.Op) error {
				if o != tt.at {
					return nil
				}
				if w := new(wire.Error); errors.As(tt.err, &w) && w.Code == wire.CodeFatal {
					// A guest that says fatal powers off after its answer.
					go func() {
						<-fake.served
						fake.off()
					}()
				}
				return tt.err
			}
			g := launchFake(t, fake, true, nil)
			f := <-g.ready
			if f == nil || f.Status != tt.status || !strings.Contains(f.Text, tt.text) {
				t.Fatalf("ready = %+v; want status %d and %q", f, tt.status, tt.text)
			}
			if tt.line != "" && (len(f.Lines) < 2 || f.Lines[1] != tt.line || !strings.Contains(f.Lines[0], "denied by policy")) {
				t.Errorf("lines %q; want a denial and %q", f.Lines, tt.line)
			}
			if err := <-g.ended; err == nil {
				t.Error("Run succeeded")
			}
			if r := g.record(t); r.Status != state.Exited || r.ExitCode != tt.status || r.Error == "" {
				t.Errorf("record = %+v; want status %d and a reason", r, tt.status)
			}
		})
	}
}

func TestGuestEnds(t *testing.T) {
	for _, tt := range []struct{ name, console, want string }{
		{"fatal", "\ncoffer-guest: fatal: loading module x: no\n", "the guest ended: loading module x: no"},
		{"verity", "device-mapper: verity: 254:0: data block 7 is corrupted\nKernel panic - not syncing: dm-verity device corrupted\n",
			"layer 0 (sha256:aa) is corrupted: data block 7"},
		{"panic", "Kernel panic - not syncing: Out of memory\n", "the guest's kernel panicked: Out of memory"},
		{"silent", "hello\n", "the guest ended without a word"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			fake := &fakeGuest{}
			g := launchFake(t, fake, false, nil)
			g.await(t)
			io.WriteString(fake.console, tt.console)
			fake.off()
			if err := <-g.ended; err != nil {
				t.Error(err)
			}
			r := g.record(t)
			if r.ExitCode != StatusFailed || !strings.Contains(r.Error, tt.want) {
				t.Errorf("record = %d, %q; want %d, %q", r.ExitCode, r.Error, StatusFailed, tt.want)
			}
		})
	}
}

// TestGuestHangs kills a group whose guest says nothing.
func TestGuestHangs(t *testing.T) {
	d, err := state.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	h, err := d.Create(state.Group{Name: "x", AutoRemove: true})
	if err != nil {
		t.Fatal(err)
	}
	if err := Write(h.Path(), &Spec{TEE: tee.Emulated, Container: Container{Args: []string{"x"}}}, nil); err != nil {
		t.Fatal(err)
	}
	s, err := NewSupervisor(h, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	s.start = func(*Spec, string, [32]byte) (*machine, error) {
		control, theirs := net.Pipe()
		console, serial := net.Pipe()
		done := make(chan struct{})
		go func() {
			io.ReadFull(theirs, make([]byte, 12))
			cancel()
			io.Copy(io.Discard, theirs)
		}()
		var once sync.Once
		kill := func() { once.Do(func() { close(done); serial.Close() }) }
		return &machine{control: control, console: console, done: done, err: func() error { return nil }, kill: kill}, nil
	}
	var said *Failure
	if err := s.Run(ctx, nil, func(f *Failure) { said = f }); err == nil || said == nil {
		t.Errorf("Run = %v, said %v; want an error", err, said)
	}
	if _, err := d.Find("x"); !errors.Is(err, state.ErrNotFound) {
		t.Errorf("Find after --rm: %v; want ErrNotFound", err)
	}
}

func TestConsoleIsBounded(t *testing.T) {
	name := filepath.Join(t.TempDir(), "console")
	c, err := newConsole(name, nil, false)
	if err != nil {
		t.Fatal(err)
	}
	c.read(io.LimitReader(zeros{}, 3*maxConsole))
	st, err := os.Stat(name)
	if err != nil || st.Size() != maxConsole {
		t.Errorf("console file: %v, %v; want %d bytes", st.Size(), err, maxConsole)
	}
	if n := len(c.lastLines()); n > maxTail+1 {
		t.Errorf("%d lines kept; want at most %d", n, maxTail+1)
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { return len(p), nil }

func TestLogRotates(t *testing.T) {
	dir := t.TempDir()
	r, err := newRecord(dir)
	if err != nil {
		t.Fatal(err)
	}
	r.max = 16 << 10
	line := append(bytes.Repeat([]byte{'x'}, 1<<10), '\n')
	var want [32]byte
	for i := range 20 {
		line[0] = byte('a' + i)
		if err := r.write("stdout", line); err != nil {
			t.Fatal(err)
		}
		want = sha256.Sum256(line)
	}
	if err := r.write("stderr", []byte{0xff, 0xfe}); err != nil {
		t.Fatal(err)
	}
	r.close()
	l, err := OpenLog(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	var n int
	var last, lastButOne *Entry
	for {
		e, err := l.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		n, lastButOne, last = n+1, last, e
	}
	if n != 21 {
		t.Errorf("%d entries; want 21 over two files", n)
	}
	if sha256.Sum256(lastButOne.Data()) != want || !bytes.Equal(last.Data(), []byte{0xff, 0xfe}) || last.Stream != "stderr" {
		t.Error("the last entries are not what was written")
	}
}

func FuzzReadFrame(f *testing.F) {
	f.Add([]byte("q\x00\x00\x00\x02{}"))
	f.Add([]byte("q\xff\xff\xff\xff"))
	f.Fuzz(func(t *testing.T, b []byte) {
		k, body, err := readFrame(bytes.NewReader(b))
		if err == nil && len(body) > maxFrame {
			t.Fatalf("frame %q of %d bytes", k, len(body))
		}
	})
}

func FuzzConsole(f *testing.F) {
	f.Add([]byte("device-mapper: verity: 254:0: data block 7 is corrupted\r\n"))
	f.Add([]byte("coffer-guest: fatal: x\x1b[31m\xff\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := newConsole(os.DevNull, []Disk{{Label: "x"}}, false)
		if err != nil {
			t.Fatal(err)
		}
		c.read(bytes.NewReader(b))
		for _, s := range append(c.lastLines(), c.lastWords()) {
			if strings.ContainsAny(s, "\x1b\n\r") || len(s) > maxConsoleLine+200 {
				t.Fatalf("unprintable or long: %q", s)
			}
		}
	})
}
