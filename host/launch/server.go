// SPDX-License-Identifier: Apache-2.0

package launch

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/coffer-dev/coffer/tee"
	"github.com/coffer-dev/coffer/wire"
)

// callTime bounds a request to a running guest.
const callTime = 2 * time.Minute

// maxClients bounds the connections that are served at once.
const maxClients = 256

// address is the socket's path through the directory's descriptor: a socket's
// path may be 107 bytes long, and groups lie deeper than that. The file must
// stay open while the path is used.
func address(dir *os.File) string {
	return fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), socketFile)
}

// listen makes the group's socket. Only the directory's owner can reach it.
func (s *Supervisor) listen() (*net.UnixListener, error) {
	dir, err := os.Open(s.dir)
	if err != nil {
		return nil, fmt.Errorf("opening the group's socket: %w", err)
	}
	defer dir.Close()
	if err := os.Remove(filepath.Join(s.dir, socketFile)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("opening the group's socket: %w", err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: address(dir), Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("opening the group's socket: %w", err)
	}
	l.SetUnlinkOnClose(false) // the path is of a descriptor that is closed by then
	return l, nil
}

// serve answers clients until l is closed, and waits for them.
func (s *Supervisor) serve(ctx context.Context, l *net.UnixListener) {
	var wg sync.WaitGroup
	defer wg.Wait()
	slots := make(chan struct{}, maxClients)
	for {
		conn, err := l.AcceptUnix()
		if err != nil {
			return
		}
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			defer conn.Close()
			stop := context.AfterFunc(ctx, func() { conn.Close() })
			defer stop()
			s.handle(ctx, &client{conn: conn})
		})
	}
}

// handle answers one request.
func (s *Supervisor) handle(ctx context.Context, c *client) {
	var q request
	if err := readJSON(c.conn, kindRequest, &q); err != nil {
		return // whoever it was has gone
	}
	switch q.Op {
	case opAttach:
		if s.answer(c, nil, nil) {
			s.stream(ctx, c, s.init, !q.NoStdin)
		}
		return
	case opFollow:
		if s.answer(c, nil, nil) {
			s.follow(ctx, c)
		}
		return
	case opExec:
		s.exec(ctx, c, q.Exec)
		return
	}
	call, cancel := context.WithTimeoutCause(ctx, callTime, errors.New("the guest does not answer"))
	defer cancel()
	var result any
	var err error
	switch q.Op {
	case opKill:
		err = s.signal(call, q.Signal)
	case opStop:
		result, err = s.stop(ctx, time.Duration(q.Timeout*float64(time.Second)))
	case opWait:
		result, err = s.wait(ctx)
	case opStats:
		var st wire.Stats
		err = s.client.Call(call, wire.OpStats, wire.ContainerRef{Container: s.container}, &st)
		result = st
	case opAttest:
		result, err = s.attest(call, q.Nonce)
	default:
		err = fmt.Errorf("unknown request %q", q.Op)
	}
	s.answer(c, result, err)
}

// answer reports whether the client may go on.
func (s *Supervisor) answer(c *client, result any, err error) bool {
	var r reply
	if err != nil {
		r.Error = failure(err)
	} else if result != nil {
		raw, merr := json.Marshal(result)
		if merr != nil {
			s.log.Error("encoding answer", slog.Any("error", merr))
			return false
		}
		r.Result = raw
	}
	return c.sendJSON(kindReply, r) == nil && err == nil
}

// stream serves an attached client until it goes or the process has ended.
func (s *Supervisor) stream(ctx context.Context, c *client, p *process, stdin bool) {
	p.attach(c)
	defer p.detach(c)
	gone := make(chan struct{})
	go func() { // ends when handle closes the connection
		defer close(gone)
		if err := p.serve(c, func(z size) { s.resize(ctx, p, z) }, stdin); err != nil && ctx.Err() == nil {
			s.log.Debug("client ended", slog.Any("error", err))
		}
	}()
	select {
	case <-p.drained:
		p.mu.Lock()
		exit := *p.exit
		p.mu.Unlock()
		_ = c.sendJSON(kindExit, exit) // a second word is not read
	case <-gone:
	}
	c.conn.Close()
	<-gone
}

// serveFirst serves the client that was there from the start. If it goes before
// the container runs, so does the group.
func (s *Supervisor) serveFirst(c *client, abort func()) {
	err := s.init.serve(c, func(z size) { s.resize(context.Background(), s.init, z) }, s.spec.Container.Stdin)
	s.init.detach(c)
	if s.spec.Container.StdinOnce {
		s.init.write(nil)
	}
	s.mu.Lock()
	started := s.started
	s.mu.Unlock()
	if !started && s.init.running() {
		abort()
	}
	if err != nil {
		s.log.Debug("first client ended", slog.Any("error", err))
	}
}

func (s *Supervisor) follow(ctx context.Context, c *client) {
	for {
		grew, alive := s.record.more()
		if c.send(kindStdout, nil) != nil || !alive {
			return
		}
		select {
		case <-grew:
		case <-ctx.Done():
			return
		}
	}
}

func (s *Supervisor) signal(ctx context.Context, sig int) error {
	err := s.client.Call(ctx, wire.OpSignal, wire.Signal{Container: s.container, Signal: sig}, nil)
	if errors.Is(err, wire.ErrClosed) && within(s.init.exited, goodbyeTime) {
		return nil // it ended so quickly that the session was over before the answer came
	}
	return err
}

// stop asks the container to end, then kills it, then the machine: the policy
// may forbid a signal, but a host can always cut the power.
func (s *Supervisor) stop(ctx context.Context, timeout time.Duration) (Exit, error) {
	sig := s.spec.Container.StopSignal
	if sig == 0 {
		sig = int(unix.SIGTERM)
	}
	s.mu.Lock()
	s.stopping = true
	s.mu.Unlock()
	for _, try := range []struct {
		sig  int
		wait time.Duration
	}{{sig, timeout}, {int(unix.SIGKILL), 10 * time.Second}} {
		call, cancel := context.WithTimeout(ctx, try.wait+time.Second)
		err := s.signal(call, try.sig)
		cancel()
		if err != nil {
			s.log.Warn("signal refused", slog.Int("signal", try.sig), slog.Any("error", err))
			continue
		}
		t := time.NewTimer(try.wait)
		select {
		case <-s.init.exited:
			t.Stop()
			return s.wait(ctx)
		case <-t.C:
		}
	}
	s.client.Close() // which watch takes for the end
	return s.wait(ctx)
}

func (s *Supervisor) wait(ctx context.Context) (Exit, error) {
	select {
	case <-s.init.exited:
	case <-ctx.Done():
		return Exit{}, errEnded
	}
	s.init.mu.Lock()
	defer s.init.mu.Unlock()
	return *s.init.exit, nil
}

func (s *Supervisor) resize(ctx context.Context, p *process, z size) {
	if p.stdio.Terminal == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	if err := s.client.Call(ctx, wire.OpResize, wire.Resize{Container: s.container, Process: p.name, Cols: z.Cols, Rows: z.Rows}, nil); err != nil {
		s.log.Debug("resizing", slog.Any("error", err))
	}
}

// attest returns the guest's evidence with the policy that the host knows.
func (s *Supervisor) attest(ctx context.Context, nonce []byte) (json.RawMessage, error) {
	var r wire.AttestReply
	if err := s.client.Call(ctx, wire.OpAttest, wire.Attest{Nonce: nonce}, &r); err != nil {
		return nil, doing("getting evidence", err)
	}
	e := tee.Evidence{Kind: r.Kind, Report: r.Report, Certificates: r.Certificates}
	b, err := e.Encode()
	if err != nil {
		return nil, fmt.Errorf("getting evidence: %w", err)
	}
	return b, nil
}

// exec starts one more process and streams it.
func (s *Supervisor) exec(ctx context.Context, c *client, in *Program) {
	p, err := s.startExec(ctx, in)
	if err != nil {
		s.answer(c, nil, err)
		return
	}
	// A client that has gone leaves its process, as docker's does.
	there := s.answer(c, nil, nil)
	p.attach(c)
	p.flow()
	go func() { // ends with the process, at the latest with the session
		select {
		case <-p.exited:
		case <-s.client.Done():
			p.end(Exit{Status: StatusFailed, Error: "the group ended"})
		}
		p.finish()
	}()
	if there && !in.Detach {
		s.stream(ctx, c, p, in.Stdin)
	}
	p.detach(c)
}

func (s *Supervisor) startExec(ctx context.Context, in *Program) (*process, error) {
	if in == nil || len(in.Args) == 0 {
		return nil, errors.New("starting a process: no command")
	}
	s.mu.Lock()
	s.execs++
	p := newProcess(fmt.Sprintf("exec-%d", s.execs), nil)
	s.procs[p.name] = p
	s.mu.Unlock()
	var err error
	if !in.Detach {
		err = p.open(s.client, in.Terminal, in.Stdin, size{in.Cols, in.Rows})
	}
	if err == nil {
		call, cancel := context.WithTimeoutCause(ctx, callTime, errors.New("the guest does not answer"))
		defer cancel()
		err = s.client.Call(call, wire.OpExec, wire.Exec{Container: s.container, Process: p.name, Args: in.Args,
			Env: execEnv(s.spec.Container.Env, in.Env, in.Terminal),
			Cwd: in.Cwd, User: in.User, Stdio: p.stdio,
			NoNewPrivileges: s.spec.Container.NoNewPrivileges, Capabilities: s.spec.Container.Capabilities}, nil)
	}
	if err != nil {
		s.mu.Lock()
		delete(s.procs, p.name)
		s.mu.Unlock()
		p.closeStreams()
		return nil, doing("starting the process", err)
	}
	return p, nil
}

// execEnv is the container's environment with a process's own variables in
// place of those of the same name, and TERM for a terminal, as docker's.
func execEnv(base, own []string, terminal bool) []string {
	out := slices.Clone(base)
	set := func(v string, replace bool) {
		name, _, _ := strings.Cut(v, "=")
		i := slices.IndexFunc(out, func(o string) bool { return strings.HasPrefix(o, name+"=") })
		switch {
		case i < 0:
			out = append(out, v)
		case replace:
			out[i] = v
		}
	}
	for _, v := range own {
		set(v, true)
	}
	if terminal {
		set("TERM=xterm", false)
	}
	return out
}

func parseSize(b []byte) (size, bool) {
	var z size
	err := json.Unmarshal(b, &z)
	return z, err == nil
}
