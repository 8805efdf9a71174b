// SPDX-License-Identifier: Apache-2.0

package state

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

func open(t *testing.T, root string) *Dir {
	t.Helper()
	d, err := Open(root)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func create(t *testing.T, d *Dir, g Group) *Handle {
	t.Helper()
	h, err := d.Create(g)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.Lock.Close() })
	return h
}

func TestFind(t *testing.T) {
	d := open(t, t.TempDir())
	a := create(t, d, Group{Name: "web"})
	b := create(t, d, Group{})
	for _, tt := range []struct {
		in   string
		want string
		err  error
	}{
		{"web", a.Group.ID, nil},
		{a.Group.ID, a.Group.ID, nil},
		{b.Group.ID[:20], b.Group.ID, nil},
		{b.Group.Name, b.Group.ID, nil},
		{"we", "", ErrNotFound},
		{"", "", ErrNotFound},
		{"../" + a.Group.ID, "", ErrNotFound},
	} {
		g, err := d.Find(tt.in)
		if g.ID != tt.want || !errors.Is(err, tt.err) {
			t.Errorf("Find(%q) = %s, %v; want %s, %v", tt.in, g.ID, err, tt.want, tt.err)
		}
	}
}

func TestNames(t *testing.T) {
	d := open(t, t.TempDir())
	create(t, d, Group{Name: "web"})
	if _, err := d.Create(Group{Name: "web"}); !errors.Is(err, ErrNameTaken) {
		t.Errorf("Create with a taken name: %v; want ErrNameTaken", err)
	}
	for _, name := range []string{".x", "a/b", "a b", strings.Repeat("x", 64)} {
		if _, err := d.Create(Group{Name: name}); !errors.Is(err, ErrName) {
			t.Errorf("Create(%q): %v; want ErrName", name, err)
		}
	}
}

// TestConcurrentCreate wants one winner of a name.
func TestConcurrentCreate(t *testing.T) {
	root := t.TempDir()
	var wg sync.WaitGroup
	var mu sync.Mutex
	won := 0
	for range 8 {
		wg.Go(func() {
			d, err := Open(root)
			if err != nil {
				t.Error(err)
				return
			}
			h, err := d.Create(Group{Name: "one"})
			if err == nil {
				mu.Lock()
				won++
				mu.Unlock()
				t.Cleanup(func() { h.Lock.Close() })
			} else if !errors.Is(err, ErrNameTaken) {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if won != 1 {
		t.Errorf("%d processes made the same name; want 1", won)
	}
}

func TestCrash(t *testing.T) {
	root := t.TempDir()
	d := open(t, root)
	kept := create(t, d, Group{Name: "kept"})
	gone := create(t, d, Group{Name: "gone", AutoRemove: true})
	live := create(t, d, Group{Name: "live"})
	broken := create(t, d, Group{Name: "broken"})
	for _, h := range []*Handle{kept, gone, live} {
		h.Group.Status = Running
		if err := h.Save(); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(broken.Path(), "group.json"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(root, trash+"x"), 0o700); err != nil {
		t.Fatal(err)
	}
	// The kernel drops the locks of a process that dies.
	kept.Lock.Close()
	gone.Lock.Close()
	broken.Lock.Close()

	d = open(t, root)
	if g, err := d.Find("kept"); err != nil || g.Status != Exited || g.ExitCode != CrashStatus || g.Error == "" {
		t.Errorf("after a crash: %+v, %v; want it exited with %d and a reason", g, err, CrashStatus)
	}
	if g, err := d.Find("live"); err != nil || g.Status != Running {
		t.Errorf("supervised: %+v, %v; want it running", g, err)
	}
	entries, err := os.ReadDir(root)
	if err != nil || len(entries) != 3 {
		t.Errorf("after a crash there are %v, %v; want the lock and two groups", entries, err)
	}
}

func TestRemove(t *testing.T) {
	d := open(t, t.TempDir())
	h := create(t, d, Group{Name: "x"})
	if err := d.Remove(h.Group.ID); !errors.Is(err, ErrRunning) {
		t.Errorf("Remove while supervised: %v; want ErrRunning", err)
	}
	h.Group.Status = Exited
	if err := errors.Join(h.Save(), h.Close()); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Find("x"); err != nil {
		t.Errorf("Find after the end: %v; want it kept", err)
	}
	if err := d.Remove(h.Group.ID); err != nil {
		t.Errorf("Remove after the end: %v", err)
	}
	if _, err := d.Find("x"); !errors.Is(err, ErrNotFound) {
		t.Errorf("Find after Remove: %v; want ErrNotFound", err)
	}
	auto := create(t, d, Group{Name: "auto", AutoRemove: true})
	if err := auto.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Find("auto"); !errors.Is(err, ErrNotFound) {
		t.Errorf("Find of an ended --rm group: %v; want ErrNotFound", err)
	}
}

func TestAdopt(t *testing.T) {
	d := open(t, t.TempDir())
	h := create(t, d, Group{Name: "x"})
	if _, err := Adopt(h.Path(), h.Lock); err != nil {
		t.Errorf("Adopt with the lock: %v", err)
	}
	other, err := os.Open(filepath.Join(h.Path(), "lock"))
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if _, err := Adopt(h.Path(), other); err == nil {
		t.Error("Adopt without the lock succeeded")
	}
}

func TestRandomName(t *testing.T) {
	for range 100 {
		if n := randomName(); !nameForm().MatchString(n) {
			t.Errorf("randomName = %q", n)
		}
	}
}
