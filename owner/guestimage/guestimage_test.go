// SPDX-License-Identifier: Apache-2.0

package guestimage

import (
	"bytes"
	"context"
	"crypto/sha256"
	"debug/elf"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cavaliergopher/cpio"
	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"

	"github.com/coffer-dev/coffer/owner/appraise"
	"github.com/coffer-dev/coffer/owner/measure"
	"github.com/coffer-dev/coffer/tee"
	"github.com/coffer-dev/coffer/tee/snp"
)

func moduleELF(depends string) []byte {
	return elfFile(elf.EM_X86_64, "", section{".modinfo", "license=GPL\x00depends=" + depends + "\x00name=x\x00"})
}

// signed appends a signature as the kernel's build does.
func signed(module []byte) []byte {
	const signature = "a signature"
	out := append(bytes.Clone(module), signature...)
	out = append(out, 0, 0, 2, 0, 0, 0, 0, 0)
	out = binary.BigEndian.AppendUint32(out, uint32(len(signature)))
	return append(out, "~Module signature appended~\n"...)
}

// inputs makes all that Build needs. Files below the kernel's modules can be
// changed by edit, which nil leaves alone.
func inputs(t *testing.T, edit func(modules map[string][]byte)) Config {
	t.Helper()
	dir := t.TempDir()
	mods := map[string][]byte{"modules.builtin": []byte("kernel/crypto/authenc.ko\n")}
	for _, name := range required() {
		if name != "authenc" {
			mods["kernel/drivers/"+strings.ReplaceAll(name, "_", "-")+".ko"] = signed(moduleELF(""))
		}
	}
	mods["kernel/drivers/dm-verity.ko"] = signed(moduleELF("dm-mod,authenc,dm_bufio"))
	mods["kernel/drivers/dm-bufio.ko"] = moduleELF("dm-mod")
	mods["kernel/drivers/unused.ko"] = moduleELF("")
	if edit != nil {
		edit(mods)
	}
	files := map[string][]byte{
		"kernel/boot/vmlinuz-6.1.0-test": bzImage(packed(t, "lz4", kernelELF())),
		"e2fs/sbin/mke2fs":               []byte("\x7fELF mke2fs"),
		"e2fs/lib/libc.so":               []byte("\x7fELF libc"),
		"e2fs/etc/mke2fs.conf":           []byte("[defaults]"),
		"e2fs/.packages":                 []byte("e2fsprogs=1"),
		"agent":                          []byte("\x7fELF agent"),
		"runc":                           []byte("\x7fELF runc"),
		"firmware":                       make([]byte, 65536),
	}
	for name, content := range mods {
		files["kernel/lib/modules/6.1.0-test/"+name] = content
	}
	for name, content := range files {
		name = filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	at := func(name string) string { return filepath.Join(dir, name) }
	return Config{KernelDir: at("kernel"), E2fsDir: at("e2fs"), Agent: at("agent"), Runc: at("runc"), Firmware: at("firmware"), Out: at("out")}
}

func read(t *testing.T, c Config, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(c.Out, name))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// unpack returns the archive in an initrd, in order.
func unpack(t *testing.T, c Compression, initrd []byte) ([]*cpio.Header, map[string]string) {
	t.Helper()
	var r io.Reader = bytes.NewReader(initrd)
	switch c {
	case LZ4, "":
		r = lz4.NewReader(r)
	case Zstd:
		z, err := zstd.NewReader(r)
		if err != nil {
			t.Fatal(err)
		}
		defer z.Close()
		r = z
	}
	var headers []*cpio.Header
	contents := make(map[string]string)
	in := cpio.NewReader(r)
	for {
		h, err := in.Next()
		if errors.Is(err, io.EOF) {
			return headers, contents
		}
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(in)
		if err != nil {
			t.Fatal(err)
		}
		headers = append(headers, h)
		contents[h.Name] = string(b)
	}
}

func TestInitrd(t *testing.T) {
	for _, compression := range []Compression{"", LZ4, Zstd, None} {
		c := inputs(t, nil)
		c.Compression = compression
		if _, err := Build(t.Context(), c); err != nil {
			t.Fatal(err)
		}
		headers, got := unpack(t, compression, read(t, c, InitrdFile))
		var names []string
		for _, h := range headers {
			names = append(names, h.Name)
			if h.Uid != 0 || h.Guid != 0 || h.ModTime.Unix() != 0 {
				t.Errorf("%s: uid %d, gid %d, time %v; want root at zero", h.Name, h.Uid, h.Guid, h.ModTime)
			}
		}
		if !slices.IsSorted(names) {
			t.Errorf("names are not sorted: %q", names)
		}
		for name, want := range map[string]string{
			"init": "\x7fELF agent", "bin/runc": "\x7fELF runc", "sbin/mke2fs": "\x7fELF mke2fs", "lib/libc.so": "\x7fELF libc",
			"dev": "", "proc": "", "run": "", "sys": "", "tmp": "", "lib/modules/dm_mod.ko": string(moduleELF("")),
		} {
			if text, ok := got[name]; !ok || text != want {
				t.Errorf("%s: %q is %q, %v; want %q", compression, name, text, ok, want)
			}
		}
		for _, name := range []string{"etc", "etc/mke2fs.conf", ".packages", "lib/modules/unused.ko", "lib/modules/authenc.ko"} {
			if _, ok := got[name]; ok {
				t.Errorf("the initrd has %s", name)
			}
		}
		list := got["lib/modules/list"]
		for _, line := range []string{"authenc -\n", "dm_mod /lib/modules/dm_mod.ko\n", "dm_verity /lib/modules/dm_verity.ko dm_bufio dm_mod\n", "dm_bufio /lib/modules/dm_bufio.ko dm_mod\n"} {
			if !strings.Contains(list, line) {
				t.Errorf("module list lacks %q:\n%s", line, list)
			}
		}
	}
}

func TestBuildIsDeterministic(t *testing.T) {
	c := inputs(t, nil)
	first, err := Build(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	before := make(map[string][]byte)
	entries, err := os.ReadDir(c.Out)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		before[e.Name()] = read(t, c, e.Name())
	}
	// Other inputs in another place with other times, but the same content.
	again := inputs(t, nil)
	second, err := Build(t.Context(), again)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(first, second); diff != "" {
		t.Errorf("second build differs (-first +second):\n%s", diff)
	}
	for name, want := range before {
		if !bytes.Equal(read(t, again, name), want) {
			t.Errorf("second build has another %s", name)
		}
	}
	want := []string{BzImageFile, FirmwareFile, ReferenceFile, InitrdFile, KernelFile}
	slices.Sort(want)
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	if diff := cmp.Diff(want, names); diff != "" {
		t.Errorf("files (-want +got):\n%s", diff)
	}
}

func TestReference(t *testing.T) {
	c := inputs(t, nil)
	if _, err := Build(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	r, err := appraise.ParseReference(read(t, c, ReferenceFile))
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]appraise.File{KernelFile: r.Kernel, InitrdFile: r.Initrd, FirmwareFile: *r.Firmware} {
		if got := sha256.Sum256(read(t, c, name)); want.Name != name || got != want.SHA256 {
			t.Errorf("reference of %s = %v; want %x", name, want, got)
		}
	}
	if r.Append != CommandLine || len(r.Measurements) != MaxVCPUs {
		t.Errorf("reference = %q with %d measurements; want %q with %d", r.Append, len(r.Measurements), CommandLine, MaxVCPUs)
	}
	for i, m := range r.Measurements {
		want, err := measure.Emulated(snp.Inputs{Firmware: read(t, c, FirmwareFile), Kernel: r.Kernel.SHA256, Initrd: r.Initrd.SHA256, Append: CommandLine, VCPUs: i + 1})
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(appraise.ReferenceDigest{TEE: tee.Emulated, VCPUs: i + 1, Digest: want}, m); diff != "" {
			t.Errorf("measurement %d (-want +got):\n%s", i, diff)
		}
	}
}

func TestSNPReference(t *testing.T) {
	c := inputs(t, nil)
	c.SNPFirmware = "../measure/testdata/ovmf_AmdSev_suffix.bin"
	if _, err := Build(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	r, err := appraise.ParseReference(read(t, c, SNPReferenceFile))
	if err != nil {
		t.Fatal(err)
	}
	if r.Kernel.Name != BzImageFile || r.Firmware.Name != SNPFirmwareFile || len(r.Measurements) != MaxVCPUs*len(measure.Types()) {
		t.Fatalf("reference = %s, %s, %d measurements; want %s, %s and one for each CPU type and count",
			r.Kernel.Name, r.Firmware.Name, len(r.Measurements), BzImageFile, SNPFirmwareFile)
	}
	kernel, initrd := sha256.Sum256(read(t, c, BzImageFile)), sha256.Sum256(read(t, c, InitrdFile))
	m := r.Measurements[3]
	want, err := measure.SNP(measure.Launch{Firmware: read(t, c, SNPFirmwareFile), Kernel: &kernel, Initrd: &initrd,
		Append: CommandLine, VCPUs: m.VCPUs, VCPUType: m.CPU})
	if err != nil {
		t.Fatal(err)
	}
	if m.TEE != tee.SEVSNP || m.Digest != want {
		t.Errorf("measurement = %v; want sev-snp with %x", m, want)
	}
}

func TestBuildRefuses(t *testing.T) {
	drop := func(name string) func(map[string][]byte) {
		return func(m map[string][]byte) { delete(m, name) }
	}
	tests := []struct {
		name string
		edit func(modules map[string][]byte)
		set  func(*Config)
		want string
	}{
		{"no kernel", nil, func(c *Config) { c.KernelDir = c.E2fsDir }, "modules"},
		{"no agent", nil, func(c *Config) { c.Agent += "x" }, "/init"},
		{"agent is no program", nil, func(c *Config) { c.Agent = c.Firmware }, "not a program"},
		{"agent is a directory", nil, func(c *Config) { c.Agent = c.E2fsDir }, "not a file"},
		{"no runc", nil, func(c *Config) { c.Runc = "" }, "/bin/runc"},
		{"no firmware", nil, func(c *Config) { c.Firmware = "" }, "firmware"},
		{"no SEV-SNP firmware", nil, func(c *Config) { c.SNPFirmware = "nothing" }, "firmware"},
		{"firmware without SEV-SNP", nil, func(c *Config) { c.SNPFirmware = c.Firmware }, "firmware"},
		{"no mke2fs", nil, func(c *Config) { c.E2fsDir = filepath.Join(c.E2fsDir, "lib") }, "mke2fs"},
		{"unknown compression", nil, func(c *Config) { c.Compression = "rot13" }, "rot13"},
		{"module missing", drop("kernel/drivers/overlay.ko"), nil, "overlay"},
		{"dependency missing", drop("kernel/drivers/dm-bufio.ko"), nil, "dm_bufio"},
		{"list of built-in modules missing", drop("modules.builtin"), nil, "modules.builtin"},
		{"module compressed", func(m map[string][]byte) { m["kernel/fs/x.ko.xz"] = nil }, nil, "compressed"},
		{"module needs itself", func(m map[string][]byte) { m["kernel/drivers/dm-bufio.ko"] = moduleELF("dm-verity") }, nil, "itself"},
		{"module is no ELF file", func(m map[string][]byte) { m["kernel/drivers/overlay.ko"] = []byte("text") }, nil, "overlay"},
		{"module without modinfo", func(m map[string][]byte) { m["kernel/drivers/overlay.ko"] = elfFile(elf.EM_X86_64, "") }, nil, "modinfo"},
		{"signature longer than the module", func(m map[string][]byte) {
			m["kernel/drivers/overlay.ko"] = signed(moduleELF(""))[len(moduleELF(""))+5:]
		}, nil, "signature"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := inputs(t, tt.edit)
			if tt.set != nil {
				tt.set(&c)
			}
			_, err := Build(t.Context(), c)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Build = %v; want an error with %q", err, tt.want)
			}
			if _, err := os.Stat(filepath.Join(c.Out, ReferenceFile)); err == nil {
				t.Error("there is a reference after an error")
			}
		})
	}
}

func TestBuildEndsWithItsContext(t *testing.T) {
	c := inputs(t, nil)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Build(ctx, c); !errors.Is(err, context.Canceled) {
		t.Errorf("Build = %v; want the context's end", err)
	}
}

func TestBuildReplacesAndLeavesNothing(t *testing.T) {
	c := inputs(t, nil)
	if _, err := Build(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	old := read(t, c, ReferenceFile)
	if err := os.WriteFile(c.Agent, []byte("\x7fELF another agent"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Build(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	if bytes.Equal(read(t, c, ReferenceFile), old) {
		t.Error("another agent gives the same reference")
	}
	entries, err := os.ReadDir(c.Out)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), ".") {
			t.Errorf("%s was left behind", e.Name())
		}
	}
}
