// SPDX-License-Identifier: Apache-2.0

package guestimage

import (
	"bytes"
	"compress/gzip"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
)

// Bounds of a kernel, in bytes.
const (
	maxBzImage = 256 << 20
	maxELF     = 512 << 20
)

// ErrKernel is wrapped by every refusal of a kernel image.
var ErrKernel = errors.New("unusable kernel")

// extractELF returns the ELF kernel inside a bzImage: what a virtual machine
// monitor enters directly through the Xen PVH note, without firmware tables,
// real mode or decompression.
//
// Offsets are those of Documentation/x86/boot.rst, "The Real-Mode Kernel Header".
func extractELF(bzImage []byte) ([]byte, error) {
	if len(bzImage) < 0x260 || string(bzImage[0x202:0x206]) != "HdrS" {
		return nil, fmt.Errorf("%w: not a bzImage", ErrKernel)
	}
	if v := binary.LittleEndian.Uint16(bzImage[0x206:]); v < 0x208 {
		return nil, fmt.Errorf("%w: boot protocol %#x has no payload offset", ErrKernel, v)
	}
	setup := int64(bzImage[0x1f1])
	if setup == 0 {
		setup = 4
	}
	start := (setup+1)*512 + int64(binary.LittleEndian.Uint32(bzImage[0x248:]))
	size := int64(binary.LittleEndian.Uint32(bzImage[0x24c:]))
	if start+size > int64(len(bzImage)) || size < 16 {
		return nil, fmt.Errorf("%w: payload of %d bytes at %d exceeds the file", ErrKernel, size, start)
	}
	raw, err := decompress(bzImage[start : start+size])
	if err != nil {
		return nil, err
	}
	return trimELF(raw)
}

// decompress unpacks a payload, which ends in its unpacked size (4 bytes).
func decompress(payload []byte) ([]byte, error) {
	end := len(payload) - 4
	want := int64(binary.LittleEndian.Uint32(payload[end:]))
	if want > maxELF {
		return nil, fmt.Errorf("%w: unpacked size of %d bytes", ErrKernel, want)
	}
	var r io.Reader
	var err error
	switch {
	case bytes.HasPrefix(payload, []byte{0x02, 0x21, 0x4c, 0x18}):
		r = lz4.NewReader(bytes.NewReader(payload[:end]))
	case bytes.HasPrefix(payload, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		var d *zstd.Decoder
		if d, err = zstd.NewReader(bytes.NewReader(payload[:end]), zstd.WithDecoderMaxMemory(maxELF)); err == nil {
			defer d.Close()
			r = d
		}
	case bytes.HasPrefix(payload, []byte{0x1f, 0x8b}):
		r, err = gzip.NewReader(bytes.NewReader(payload)) // its own trailer is the size
	default:
		return nil, fmt.Errorf("%w: its payload starts with % x; only lz4, zstd and gzip are unpacked here", ErrKernel, payload[:6])
	}
	if err != nil {
		return nil, fmt.Errorf("%w: unpacking: %w", ErrKernel, err)
	}
	var out bytes.Buffer
	n, err := io.Copy(&out, io.LimitReader(r, want+1))
	if err != nil {
		return nil, fmt.Errorf("%w: unpacking: %w", ErrKernel, err)
	}
	if n != want {
		return nil, fmt.Errorf("%w: unpacked to another size than %d bytes", ErrKernel, want)
	}
	return out.Bytes(), nil
}

// trimELF cuts off what follows the ELF file (the relocation table of the
// decompressor, which a direct entry does not use) and checks that there is a
// PVH entry.
func trimELF(raw []byte) ([]byte, error) {
	f, err := elf.NewFile(bytes.NewReader(raw))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrKernel, err)
	}
	defer f.Close()
	if f.Machine != elf.EM_X86_64 {
		return nil, fmt.Errorf("%w: for %v", ErrKernel, f.Machine)
	}
	// ELF-64: e_shoff is at 0x28, e_shentsize and e_shnum at 0x3a and 0x3c.
	end := binary.LittleEndian.Uint64(raw[0x28:]) +
		uint64(binary.LittleEndian.Uint16(raw[0x3a:]))*uint64(binary.LittleEndian.Uint16(raw[0x3c:]))
	pvh := false
	for _, p := range f.Progs {
		end = max(end, p.Off+p.Filesz)
		if p.Type != elf.PT_NOTE || p.Filesz > 1<<20 {
			continue
		}
		notes, err := io.ReadAll(p.Open())
		if err != nil {
			return nil, fmt.Errorf("%w: reading notes: %w", ErrKernel, err)
		}
		// A note of owner "Xen" and type 18 (XEN_ELFNOTE_PHYS32_ENTRY).
		pvh = pvh || bytes.Contains(notes, []byte("\x12\x00\x00\x00Xen\x00"))
	}
	for _, s := range f.Sections {
		if s.Type != elf.SHT_NOBITS {
			end = max(end, s.Offset+s.FileSize)
		}
	}
	if end > uint64(len(raw)) {
		return nil, fmt.Errorf("%w: cut short at %d of %d bytes", ErrKernel, len(raw), end)
	}
	if !pvh {
		return nil, fmt.Errorf("%w: no PVH entry (CONFIG_PVH)", ErrKernel)
	}
	return raw[:end], nil
}
