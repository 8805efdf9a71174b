// SPDX-License-Identifier: Apache-2.0

// Command coffer-guest is the guest's first process. It boots, then serves the
// agent on the control channel until the host ends the session, and powers the
// machine off. It never returns, takes no arguments and reads no environment;
// the kernel's command line is measured, and it does not read that either.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime/debug"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/coffer-dev/coffer/guest/agent"
	"github.com/coffer-dev/coffer/guest/attest"
	"github.com/coffer-dev/coffer/guest/boot"
	"github.com/coffer-dev/coffer/guest/container"
	"github.com/coffer-dev/coffer/guest/network"
	"github.com/coffer-dev/coffer/guest/reap"
	"github.com/coffer-dev/coffer/guest/volume"
	"github.com/coffer-dev/coffer/tee"
	"github.com/coffer-dev/coffer/wire"
)

// The virtio-serial ports (docs/wire.md).
const (
	controlPort = "coffer.control"
	sevPort     = "coffer.sev"
)

// sevDevice is where programs written for SEV-SNP look.
const sevDevice = "/dev/sev-guest"

// version is what hello says. It is a constant, so that the image's digest
// changes only with its content.
const version = "1"

// memoryLimit keeps the agent small: it collects rather than grows.
const memoryLimit = 24 << 20

func main() {
	defer boot.Guard()
	if err := run(context.Background()); err != nil {
		boot.Fatal(err)
	}
	boot.PowerOff()
}

func run(ctx context.Context) error {
	debug.SetMemoryLimit(memoryLimit)
	// What the host does first overlaps with loading the modules that disks and
	// network need; both wait for them.
	modules, err := boot.Begin()
	if err != nil {
		return err
	}
	reaper := reap.New()
	containers := &container.Runtime{Runc: "/bin/runc", State: "/run/runc", Temp: "/run/coffer/tmp", Reaper: reaper}
	control, err := boot.OpenPort(controlPort)
	if err != nil {
		return err
	}
	processor, err := openTEE(modules)
	if err != nil {
		return err
	}
	device := offerDevice(ctx, modules, processor)
	server, err := wire.Accept(control)
	if err != nil {
		return fmt.Errorf("waiting for the host: %w", err)
	}
	a := agent.New(agent.Config{
		Version:  version,
		Attester: processor,
		Kind:     processor.Kind(),
		Disks:    disks{volume.New(volume.Config{Run: reaper.Run, LoadModules: modules.Load}), modules},
		Runtime:  runtime{containers, device, sync.OnceValue(modules.Lock)},
		Network: func(n wire.Network, dir string) error {
			if err := modules.Ready(); err != nil {
				return err
			}
			return network.Configure(n, dir)
		},
		Groups: "/run/gcs/c", Layers: "/run/mounts/scsi", NetworkFiles: "/run/coffer/network",
		Devices: []string{sevDevice},
		Fatal: func(err error) {
			_ = server.Send(wire.EventFatal, wire.Fatal{Text: err.Error()}) // the console says it too
			boot.Fatal(err)
		},
	}, server)
	return server.Serve(ctx, a)
}

// openTEE finds the secure processor.
func openTEE(modules *boot.Modules) (*attest.Processor, error) {
	if modules.Has("sev_guest") {
		// On a machine that is no SEV-SNP guest the driver finds no device.
		if err := modules.Load("sev_guest"); err != nil && !errors.Is(err, unix.ENODEV) {
			return nil, err
		}
	}
	var cfg attest.Config
	if boot.HasPort(sevPort) {
		port, err := boot.OpenPort(sevPort)
		if err != nil {
			return nil, err
		}
		cfg.Emulated = port
	}
	return attest.Open(cfg)
}

// offerDevice sees to it that containers find /dev/sev-guest: on hardware it
// is the kernel's; in the emulated TEE it is made here, while the rest goes
// on. What it returns waits until the node is there.
func offerDevice(ctx context.Context, modules *boot.Modules, p *attest.Processor) func(context.Context) error {
	if p.Kind() != tee.Emulated {
		return func(context.Context) error { return nil }
	}
	ready := make(chan struct{})
	go func() { // lives as long as the guest
		defer boot.Guard()
		boot.Fatal(serveDevice(ctx, modules, p, ready))
	}()
	return func(ctx context.Context) error {
		select {
		case <-ready:
			return nil
		case <-ctx.Done():
			return fmt.Errorf("waiting for %s: %w", sevDevice, ctx.Err())
		}
	}
}

func serveDevice(ctx context.Context, modules *boot.Modules, p *attest.Processor, ready chan<- struct{}) error {
	if err := modules.Load("cuse"); err != nil {
		return err
	}
	cuse, err := os.OpenFile("/dev/cuse", os.O_RDWR, 0)
	if err != nil {
		return err
	}
	err = attest.ServeDevice(ctx, cuse, attest.DeviceConfig{Mode: 0o666, Ready: func(attest.Device) { close(ready) }}, p)
	return fmt.Errorf("serving %s: %w", sevDevice, err)
}

// disks waits for the modules before the first disk is opened.
type disks struct {
	*volume.Disks
	modules *boot.Modules
}

func (d disks) OpenLayer(ctx context.Context, device int, root [32]byte, dataBlocks int64, target string) (io.Closer, error) {
	if err := d.modules.Ready(); err != nil {
		return nil, err
	}
	return d.Disks.OpenLayer(ctx, device, root, dataBlocks, target)
}

func (d disks) Scratch(ctx context.Context, disk bool, size int64, target string) error {
	if err := d.modules.Ready(); err != nil {
		return err
	}
	return d.Disks.Scratch(ctx, disk, size, target)
}

// runtime gives container.Runtime the agent's interface.
type runtime struct {
	*container.Runtime
	device func(context.Context) error // waits for the containers' device
	lock   func() error                // ends the loading of modules, for good
}

func (r runtime) Run(ctx context.Context, c *container.Config, bundle string, stdio container.Stdio) (agent.Process, error) {
	// Scratch is there by now, so that nothing needs a module any more.
	err := r.device(ctx)
	if err == nil {
		err = r.lock()
	}
	if err != nil {
		stdio.Close()
		return nil, err
	}
	p, err := r.Runtime.Run(ctx, c, bundle, stdio)
	if err != nil {
		return nil, err // not p: a nil *Running would be a non-nil Process
	}
	return p, nil
}

func (r runtime) Exec(ctx context.Context, id string, p *container.Process, stdio container.Stdio) (agent.Process, error) {
	run, err := r.Runtime.Exec(ctx, id, p, stdio)
	if err != nil {
		return nil, err
	}
	return run, nil
}

func (runtime) Stats(id string) (container.Stats, error) { return container.ReadStats(id) }
