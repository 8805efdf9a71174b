// SPDX-License-Identifier: Apache-2.0

package volume_test

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// layerInfo is what the guest is told about a layer: what a policy and the host
// say of it.
type layerInfo struct {
	Device     int
	Root       string
	DataBlocks int64
}

type scenario struct {
	Name   string
	Layers []layerInfo
}

// layer converts a tar to a layer image.
func (l *lab) layer(t testing.TB, device int, entries []tar.Header, bodies map[string]string) (layerInfo, drive) {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range entries {
		body := bodies[h.Name]
		if h.Typeflag == 0 {
			h.Typeflag = tar.TypeReg
			h.Size = int64(len(body))
		}
		if h.Mode == 0 {
			h.Mode = 0o755
		}
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(body)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	info := layerInfo{Device: device}
	path := filepath.Join(t.TempDir(), "layer")
	cmd := exec.Command(l.mklayer, path)
	cmd.Stdin = &b
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("making layer %d: %v", device, err)
	}
	if _, err := fmt.Sscan(string(out), &info.Root, &info.DataBlocks); err != nil {
		t.Fatalf("making layer %d: %q: %v", device, out, err)
	}
	return info, drive{path: path, serial: fmt.Sprintf("layer%d", device)}
}

// big is a file of 1 MiB, which no tree of one block covers.
var big = strings.Repeat("0123456789abcdef", 1<<16)

func (l *lab) bottom(t testing.TB, device int) (layerInfo, drive) {
	return l.layer(t, device, []tar.Header{
		{Name: "bin/", Typeflag: tar.TypeDir}, {Name: "bin/tool", Mode: 0o4755},
		{Name: "dev/", Typeflag: tar.TypeDir}, {Name: "dev/null", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 3, Mode: 0o666},
		{Name: "etc/", Typeflag: tar.TypeDir}, {Name: "etc/name"}, {Name: "etc/hard", Typeflag: tar.TypeLink, Linkname: "etc/name"},
		{Name: "gone"}, {Name: "again"},
		{Name: "tree/", Typeflag: tar.TypeDir}, {Name: "tree/inner/", Typeflag: tar.TypeDir}, {Name: "tree/inner/file"},
		{Name: "opaque/", Typeflag: tar.TypeDir}, {Name: "opaque/old"},
		{Name: "big"},
	}, map[string]string{"bin/tool": "tool", "etc/name": "bottom\n", "gone": "x", "again": "x", "big": big})
}

func (l *lab) stack(t testing.TB) ([]layerInfo, []drive) {
	t.Helper()
	var infos []layerInfo
	var drives []drive
	add := func(i layerInfo, d drive) { infos, drives = append(infos, i), append(drives, d) }
	add(l.bottom(t, 0))
	add(l.layer(t, 1, []tar.Header{
		{Name: "etc/", Typeflag: tar.TypeDir}, {Name: "etc/name"}, {Name: ".wh.gone"}, {Name: ".wh.again"},
		{Name: "tree/", Typeflag: tar.TypeDir}, {Name: "tree/.wh.inner"},
		{Name: "opaque/", Typeflag: tar.TypeDir}, {Name: "opaque/.wh..wh..opq"}, {Name: "opaque/new"},
	}, map[string]string{"etc/name": "middle\n", "opaque/new": "new\n"}))
	add(l.layer(t, 2, []tar.Header{{Name: "top"}, {Name: "again"}}, map[string]string{"top": "top\n", "again": "back\n"}))
	return infos, drives
}

// change rewrites a file.
func change(t testing.TB, path string, f func([]byte) []byte) {
	t.Helper()
	if err := os.WriteFile(path, f(content(t, path)), 0o600); err != nil {
		t.Fatal(err)
	}
}

// verity makes a layer image from data blocks, apart from the code under test
// and from layer: dm-verity's format of Linux, admin-guide/device-mapper/verity.rst.
func verity(data []byte) (image []byte, root [32]byte) {
	hash := func(block []byte) [32]byte { return sha256.Sum256(append(make([]byte, 32), block...)) }
	var tree []byte
	for level := data; len(level) > 4096; {
		var next []byte
		for ; len(level) > 0; level = level[4096:] {
			h := hash(level[:4096])
			next = append(next, h[:]...)
		}
		next = append(next, make([]byte, -len(next)&4095)...)
		tree = append(bytes.Clone(next), tree...)
		level = next
	}
	image = append(bytes.Clone(data), make([]byte, 4096)...)
	return append(image, tree...), hash(tree[:4096])
}

func TestGood(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	infos, drives := l.stack(t)

	// 3: cut off.
	i, d := l.bottom(t, 3)
	change(t, d.path, func(b []byte) []byte { return b[:8192] })
	infos, drives = append(infos, i), append(drives, d)
	// 4: five blocks more than its file system has, under a root of their own.
	i, d = l.bottom(t, 4)
	change(t, d.path, func(b []byte) []byte {
		data := b[:i.DataBlocks*4096]
		if image, root := verity(data); fmt.Sprintf("%x", root) != i.Root || !bytes.Equal(image[len(data)+4096:], b[len(data)+4096:]) {
			t.Fatalf("layer and this test compute different trees: %s and %x", i.Root, root)
		}
		image, root := verity(append(bytes.Clone(data), make([]byte, 5*4096)...))
		i.Root, i.DataBlocks = fmt.Sprintf("%x", root), i.DataBlocks+5
		return image
	})
	infos, drives = append(infos, i), append(drives, d)
	// 5: there twice.
	i, d = l.bottom(t, 5)
	infos, drives = append(infos, i), append(drives, d, d)
	// 6: not there.
	i.Device = 6
	infos = append(infos, i)

	m := l.start(t, scenario{"good", infos}, drives)
	m.report(t, "content", "wrong root", "another disk", "wrong data blocks", "truncated", "padded", "twice", "missing",
		"close", "overlay", "bind", "memory scratch", "500 lowers")
}

func TestManyLayers(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	var infos []layerInfo
	var drives []drive
	for n := range 200 {
		name := "top"
		if n > 0 {
			name = fmt.Sprintf("file%d", n)
		}
		i, d := l.layer(t, n, []tar.Header{{Name: name}}, map[string]string{"top": "top\n"})
		infos, drives = append(infos, i), append(drives, d)
	}
	l.start(t, scenario{"many", infos}, drives).report(t, "many")
}

// TestFlippedBit: whoever reads a block that is not the layer's is stopped, the
// bit being in the data or in the tree.
func TestFlippedBit(t *testing.T) {
	tests := []struct {
		name   string
		offset func(dataBlocks int64, image []byte) int
		want   string
	}{
		{"data", func(_ int64, b []byte) int { return bytes.Index(b, []byte(big)) + len(big)/2 }, "data block"},
		{"tree", func(n int64, b []byte) int {
			// The hash of the same block, in the second level of the tree.
			block := (bytes.Index(b, []byte(big)) + len(big)/2) / 4096
			return int(n+2)*4096 + block*32
		}, "metadata block"},
		{"file system", func(_ int64, b []byte) int { return 1024 + 4 }, "data block 0"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			l := newLab(t)
			i, d := l.bottom(t, 0)
			change(t, d.path, func(b []byte) []byte {
				b[tt.offset(i.DataBlocks, b)] ^= 1
				return b
			})
			m := l.start(t, scenario{"fatal", []layerInfo{i}}, []drive{d})
			m.until("")
			if m.said("PASS") || m.said("FAIL") || m.said("END") {
				t.Error("the guest went on")
			}
			for _, want := range []string{tt.want, "is corrupted", "Kernel panic", "dm-verity device corrupted"} {
				if !m.said(want) {
					t.Errorf("the console does not say %q", want)
				}
			}
		})
	}
}
