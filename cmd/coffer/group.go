// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"

	"github.com/coffer-dev/coffer/host/emulator"
	"github.com/coffer-dev/coffer/host/image"
	"github.com/coffer-dev/coffer/host/launch"
	"github.com/coffer-dev/coffer/host/qemu"
	"github.com/coffer-dev/coffer/host/state"
	"github.com/coffer-dev/coffer/owner/appraise"
	"github.com/coffer-dev/coffer/owner/author"
	"github.com/coffer-dev/coffer/owner/guestimage"
	"github.com/coffer-dev/coffer/tee"
	"github.com/coffer-dev/coffer/wire"
)

const (
	maxCPUs = 64
	// guestMemory is what the guest needs besides a container's limit.
	guestMemory   = 192 << 20
	defaultMemory = 2 << 30
	maxMemory     = 4 << 40
	maxScratch    = 16 << 40
	minScratch    = 64 << 20
)

// prepared is a group that is ready to be started.
type prepared struct {
	handle  *state.Handle
	files   []*os.File // disks, held as in use
	hasDirs bool
	started bool
}

// close lets go of what a supervisor holds by itself now. A group that did not
// start is removed, unless it left a record.
func (p *prepared) close() {
	for _, f := range p.files {
		f.Close()
	}
}

// prepare does all that comes before QEMU.
func (a *app) prepare(ctx context.Context, r *runFlags, reference string, args []string) (*prepared, error) {
	guest, err := a.guest()
	if err != nil {
		return nil, err
	}
	s, err := a.store()
	if err != nil {
		return nil, err
	}
	img, err := a.localImage(ctx, s, reference, r.insecureHTTP)
	if err != nil {
		return nil, err
	}
	p := &prepared{}
	r.command = args
	spec, policy, group, err := a.plan(ctx, r, s, img, p)
	if err == nil {
		err = a.machine(ctx, r, guest, spec)
	}
	if err != nil {
		p.close()
		return nil, err
	}
	group.Image, group.AutoRemove = reference, r.remove
	group.TEE = string(spec.TEE)
	for _, port := range spec.Machine.Ports {
		group.Ports = append(group.Ports, port.String())
	}
	if err := a.record(r, p, spec, policy, group); err != nil {
		p.close()
		return nil, err
	}
	return p, nil
}

// record makes the group's directory.
func (a *app) record(r *runFlags, p *prepared, spec *launch.Spec, policy []byte, group state.Group) error {
	d, err := a.groups()
	if err != nil {
		return err
	}
	if p.handle, err = d.Create(group); err != nil {
		return err
	}
	spec.Hostname = r.hostname
	if spec.Hostname == "" {
		spec.Hostname = p.handle.Group.ShortID()
	}
	if !hasVariable(spec.Container.Env, "HOSTNAME") {
		spec.Container.Env = append(spec.Container.Env, "HOSTNAME="+spec.Hostname)
	}
	if err := launch.Write(p.handle.Path(), spec, policy); err != nil {
		return errors.Join(err, p.handle.Discard())
	}
	return nil
}

func hasVariable(env []string, name string) bool {
	for _, e := range env {
		if strings.HasPrefix(e, name+"=") {
			return true
		}
	}
	return false
}

// plan turns image and wishes into what to ask the guest for, and the policy.
func (a *app) plan(ctx context.Context, r *runFlags, s *image.Store, img *image.Image, p *prepared) (*launch.Spec, []byte, state.Group, error) {
	var group state.Group
	c, dirs, err := a.container(ctx, s, img, &r.workload, r.command)
	if err != nil {
		return nil, nil, group, err
	}
	p.hasDirs = len(dirs) > 0
	for _, d := range dirs {
		p.files = append(p.files, d.File)
	}
	process, err := c.Resolve()
	if err != nil {
		return nil, nil, group, err
	}
	spec := &launch.Spec{Container: launch.Container{
		Args: process.Args, Env: process.Env, Cwd: process.WorkingDir, User: process.User,
		ReadOnlyRoot: r.readOnly, Privileged: r.privileged, NoNewPrivileges: r.noNewPrivileges,
		Terminal: r.terminal, Stdin: r.interactive, StdinOnce: !r.detach, StopSignal: process.StopSignal,
	}}
	if err := layers(s, img, dirs, spec, p); err != nil {
		return nil, nil, group, err
	}
	if spec.Container.Mounts, err = mounts(process.Volumes, spec.Disks); err != nil {
		return nil, nil, group, err
	}
	policy, err := a.policyText(r, c)
	group = state.Group{Name: r.name, ImageID: img.ID, Command: process.Args, Terminal: r.terminal}
	return spec, policy, group, err
}

func (a *app) policyText(r *runFlags, c *author.Container) ([]byte, error) {
	if r.policy != "" {
		return readFile(r.policy, tee.MaxPolicySize)
	}
	return author.Generate(author.Spec{Containers: []author.Container{*c}})
}

// layers numbers the disks: the image's layers from the lowest, then directories.
func layers(s *image.Store, img *image.Image, dirs []volumeDisk, spec *launch.Spec, p *prepared) error {
	add := func(l image.Layer, label string) {
		spec.Disks = append(spec.Disks, launch.Disk{Path: s.LayerPath(l.DiffID), RootHash: l.RootHash, DataBlocks: l.DataBlocks, Label: label})
	}
	for _, l := range img.Layers {
		f, err := s.OpenLayer(l.DiffID)
		if err != nil {
			return hint(err, "`coffer image pull` converts it again")
		}
		p.files = append(p.files, f)
		spec.Container.Layers = append([]int{len(spec.Disks)}, spec.Container.Layers...)
		add(l, l.DiffID)
	}
	for _, d := range dirs {
		add(d.Layer, "the directory for "+d.Destination)
	}
	if n := len(spec.Disks); n > qemu.MaxLayers {
		return fmt.Errorf("the image has %d layers and volumes, more than the %d disks of a VM", n, qemu.MaxLayers)
	}
	return nil
}

func mounts(volumes []author.Volume, disks []launch.Disk) ([]wire.Mount, error) {
	var out []wire.Mount
	for _, v := range volumes {
		m := wire.Mount{Destination: v.Destination, Volume: v.Name, ReadOnly: v.ReadOnly, Seed: v.Name != ""}
		if v.RootHash != "" {
			device := -1
			for i, d := range disks {
				if d.RootHash == v.RootHash {
					device = i
				}
			}
			if device < 0 {
				return nil, fmt.Errorf("volume %s: no disk has its root hash", v.Destination)
			}
			m.Device, m.ReadOnly = &device, true
		}
		out = append(out, m)
	}
	return out, nil
}

// machine decides what to start.
func (a *app) machine(ctx context.Context, r *runFlags, guest string, spec *launch.Spec) error {
	binary, err := qemu.Find("")
	if err != nil {
		return hint(err, "apt-get install qemu-system-x86")
	}
	m := &spec.Machine
	m.Binary, m.Network = binary, r.network == "user"
	if err := a.chooseTEE(ctx, r, guest, spec); err != nil {
		return err
	}
	if m.Ports, err = parsePorts(r.ports); err != nil {
		return err
	}
	if spec.Container.Resources.MilliCPUs = int64(math.Round(r.cpus * 1000)); r.cpus > 0 {
		m.CPUs = int(math.Ceil(r.cpus))
	} else if m.CPUs = 1; m.Accel == "kvm" { // under emulation more CPUs boot less surely
		m.CPUs = min(runtime.NumCPU(), guestimage.MaxVCPUs, 4)
	}
	if m.Memory = defaultMemory; r.memory != "" {
		limit, err := parseBytes(r.memory)
		if err != nil || limit < 6<<20 || limit > maxMemory {
			return fmt.Errorf("--memory %q: it is a size of at least 6m, as 512m or 2g", r.memory)
		}
		spec.Container.Resources.MemoryBytes = limit
		m.Memory = (limit + guestMemory + 1<<20 - 1) >> 20 << 20
	}
	if r.scratch != "" {
		if spec.ScratchBytes, err = parseBytes(r.scratch); err != nil || spec.ScratchBytes < minScratch || spec.ScratchBytes > maxScratch {
			return fmt.Errorf("--scratch-size %q: it is a size of at least 64m, as 1g", r.scratch)
		}
		spec.ScratchBytes &^= 1<<20 - 1
	}
	return nil
}

// chooseTEE sets what differs between TEEs: the guest's files and the accelerator.
func (a *app) chooseTEE(ctx context.Context, r *runFlags, guest string, spec *launch.Spec) error {
	if r.tee != "emulated" {
		err := a.useSNP(ctx, guest, spec)
		if err == nil {
			return nil
		}
		if r.tee == "sev-snp" {
			return hint(err, "`coffer doctor` says what this machine lacks")
		}
		fmt.Fprintln(a.stderr, "coffer: note: no SEV-SNP here: the TEE is emulated, and nothing is protected from this machine")
	}
	spec.TEE = tee.Emulated
	spec.EmulatorDir = a.emulatorDir()
	if err := useReference(guest, guestimage.ReferenceFile, spec); err != nil {
		return err
	}
	probe, err := qemu.ProbeKVM(ctx, spec.Machine.Binary, spec.Machine.Kernel, filepath.Join(a.root, "kvm.json"),
		func(s string) { fmt.Fprintln(a.stderr, "coffer:", s) })
	if err != nil {
		return err
	}
	if spec.Machine.Accel = "tcg"; probe.Works {
		spec.Machine.Accel = "kvm"
	}
	if _, err := os.Stat(spec.EmulatorDir); errors.Is(err, fs.ErrNotExist) {
		// Once per installation, and it takes seconds: say so here, where it is seen.
		_, err := emulator.LoadOrCreate(spec.EmulatorDir, func(s string) { fmt.Fprintln(a.stderr, "coffer:", s) })
		return err
	}
	return nil
}

// emulatorDir holds the emulated processor's chain.
func (a *app) emulatorDir() string { return filepath.Join(a.root, "emulator") }

func (a *app) useSNP(ctx context.Context, guest string, spec *launch.Spec) error {
	param, err := os.ReadFile("/sys/module/kvm_amd/parameters/sev_snp")
	if err != nil || !bytes.HasPrefix(param, []byte("Y")) {
		return errors.New("this machine has no SEV-SNP, or it is not enabled")
	}
	caps, err := qemu.AskSEV(ctx, spec.Machine.Binary)
	if err != nil {
		return err
	}
	if err := useReference(guest, guestimage.SNPReferenceFile, spec); err != nil {
		return err
	}
	spec.TEE, spec.Machine.Accel = tee.SEVSNP, "kvm"
	spec.SNP = &launch.SNP{Capabilities: caps, CPU: qemu.DefaultSNPCPU}
	return nil
}

// useReference takes the files that a reference document names. Whether they
// are those whose digests it lists, the launch measurement shows.
func useReference(guest, name string, spec *launch.Spec) error {
	var ref appraise.Reference
	ref, err := readReference(filepath.Join(guest, name))
	if err != nil {
		return err
	}
	if ref.Firmware == nil {
		return fmt.Errorf("%s names no firmware", filepath.Join(guest, name))
	}
	m := &spec.Machine
	m.Kernel, m.Initrd, m.Firmware = filepath.Join(guest, ref.Kernel.Name), filepath.Join(guest, ref.Initrd.Name), filepath.Join(guest, ref.Firmware.Name)
	m.Append = ref.Append
	return nil
}

// parseBytes reads 512, 512k, 512m, 2g, in powers of 1024, as docker does.
func parseBytes(s string) (int64, error) {
	t := strings.ToLower(strings.TrimSpace(s))
	t = strings.TrimSuffix(strings.TrimSuffix(t, "b"), "i")
	shift := 0
	if i := strings.IndexByte("kmgt", lastByte(t)); i >= 0 {
		shift, t = 10*(i+1), t[:len(t)-1]
	}
	f, err := strconv.ParseFloat(t, 64)
	if err != nil || f < 0 || math.IsNaN(f) || f*float64(int64(1)<<shift) > math.MaxInt64/2 {
		return 0, fmt.Errorf("parsing size %q: it is a number with k, m, g or t", s)
	}
	return int64(f * float64(int64(1)<<shift)), nil
}

func lastByte(s string) byte {
	if s == "" {
		return 0
	}
	return s[len(s)-1]
}
