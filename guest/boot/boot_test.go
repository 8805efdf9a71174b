// SPDX-License-Identifier: Apache-2.0

package boot

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
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

func TestReadModules(t *testing.T) {
	list := filepath.Join(t.TempDir(), "list")
	if err := os.WriteFile(list, []byte("a /m/a.ko\nb /m/b.ko a\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	m, err := ReadModules(list)
	if err != nil {
		t.Fatal(err)
	}
	if !m.Has("b") || m.Has("c") {
		t.Errorf("Has(b), Has(c) = %v, %v; want true, false", m.Has("b"), m.Has("c"))
	}
	if err := m.Load("c"); err == nil || !strings.Contains(err.Error(), "does not have it") {
		t.Errorf("Load(c) = %v; want an error that says the image lacks it", err)
	}
	if err := m.Load("b"); err == nil || !strings.Contains(err.Error(), "/m/a.ko") {
		t.Errorf("Load(b) = %v; want an error about the file of a, which comes first", err)
	}
	if err := os.WriteFile(list, []byte("alone\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadModules(list); err == nil {
		t.Error("ReadModules took a malformed line")
	}
}
