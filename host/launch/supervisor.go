// SPDX-License-Identifier: Apache-2.0

package launch

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/coffer-dev/coffer/host/emulator"
	"github.com/coffer-dev/coffer/host/qemu"
	"github.com/coffer-dev/coffer/host/state"
	"github.com/coffer-dev/coffer/tee"
	"github.com/coffer-dev/coffer/wire"
)

// bootTime bounds a guest's boot. Without KVM on a loaded machine it takes
// long; a guest that fails says so itself.
const bootTime = 3 * time.Minute

// lateTime is how long clients may take to read how the group ended.
const lateTime = 5 * time.Second

// machine is what the supervisor needs of a started VM.
type machine struct {
	control net.Conn
	console net.Conn
	sev     net.Conn // nil without an emulated processor
	done    <-chan struct{}
	err     func() error // valid once done is closed
	kill    func()       // ends it at once and waits
	pid     int
}

// Supervisor runs one group.
type Supervisor struct {
	dir    string
	group  *state.Handle
	spec   *Spec
	policy []byte
	log    *slog.Logger
	// container is the one container's name in the guest.
	container string
	// start starts the machine; tests put a fake guest here.
	start func(*Spec, string, [32]byte) (*machine, error)

	client  *wire.Client
	console *console
	record  *record
	init    *process

	mu       sync.Mutex          // guards the fields below
	procs    map[string]*process // by name, while they live
	execs    int
	fatal    string // the guest's last word on the session
	stopping bool
	started  bool // init runs, or has run
}

// NewSupervisor prepares to run the group, whose directory holds what Write put there.
func NewSupervisor(group *state.Handle, log *slog.Logger) (*Supervisor, error) {
	dir := group.Path()
	spec, err := ReadSpec(dir)
	if err != nil {
		return nil, err
	}
	policy, err := os.ReadFile(filepath.Join(dir, policyFile))
	if err != nil {
		return nil, fmt.Errorf("reading policy: %w", err)
	}
	return &Supervisor{dir: dir, group: group, spec: spec, policy: policy, log: log,
		container: containerID(group.Group.ID), start: startQEMU, procs: map[string]*process{}}, nil
}

// Run starts the group, calls ready once its container runs or cannot, and
// returns when the group has ended and its record says how. first, if not nil,
// is a client that sees all output from the start. When ctx is done the group
// is killed. The error is what ready was told, or nil.
func (s *Supervisor) Run(ctx context.Context, first net.Conn, ready func(*Failure)) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	exit, err := s.run(ctx, cancel, first, ready)
	g := &s.group.Group
	g.Status, g.ExitCode, g.OOM, g.Finished = state.Exited, exit.Status, exit.OOM, time.Now().UTC()
	g.Supervisor, g.QEMU, g.Error = 0, 0, exit.Error
	if err != nil {
		f := failure(err)
		g.ExitCode, g.Error = f.Status, f.Text
		ready(f)
	}
	for _, name := range []string{socketFile, scratchFile} {
		os.Remove(filepath.Join(s.dir, name))
	}
	return errors.Join(err, s.group.Save(), s.group.Close())
}

// run does the work; what it returns is how init ended, or why nothing ran.
func (s *Supervisor) run(ctx context.Context, cancel context.CancelCauseFunc, first net.Conn, ready func(*Failure)) (Exit, error) {
	var err error
	if s.record, err = newRecord(s.dir); err != nil {
		return Exit{}, err
	}
	defer s.record.close()
	if s.console, err = newConsole(ConsoleFile(s.dir), s.spec.Disks, s.spec.ScratchBytes > 0); err != nil {
		return Exit{}, err
	}
	hostData := sha256.Sum256(s.policy)
	m, err := s.start(s.spec, s.dir, hostData)
	if err != nil {
		return Exit{}, err
	}
	defer m.kill()
	s.group.Group.Supervisor, s.group.Group.QEMU = os.Getpid(), m.pid
	var wg sync.WaitGroup
	defer wg.Wait()
	defer closeAll(m.control, m.console, m.sev)
	wg.Go(func() { s.console.read(m.console) })
	if m.sev != nil {
		wg.Go(func() {
			if err := s.serveProcessor(ctx, m.sev, hostData); err != nil && ctx.Err() == nil {
				s.log.Error("emulated processor ended", slog.Any("error", err))
				cancel(fmt.Errorf("emulating the secure processor: %w", err))
			}
		})
	}
	if s.client, err = wire.Dial(m.control, s.event); err != nil {
		return Exit{}, err
	}
	defer s.client.Close()
	s.init = newProcess("", s.record)
	s.procs[""] = s.init
	return s.live(ctx, cancel, m, first, ready)
}

// live boots the group and watches it until its container has ended.
func (s *Supervisor) live(ctx context.Context, cancel context.CancelCauseFunc, m *machine, first net.Conn, ready func(*Failure)) (Exit, error) {
	wg := sync.WaitGroup{}
	defer wg.Wait()
	if first != nil {
		c := &client{conn: first}
		s.init.attach(c)
		defer first.Close()
		wg.Go(func() { s.serveFirst(c, func() { cancel(errGone) }) })
	}
	if err := s.boot(ctx); err != nil {
		err = s.explain(ctx, err, m)
		m.kill()
		s.init.end(Exit{Status: failure(err).Status, Error: failure(err).Text})
		closeAll(m.control)
		if first != nil {
			first.Close()
		}
		return Exit{}, err
	}
	s.mu.Lock()
	s.started = true
	s.mu.Unlock()
	l, err := s.listen()
	if err != nil {
		return Exit{}, err
	}
	s.group.Group.Status, s.group.Group.Started = state.Running, time.Now().UTC()
	if err := s.group.Save(); err != nil {
		return Exit{}, err
	}
	ready(nil)
	serving, stop := context.WithCancel(ctx)
	defer stop()
	served := make(chan struct{})
	go func() {
		defer close(served)
		s.serve(serving, l)
	}()
	exit := s.watch(ctx, m)
	s.init.end(exit)
	// What the container wrote may still be on its way; without a machine it is not.
	s.init.finish()
	s.group.Group.Status, s.group.Group.ExitCode, s.group.Group.Error = state.Exited, exit.Status, exit.Error
	m.kill()
	s.client.Close()
	s.record.close()
	l.Close()
	if first != nil {
		first.Close()
	}
	// Every request ends by itself now; a client that does not read its answer is left.
	late := time.AfterFunc(lateTime, stop)
	<-served
	late.Stop()
	return exit, nil
}

var (
	errEnded = errors.New("the guest ended")
	errGone  = errors.New("interrupted")
)

// watch waits for the container's end, or the machine's.
func (s *Supervisor) watch(ctx context.Context, m *machine) Exit {
	select {
	case <-s.init.exited:
		s.init.mu.Lock()
		defer s.init.mu.Unlock()
		return *s.init.exit
	case <-ctx.Done():
		m.kill()
		return Exit{Status: 137, Error: "killed"}
	case <-m.done:
	case <-s.client.Done():
	}
	// The exit may have come just before the end.
	s.client.Close()
	select {
	case <-s.init.exited:
		s.init.mu.Lock()
		defer s.init.mu.Unlock()
		return *s.init.exit
	default:
	}
	s.mu.Lock()
	stopping := s.stopping
	s.mu.Unlock()
	if stopping {
		m.kill()
		return Exit{Status: 137}
	}
	f := failure(s.explain(ctx, errEnded, m))
	return Exit{Status: StatusFailed, Error: f.Text}
}

// goodbyeTime is how long a guest that has ended its session may take to power off.
const goodbyeTime = 5 * time.Second

// explain finds the reason why the guest, or its boot, ended, and ends the machine.
func (s *Supervisor) explain(ctx context.Context, err error, m *machine) error {
	var w *wire.Error
	var f *Failure
	if errors.As(err, &f) || errors.As(err, &w) && w.Code != wire.CodeFatal {
		return err
	}
	if cause := context.Cause(ctx); cause != nil {
		return fmt.Errorf("starting group: %w", cause)
	}
	ended := w != nil || errors.Is(err, errEnded) || errors.Is(err, wire.ErrClosed)
	byItself := ended && within(m.done, goodbyeTime)
	m.kill()
	<-s.console.done // it is read to its end, which comes with QEMU's
	s.mu.Lock()
	fatal := s.fatal
	s.mu.Unlock()
	switch words := s.console.lastWords(); {
	case words != "":
		return &Failure{Text: words, Status: StatusFailed}
	case w != nil || !ended:
		return err
	case fatal != "":
		return &Failure{Text: "the guest ended: " + fatal, Status: StatusFailed}
	}
	if qerr := m.err(); byItself && qerr != nil {
		if strings.Contains(qerr.Error(), "host forwarding rule") {
			return &Failure{Text: "publishing a port: " + printable(qerr.Error(), maxText), Status: StatusFailed,
				Hints: []string{"most likely the port is in use on this machine, or below 1024; `-p PORT` without a host port takes a free one"}}
		}
		return failure(qerr).withTail(s.console)
	}
	return (&Failure{Text: "the guest ended without a word", Status: StatusFailed}).withTail(s.console)
}

// within reports whether done is closed before d has passed.
func within(done <-chan struct{}, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-done:
		return true
	case <-t.C:
		return false
	}
}

// event is called for each event of the guest, which may be a lie.
func (s *Supervisor) event(e wire.Event, body json.RawMessage) {
	switch e {
	case wire.EventExit:
		var x wire.Exit
		if wire.Decode(body, &x) != nil || x.Container != s.container {
			return
		}
		s.mu.Lock()
		p := s.procs[x.Process]
		delete(s.procs, x.Process)
		s.mu.Unlock()
		if p != nil {
			p.end(Exit{Status: x.Status & 0xff, OOM: x.OOMKilled})
		}
	case wire.EventFatal:
		var f wire.Fatal
		if wire.Decode(body, &f) == nil {
			s.mu.Lock()
			s.fatal = printable(f.Text, maxText)
			s.mu.Unlock()
		}
	case wire.EventLog:
		var l wire.Log
		if wire.Decode(body, &l) == nil {
			s.log.Info("guest", slog.String("line", printable(l.Line, maxConsoleLine)))
		}
	}
}

// serveProcessor measures what was started and plays its secure processor.
func (s *Supervisor) serveProcessor(ctx context.Context, channel net.Conn, hostData [32]byte) error {
	root, err := emulator.LoadOrCreate(s.spec.EmulatorDir, nil)
	if err != nil {
		return err
	}
	m := &s.spec.Machine
	digest, err := emulator.Measure(emulator.Started{Firmware: m.Firmware, Kernel: m.Kernel, Initrd: m.Initrd, Append: m.Append, VCPUs: m.CPUs})
	if err != nil {
		return err
	}
	p, err := emulator.New(root, emulator.Launch{Measurement: digest, HostData: hostData})
	if err != nil {
		return err
	}
	return p.Serve(ctx, channel)
}

// startQEMU is how a group's machine is started outside of tests.
func startQEMU(s *Spec, dir string, hostData [32]byte) (*machine, error) {
	q, err := s.machine(dir, hostData)
	if err != nil {
		return nil, err
	}
	p, err := qemu.Start(q)
	if err != nil {
		return nil, err
	}
	return &machine{control: p.Control, console: p.Console, sev: p.SEV, done: p.Done(), err: p.Err, kill: p.Kill, pid: p.PID()}, nil
}

// containerID names the container of a group: guests want it to differ from the group's.
func containerID(group string) string {
	sum := sha256.Sum256([]byte("coffer container 1\n" + group))
	return hex.EncodeToString(sum[:])
}

func closeAll(conns ...net.Conn) {
	for _, c := range conns {
		if c != nil {
			c.Close()
		}
	}
}

// check refuses what no machine should be started for.
func (s *Spec) check() error {
	if s.TEE != tee.Emulated && s.TEE != tee.SEVSNP {
		return fmt.Errorf("checking group: no launch for TEE %s", s.TEE)
	}
	if len(s.Container.Args) == 0 {
		return errors.New("checking group: no command")
	}
	for _, d := range s.Container.Layers {
		if d < 0 || d >= len(s.Disks) {
			return fmt.Errorf("checking group: no disk %d", d)
		}
	}
	return nil
}
