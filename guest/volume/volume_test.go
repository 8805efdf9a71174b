// SPDX-License-Identifier: Apache-2.0

package volume

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// fakeDisk adds a disk to a made-up sysfs.
func fakeDisk(t *testing.T, root, name, serial, sectors string) {
	t.Helper()
	for path, text := range map[string]string{"serial": serial, "dev": "254:16\n", "size": sectors} {
		path = filepath.Join(root, "block", name, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func TestFind(t *testing.T) {
	sys := t.TempDir()
	fakeDisk(t, sys, "vda", "layer1", "16\n")
	fakeDisk(t, sys, "vdb", "layer10\n", "24\n")
	fakeDisk(t, sys, "vdc", "layer2", "8\n")
	fakeDisk(t, sys, "vdd", "layer2", "8\n")
	fakeDisk(t, sys, "vde", "layer3", "-8\n")
	fakeDisk(t, sys, "vdf", "layer4", "36893488147419103232\n")
	fakeDisk(t, sys, "sda", "layer5", "8\n") // not virtio-blk
	fakeDisk(t, sys, "vdg", "", "8\n")
	d := New(Config{Sys: sys})
	tests := []struct{ serial, want, err string }{
		{serial: "layer1", want: "/dev/vda 254:16 8192"},
		{serial: "layer10", want: "/dev/vdb 254:16 12288"},
		{serial: "layer", err: "no disk with serial layer is attached"},
		{serial: "", err: "no disk"},
		{serial: "layer2", err: "2 disks with serial layer2 are attached: vdc, vdd"},
		{serial: "layer3", err: "reading the size of disk layer3"},
		{serial: "layer4", err: "reading the size of disk layer4"},
		{serial: "layer5", err: "no disk with serial layer5"},
	}
	for _, tt := range tests {
		got, err := d.find(tt.serial)
		if tt.err != "" {
			if err == nil || !strings.Contains(err.Error(), tt.err) {
				t.Errorf("find(%q) = %v; want an error with %q", tt.serial, err, tt.err)
			}
			continue
		}
		if s := fmt.Sprint(got.node, " ", got.dev, " ", got.size); err != nil || s != tt.want {
			t.Errorf("find(%q) = %s, %v; want %s", tt.serial, s, err, tt.want)
		}
	}
	// A disk that comes later is found.
	fakeDisk(t, sys, "vdh", "layer6", "8\n")
	if _, err := d.find("layer6"); err != nil {
		t.Errorf("find(layer6) = %v; want nil", err)
	}
}

func TestOpenLayerRefuses(t *testing.T) {
	sys := t.TempDir()
	fakeDisk(t, sys, "vda", "layer3", "16\n")
	d := New(Config{Sys: sys, Dev: t.TempDir()})
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	tests := []struct {
		name   string
		ctx    context.Context
		device int
		blocks int64
		want   string
	}{
		{"too small", context.Background(), 3, 12, "disk layer3 is 8192 bytes, which is too small for 12 data blocks and their tree: 57344 bytes are needed"},
		{"no blocks", context.Background(), 3, 0, "2 to 33554432 data blocks, not 0"},
		{"one block", context.Background(), 3, 1, "not 1"},
		{"negative", context.Background(), 3, math.MinInt64, "data blocks"},
		{"too many", context.Background(), 3, 33554433, "not 33554433"},
		{"most", context.Background(), 3, 33554432, "too small"},
		{"overflow", context.Background(), 3, math.MaxInt64, "data blocks"},
		{"missing", context.Background(), 4, 12, "no disk with serial layer4"},
		{"negative device", context.Background(), -3, 12, "no such device"},
		{"ended", ended, 3, 12, context.Canceled.Error()},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c, err := d.OpenLayer(tt.ctx, tt.device, [32]byte{}, tt.blocks, t.TempDir())
			if err == nil || c != nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("OpenLayer = %v, %v; want nil and an error with %q", c, err, tt.want)
			}
		})
	}
}

func TestTreeBlocks(t *testing.T) {
	for n, want := range map[int64]int64{2: 1, 128: 1, 129: 3, 128 * 128: 129, 128*128 + 1: 129 + 1 + 2, 33554432: 262144 + 2048 + 16 + 1} {
		if got := treeBlocks(n); got != want {
			t.Errorf("treeBlocks(%d) = %d; want %d", n, got, want)
		}
	}
}

// TestTables pins the lines that decide what the kernel checks.
func TestTables(t *testing.T) {
	var root [32]byte
	root[0] = 0xab
	verity := verityTarget("254:0", root, 24)
	if !verity.readOnly || verity.sectors != 192 {
		t.Errorf("verity: read-only %v, %d sectors; want true, 192", verity.readOnly, verity.sectors)
	}
	got := []string{string(verity.params), string(integrityTarget("254:1", 8).params), string(cryptTarget("253:2", 8).params)}
	want := []string{
		"1 254:0 254:0 4096 4096 24 25 sha256 ab" + strings.Repeat("0", 62) + " " + strings.Repeat("0", 64) + " 1 panic_on_corruption",
		"254:1 0 32 D 3 block_size:4096 journal_sectors:8 fix_padding",
		"capi:authenc(hmac(sha256),xts(aes))-plain64 :96:logon:coffer:scratch 0 253:2 0 2 integrity:32:aead sector_size:4096",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("tables (-want +got):\n%s", diff)
	}
}

func ext4(change func([]byte)) []byte {
	b := make([]byte, 8192)
	binary.LittleEndian.PutUint32(b[1024+4:], 24)
	binary.LittleEndian.PutUint32(b[1024+24:], 2)
	binary.LittleEndian.PutUint16(b[1024+56:], 0xef53)
	change(b[1024:])
	return b
}

func TestCheckSuperblock(t *testing.T) {
	tests := []struct {
		name   string
		change func(sb []byte)
		want   string
	}{
		{"as announced", func([]byte) {}, ""},
		{"64 bits", func(sb []byte) { sb[96] = 0x80 }, ""},
		{"high half without 64 bits", func(sb []byte) { sb[336] = 1 }, ""},
		{"more blocks", func(sb []byte) { sb[4]++ }, "has 25 blocks, not the 24"},
		{"fewer blocks", func(sb []byte) { sb[4]-- }, "has 23 blocks, not the 24"},
		{"more blocks by 64 bits", func(sb []byte) { sb[96], sb[336] = 0x80, 1 }, "has 4294967320 blocks"},
		{"other magic", func(sb []byte) { sb[56]++ }, "no ext4"},
		{"other block size", func(sb []byte) { sb[24] = 0 }, "1024<<0"},
	}
	for _, tt := range tests {
		path := filepath.Join(t.TempDir(), "disk")
		if err := os.WriteFile(path, ext4(tt.change), 0o600); err != nil {
			t.Fatal(err)
		}
		err := checkSuperblock(path, 24)
		if (err == nil) != (tt.want == "") || (err != nil && !strings.Contains(err.Error(), tt.want)) {
			t.Errorf("%s: checkSuperblock = %v; want %q", tt.name, err, tt.want)
		}
	}
	if err := checkSuperblock(os.DevNull, 24); err == nil {
		t.Error("checkSuperblock of an empty disk = nil; want an error")
	}
}

func integritySuperblock(change func([]byte)) []byte {
	b := make([]byte, 512)
	copy(b, "integrt\x00\x04")
	binary.LittleEndian.PutUint16(b[10:], tagSize)
	binary.LittleEndian.PutUint64(b[16:], 100_001)
	b[24], b[28] = 8, 3
	change(b)
	return b
}

func TestProvidedSectors(t *testing.T) {
	const size = 64 << 20
	if got, err := providedSectors(integritySuperblock(func([]byte) {}), size); err != nil || got != 100_000 {
		t.Errorf("providedSectors = %d, %v; want 100000", got, err)
	}
	for name, change := range map[string]func([]byte){
		"magic":            func(b []byte) { b[0] = 'I' },
		"version 0":        func(b []byte) { b[8] = 0 },
		"tag size":         func(b []byte) { b[10] = 16 },
		"recalculating":    func(b []byte) { b[24] |= 2 },
		"bitmap":           func(b []byte) { b[24] |= 4 },
		"another block":    func(b []byte) { b[28] = 0 },
		"no room":          func(b []byte) { clear(b[16:24]) },
		"more than it has": func(b []byte) { b[18] = 0xff },
		"negative":         func(b []byte) { b[23] = 0xff },
	} {
		if got, err := providedSectors(integritySuperblock(change), size); err == nil || got != 0 {
			t.Errorf("%s: providedSectors = %d, %v; want an error", name, got, err)
		}
	}
}

func FuzzProvidedSectors(f *testing.F) {
	f.Add(integritySuperblock(func([]byte) {}), int64(64<<20))
	f.Fuzz(func(t *testing.T, b []byte, size int64) {
		var sb [512]byte
		copy(sb[:], b)
		n, err := providedSectors(sb[:], size)
		if err == nil && (n <= 0 || n%8 != 0 || n > size/512) {
			t.Errorf("providedSectors(size %d) = %d", size, n)
		}
	})
}

func TestScratchDiskRefuses(t *testing.T) {
	sys := t.TempDir()
	d := New(Config{Sys: sys, LoadModules: func(...string) error { return errors.New("no such module") }})
	scratch := func() error { return d.Scratch(context.Background(), true, 0, t.TempDir()) }
	if err := scratch(); err == nil || !strings.Contains(err.Error(), "no disk with serial scratch is attached") {
		t.Errorf("Scratch without a disk = %v", err)
	}
	fakeDisk(t, sys, "vda", "scratch", "2048\n")
	if err := scratch(); err == nil || !strings.Contains(err.Error(), "disk scratch is 1048576 bytes, which is too small") {
		t.Errorf("Scratch on a small disk = %v", err)
	}
	sys = t.TempDir()
	fakeDisk(t, sys, "vda", "scratch", "65536\n")
	d.cfg.Sys, d.serials = sys, nil
	if err := scratch(); err == nil || !strings.Contains(err.Error(), "no such module") {
		t.Errorf("Scratch without modules = %v", err)
	}
	if err := d.Scratch(context.Background(), false, -1, t.TempDir()); err == nil {
		t.Error("Scratch of -1 bytes = nil; want an error")
	}
}

func TestOverlayRefuses(t *testing.T) {
	d := New(Config{})
	for _, n := range []int{0, 501} {
		if _, err := d.Overlay(t.TempDir(), make([]string, n), "", ""); err == nil || !strings.Contains(err.Error(), "not 1 to 500") {
			t.Errorf("Overlay of %d layers = %v", n, err)
		}
	}
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(t.TempDir(), link); err != nil {
		t.Fatal(err)
	}
	for _, lower := range []string{link, filepath.Join(t.TempDir(), "missing"), os.DevNull} {
		if _, err := d.Overlay(t.TempDir(), []string{lower}, t.TempDir(), t.TempDir()); err == nil || !strings.Contains(err.Error(), lower) {
			t.Errorf("Overlay over %s = %v; want an error that names it", lower, err)
		}
	}
}
