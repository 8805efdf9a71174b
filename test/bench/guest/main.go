// SPDX-License-Identifier: Apache-2.0

// Command guest is the first process of the virtual machines that test/bench
// starts. With bench=off on the kernel's command line it powers off at once: the
// floor under every start. With bench=inside it times, without agent and host,
// what the guest's own parts take, and prints NAME MICROSECONDS lines.
package main

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/coffer-dev/coffer/guest/boot"
	"github.com/coffer-dev/coffer/guest/container"
	"github.com/coffer-dev/coffer/guest/reap"
	"github.com/coffer-dev/coffer/guest/volume"
)

const (
	rounds   = 9
	rootDir  = "/run/bench/rootfs"
	layerDir = "/run/bench/layer"
	bundle   = "/run/bench"
)

func main() {
	if os.Getenv("bench") == "inside" {
		if err := inside(context.Background()); err != nil {
			boot.Fatal(err)
		}
	}
	boot.PowerOff()
}

func inside(ctx context.Context) error {
	modules, err := boot.Start()
	if err != nil {
		return err
	}
	reaper := reap.New()
	disks := volume.New(volume.Config{Run: reaper.Run, LoadModules: modules.Load})
	if err := mount(ctx, disks); err != nil {
		return err
	}
	if err := readSpeed(); err != nil {
		return err
	}
	return execLatency(ctx, reaper)
}

// mount puts layer 0 under an overlay, as the agent does.
func mount(ctx context.Context, disks *volume.Disks) error {
	for _, dir := range []string{rootDir, layerDir, "/run/bench/scratch"} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	root, err := hex.DecodeString(os.Getenv("benchroot"))
	if err != nil || len(root) != 32 {
		return errors.New("benchroot is not a root hash")
	}
	blocks, err := strconv.ParseInt(os.Getenv("benchblocks"), 10, 64)
	if err != nil {
		return err
	}
	if _, err := disks.OpenLayer(ctx, 0, [32]byte(root), blocks, layerDir); err != nil {
		return err
	}
	if err := disks.Scratch(ctx, false, 0, "/run/bench/scratch"); err != nil {
		return err
	}
	for _, dir := range []string{"/run/bench/scratch/upper", "/run/bench/scratch/work"} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			return err
		}
	}
	_, err = disks.Overlay(rootDir, []string{layerDir}, "/run/bench/scratch/upper", "/run/bench/scratch/work")
	return err
}

// readSpeed times reading a large file of the container's root, and as many
// bytes of the disk below it.
func readSpeed() error {
	var verity, raw []time.Duration
	for range 3 {
		for path, times := range map[string]*[]time.Duration{rootDir + "/big": &verity, "/dev/vda": &raw} {
			if err := os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0); err != nil {
				return err
			}
			d, err := read(path)
			if err != nil {
				return err
			}
			*times = append(*times, d)
		}
	}
	report("read_verity", slices.Min(verity))
	report("read_raw", slices.Min(raw))
	return nil
}

func read(path string) (time.Duration, error) {
	st, err := os.Stat(rootDir + "/big")
	if err != nil {
		return 0, err
	}
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	start := time.Now()
	n, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{io.LimitReader(f, st.Size())}, make([]byte, 1<<20))
	if err == nil && n != st.Size() {
		err = fmt.Errorf("read %d of %d bytes of %s", n, st.Size(), path)
	}
	return time.Since(start), err
}

// execLatency times `runc exec` of true in a running container.
func execLatency(ctx context.Context, reaper *reap.Reaper) error {
	r := &container.Runtime{Runc: "/bin/runc", State: "/run/runc", Temp: "/run/bench/tmp", Reaper: reaper}
	env := []string{"PATH=/bin"}
	p, err := r.Run(ctx, &container.Config{ID: "bench", Root: rootDir, Hostname: "bench",
		Process: container.Process{Args: []string{"/bin/sleep", "1000"}, Env: env, Cwd: "/"},
		Mounts: []container.Mount{{Destination: "/proc", Type: "proc", Source: "proc"},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"mode=755"}}}}, bundle, container.Stdio{})
	if err != nil {
		return err
	}
	var times []time.Duration
	for range rounds {
		start := time.Now()
		if out, err := reaper.Run(ctx, "/bin/runc", []string{"--root", "/run/runc", "exec", "bench", "/bin/true"}, nil); err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		times = append(times, time.Since(start))
	}
	slices.Sort(times)
	report("runc_exec", times[len(times)/2])
	return p.Signal(unix.SIGKILL)
}

func report(name string, d time.Duration) { fmt.Printf("bench %s %d\n", name, d.Microseconds()) }
