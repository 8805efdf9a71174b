// SPDX-License-Identifier: Apache-2.0

package container

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestSeedCopiesOnceWithAttributes(t *testing.T) {
	root := rootWith(t, map[string]string{"data/sub/file": "content"})
	old := time.Unix(1_600_000_000, 0)
	file, dir := filepath.Join(root, "data/sub/file"), filepath.Join(root, "data/sub")
	if err := os.Symlink("/etc/passwd", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mkfifo(filepath.Join(dir, "fifo"), 0o640); err != nil {
		t.Fatal(err)
	}
	for path, mode := range map[string]os.FileMode{file: 0o640, dir: 0o711, filepath.Join(root, "data"): 0o2750} {
		if err := unix.Chmod(path, uint32(mode)); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(path, old, old); err != nil {
			t.Fatal(err)
		}
	}
	volume := t.TempDir()
	if err := Seed(root, "/data", volume); err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	for path, mode := range map[string]uint32{"sub/file": unix.S_IFREG | 0o640, "sub": unix.S_IFDIR | 0o711, ".": unix.S_IFDIR | 0o2750,
		"sub/link": unix.S_IFLNK | 0o777, "sub/fifo": unix.S_IFIFO | 0o640} {
		if err := unix.Lstat(filepath.Join(volume, path), &st); err != nil || st.Mode != mode {
			t.Errorf("%s has mode %o, %v; want %o", path, st.Mode, err, mode)
		}
	}
	if err := unix.Lstat(filepath.Join(volume, "sub"), &st); err != nil || st.Mtim.Sec != old.Unix() {
		t.Errorf("directory's time is %d; want %d", st.Mtim.Sec, old.Unix())
	}
	if err := os.WriteFile(filepath.Join(volume, "sub/file"), []byte("changed"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Seed(root, "/data", volume); err != nil {
		t.Fatal(err)
	}
	if b, _ := os.ReadFile(filepath.Join(volume, "sub/file")); string(b) != "changed" {
		t.Errorf("a volume with content was seeded again: %q", b)
	}
}

func TestSeedStaysInTheRoot(t *testing.T) {
	outside := rootWith(t, map[string]string{"secret": "x"})
	root := t.TempDir()
	if err := os.Symlink(outside, filepath.Join(root, "data")); err != nil {
		t.Fatal(err)
	}
	volume := t.TempDir()
	if err := Seed(root, "/data", volume); err != nil {
		t.Fatal(err)
	}
	if entries, _ := os.ReadDir(volume); len(entries) != 0 {
		t.Errorf("Seed followed a link out of the root: %v", entries)
	}
}
