// SPDX-License-Identifier: Apache-2.0

// Package agent is the one place in the guest that can say yes to the host. It
// receives requests one at a time, asks the policy, and only then acts. Until a
// policy has been set whose SHA-256 is the HOST_DATA of the guest's own report,
// it refuses everything.
//
// The host is hostile: every field is checked, the host never names a path, and
// nothing it learns from a refusal is secret. The whole guest, and whoever
// relies on evidence from it, trusts this package.
package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/coffer-dev/coffer/guest/container"
	"github.com/coffer-dev/coffer/guest/reap"
	"github.com/coffer-dev/coffer/policy"
	"github.com/coffer-dev/coffer/tee"
	"github.com/coffer-dev/coffer/wire"
)

// Disks opens what the host attached. All paths are the guest's own.
type Disks interface {
	// OpenLayer opens a read-only disk by dm-verity and mounts it at target. A
	// nil error means that what is read there is what root names, or is not
	// read at all. Closing unmounts.
	OpenLayer(ctx context.Context, device int, root [32]byte, dataBlocks int64, target string) (io.Closer, error)
	// Scratch mounts a writable file system at target: memory of at most size
	// bytes (0: a default), or the scratch disk, encrypted and authenticated
	// under a key that is forgotten.
	Scratch(ctx context.Context, disk bool, size int64, target string) error
	// Overlay mounts lowers, topmost first, with upper and work at target.
	// Closing unmounts.
	Overlay(target string, lowers []string, upper, work string) (io.Closer, error)
	// Bind makes source appear at target, read-only. Closing undoes it.
	Bind(source, target string) (io.Closer, error)
}

// Runtime runs containers; guest/container implements it.
type Runtime interface {
	Run(ctx context.Context, c *container.Config, bundle string, stdio container.Stdio) (Process, error)
	Exec(ctx context.Context, id string, p *container.Process, stdio container.Stdio) (Process, error)
	Delete(ctx context.Context, id string) error
	Stats(id string) (container.Stats, error)
}

// Process is a running process.
type Process interface {
	Done() <-chan struct{}
	Status() reap.Status
	Signal(unix.Signal) error
	Resize(cols, rows uint16) error
}

// Host is the way back to the host; *wire.Server implements it.
type Host interface {
	Send(e wire.Event, body any) error
	Claim(ctx context.Context, id uint32) (wire.Stream, error)
}

// Config is what an Agent is made of. All fields but Devices and Fatal's use
// must be set.
type Config struct {
	Version  string // of the guest, for hello
	Attester tee.Attester
	Kind     tee.Kind // what hello says; nothing is decided by it
	Disks    Disks
	Runtime  Runtime
	// Network configures the interface and writes hostname, hosts and
	// resolv.conf into dir.
	Network func(n wire.Network, dir string) error
	// Groups is the directory under which groups and containers live; the
	// policies of Azure's tools know it as /run/gcs/c.
	Groups string
	// Layers is the directory under which layers are mounted as mN; the
	// policies of Azure's tools know it as /run/mounts/scsi.
	Layers string
	// NetworkFiles is the directory of hostname, hosts and resolv.conf.
	NetworkFiles string
	// Devices are the guest's device nodes that every container gets.
	Devices []string
	// Fatal ends the guest. It does not return in the real guest.
	Fatal func(error)
}

// Agent handles the requests of one session. Handle is called by one
// goroutine; the ends of processes arrive from others.
type Agent struct {
	cfg  Config
	host Host
	log  *slog.Logger // discards until the policy allows runtime_logging

	// Owned by the goroutine that calls Handle.
	group    string // "" until hello
	policy   *policy.Policy
	state    policy.State
	hostname string
	network  bool // configured
	scratch  bool // prepared
	devices  map[int]*device
	roots    map[string]*root
	binds    map[string]io.Closer // read-only volumes by root hash

	mu         sync.Mutex // guards what follows
	containers map[string]*instance
	live       int // processes
}

// New returns an agent that has seen nothing yet.
func New(cfg Config, host Host) *Agent {
	return &Agent{cfg: cfg, host: host, log: slog.New(slog.DiscardHandler),
		devices: make(map[int]*device), roots: make(map[string]*root),
		binds: make(map[string]io.Closer), containers: make(map[string]*instance)}
}

// Handle implements wire.Handler.
func (a *Agent) Handle(ctx context.Context, op wire.Op, body []byte) (any, *wire.Error) {
	answer, err := a.dispatch(ctx, op, body)
	if err == nil {
		a.log.InfoContext(ctx, "request done", slog.String("op", string(op)))
		return answer, nil
	}
	var refusal *wire.Error
	if !errors.As(err, &refusal) {
		refusal = &wire.Error{Code: wire.CodeFailed, Text: err.Error()}
	}
	a.log.WarnContext(ctx, "request refused", slog.String("op", string(op)), slog.String("code", string(refusal.Code)))
	return nil, refusal
}

// dispatch is the table of all requests. What is not in it does not exist.
func (a *Agent) dispatch(ctx context.Context, op wire.Op, body []byte) (any, error) {
	switch {
	case op == wire.OpHello:
		return handle(body, a.hello)
	case a.group == "":
		return nil, refuse(wire.CodeState, "%s before hello", op)
	case op == wire.OpSetPolicy:
		return handle(body, func(in wire.SetPolicy) (any, error) { return nil, a.setPolicy(ctx, in) })
	case a.policy == nil:
		return nil, refuse(wire.CodeState, "%s before a policy has been set", op)
	}
	switch op {
	case wire.OpConfigureNetwork:
		return handle(body, func(in wire.Network) (any, error) { return nil, a.configureNetwork(in) })
	case wire.OpMountDevice:
		return handle(body, func(in wire.MountDevice) (any, error) { return nil, a.mountDevice(ctx, in) })
	case wire.OpUnmountDevice:
		return handle(body, func(in wire.UnmountDevice) (any, error) { return nil, a.unmountDevice(in) })
	case wire.OpPrepareScratch:
		return handle(body, func(in wire.PrepareScratch) (any, error) { return nil, a.prepareScratch(ctx, in) })
	case wire.OpMountOverlay:
		return handle(body, func(in wire.MountOverlay) (any, error) { return nil, a.mountOverlay(in) })
	case wire.OpUnmountOverlay:
		return handle(body, func(in wire.ContainerRef) (any, error) { return nil, a.unmountOverlay(in) })
	case wire.OpCreateContainer:
		return handle(body, func(in wire.CreateContainer) (any, error) { return nil, a.createContainer(ctx, in) })
	case wire.OpStartContainer:
		return handle(body, func(in wire.ContainerRef) (any, error) { return nil, a.startContainer(ctx, in) })
	case wire.OpExec:
		return handle(body, func(in wire.Exec) (any, error) { return nil, a.exec(ctx, in) })
	case wire.OpSignal:
		return handle(body, func(in wire.Signal) (any, error) { return nil, a.signal(in) })
	case wire.OpResize:
		return handle(body, func(in wire.Resize) (any, error) { return nil, a.resize(in) })
	case wire.OpStats:
		return handle(body, a.stats)
	case wire.OpDeleteContainer:
		return handle(body, func(in wire.ContainerRef) (any, error) { return nil, a.deleteContainer(ctx, in) })
	case wire.OpAttest:
		return handle(body, func(in wire.Attest) (any, error) { return a.attest(ctx, in) })
	case wire.OpDumpStacks:
		return handle(body, func(struct{}) (any, error) { return a.dumpStacks() })
	case wire.OpShutdown:
		return handle(body, func(struct{}) (any, error) { return nil, a.shutdown(ctx) })
	}
	return nil, refuse(wire.CodeUnsupported, "no such request: %.64q", op)
}

// handle decodes strictly, then acts.
func handle[In any](body []byte, act func(In) (any, error)) (any, error) {
	var in In
	if err := wire.Decode(body, &in); err != nil {
		return nil, refuse(wire.CodeInvalid, "%v", err)
	}
	return act(in)
}

func refuse(code wire.Code, format string, args ...any) *wire.Error {
	return &wire.Error{Code: code, Text: fmt.Sprintf(format, args...)}
}

// decide asks the policy. The returned commit keeps the new state; it must be
// called once the action has succeeded, and not otherwise.
func (a *Agent) decide(req policy.Request) (policy.Decision, func(), error) {
	return a.decideFrom(a.state, req)
}

func (a *Agent) decideFrom(from policy.State, req policy.Request) (policy.Decision, func(), error) {
	d, next := from.Decide(req)
	if !d.Allowed {
		return policy.Decision{}, nil, denied(d.Denial, req)
	}
	return d, func() { a.state = next }, nil
}

func denied(d *policy.Denial, req policy.Request) error {
	return &wire.Error{Code: wire.CodeDenied, Text: d.Error(), Denial: &wire.Denial{
		Point: d.Point, Explanation: d.Explain(), PolicyDecision: d.PolicyDecision(req)}}
}
