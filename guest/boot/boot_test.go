// SPDX-License-Identifier: Apache-2.0

package boot

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unicode"
)

type failing struct{ err error }

func (f failing) Do() error      { return f.err }
func (f failing) String() string { return "doing a thing" }

func TestRunStopsAtTheFirstError(t *testing.T) {
	path := filepath.Join(t.TempDir(), "never")
	cause := errors.New("cause")
	err := Run([]Step{Umask(0o022), failing{cause}, Symlink{"/", path}})
	if !errors.Is(err, cause) || !strings.HasPrefix(err.Error(), "doing a thing: ") {
		t.Errorf("Run = %v; want the step's name and its cause", err)
	}
	if _, err := os.Lstat(path); err == nil {
		t.Error("a step after the failed one was done")
	}
}

func TestTableNamesEachMountOnce(t *testing.T) {
	seen := map[string]bool{}
	for _, s := range Table() {
		if m, ok := s.(Mount); ok {
			if seen[m.Target] {
				t.Errorf("%s is mounted twice", m.Target)
			}
			seen[m.Target] = true
		}
	}
	for _, target := range []string{"/proc", "/sys", "/dev", "/run", "/sys/fs/cgroup"} {
		if !seen[target] {
			t.Errorf("nothing is mounted on %s", target)
		}
	}
}

func TestSteps(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "cgroup.controllers"), "cpu memory\n")
	write(t, filepath.Join(dir, "cgroup.subtree_control"), "")
	write(t, filepath.Join(dir, "empty", "cgroup.controllers"), "\n")
	tests := []struct {
		name string
		step Step
		ok   bool
	}{
		{"directory", Dir{filepath.Join(dir, "d"), 0o1777}, true},
		{"directory again", Dir{filepath.Join(dir, "d"), 0o1777}, true},
		{"directory without a parent", Dir{filepath.Join(dir, "no", "d"), 0o755}, false},
		{"file", File{filepath.Join(dir, "cgroup.subtree_control"), "x"}, true},
		{"missing file", File{filepath.Join(dir, "missing"), "x"}, false},
		{"symlink", Symlink{"a", filepath.Join(dir, "s")}, true},
		{"symlink again", Symlink{"a", filepath.Join(dir, "s")}, false},
		{"controllers", Controllers{dir}, true},
		{"no controllers", Controllers{filepath.Join(dir, "empty")}, false},
		{"no interface", Link("coffer-none"), false},
	}
	for _, tt := range tests {
		if err := tt.step.Do(); (err == nil) != tt.ok {
			t.Errorf("%s: Do() = %v; want ok %v", tt.name, err, tt.ok)
		}
	}
	if got, _ := os.ReadFile(filepath.Join(dir, "cgroup.subtree_control")); string(got) != "+cpu +memory" {
		t.Errorf("controllers enabled by %q; want %q", got, "+cpu +memory")
	}
	if info, err := os.Stat(filepath.Join(dir, "d")); err != nil || info.Mode().Perm() != 0o777 || info.Mode()&os.ModeSticky == 0 {
		t.Errorf("directory = %v, %v; want mode 1777", info, err)
	}
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestReadModules(t *testing.T) {
	list := filepath.Join(t.TempDir(), "list")
	write(t, list, "a /m/a.ko\nb /m/b.ko a\nbuiltin -\nx /m/x.ko y\ny /m/y.ko x\n")
	m, err := ReadModules(list)
	if err != nil {
		t.Fatal(err)
	}
	if !m.Has("b") || m.Has("c") {
		t.Errorf("Has(b), Has(c) = %v, %v; want true, false", m.Has("b"), m.Has("c"))
	}
	if err := m.Load("builtin", "builtin"); err != nil {
		t.Errorf("Load(builtin) = %v; want nil", err)
	}
	for name, want := range map[string]string{
		"c": "does not have it",
		"b": "/m/a.ko", // a comes first
		"x": "needs itself",
	} {
		if err := m.Load(name); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Load(%s) = %v; want an error with %q", name, err, want)
		}
	}
	write(t, list, "alone\n")
	if _, err := ReadModules(list); err == nil {
		t.Error("ReadModules took a malformed line")
	}
}

func TestCPUHas(t *testing.T) {
	path := filepath.Join(t.TempDir(), "cpuinfo")
	write(t, path, "processor\t: 0\nflags\t\t: fpu aes\nbugs\t\t: none\n\nprocessor\t: 1\nflags\t\t: fpu aes sha_ni\n")
	for flag, want := range map[string]bool{"aes": true, "sha_ni": false, "ae": false} {
		if got, err := cpuHas(path, flag); got != want || err != nil {
			t.Errorf("cpuHas(%q) = %v, %v; want %v, nil", flag, got, err, want)
		}
	}
	write(t, path, "processor\t: 0\n")
	if got, err := cpuHas(path, "aes"); err == nil {
		t.Errorf("cpuHas without flags = %v, nil; want an error", got)
	}
}

func TestFindPort(t *testing.T) {
	class := t.TempDir()
	if got, err := findPort(filepath.Join(class, "missing"), PortControl); got != "" || err != nil {
		t.Errorf("findPort without a class = %q, %v; want nothing", got, err)
	}
	write(t, filepath.Join(class, "vport1p1", "name"), "coffer.control\n")
	write(t, filepath.Join(class, "vport1p2", "name"), "coffer.sev\n")
	write(t, filepath.Join(class, "vport1p3", "other"), "")
	for name, want := range map[string]string{"coffer.control": "vport1p1", "coffer.sev": "vport1p2", "coffer": "", "": ""} {
		if got, err := findPort(class, name); got != want || err != nil {
			t.Errorf("findPort(%q) = %q, %v; want %q", name, got, err, want)
		}
	}
	write(t, filepath.Join(class, "vport2p1", "name"), "coffer.control\n")
	if got, err := findPort(class, "coffer.control"); err == nil {
		t.Errorf("findPort with two of a name = %q, nil; want an error", got)
	}
}

func TestAwait(t *testing.T) {
	calls := 0
	err := Await(t.Context(), func() (bool, error) { calls++; return calls == 3, nil })
	if err != nil || calls != 3 {
		t.Errorf("Await = %v after %d calls; want nil after 3", err, calls)
	}
	cause := errors.New("cause")
	if err := Await(t.Context(), func() (bool, error) { return false, cause }); !errors.Is(err, cause) {
		t.Errorf("Await = %v; want the probe's error", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := Await(ctx, func() (bool, error) { return false, nil }); !errors.Is(err, context.Canceled) {
		t.Errorf("Await = %v; want the context's end", err)
	}
}

func TestFatalLineIsOneLine(t *testing.T) {
	tests := []struct {
		err  error
		want string
	}{
		{errors.New("opening x: no"), FatalPrefix + "opening x: no"},
		{errors.New("a\nb\r\n\tc  d"), FatalPrefix + "a b c d"},
		{errors.New("esc \x1b[31m and \x00"), FatalPrefix + "esc ?[31m and ?"},
		{errors.New("bytes \xff"), FatalPrefix + "bytes \uFFFD"},
		{nil, FatalPrefix + "no reason given"},
	}
	for _, tt := range tests {
		if got := FatalLine(tt.err); got != tt.want {
			t.Errorf("FatalLine(%q) = %q; want %q", tt.err, got, tt.want)
		}
	}
	long := FatalLine(errors.New(strings.Repeat("é", 5000)))
	if len(long) > 2*maxFatal || strings.ContainsFunc(long, func(r rune) bool { return !unicode.IsPrint(r) && r != ' ' }) {
		t.Errorf("FatalLine of 10000 bytes has %d bytes; want few, printable", len(long))
	}
}
