// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"github.com/coffer-dev/coffer/policy"
	"github.com/coffer-dev/coffer/wire"
)

// device is a mounted layer.
type device struct {
	layer  io.Closer
	target string
	hash   string
	users  int // overlays and volumes that stand on it
}

// root is a mounted overlay.
type root struct {
	overlay io.Closer
	devices []int
}

func (a *Agent) layerTarget(n int) string { return filepath.Join(a.cfg.Layers, "m"+strconv.Itoa(n)) }

func (a *Agent) mountDevice(ctx context.Context, in wire.MountDevice) error {
	if err := checkDevice(in.Device); err != nil {
		return err
	}
	hash, err := parseRootHash(in.RootHash)
	if err != nil {
		return err
	}
	if in.DataBlocks <= 0 || in.DataBlocks > 1<<25 { // 128 GiB, the largest image
		return refuse(wire.CodeInvalid, "data_blocks must be 1 to %d", 1<<25)
	}
	target := a.layerTarget(in.Device)
	_, commit, err := a.decide(policy.MountDevice{Target: target, DeviceHash: in.RootHash})
	if err != nil {
		return err
	}
	if err := os.MkdirAll(target, 0o700); err != nil {
		return fmt.Errorf("mounting device %d: %w", in.Device, err)
	}
	layer, err := a.cfg.Disks.OpenLayer(ctx, in.Device, hash, in.DataBlocks, target)
	if err != nil {
		return fmt.Errorf("mounting device %d: %w", in.Device, err)
	}
	commit()
	a.devices[in.Device] = &device{layer: layer, target: target, hash: in.RootHash}
	return nil
}

func (a *Agent) unmountDevice(in wire.UnmountDevice) error {
	d, ok := a.devices[in.Device]
	if !ok {
		return refuse(wire.CodeState, "device %d is not mounted", in.Device)
	}
	if d.users > 0 {
		return refuse(wire.CodeState, "device %d is in use", in.Device)
	}
	_, commit, err := a.decide(policy.UnmountDevice{UnmountTarget: d.target})
	if err != nil {
		return err
	}
	if err := d.layer.Close(); err != nil {
		// The policy's state and the kernel's would differ from now on.
		return refuse(wire.CodeFatal, "unmounting device %d: %v", in.Device, err)
	}
	commit()
	delete(a.devices, in.Device)
	return nil
}

func (a *Agent) mountOverlay(in wire.MountOverlay) error {
	if err := checkID("container", in.Container); err != nil {
		return err
	}
	if in.Container == a.group {
		return refuse(wire.CodeInvalid, "a container cannot have the group's ID")
	}
	if !a.scratch {
		return refuse(wire.CodeState, "mount_overlay before prepare_scratch")
	}
	if len(a.roots) >= wire.MaxContainers {
		return refuse(wire.CodeState, "the group has %d containers, which is the limit", wire.MaxContainers)
	}
	if len(in.Layers) == 0 || len(in.Layers) > wire.MaxDevices {
		return refuse(wire.CodeInvalid, "an overlay has 1 to %d layers", wire.MaxDevices)
	}
	paths, err := a.layerPaths(in.Layers)
	if err != nil {
		return err
	}
	// Scratch is memory that the TEE encrypts, or an encrypted disk.
	_, commitScratch, err := a.decide(policy.ScratchMount{Target: a.scratchDir(in.Container), Encrypted: true})
	if err != nil {
		return err
	}
	before := a.state
	commitScratch()
	_, commit, err := a.decide(policy.MountOverlay{ContainerID: in.Container, LayerPaths: paths, Target: a.rootfs(in.Container)})
	if err == nil {
		err = a.assemble(in.Container, in.Layers, paths)
	}
	if err != nil {
		a.state = before
		return err
	}
	commit()
	return nil
}

func (a *Agent) layerPaths(layers []int) ([]string, error) {
	var paths []string
	for i, n := range layers {
		d, ok := a.devices[n]
		if !ok {
			return nil, refuse(wire.CodeState, "device %d is not mounted", n)
		}
		if slices.Contains(layers[:i], n) {
			return nil, refuse(wire.CodeInvalid, "device %d is named twice", n)
		}
		paths = append(paths, d.target)
	}
	return paths, nil
}

func (a *Agent) assemble(id string, layers []int, paths []string) error {
	upper, work := filepath.Join(a.scratchDir(id), "upper"), filepath.Join(a.scratchDir(id), "work")
	for _, dir := range []string{a.bundle(id), a.scratchDir(id), work} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return fmt.Errorf("mounting overlay: %w", err)
		}
	}
	for _, dir := range []string{a.rootfs(id), upper} { // "/" of the container
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return fmt.Errorf("mounting overlay: %w", err)
		}
	}
	overlay, err := a.cfg.Disks.Overlay(a.rootfs(id), paths, upper, work)
	if err != nil {
		return fmt.Errorf("mounting overlay: %w", err)
	}
	for _, n := range layers {
		a.devices[n].users++
	}
	a.roots[id] = &root{overlay: overlay, devices: slices.Clone(layers)}
	return nil
}

func (a *Agent) unmountOverlay(in wire.ContainerRef) error {
	r, ok := a.roots[in.Container]
	if !ok {
		return refuse(wire.CodeState, "no overlay is mounted for this container")
	}
	if a.instance(in.Container) != nil {
		return refuse(wire.CodeState, "the container has not been deleted")
	}
	_, commit, err := a.decide(policy.UnmountOverlay{UnmountTarget: a.rootfs(in.Container)})
	if err != nil {
		return err
	}
	if err := r.overlay.Close(); err != nil {
		return refuse(wire.CodeFatal, "unmounting overlay: %v", err)
	}
	if err := os.RemoveAll(a.scratchDir(in.Container)); err != nil {
		return refuse(wire.CodeFatal, "removing the writable layer: %v", err)
	}
	commit()
	for _, n := range r.devices {
		a.devices[n].users--
	}
	delete(a.roots, in.Container)
	return nil
}

// readOnlyVolume makes a device's content available under its root hash.
func (a *Agent) readOnlyVolume(n int) (string, error) {
	d := a.devices[n]
	target := filepath.Join(a.sandboxMounts(), "tmp/coffer/ro", d.hash)
	if a.binds[d.hash] != nil {
		return target, nil
	}
	if err := os.MkdirAll(target, 0o711); err != nil {
		return "", fmt.Errorf("mounting a read-only volume: %w", err)
	}
	bind, err := a.cfg.Disks.Bind(d.target, target)
	if err != nil {
		return "", fmt.Errorf("mounting a read-only volume: %w", err)
	}
	a.binds[d.hash] = bind
	d.users++ // for the life of the group
	return target, nil
}
