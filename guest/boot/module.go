// SPDX-License-Identifier: Apache-2.0

package boot

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// ModuleList is the file, made with the guest image, that names each module,
// its file, and the modules that it needs, one module a line:
//
//	dm_verity /lib/modules/dm-verity.ko dm_mod dm_bufio
//
// A module that is part of the kernel has "-" for its file.
const ModuleList = "/lib/modules/list"

// Modules are the kernel modules of this guest image.
type Modules struct {
	files map[string]string
	needs map[string][]string

	mu   sync.Mutex // guards done, and is held while a module is loaded
	done map[string]bool
}

// ReadModules reads a module list.
func ReadModules(path string) (*Modules, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("reading the module list: %w", err)
	}
	m := &Modules{files: make(map[string]string), needs: make(map[string][]string), done: make(map[string]bool)}
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) < 2 {
			return nil, fmt.Errorf("reading the module list: malformed line %q", line)
		}
		m.files[f[0]], m.needs[f[0]] = f[1], f[2:]
	}
	return m, nil
}

// Has reports whether the image brings this module.
func (m *Modules) Has(name string) bool { return m.files[name] != "" }

// Load loads modules, each after what it needs. One that is loaded already, or
// is part of the kernel, is no error; one that the image does not have is. One
// module is loaded at a time: the kernel gains nothing from more, since it stops
// all CPUs for each.
func (m *Modules) Load(names ...string) error {
	for _, name := range names {
		if err := m.load(name, 0); err != nil {
			return err
		}
	}
	return nil
}

// maxDepth is deeper than modules need each other; a list that is deeper has a
// cycle.
const maxDepth = 32

func (m *Modules) load(name string, depth int) error {
	if depth > maxDepth {
		return fmt.Errorf("loading module %s: it needs itself", name)
	}
	for _, need := range m.needs[name] {
		if err := m.load(need, depth+1); err != nil {
			return err
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.done[name] {
		return nil
	}
	if err := m.insert(name); err != nil {
		return err
	}
	m.done[name] = true
	return nil
}

func (m *Modules) insert(name string) error {
	switch m.files[name] {
	case "":
		return fmt.Errorf("loading module %s: the guest image does not have it", name)
	case "-":
		return nil
	}
	fd, err := unix.Open(m.files[name], unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("loading module %s: opening %s: %w", name, m.files[name], err)
	}
	defer unix.Close(fd)
	if err := unix.FinitModule(fd, "", 0); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("loading module %s: %w", name, err)
	}
	return nil
}

// LoadAccelerated loads those of the named modules for whose instructions the
// CPU has the flag, and does without the rest.
func (m *Modules) LoadAccelerated(flag string, names ...string) error {
	ok, err := cpuHas("/proc/cpuinfo", flag)
	if err != nil {
		return fmt.Errorf("looking for the CPU's flag %s: %w", flag, err)
	}
	names = slices.DeleteFunc(slices.Clone(names), func(n string) bool { return !m.Has(n) })
	if !ok {
		return nil
	}
	return m.Load(names...)
}

// loadChannel loads what the control channel needs, for which the host waits.
func (m *Modules) loadChannel() error { return m.Load("virtio_pci", "virtio_console") }

// Ready loads what every guest needs next, for disks, network and overlays. After
// Begin that is under way already, and Ready waits for it.
func (m *Modules) Ready() error {
	// SHA-256 first: dm-verity takes the best that is there when it opens a
	// disk. Without instructions of its own the kernel's plain code is best.
	if err := m.LoadAccelerated("sha_ni", "sha256_ssse3"); err != nil {
		return err
	}
	return m.Load("virtio_blk", "dm_mod", "dm_verity", "overlay", "virtio_net")
}

// Lock makes the kernel refuse every further module, for good.
func (m *Modules) Lock() error {
	return Run([]Step{File{"/proc/sys/kernel/modules_disabled", "1"}})
}

// cpuHas says whether the first CPU of a cpuinfo file has a flag.
func cpuHas(path, flag string) (bool, error) {
	info, err := os.ReadFile(path)
	if err != nil {
		return false, err
	}
	for line := range strings.Lines(string(info)) {
		if name, value, _ := strings.Cut(line, ":"); strings.TrimSpace(name) == "flags" {
			return slices.Contains(strings.Fields(value), flag), nil
		}
	}
	return false, errors.New("the kernel lists no flags")
}
