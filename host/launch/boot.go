// SPDX-License-Identifier: Apache-2.0

package launch

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/coffer-dev/coffer/host/qemu"
	"github.com/coffer-dev/coffer/wire"
)

// boot tells the guest, step by step, to become the group. Each step may be
// refused by the guest's policy.
func (s *Supervisor) boot(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, bootTime, context.DeadlineExceeded)
	defer cancel()
	if err := s.spec.check(); err != nil {
		return err
	}
	id := s.container
	var hello wire.HelloReply
	if err := s.step(ctx, wire.OpHello, wire.Hello{Version: wire.Version, Group: s.group.Group.ID, Time: time.Now().UnixNano()}, &hello); err != nil {
		return s.timedOut(ctx, doing("booting the guest", err))
	}
	if err := s.step(ctx, wire.OpSetPolicy, wire.SetPolicy{Policy: s.policy}, nil); err != nil {
		return doing("setting the policy", err)
	}
	if err := s.step(ctx, wire.OpConfigureNetwork, s.network(), nil); err != nil {
		return doing("configuring the network", err)
	}
	for i, d := range s.spec.Disks {
		if err := s.step(ctx, wire.OpMountDevice, wire.MountDevice{Device: i, RootHash: d.RootHash, DataBlocks: d.DataBlocks}, nil); err != nil {
			return doing(fmt.Sprintf("mounting layer %d (%s)", i, d.Label), err)
		}
	}
	if err := s.step(ctx, wire.OpPrepareScratch, wire.PrepareScratch{Disk: s.spec.ScratchBytes > 0}, nil); err != nil {
		return doing("preparing scratch space", err)
	}
	if err := s.step(ctx, wire.OpMountOverlay, wire.MountOverlay{Container: id, Layers: s.spec.Container.Layers}, nil); err != nil {
		return doing("mounting the container's root", err)
	}
	return s.startContainer(ctx, id)
}

func (s *Supervisor) startContainer(ctx context.Context, id string) error {
	c := &s.spec.Container
	if err := s.init.open(s.client, c.Terminal, c.Stdin, size{c.Cols, c.Rows}); err != nil {
		return fmt.Errorf("opening the container's streams: %w", err)
	}
	s.init.flow()
	err := s.step(ctx, wire.OpCreateContainer, wire.CreateContainer{
		Container: id, Args: c.Args, Env: c.Env, Cwd: c.Cwd, User: c.User, Stdio: s.init.stdio,
		Mounts: c.Mounts, ReadOnlyRoot: c.ReadOnlyRoot, Privileged: c.Privileged, NoNewPrivileges: c.NoNewPrivileges,
		Capabilities: c.Capabilities, Resources: c.Resources,
	}, nil)
	if err != nil {
		return doing("creating the container", err)
	}
	if err := s.step(ctx, wire.OpStartContainer, wire.ContainerRef{Container: id}, nil); err != nil {
		return doing("starting the container", err)
	}
	return nil
}

// timedOut marks an error that is the boot's own deadline.
func (s *Supervisor) timedOut(ctx context.Context, err error) error {
	if errors.Is(context.Cause(ctx), context.DeadlineExceeded) {
		return (&Failure{Text: fmt.Sprintf("the guest did not boot within %v", bootTime), Status: StatusFailed}).withTail(s.console)
	}
	return err
}

// step is one request of the boot; how long it took is in the supervisor's log.
func (s *Supervisor) step(ctx context.Context, op wire.Op, in, out any) error {
	start := time.Now()
	err := s.client.Call(ctx, op, in, out)
	s.log.Info("boot step", slog.String("op", string(op)), slog.Duration("took", time.Since(start)), slog.Bool("done", err == nil))
	return err
}

// network is the group's one interface, on QEMU's user-mode network.
func (s *Supervisor) network() wire.Network {
	n := wire.Network{Hostname: s.spec.Hostname, Hosts: s.spec.Hosts}
	if s.spec.Machine.Network {
		n.Addresses, n.Gateway, n.DNS = []string{qemu.GuestAddress}, qemu.Gateway, []string{qemu.NameServer}
	}
	return n
}
