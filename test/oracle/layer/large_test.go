// SPDX-License-Identifier: Apache-2.0

package layer_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/coffer-dev/coffer/layer"
)

// sparse adds a file of zeros with a few bytes in it.
func (r *raw) sparse(name string, size int64) {
	r.pax('x', "GNU.sparse.major", "1", "GNU.sparse.minor", "0", "GNU.sparse.realsize", fmt.Sprint(size), "GNU.sparse.name", name)
	m := fmt.Sprintf("1\n%d\n4\n", size/2)
	data := m + strings.Repeat("\x00", 512-len(m)) + "data"
	r.header(plain("sparse", '0', int64(len(data))))
	r.data([]byte(data))
}

func (r *raw) empty(name string, flag byte, link string) {
	if len(name) > 100 {
		r.long('L', name)
		name = "long"
	}
	if len(link) > 100 {
		r.long('K', link)
		link = "long"
	}
	h := plain(name, flag, 0)
	h.link = link
	r.header(h)
}

// longerLinks are longer than Linux can follow; the reference takes them, e2fsck does not.
const longerLinks = "links of a block and more"

var large = []struct {
	name string
	make func(r *raw)
	want verdict
}{
	{"directory of 50000 files", func(r *raw) {
		for i := range 50000 {
			r.empty(fmt.Sprintf("d/%d", i), '0', "")
		}
	}, same},
	{"directory of 60000 links", func(r *raw) {
		r.empty("d/x", '0', "")
		for i := range 60000 {
			r.empty(fmt.Sprintf("d/%060d", i), '1', "d/x")
		}
	}, same},
	{"as many links as there may be", func(r *raw) {
		r.empty("x", '0', "")
		for i := range 64999 {
			r.empty(fmt.Sprintf("d/%d", i), '1', "x")
		}
		r.empty("d/0", '1', "x")
	}, same},
	{"too many links", func(r *raw) {
		r.empty("x", '0', "")
		for i := range 65000 {
			r.empty(fmt.Sprintf("d/%d", i), '1', "x")
		}
	}, bothRefuse},
	{"as many subdirectories as there may be", func(r *raw) {
		for i := range 64998 {
			r.empty(fmt.Sprintf("d/%d/", i), '5', "")
		}
	}, same},
	{"too many subdirectories", func(r *raw) {
		for i := range 64999 {
			r.empty(fmt.Sprintf("d/%d/", i), '5', "")
		}
	}, bothRefuse},
	{"inodes for five groups", func(r *raw) {
		for i := range 140000 {
			r.empty(fmt.Sprintf("%d/%d/%d", i%7, i%100, i), '0', "")
		}
	}, same},
	{"nesting", func(r *raw) {
		r.empty(strings.Repeat("d/", 2000)+"f", '0', "")
		r.empty(strings.Repeat("d/", 1000)+"g/h/", '5', "")
	}, same},
	{"long links", func(r *raw) {
		for _, n := range []int{1, 58, 59, 60, 61, 100, 4095} {
			r.empty(fmt.Sprintf("l%d", n), '2', strings.Repeat("l", n))
		}
	}, same},
	{longerLinks, func(r *raw) {
		for _, n := range []int{4096, 4097, 100000} {
			r.empty(fmt.Sprintf("l%d", n), '2', strings.Repeat("l", n))
		}
	}, same},
	{"data in three groups", func(r *raw) {
		for i := range 300 {
			r.header(plain(fmt.Sprintf("f%d", i), '0', 1<<20))
			r.data(bytes.Repeat([]byte{byte(i)}, 1<<20))
		}
	}, same},
	{"four extents", func(r *raw) { r.sparse("f", 512<<20); r.empty("g", '0', "") }, same},
	{"five extents", func(r *raw) { r.sparse("f", 512<<20+1); r.empty("g", '0', "") }, same},
	{"whiteout in a directory with an attribute block, among data", func(r *raw) {
		r.pax('x', "SCHILY.xattr.user.a", strings.Repeat("v", 3000), "SCHILY.xattr.user.b", "w")
		r.empty("d/", '5', "")
		r.sparse("f", 3<<20)
		r.empty("d/.wh..wh..opq", '0', "")
		r.pax('x', "SCHILY.xattr.user.c", strings.Repeat("u", 2000))
		r.empty("d/", '5', "")
	}, same},
}

func TestLarge(t *testing.T) {
	if testing.Short() {
		t.Skip("large tars are left out of short tests")
	}
	for _, l := range large {
		t.Run(l.name, func(t *testing.T) {
			var r raw
			l.make(&r)
			r.end()
			if got := compare(t, l.name, r.Bytes()); got != l.want {
				t.Errorf("compare = %v; want %v", got, l.want)
			}
		})
	}
}

// TestRootFS compares on the tar of a real root file system, named by COFFER_TEST_ROOTFS_TAR.
func TestRootFS(t *testing.T) {
	name := os.Getenv("COFFER_TEST_ROOTFS_TAR")
	if name == "" {
		t.Skip("COFFER_TEST_ROOTFS_TAR does not name the tar of a root file system")
	}
	dir := t.TempDir()
	convert := func(image string, f func(r io.Reader, w *os.File) error) *os.File {
		r, err := os.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		w, err := os.Create(filepath.Join(dir, image))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { w.Close() })
		if err := f(r, w); err != nil {
			t.Fatal(err)
		}
		return w
	}
	var img layer.Image
	got := convert("coffer", func(r io.Reader, w *os.File) (err error) {
		img, err = layer.Convert(context.Background(), r, w)
		return err
	})
	want := convert("hcsshim", func(r io.Reader, w *os.File) error { return reference(r, w) })
	if _, err := want.WriteAt(make([]byte, 16), img.DataBlocks*layer.BlockSize+16); err != nil { // the UUID
		t.Fatal(err)
	}
	if out, err := exec.Command("cmp", got.Name(), want.Name()).CombinedOutput(); err != nil {
		t.Errorf("images differ: %v: %s", err, out)
	}
	if read, err := layer.ReadImage(want); err != nil || read != img {
		t.Errorf("ReadImage(hcsshim's) = %+v, %v; want %+v", read, err, img)
	}
	if err := layer.Verify(context.Background(), want, img); err != nil {
		t.Errorf("Verify(hcsshim's) = %v", err)
	}
	t.Logf("%d data blocks, root %s", img.DataBlocks, img.Root)
}

// TestFsck lets e2fsck look at images. It complains about padding in the bitmaps of inodes, as with the reference's.
func TestFsck(t *testing.T) {
	fsck, err := exec.LookPath("e2fsck")
	if err != nil {
		if _, err := os.Stat("/usr/sbin/e2fsck"); err != nil {
			t.Skip("no e2fsck")
		}
		fsck = "/usr/sbin/e2fsck"
	}
	for _, l := range large {
		if l.want != same || l.name == longerLinks || testing.Short() && l.name != "long links" {
			continue
		}
		t.Run(l.name, func(t *testing.T) {
			var r raw
			l.make(&r)
			r.end()
			w, err := os.Create(filepath.Join(t.TempDir(), "image"))
			if err != nil {
				t.Fatal(err)
			}
			defer w.Close()
			if _, err := layer.Convert(context.Background(), &r, w); err != nil {
				t.Fatal(err)
			}
			out, err := exec.Command(fsck, "-fn", w.Name()).CombinedOutput()
			for line := range strings.Lines(string(out)) {
				line = strings.TrimSpace(line)
				switch {
				case line == "", strings.HasPrefix(line, "e2fsck "), strings.HasPrefix(line, "Pass "):
				case strings.HasPrefix(line, "Padding at end of inode bitmap is not set"):
				case strings.Contains(line, "WARNING: Filesystem still has errors"), strings.Contains(line, " files ("):
				default:
					t.Errorf("e2fsck: %s", line)
				}
			}
			t.Logf("e2fsck: %v", err)
		})
	}
}
