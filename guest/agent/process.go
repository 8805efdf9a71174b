// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/coffer-dev/coffer/guest/container"
	"github.com/coffer-dev/coffer/policy"
	"github.com/coffer-dev/coffer/wire"
)

const (
	// claimTime is how long the guest waits for a stream that a request names
	// and the host should have opened before.
	claimTime = 10 * time.Second
	// deleteTime is how long a killed container may take to end.
	deleteTime = 30 * time.Second
)

// instance is a container that was created. Its fields are guarded by
// Agent.mu, but config and allowStdio, which do not change.
type instance struct {
	config     *container.Config
	allowStdio bool
	stdio      container.Stdio // until started
	init       *proc           // nil until started
	processes  map[string]*proc
}

// proc is a process that was started.
type proc struct {
	Process
	args []string
}

func (a *Agent) instance(id string) *instance {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.containers[id]
}

func (a *Agent) startContainer(ctx context.Context, in wire.ContainerRef) error {
	c := a.instance(in.Container)
	if c == nil {
		return refuse(wire.CodeState, "no such container")
	}
	if c.init != nil {
		return refuse(wire.CodeState, "the container was started already")
	}
	if err := a.admit(); err != nil {
		return err
	}
	stdio := c.stdio
	c.stdio = container.Stdio{}
	p, err := a.cfg.Runtime.Run(ctx, c.config, a.bundle(in.Container), stdio)
	if err != nil {
		a.dismiss()
		return startError(err)
	}
	init := &proc{Process: p, args: c.config.Process.Args}
	a.mu.Lock()
	c.init = init
	a.mu.Unlock()
	go a.report(in.Container, "", init) // ends with the process
	return nil
}

// admit counts one more process, or refuses.
func (a *Agent) admit() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.live >= wire.MaxProcesses {
		return refuse(wire.CodeState, "the group runs %d processes, which is the limit", wire.MaxProcesses)
	}
	a.live++
	return nil
}

func (a *Agent) dismiss() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.live--
}

func startError(err error) error {
	switch {
	case errors.Is(err, container.ErrCommandNotFound):
		return refuse(wire.CodeNotFound, "%v", err)
	case errors.Is(err, container.ErrCommandNotStarted):
		return refuse(wire.CodeNotExec, "%v", err)
	}
	return err
}

// report tells the host that a process has ended.
func (a *Agent) report(id, name string, p *proc) {
	<-p.Done()
	exit := wire.Exit{Container: id, Process: name, Status: p.Status().Code}
	if name == "" && p.Status().Signal == unix.SIGKILL {
		exit.OOMKilled = container.OOMKilled(id)
	}
	a.mu.Lock()
	a.live--
	if c := a.containers[id]; c != nil && name != "" {
		delete(c.processes, name)
	}
	a.mu.Unlock()
	if err := a.host.Send(wire.EventExit, exit); err != nil {
		a.cfg.Fatal(fmt.Errorf("telling the host that a process has ended: %w", err))
	}
}

func (a *Agent) exec(ctx context.Context, in wire.Exec) error {
	c, err := a.running(in.Container)
	if err != nil {
		return err
	}
	if !isProcess(in.Process) {
		return refuse(wire.CodeInvalid, "a process's name must match %s", processForm)
	}
	if err := errors.Join(checkProgram(in.Args, in.Env, in.Cwd, in.User), checkStdio(in.Stdio)); err != nil {
		return err
	}
	user := c.config.Process.User
	if in.User != "" {
		if user, err = container.LookupUser(c.config.Root, in.User); err != nil {
			return refuse(wire.CodeInvalid, "%v", err)
		}
	}
	req := execRequest(in, c, user)
	d, commit, err := a.decide(req)
	if err != nil {
		return err
	}
	if in.Stdio.Terminal != 0 && !c.allowStdio {
		return refuse(wire.CodeDenied, "a terminal needs allow_stdio_access, which the policy does not give this container")
	}
	return a.launch(ctx, in, c, &container.Process{Args: in.Args, Env: d.Env, Cwd: req.WorkingDir, User: user, Umask: umask,
		Terminal: in.Stdio.Terminal != 0, NoNewPrivileges: in.NoNewPrivileges, Capabilities: asSets(d.Capabilities)}, commit)
}

func execRequest(in wire.Exec, c *instance, user container.User) policy.ExecInContainer {
	cwd := in.Cwd
	if cwd == "" {
		cwd = c.config.Process.Cwd
	}
	return policy.ExecInContainer{ContainerID: in.Container, ArgList: in.Args, EnvList: orEmpty(in.Env), WorkingDir: cwd,
		NoNewPrivileges: in.NoNewPrivileges, User: idName(user.UID, user.Name), Groups: groupsOf(user), Umask: umaskText,
		Capabilities: capabilities(in.Capabilities, c.config.Privileged)}
}

// launch starts what exec has had allowed.
func (a *Agent) launch(ctx context.Context, in wire.Exec, c *instance, spec *container.Process, commit func()) error {
	a.mu.Lock()
	_, used := c.processes[in.Process]
	a.mu.Unlock()
	if used {
		return refuse(wire.CodeState, "a process of that name is running")
	}
	if err := a.admit(); err != nil {
		return err
	}
	stdio, err := a.claim(ctx, in.Stdio, c.allowStdio)
	if err != nil {
		a.dismiss()
		return err
	}
	run, err := a.cfg.Runtime.Exec(ctx, in.Container, spec, stdio)
	if err != nil {
		a.dismiss()
		if errors.Is(err, container.ErrStuck) {
			commit() // it may yet run
		}
		return startError(err)
	}
	commit()
	p := &proc{Process: run, args: in.Args}
	a.mu.Lock()
	c.processes[in.Process] = p
	a.mu.Unlock()
	go a.report(in.Container, in.Process, p) // ends with the process
	return nil
}

func (a *Agent) running(id string) (*instance, error) {
	c := a.instance(id)
	if c == nil {
		return nil, refuse(wire.CodeState, "no such container")
	}
	if c.init == nil {
		return nil, refuse(wire.CodeState, "the container has not been started")
	}
	select {
	case <-c.init.Done():
		return nil, refuse(wire.CodeState, "the container has ended")
	default:
		return c, nil
	}
}

// find returns a live process; "" is the container's init.
func (a *Agent) find(id, name string) (*proc, error) {
	c := a.instance(id)
	if c == nil || c.init == nil {
		return nil, refuse(wire.CodeState, "no such container, or it has not been started")
	}
	if name == "" {
		return c.init, nil
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	p, ok := c.processes[name]
	if !ok {
		return nil, refuse(wire.CodeState, "no such process")
	}
	return p, nil
}

func (a *Agent) signal(in wire.Signal) error {
	p, err := a.find(in.Container, in.Process)
	if err != nil {
		return err
	}
	if in.Signal < 1 || in.Signal > 64 {
		return refuse(wire.CodeInvalid, "signal %d is outside 1 to 64", in.Signal)
	}
	_, commit, err := a.decide(policy.SignalContainerProcess{ContainerID: in.Container, Signal: in.Signal,
		IsInitProcess: in.Process == "", ArgList: p.args})
	if err != nil {
		return err
	}
	if err := p.Signal(unix.Signal(in.Signal)); err != nil {
		return fmt.Errorf("sending signal %d: %w", in.Signal, err)
	}
	commit()
	return nil
}

func (a *Agent) resize(in wire.Resize) error {
	p, err := a.find(in.Container, in.Process)
	if err != nil {
		return err
	}
	if err := p.Resize(in.Cols, in.Rows); err != nil {
		return refuse(wire.CodeState, "%v", err)
	}
	return nil
}

func (a *Agent) deleteContainer(ctx context.Context, in wire.ContainerRef) error {
	c := a.instance(in.Container)
	if c == nil {
		return refuse(wire.CodeState, "no such container")
	}
	_, commit, err := a.decide(policy.ShutdownContainer{ContainerID: in.Container})
	if err != nil {
		return err
	}
	if err := a.end(ctx, in.Container, c); err != nil {
		return refuse(wire.CodeFatal, "deleting container: %v", err)
	}
	commit()
	a.mu.Lock()
	delete(a.containers, in.Container)
	a.mu.Unlock()
	return nil
}

// end kills a container and waits until nothing of it is left.
func (a *Agent) end(ctx context.Context, id string, c *instance) error {
	c.stdio.Close()
	if c.init == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, deleteTime)
	defer cancel()
	if err := a.cfg.Runtime.Delete(ctx, id); err != nil {
		return err
	}
	select {
	case <-c.init.Done():
		return nil
	case <-ctx.Done():
		return fmt.Errorf("waiting for its end: %w", ctx.Err())
	}
}

// shutdown ends all containers; the caller powers off after the answer.
func (a *Agent) shutdown(ctx context.Context) error {
	a.mu.Lock()
	all := make(map[string]*instance, len(a.containers))
	for id, c := range a.containers {
		all[id] = c
	}
	a.mu.Unlock()
	for id, c := range all {
		if c.init == nil {
			continue
		}
		select {
		case <-c.init.Done(): // nothing left to kill: its PID namespace is gone
		default:
			if err := a.end(ctx, id, c); err != nil {
				return refuse(wire.CodeFatal, "shutting down: %v", err)
			}
		}
	}
	if _, err := os.Stat(a.groupDir()); err == nil {
		unix.Sync()
	}
	return nil
}
