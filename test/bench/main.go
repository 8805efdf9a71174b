// SPDX-License-Identifier: Apache-2.0

// Command bench measures Coffer on this machine and prints `name: value` lines,
// as ratios wherever a figure would otherwise say more about the machine.
// `make bench` runs it; docs/performance.md says what each figure means.
package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/cavaliergopher/cpio"

	"github.com/coffer-dev/coffer/host/qemu"
	"github.com/coffer-dev/coffer/layer"
	"github.com/coffer-dev/coffer/owner/appraise"
	"github.com/coffer-dev/coffer/owner/guestimage"
)

// bench is one run of all measurements.
type bench struct {
	dir    string // temporary
	coffer string // the binary
	guest  string // the guest image's directory
	image  string // OCI layout of busybox
	kernel string // unpacked kernel package
	runc   string
	rounds int
	cpus   int
	accel  string
}

func main() {
	var b bench
	flag.StringVar(&b.coffer, "coffer", "bin/coffer", "the binary to measure")
	flag.StringVar(&b.guest, "guest", "build/guest", "guest image")
	flag.StringVar(&b.image, "image", "build/images/busybox", "OCI layout of busybox")
	flag.StringVar(&b.kernel, "kernel-dir", "build/cache/kernel", "unpacked kernel package")
	flag.StringVar(&b.runc, "runc", "build/runc", "runc binary")
	flag.IntVar(&b.rounds, "rounds", 7, "measurements of each kind")
	flag.IntVar(&b.cpus, "cpus", 1, "vCPUs, as coffer chooses on this machine")
	flag.StringVar(&b.accel, "accel", "tcg", "kvm or tcg: what coffer chooses on this machine")
	flag.Parse()
	if err := b.run(context.Background()); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func (b *bench) run(ctx context.Context) (err error) {
	for _, path := range []*string{&b.coffer, &b.guest, &b.image, &b.kernel, &b.runc} {
		if *path, err = filepath.Abs(*path); err != nil {
			return err
		}
	}
	if b.dir, err = os.MkdirTemp("", "coffer-bench-"); err != nil {
		return err
	}
	defer os.RemoveAll(b.dir)
	if err := b.buildGuest(ctx); err != nil {
		return err
	}
	for _, measure := range []func(context.Context) error{b.sizes, b.coldStart, b.inside} {
		if err := measure(ctx); err != nil {
			return err
		}
	}
	return nil
}

// benchGuest is where the guest image with test/bench/guest as its agent is.
func (b *bench) benchGuest(name string) string { return filepath.Join(b.dir, "guest", name) }

func (b *bench) buildGuest(ctx context.Context) error {
	agent := filepath.Join(b.dir, "benchguest")
	build := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", agent, "./test/bench/guest")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("building the bench guest: %w: %s", err, out)
	}
	if _, err := guestimage.Build(ctx, guestimage.Config{KernelDir: b.kernel, Agent: agent, Runc: b.runc,
		Firmware: filepath.Join(b.guest, guestimage.FirmwareFile), Out: filepath.Join(b.dir, "guest")}); err != nil {
		return err
	}
	return b.floorInitrd(agent)
}

// floorInitrd holds nothing but the init that powers off.
func (b *bench) floorInitrd(init string) error {
	program, err := os.ReadFile(init)
	if err != nil {
		return err
	}
	f, err := os.Create(b.benchGuest("floor.img"))
	if err != nil {
		return err
	}
	w := cpio.NewWriter(f)
	if err := w.WriteHeader(&cpio.Header{Name: "init", Mode: cpio.TypeReg | 0o755, Size: int64(len(program)), Links: 1}); err != nil {
		return errors.Join(err, f.Close())
	}
	_, err = w.Write(program)
	return errors.Join(err, w.Close(), f.Close())
}

func (b *bench) sizes(context.Context) error {
	st, err := os.Stat(filepath.Join(b.guest, guestimage.InitrdFile))
	if err != nil {
		return err
	}
	fmt.Printf("guest_initrd_mb: %.2f\n", float64(st.Size())/1e6)
	return nil
}

// machine is a virtual machine as coffer makes them, with the bench guest.
func (b *bench) machine(words string, layers ...string) (*qemu.Machine, error) {
	binary, err := qemu.Find("")
	if err != nil {
		return nil, err
	}
	text, err := os.ReadFile(filepath.Join(b.guest, guestimage.ReferenceFile))
	if err != nil {
		return nil, err
	}
	ref, err := appraise.ParseReference(text)
	if err != nil {
		return nil, err
	}
	return &qemu.Machine{Binary: binary, TEE: qemu.Emulated{}, Accel: b.accel, CPUs: b.cpus, Memory: 2 << 30,
		Firmware: b.benchGuest(guestimage.FirmwareFile), Kernel: b.benchGuest(guestimage.KernelFile),
		Initrd: b.benchGuest(guestimage.InitrdFile), Append: ref.Append + " " + words, Layers: layers}, nil
}

// boot runs a machine to its end and returns its console.
func (b *bench) boot(m *qemu.Machine) (string, time.Duration, error) {
	start := time.Now()
	vm, err := qemu.Start(m)
	if err != nil {
		return "", 0, err
	}
	var console strings.Builder
	var copying sync.WaitGroup
	copying.Go(func() { _, _ = io.Copy(&console, vm.Console) })
	<-vm.Done()
	took := time.Since(start)
	err = vm.Err()
	vm.Close()
	copying.Wait()
	return console.String(), took, err
}

// coldStart compares `coffer run --rm busybox true` with a boot of the same
// kernel whose init powers off at once.
func (b *bench) coldStart(ctx context.Context) error {
	root := filepath.Join(b.dir, "root")
	coffer := func(args ...string) error {
		cmd := exec.CommandContext(ctx, b.coffer, append([]string{"--root", root, "--guest", b.guest}, args...)...)
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("coffer %s: %w: %s", strings.Join(args, " "), err, out)
		}
		return nil
	}
	policy := filepath.Join(b.dir, "policy.rego")
	if err := coffer("policy", "generate", "-o", policy, "oci:"+b.image, "true"); err != nil {
		return err
	}
	run := func() error { return coffer("run", "--rm", "--policy", policy, "oci:"+b.image, "true") }
	if err := run(); err != nil { // makes the emulated root, and probes the accelerator
		return err
	}
	var floors, starts []time.Duration
	for range b.rounds {
		m, err := b.machine("bench=off")
		if err != nil {
			return err
		}
		m.Initrd = b.benchGuest("floor.img")
		_, took, err := b.boot(m)
		if err != nil {
			return err
		}
		floors = append(floors, took)
		began := time.Now()
		if err := run(); err != nil {
			return err
		}
		starts = append(starts, time.Since(began))
	}
	fmt.Printf("cold_start_floor_ms: %d\n", median(floors).Milliseconds())
	fmt.Printf("cold_start_ms: %d\n", median(starts).Milliseconds())
	fmt.Printf("cold_start_ratio: %.2f\n", ratio(starts, floors))
	return nil
}

// inside takes what happens within the guest: exec and reading.
func (b *bench) inside(ctx context.Context) error {
	disk, img, err := b.layer(ctx)
	if err != nil {
		return err
	}
	m, err := b.machine(fmt.Sprintf("bench=inside benchroot=%s benchblocks=%d", img.Root, img.DataBlocks), disk)
	if err != nil {
		return err
	}
	console, _, err := b.boot(m)
	if err != nil {
		return err
	}
	figures := map[string]float64{}
	for line := range strings.Lines(console) {
		if f := strings.Fields(line); len(f) == 3 && f[0] == "bench" {
			if figures[f[1]], err = strconv.ParseFloat(f[2], 64); err != nil {
				return err
			}
		}
	}
	for _, name := range []string{"read_verity", "read_raw", "runc_exec"} {
		if figures[name] == 0 {
			return fmt.Errorf("the bench guest gave no %s; its console was:\n%s", name, console)
		}
	}
	fmt.Printf("verity_read_ratio: %.2f\n", figures["read_raw"]/figures["read_verity"])
	took, resident, err := b.agentExec(ctx, disk, img)
	if err != nil {
		return err
	}
	fmt.Printf("runc_exec_ms: %.0f\n", figures["runc_exec"]/1000)
	fmt.Printf("exec_ms: %d\n", took.Milliseconds())
	fmt.Printf("exec_latency: %.2f\n", float64(took.Microseconds())/figures["runc_exec"])
	fmt.Printf("guest_rss_mb: %.1f\n", float64(resident)/1e6)
	return nil
}

// layer is a disk with busybox and one large file that does not compress.
func (b *bench) layer(ctx context.Context) (string, layer.Image, error) {
	path := filepath.Join(b.dir, "disk")
	f, err := os.Create(path)
	if err != nil {
		return "", layer.Image{}, err
	}
	defer f.Close()
	r, w := io.Pipe()
	go func() { w.CloseWithError(writeTar(w)) }() // ends with the reader
	img, err := layer.Convert(ctx, r, f)
	return path, img, err
}

func median[T cmp.Ordered](list []T) T {
	list = slices.Sorted(slices.Values(list))
	return list[len(list)/2]
}

// ratio is the median of the pairs' ratios: each pair ran one after the other,
// under much the same load.
func ratio(a, b []time.Duration) float64 {
	var list []float64
	for i := range a {
		list = append(list, float64(a[i])/float64(b[i]))
	}
	return median(list)
}
