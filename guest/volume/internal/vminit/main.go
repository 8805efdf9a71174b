// SPDX-License-Identifier: Apache-2.0

// Command vminit is the first process of the virtual machine in which the
// tests of guest/volume run. It does what /scenario.json says, prints a line
// "PASS name" or "FAIL name: why" for each check and "END" at last, and powers
// the machine off.
package main

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/coffer-dev/coffer/guest/boot"
	"github.com/coffer-dev/coffer/guest/reap"
	"github.com/coffer-dev/coffer/guest/volume"
)

// scenario is the whole input.
type scenario struct {
	Name   string
	Layers []struct {
		Device     int
		Root       string
		DataBlocks int64
	}
}

// guest is what the checks work with.
type guest struct {
	scenario
	disks  *volume.Disks
	reaper *reap.Reaper
	input  *bufio.Reader
}

func main() {
	defer func() {
		if r := recover(); r != nil {
			fmt.Printf("FAIL panic: %v\n", r)
		}
		_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	}()
	g, err := start()
	if err != nil {
		fmt.Printf("FAIL start: %v\n", err)
		return
	}
	checks := map[string][]check{
		"good":    g.goodChecks(),
		"many":    {{"many", g.many}},
		"fatal":   {{"fatal", g.fatal}},
		"scratch": g.scratchChecks(),
		"speed":   {{"speed", g.speed}},
	}
	for _, c := range checks[g.Name] {
		if err := c.f(); err != nil {
			fmt.Printf("FAIL %s: %v\n", c.name, err)
			if g.Name == "scratch" {
				break // each needs the one before
			}
			continue
		}
		fmt.Printf("PASS %s\n", c.name)
	}
	fmt.Println("END")
}

type check struct {
	name string
	f    func() error
}

func start() (*guest, error) {
	for _, m := range []struct{ kind, path string }{{"devtmpfs", "/dev"}, {"proc", "/proc"}, {"sysfs", "/sys"}, {"tmpfs", "/run"}} {
		if err := os.MkdirAll(m.path, 0o755); err != nil {
			return nil, err
		}
		if err := unix.Mount(m.kind, m.path, m.kind, 0, ""); err != nil {
			return nil, fmt.Errorf("mounting %s: %w", m.path, err)
		}
	}
	modules, err := boot.ReadModules(boot.ModuleList)
	if err != nil {
		return nil, err
	}
	if err := modules.Load("virtio_pci", "virtio_blk", "dm_mod", "dm_verity", "overlay"); err != nil {
		return nil, err
	}
	b, err := os.ReadFile("/scenario.json")
	if err != nil {
		return nil, err
	}
	g := &guest{reaper: reap.New(), input: bufio.NewReader(os.Stdin)}
	if err := json.Unmarshal(b, &g.scenario); err != nil {
		return nil, err
	}
	g.disks = volume.New(volume.Config{Run: g.reaper.Run, LoadModules: modules.Load})
	return g, nil
}

// root is the root hash of the i-th layer of the scenario.
func (g *guest) root(i int) (root [32]byte) {
	b, err := hex.DecodeString(g.Layers[i].Root)
	if err != nil || len(b) != len(root) {
		boot.Fatal(errors.New("malformed root hash in the scenario"))
	}
	copy(root[:], b)
	return root
}

// refused holds err to be an error that says all of these.
func refused(err error, words ...string) error {
	if err == nil {
		return fmt.Errorf("got nil; want an error with %q", words)
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			return fmt.Errorf("got %q; want it to say %q", err.Error(), w)
		}
	}
	return nil
}

func holds(path, want string) error {
	got, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if !bytes.Equal(got, []byte(want)) {
		return fmt.Errorf("%s holds %.80q; want %.80q", path, got, want)
	}
	return nil
}

func absent(path string) error {
	if _, err := os.Lstat(path); !os.IsNotExist(err) {
		return fmt.Errorf("Lstat(%s) = %v; want that it does not exist", path, fmt.Sprint(err))
	}
	return nil
}

func first(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

func mkdirs(paths ...string) error {
	for _, p := range paths {
		if err := os.MkdirAll(p, 0o755); err != nil {
			return err
		}
	}
	return nil
}

func dropCaches() error {
	unix.Sync()
	return os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0)
}
