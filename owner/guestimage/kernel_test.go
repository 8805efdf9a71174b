// SPDX-License-Identifier: Apache-2.0

package guestimage

import (
	"bytes"
	"compress/gzip"
	"debug/elf"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
)

// section is one section of an ELF file made for a test.
type section struct {
	name    string
	content string
}

// elfFile makes an ELF-64 file of the sections, with one PT_NOTE segment if note
// is not empty.
func elfFile(machine elf.Machine, note string, sections ...section) []byte {
	le := binary.LittleEndian
	names := "\x00"
	body := make([]byte, 64+56)
	noteOffset := len(body)
	body = append(body, note...)
	headers := make([]byte, 64) // the null section
	add := func(name, content string, typ uint32) {
		h := make([]byte, 64)
		le.PutUint32(h[0:], uint32(len(names)))
		names += name + "\x00"
		if typ == uint32(elf.SHT_STRTAB) {
			content = names
		}
		le.PutUint32(h[4:], typ)
		le.PutUint64(h[24:], uint64(len(body)))
		le.PutUint64(h[32:], uint64(len(content)))
		le.PutUint64(h[48:], 1)
		body = append(body, content...)
		headers = append(headers, h...)
	}
	for _, s := range sections {
		add(s.name, s.content, uint32(elf.SHT_PROGBITS))
	}
	add(".shstrtab", "", uint32(elf.SHT_STRTAB))
	copy(body, "\x7fELF\x02\x01\x01")
	le.PutUint16(body[16:], uint16(elf.ET_EXEC))
	le.PutUint16(body[18:], uint16(machine))
	le.PutUint32(body[20:], 1)
	le.PutUint64(body[32:], 64)
	le.PutUint64(body[40:], uint64(len(body)))
	le.PutUint16(body[52:], 64)
	le.PutUint16(body[54:], 56)
	le.PutUint16(body[56:], 1)
	le.PutUint16(body[58:], 64)
	le.PutUint16(body[60:], uint16(len(headers)/64))
	le.PutUint16(body[62:], uint16(len(headers)/64-1))
	le.PutUint32(body[64:], uint32(elf.PT_NOTE))
	le.PutUint64(body[64+8:], uint64(noteOffset))
	le.PutUint64(body[64+32:], uint64(len(note)))
	return append(body, headers...)
}

const pvhNote = "\x04\x00\x00\x00\x04\x00\x00\x00\x12\x00\x00\x00Xen\x00\x00\x00\x00\x01"

func kernelELF() []byte {
	return elfFile(elf.EM_X86_64, pvhNote, section{".text", strings.Repeat("code ", 100)})
}

// bzImage puts a payload into a boot image.
func bzImage(payload []byte) []byte {
	b := make([]byte, 2*512+64)
	b[0x1f1] = 1
	copy(b[0x202:], "HdrS")
	binary.LittleEndian.PutUint16(b[0x206:], 0x20f)
	binary.LittleEndian.PutUint32(b[0x248:], 64)
	binary.LittleEndian.PutUint32(b[0x24c:], uint32(len(payload)))
	return append(append(b, payload...), "signature"...)
}

// packed compresses what a kernel's build compresses, with its size behind.
func packed(t testing.TB, format string, plain []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	var w io.WriteCloser
	var err error
	switch format {
	case "lz4":
		z := lz4.NewWriter(&out)
		err = z.Apply(lz4.LegacyOption(true))
		w = z
	case "zstd":
		w, err = zstd.NewWriter(&out)
	case "gzip":
		w = gzip.NewWriter(&out)
	}
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(plain); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if format == "gzip" {
		return out.Bytes() // its trailer ends in the size
	}
	return binary.LittleEndian.AppendUint32(out.Bytes(), uint32(len(plain)))
}

func TestExtractELF(t *testing.T) {
	want := kernelELF()
	for _, format := range []string{"lz4", "zstd", "gzip"} {
		got, err := extractELF(bzImage(packed(t, format, append(want, "relocations"...))))
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("extractELF of %s = %d bytes, %v; want the %d bytes of the ELF file", format, len(got), err, len(want))
		}
	}
}

func TestExtractELFRefuses(t *testing.T) {
	good := packed(t, "lz4", kernelELF())
	resized := bytes.Clone(good)
	resized[len(resized)-4]++
	huge := bytes.Clone(good)
	huge[len(huge)-1] = 0xff
	old := bzImage(good)
	old[0x206] = 0x07
	outside := bzImage(good)
	outside[0x24f] = 1
	tests := map[string][]byte{
		"nothing":           nil,
		"an ELF file":       kernelELF(),
		"no magic":          make([]byte, 4096),
		"old protocol":      old,
		"payload outside":   outside,
		"xz":                bzImage(append([]byte("\xfd7zXZ\x00"), make([]byte, 64)...)),
		"another size":      bzImage(resized),
		"too large":         bzImage(huge),
		"damaged":           bzImage(append([]byte{0x02, 0x21, 0x4c, 0x18, 9, 0, 0, 0}, good[20:]...)),
		"not ELF":           bzImage(packed(t, "lz4", []byte("not an ELF file, but long enough"))),
		"another machine":   bzImage(packed(t, "lz4", elfFile(elf.EM_AARCH64, pvhNote))),
		"no PVH entry":      bzImage(packed(t, "lz4", elfFile(elf.EM_X86_64, "\x04\x00\x00\x00\x04\x00\x00\x00\x11\x00\x00\x00Xen\x00\x00\x00\x00\x01"))),
		"ELF cut short":     bzImage(packed(t, "lz4", kernelELF()[:400])),
		"headers cut short": bzImage(packed(t, "zstd", kernelELF()[:len(kernelELF())-8])),
	}
	for name, image := range tests {
		if got, err := extractELF(image); !errors.Is(err, ErrKernel) || got != nil {
			t.Errorf("extractELF of %s = %d bytes, %v; want ErrKernel", name, len(got), err)
		}
	}
}

func FuzzExtractELF(f *testing.F) {
	for _, format := range []string{"lz4", "zstd", "gzip"} {
		f.Add(bzImage(packed(f, format, kernelELF())))
	}
	f.Add([]byte("HdrS"))
	f.Fuzz(func(t *testing.T, image []byte) {
		if got, err := extractELF(image); err == nil && !bytes.HasPrefix(got, []byte("\x7fELF")) {
			t.Errorf("extractELF returned %d bytes that are no ELF file", len(got))
		}
	})
}

func FuzzSlim(f *testing.F) {
	f.Add(signed(moduleELF("dep_a,dep_b")))
	f.Add(moduleELF(""))
	f.Fuzz(func(t *testing.T, content []byte) {
		got, _, err := slim(content)
		if err == nil && !bytes.HasPrefix(content, got) {
			t.Error("slim returned what is not the start of the module")
		}
	})
}

// kernelDir returns the real kernel package, if there is one here.
func kernelDir(t *testing.T) string {
	t.Helper()
	dir := os.Getenv("COFFER_KERNEL_DIR")
	if dir == "" {
		dir = "../../build/cache/kernel"
	}
	if _, err := os.Stat(filepath.Join(dir, "lib/modules")); err != nil {
		t.Skipf("no kernel in %s; run scripts/fetch-kernel build/cache/kernel or set COFFER_KERNEL_DIR", dir)
	}
	return dir
}

func TestRealKernel(t *testing.T) {
	dir := kernelDir(t)
	mods, release, err := findModules(dir)
	if err != nil {
		t.Fatal(err)
	}
	image, err := os.ReadFile(filepath.Join(dir, "boot", "vmlinuz-"+release))
	if err != nil {
		t.Fatal(err)
	}
	kernel, err := extractELF(image)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Contains(kernel, []byte("Linux version "+release)) {
		t.Errorf("the extracted kernel does not call itself %s", release)
	}
	in := make(tree)
	if err := mods.choose(in); err != nil {
		t.Fatal(err)
	}
	list := string(in["lib/modules/list"].content)
	for _, line := range []string{
		"virtio_pci /lib/modules/virtio_pci.ko virtio virtio_pci_legacy_dev virtio_pci_modern_dev virtio_ring\n",
		"dm_verity /lib/modules/dm_verity.ko dm_bufio dm_mod reed_solomon\n",
	} {
		if !strings.Contains(list, line) {
			t.Errorf("module list lacks %q:\n%s", line, list)
		}
	}
}
