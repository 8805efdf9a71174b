// SPDX-License-Identifier: Apache-2.0

package main

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/coffer-dev/coffer/host/emulator"
	"github.com/coffer-dev/coffer/host/qemu"
	"github.com/coffer-dev/coffer/layer"
	"github.com/coffer-dev/coffer/owner/author"
	"github.com/coffer-dev/coffer/owner/guestimage"
	"github.com/coffer-dev/coffer/wire"
)

// bigFile is the size of the file that read speed is measured with, in bytes.
const bigFile = 192 << 20

func writeTar(to io.Writer) error {
	busybox, err := os.ReadFile("/bin/busybox")
	if err != nil {
		return fmt.Errorf("reading the benchmark's program (install busybox-static): %w", err)
	}
	w := tar.NewWriter(to)
	for _, dir := range []string{"bin/", "dev/", "proc/", "sys/", "etc/"} {
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: dir, Mode: 0o755}); err != nil {
			return err
		}
	}
	if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "bin/busybox", Mode: 0o755, Size: int64(len(busybox))}); err != nil {
		return err
	}
	if _, err := w.Write(busybox); err != nil {
		return err
	}
	for _, name := range []string{"true", "sleep"} {
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeSymlink, Name: "bin/" + name, Linkname: "busybox"}); err != nil {
			return err
		}
	}
	if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "big", Mode: 0o644, Size: bigFile}); err != nil {
		return err
	}
	if _, err := io.CopyN(w, rand.NewChaCha8([32]byte{}), bigFile); err != nil {
		return err
	}
	return w.Close()
}

// host speaks to a real guest directly, so that only the guest is measured.
type host struct {
	*wire.Client
	vm    *qemu.Process
	exits chan wire.Exit
}

// agentExec is the median time from asking the guest for exec of true to the
// news of its end, and the agent's resident memory afterwards.
func (b *bench) agentExec(ctx context.Context, disk string, img layer.Image) (time.Duration, uint64, error) {
	policy, err := author.Generate(author.Spec{Containers: []author.Container{{Name: "bench", Layers: []string{img.Root.String()},
		Command: []string{"/bin/sleep", "1000"}, Exec: []author.Exec{{Command: []string{"/bin/true"}}}}}})
	if err != nil {
		return 0, 0, err
	}
	h, err := b.startGuest(ctx, disk, policy)
	if err != nil {
		return 0, 0, err
	}
	defer h.end()
	id := strings.Repeat("0b", 32)
	env := []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
	for _, step := range []struct {
		op wire.Op
		in any
	}{
		{wire.OpHello, wire.Hello{Version: wire.Version, Group: strings.Repeat("0a", 32)}},
		{wire.OpSetPolicy, wire.SetPolicy{Policy: policy}},
		{wire.OpConfigureNetwork, wire.Network{Hostname: "bench"}},
		{wire.OpPrepareScratch, wire.PrepareScratch{}},
		{wire.OpMountDevice, wire.MountDevice{RootHash: img.Root.String(), DataBlocks: img.DataBlocks}},
		{wire.OpMountOverlay, wire.MountOverlay{Container: id, Layers: []int{0}}},
		{wire.OpCreateContainer, wire.CreateContainer{Container: id, Args: []string{"/bin/sleep", "1000"}, Env: env, Cwd: "/"}},
		{wire.OpStartContainer, wire.ContainerRef{Container: id}},
	} {
		if err := h.Call(ctx, step.op, step.in, nil); err != nil {
			return 0, 0, err
		}
	}
	var times []time.Duration
	for i := range b.rounds {
		start := time.Now()
		if err := h.Call(ctx, wire.OpExec, wire.Exec{Container: id, Process: fmt.Sprint("p", i), Args: []string{"/bin/true"}, Env: env}, nil); err != nil {
			return 0, 0, err
		}
		select {
		case <-h.exits:
		case <-h.Done():
			return 0, 0, h.Err()
		}
		times = append(times, time.Since(start))
	}
	var stats wire.Stats
	if err := h.Call(ctx, wire.OpStats, wire.ContainerRef{Container: id}, &stats); err != nil {
		return 0, 0, err
	}
	return median(times), stats.AgentBytes, nil
}

func (b *bench) startGuest(ctx context.Context, disk string, policy []byte) (*host, error) {
	m, err := b.machine("", disk)
	if err != nil {
		return nil, err
	}
	m.Append = strings.TrimSuffix(m.Append, " ")
	for name, path := range map[string]*string{guestimage.FirmwareFile: &m.Firmware, guestimage.KernelFile: &m.Kernel, guestimage.InitrdFile: &m.Initrd} {
		*path = filepath.Join(b.guest, name)
	}
	measurement, err := emulator.Measure(emulator.Started{Firmware: m.Firmware, Kernel: m.Kernel, Initrd: m.Initrd, Append: m.Append, VCPUs: m.CPUs})
	if err != nil {
		return nil, err
	}
	root, err := emulator.LoadOrCreate(filepath.Join(b.dir, "emulator"), nil)
	if err != nil {
		return nil, err
	}
	processor, err := emulator.New(root, emulator.Launch{Measurement: measurement, HostData: sha256.Sum256(policy)})
	if err != nil {
		return nil, err
	}
	h := &host{exits: make(chan wire.Exit, 16)}
	if h.vm, err = qemu.Start(m); err != nil {
		return nil, err
	}
	// Both end when the channels are closed.
	go func() { _, _ = io.Copy(io.Discard, h.vm.Console) }()
	go func() { _ = processor.Serve(ctx, h.vm.SEV) }()
	h.Client, err = wire.Dial(h.vm.Control, func(e wire.Event, body json.RawMessage) {
		var x wire.Exit
		if e == wire.EventExit && wire.Decode(body, &x) == nil {
			h.exits <- x
		}
	})
	if err != nil {
		h.vm.Kill()
		return nil, errors.Join(err, h.vm.Close())
	}
	return h, nil
}

func (h *host) end() {
	h.vm.Kill()
	h.Close()
	h.vm.Close()
}
