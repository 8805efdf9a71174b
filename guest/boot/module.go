// SPDX-License-Identifier: Apache-2.0

package boot

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// ModuleList is the file, made with the guest image, that names each module,
// its file, and the modules that it needs, one module a line:
//
//	dm_verity /lib/modules/dm-verity.ko dm_mod dm_bufio
const ModuleList = "/lib/modules/list"

// Modules are the kernel modules of this guest image.
type Modules struct {
	files map[string]string
	needs map[string][]string

	mu     sync.Mutex // guards loaded; held while loading
	loaded map[string]bool
}

// ReadModules reads a module list.
func ReadModules(path string) (*Modules, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("reading the module list: %w", err)
	}
	m := &Modules{files: make(map[string]string), needs: make(map[string][]string), loaded: make(map[string]bool)}
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

// Load loads modules, each after what it needs. One that is loaded already is
// no error; one that the image does not have is.
func (m *Modules) Load(names ...string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, name := range names {
		if err := m.load(name); err != nil {
			return err
		}
	}
	return nil
}

func (m *Modules) load(name string) error {
	if m.loaded[name] {
		return nil
	}
	m.loaded[name] = true // also ends a cycle, which a kernel's list does not have
	path, ok := m.files[name]
	if !ok {
		return fmt.Errorf("loading module %s: the guest image does not have it", name)
	}
	for _, need := range m.needs[name] {
		if err := m.load(need); err != nil {
			return err
		}
	}
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("loading module %s: %w", name, err)
	}
	defer f.Close()
	if err := unix.FinitModule(int(f.Fd()), "", 0); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("loading module %s: %w", name, err)
	}
	return nil
}
