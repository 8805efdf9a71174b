// SPDX-License-Identifier: Apache-2.0

package guestimage

import (
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// maxModule bounds a kernel module, in bytes.
const maxModule = 64 << 20

// required returns the modules that the guest loads by name, here or there. They
// may be built into the kernel.
func required() []string {
	return []string{
		"virtio_pci", "virtio_console", "virtio_blk", "virtio_net", "dm_mod", "dm_verity", "overlay", // every guest
		"cuse",                                              // the emulated report device
		"dm_crypt", "dm_integrity", "authenc", "ecb", "xts", // a scratch disk; plain xts uses ecb
	}
}

// optional returns the modules that the guest loads if it has them: the CPU's own
// instructions, hardware that not every kernel knows.
func optional() []string {
	return []string{"sha256_ssse3", "aesni_intel", "sev_guest"}
}

// modules is what a kernel package offers.
type modules struct {
	path    map[string]string // normal name -> file
	builtin map[string]bool
	loaded  map[string]*module // what was read, by normal name
}

// module is one module that goes into the image.
type module struct {
	name    string // normal name
	content []byte
	depends []string // normal names; none of them is built in
}

// normal is a module's name as the kernel compares it.
func normal(name string) string {
	return strings.ReplaceAll(strings.TrimSuffix(name, ".ko"), "-", "_")
}

// findModules indexes the one kernel release below dir/lib/modules.
func findModules(dir string) (*modules, string, error) {
	releases, err := os.ReadDir(filepath.Join(dir, "lib", "modules"))
	if err != nil {
		return nil, "", fmt.Errorf("looking for kernel modules: %w", err)
	}
	if len(releases) != 1 {
		return nil, "", fmt.Errorf("%w: %d releases below %s/lib/modules, want one", ErrKernel, len(releases), dir)
	}
	root := filepath.Join(dir, "lib", "modules", releases[0].Name())
	m := &modules{path: make(map[string]string), builtin: make(map[string]bool), loaded: make(map[string]*module)}
	list, err := os.ReadFile(filepath.Join(root, "modules.builtin"))
	if err != nil {
		return nil, "", fmt.Errorf("reading the kernel's own modules: %w", err)
	}
	for _, line := range strings.Fields(string(list)) {
		m.builtin[normal(filepath.Base(line))] = true
	}
	err = filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		switch {
		case strings.HasSuffix(path, ".ko"):
			m.path[normal(e.Name())] = path
		case strings.Contains(e.Name(), ".ko."):
			return fmt.Errorf("%w: module %s is compressed, which is not supported", ErrKernel, e.Name())
		}
		return nil
	})
	if err != nil {
		return nil, "", fmt.Errorf("looking for kernel modules: %w", err)
	}
	return m, releases[0].Name(), nil
}

// errNoModule says that a kernel package has no module of a name.
var errNoModule = errors.New("no such module")

// load reads a module and all it depends on. It returns nil for one that is
// part of the kernel.
func (m *modules) load(name string, depth int) (*module, error) {
	name = normal(name)
	if m.builtin[name] {
		return nil, nil
	}
	if mod, ok := m.loaded[name]; ok {
		return mod, nil
	}
	path, ok := m.path[name]
	if !ok {
		return nil, fmt.Errorf("%w: %w: %s", ErrKernel, errNoModule, name)
	}
	if depth > 32 {
		return nil, fmt.Errorf("%w: module %s depends on itself", ErrKernel, name)
	}
	content, err := readBounded(path, maxModule)
	if err != nil {
		return nil, fmt.Errorf("reading module %s: %w", name, err)
	}
	mod := &module{name: name}
	var depends []string
	if mod.content, depends, err = slim(content); err != nil {
		return nil, fmt.Errorf("reading module %s: %w", name, err)
	}
	for _, d := range depends {
		dep, err := m.load(d, depth+1)
		if err != nil {
			return nil, fmt.Errorf("module %s: %w", name, err)
		}
		if dep != nil {
			mod.depends = append(mod.depends, dep.name)
		}
	}
	slices.Sort(mod.depends)
	m.loaded[name] = mod
	return mod, nil
}

// moduleDir is where modules are in the initrd, and their list, as guest/boot
// reads it.
const moduleDir = "lib/modules"

// choose adds the modules to the initrd, with their list.
func (m *modules) choose(t tree) error {
	for _, name := range required() {
		if _, err := m.load(name, 0); err != nil {
			return err
		}
	}
	for _, name := range optional() {
		if _, err := m.load(name, 0); err != nil && !errors.Is(err, errNoModule) {
			return err
		}
	}
	var list strings.Builder
	for _, name := range slices.Sorted(maps.Keys(m.loaded)) {
		mod := m.loaded[name]
		file := moduleDir + "/" + name + ".ko"
		t.file(file, 0o644, mod.content)
		fmt.Fprintln(&list, strings.Join(append([]string{name, "/" + file}, mod.depends...), " "))
	}
	for _, name := range slices.Sorted(slices.Values(append(required(), optional()...))) {
		if m.builtin[name] {
			fmt.Fprintln(&list, name+" -")
		}
	}
	t.file(moduleDir+"/list", 0o644, []byte(list.String()))
	return nil
}

// slim returns a module without its signature and what else the guest does not
// need, and the names of those it depends on. The signature is worth nothing
// here: the module is measured with the rest of the initrd, and checking an RSA
// signature per module takes a good part of the boot.
func slim(content []byte) ([]byte, []string, error) {
	if mark := []byte("~Module signature appended~\n"); bytes.HasSuffix(content, mark) {
		// struct module_signature before the mark ends in the big-endian
		// length of the signature before it.
		body := len(content) - len(mark) - 12
		if body < 0 {
			return nil, nil, fmt.Errorf("%w: signature", ErrKernel)
		}
		n := int(content[body+8])<<24 | int(content[body+9])<<16 | int(content[body+10])<<8 | int(content[body+11])
		if n < 0 || n > body {
			return nil, nil, fmt.Errorf("%w: signature of %d bytes", ErrKernel, n)
		}
		content = content[:body-n]
	}
	f, err := elf.NewFile(bytes.NewReader(content))
	if err != nil {
		return nil, nil, fmt.Errorf("%w: %w", ErrKernel, err)
	}
	defer f.Close()
	info := f.Section(".modinfo")
	if info == nil {
		return nil, nil, fmt.Errorf("%w: no .modinfo", ErrKernel)
	}
	text, err := info.Data()
	if err != nil {
		return nil, nil, fmt.Errorf("%w: %w", ErrKernel, err)
	}
	var depends []string
	for _, field := range strings.Split(string(text), "\x00") {
		if list, ok := strings.CutPrefix(field, "depends="); ok && list != "" {
			depends = append(depends, strings.Split(list, ",")...)
		}
	}
	return content, depends, nil
}

// readBounded reads a regular file of at most limit bytes.
func readBounded(path string, limit int64) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() > limit {
		return nil, fmt.Errorf("%s: not a file of at most %d bytes", path, limit)
	}
	return os.ReadFile(path)
}
