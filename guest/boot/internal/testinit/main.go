// SPDX-License-Identifier: Apache-2.0

// Command testinit boots as the guest does and powers off. The kernel's command
// line says what it does in between, for tests and measurements:
//
//	testinit=off     power off at once, without a boot: the floor of what one takes
//	testinit=ready   also wait for the modules of disks and network
//	testinit=check   check what the boot promises
//	testinit=echo    answer one line on the control channel, then wait for its end
//	testinit=fatal   end by boot.Fatal
//	testinit=panic   panic in a guarded goroutine
package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/coffer-dev/coffer/guest/boot"
)

func main() {
	start := time.Now()
	mode := os.Getenv("testinit") // the kernel makes variables of words that it does not know
	if mode == "off" {
		boot.PowerOff()
	}
	modules, err := boot.Begin()
	if err != nil {
		boot.Fatal(err)
	}
	switch mode {
	case "ready":
		err = modules.Ready()
	case "check":
		err = check(modules)
	case "echo":
		err = echo()
	case "fatal":
		err = errors.New("testing:\nthe end")
	case "panic":
		go func() {
			defer boot.Guard()
			panic("testing the end")
		}()
		select {}
	}
	if err != nil {
		boot.Fatal(err)
	}
	fmt.Printf("testinit: booted in %d us\n", time.Since(start).Microseconds())
	boot.PowerOff()
}

// check returns the first promise that is not kept.
func check(modules *boot.Modules) error {
	if err := modules.Ready(); err != nil {
		return err
	}
	list, err := os.ReadFile(boot.ModuleList)
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(list)) {
		name := strings.Fields(line)[0]
		if name == "sha256_ssse3" || name == "aesni_intel" {
			continue // not every CPU can
		}
		if err := modules.Load(name); err != nil {
			return err
		}
	}
	if err := modules.LoadAccelerated("aes", "aesni_intel"); err != nil {
		return err
	}
	if err := os.WriteFile("/written", nil, 0o600); !errors.Is(err, unix.EROFS) {
		return fmt.Errorf("writing to the root: %w; want a read-only file system", err)
	}
	if err := os.WriteFile("/init", nil, 0o700); !errors.Is(err, unix.EROFS) {
		return fmt.Errorf("writing to init: %w; want a read-only file system", err)
	}
	if err := os.WriteFile("/run/written", nil, 0o600); err != nil {
		return err
	}
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil || limit.Cur != 1<<20 {
		return fmt.Errorf("open files are limited to %d (%w)", limit.Cur, err)
	}
	if err := os.Mkdir("/sys/fs/cgroup/test", 0o755); err != nil {
		return err
	}
	for _, file := range []string{"memory.max", "cpu.max", "pids.max", "io.stat"} {
		if _, err := os.Stat("/sys/fs/cgroup/test/" + file); err != nil {
			return err
		}
	}
	if err := modules.Lock(); err != nil {
		return err
	}
	return pivot()
}

// pivot does what runc does to enter a container's root.
func pivot() error {
	runtime.LockOSThread() // and never unlocked: the thread has a root of its own
	if err := unix.Unshare(unix.CLONE_NEWNS | unix.CLONE_FS); err != nil {
		return err
	}
	if err := os.Mkdir("/run/new", 0o755); err != nil {
		return err
	}
	if err := unix.Mount("tmpfs", "/run/new", "tmpfs", 0, ""); err != nil {
		return err
	}
	if err := unix.Chdir("/run/new"); err != nil {
		return err
	}
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("pivot_root: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("unmounting the old root: %w", err)
	}
	if entries, err := os.ReadDir("/"); err != nil || len(entries) != 0 {
		return fmt.Errorf("the new root has %d entries (%w); want 0", len(entries), err)
	}
	return nil
}

// echo answers a line and then wants the end of the channel.
func echo() error {
	if boot.HasPort("coffer.none") {
		return errors.New("found a port that is not there")
	}
	port, err := boot.OpenPort(boot.PortControl)
	if err != nil {
		return err
	}
	defer port.Close()
	r := bufio.NewReader(port)
	line, err := r.ReadString('\n')
	if err != nil {
		return err
	}
	if _, err := io.WriteString(port, "echo "+line); err != nil {
		return err
	}
	if _, err := r.ReadByte(); !errors.Is(err, io.EOF) {
		return fmt.Errorf("after the host went away: %w; want the end of the channel", err)
	}
	return nil
}
