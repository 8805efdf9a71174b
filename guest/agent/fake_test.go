// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/coffer-dev/coffer/guest/container"
	"github.com/coffer-dev/coffer/guest/reap"
	"github.com/coffer-dev/coffer/policy"
	"github.com/coffer-dev/coffer/tee"
	"github.com/coffer-dev/coffer/tee/snp"
	"github.com/coffer-dev/coffer/wire"
)

// processor answers with reports that hold a chosen HOST_DATA.
type processor struct {
	hostData [32]byte
	stale    bool // answers another question
	err      error
}

func (p *processor) Attest(_ context.Context, b tee.Binding) (tee.Evidence, error) {
	if p.err != nil {
		return tee.Evidence{}, p.err
	}
	r := snp.Report{Version: 3, Policy: 0x30000, SignatureAlg: 1, ReportData: b, HostData: p.hostData, Family: snp.EmulatedFamily}
	if p.stale {
		r.ReportData[0]++
	}
	raw, err := r.Marshal()
	return tee.Evidence{Kind: tee.Emulated, Report: raw}, err
}

// disks records what was done, and fails where told to.
type disks struct {
	did  []string
	fail string // the operation that fails
}

type closer func() error

func (c closer) Close() error { return c() }

func (d *disks) do(op, what string) error {
	d.did = append(d.did, op+" "+what)
	if d.fail == op {
		return errors.New("it broke")
	}
	return nil
}

func (d *disks) OpenLayer(_ context.Context, n int, root [32]byte, blocks int64, target string) (io.Closer, error) {
	if err := d.do("open", fmt.Sprintf("layer%d %x %d", n, root[:2], blocks)); err != nil {
		return nil, err
	}
	return closer(func() error { return d.do("close", fmt.Sprintf("layer%d", n)) }), nil
}

func (d *disks) Scratch(_ context.Context, disk bool, _ int64, _ string) error {
	return d.do("scratch", fmt.Sprint(disk))
}

func (d *disks) Overlay(target string, lowers []string, _, _ string) (io.Closer, error) {
	var names []string
	for _, l := range lowers {
		names = append(names, filepath.Base(l))
	}
	if err := d.do("overlay", strings.Join(names, ":")); err != nil {
		return nil, err
	}
	return closer(func() error { return d.do("unoverlay", "") }), os.MkdirAll(target, 0o755)
}

func (d *disks) Bind(_, target string) (io.Closer, error) {
	return closer(func() error { return nil }), d.do("bind", filepath.Base(target))
}

// runs records processes; each lives until it is killed.
type runs struct {
	mu      sync.Mutex
	started []*fakeProcess
	configs []*container.Config
	err     error
}

type fakeProcess struct {
	args    []string
	env     []string
	signals []unix.Signal
	done    chan struct{}
	once    sync.Once
	end     reap.Status
}

func (p *fakeProcess) Done() <-chan struct{}          { return p.done }
func (p *fakeProcess) Status() reap.Status            { return p.end }
func (p *fakeProcess) Resize(cols, rows uint16) error { return errors.New("no terminal") }
func (p *fakeProcess) exit(s reap.Status) {
	p.once.Do(func() {
		p.end = s
		close(p.done)
	})
}

func (p *fakeProcess) Signal(s unix.Signal) error {
	p.signals = append(p.signals, s)
	if s == unix.SIGKILL {
		p.exit(reap.Status{Code: 137, Signal: s})
	}
	return nil
}

func (r *runs) start(args, env []string) (Process, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.err != nil {
		return nil, r.err
	}
	p := &fakeProcess{args: args, env: env, done: make(chan struct{})}
	r.started = append(r.started, p)
	return p, nil
}

func (r *runs) Run(_ context.Context, c *container.Config, _ string, _ container.Stdio) (Process, error) {
	r.configs = append(r.configs, c)
	return r.start(c.Process.Args, c.Process.Env)
}

func (r *runs) Exec(_ context.Context, _ string, p *container.Process, _ container.Stdio) (Process, error) {
	return r.start(p.Args, p.Env)
}

func (r *runs) Delete(context.Context, string) error {
	for _, p := range r.started {
		p.exit(reap.Status{Code: 137, Signal: unix.SIGKILL})
	}
	return nil
}

func (r *runs) Stats(string) (container.Stats, error) { return container.Stats{Pids: 1}, nil }

// host collects events and hands out streams.
type host struct {
	events  chan string
	streams map[uint32]*stream
}

type stream struct {
	id     uint32
	closed bool
}

func (s *stream) Read([]byte) (int, error)    { return 0, io.EOF }
func (s *stream) Write(p []byte) (int, error) { return len(p), nil }
func (s *stream) Close() error                { s.closed = true; return nil }
func (s *stream) StreamID() uint32            { return s.id }

func (h *host) Send(e wire.Event, body any) error {
	b, err := json.Marshal(body)
	h.events <- string(e) + " " + string(b)
	return err
}

func (h *host) Claim(_ context.Context, id uint32) (wire.Stream, error) {
	s, ok := h.streams[id]
	if !ok {
		return nil, errors.New("the host did not open it")
	}
	delete(h.streams, id)
	return s, nil
}

// guest is an agent with everything around it faked, under a policy.
type guest struct {
	*Agent
	t         *testing.T
	policy    string
	processor *processor
	disks     *disks
	runs      *runs
	host      *host
	fatal     error
}

func newGuest(t *testing.T, policyText string) *guest {
	t.Helper()
	dir := t.TempDir()
	g := &guest{t: t, policy: policyText, processor: &processor{hostData: policy.Digest([]byte(policyText))},
		disks: &disks{}, runs: &runs{}, host: &host{events: make(chan string, 100), streams: map[uint32]*stream{}}}
	g.Agent = New(Config{Version: "test", Attester: g.processor, Kind: tee.Emulated, Disks: g.disks, Runtime: g.runs,
		Network: func(wire.Network, string) error { return nil },
		Groups:  filepath.Join(dir, "c"), Layers: filepath.Join(dir, "m"), NetworkFiles: filepath.Join(dir, "n"),
		Fatal: func(err error) { g.fatal = err }}, g.host)
	return g
}

// ask sends a request as the host would.
func (g *guest) ask(op wire.Op, in any) (any, *wire.Error) {
	g.t.Helper()
	body, err := json.Marshal(in)
	if err != nil {
		g.t.Fatal(err)
	}
	return g.Handle(context.Background(), op, body)
}

// must is ask for what has to be granted.
func (g *guest) must(op wire.Op, in any) any {
	g.t.Helper()
	out, err := g.ask(op, in)
	if err != nil {
		g.t.Fatalf("%s: %v", op, err)
	}
	return out
}

// refused is ask for what has to be refused with this code.
func (g *guest) refused(op wire.Op, in any, code wire.Code, text string) *wire.Error {
	g.t.Helper()
	_, err := g.ask(op, in)
	if err == nil || err.Code != code || !strings.Contains(err.Text, text) {
		g.t.Errorf("%s %+v = %v; want %s with %q", op, in, err, code, text)
		return &wire.Error{Denial: &wire.Denial{}}
	}
	return err
}
