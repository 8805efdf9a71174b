// SPDX-License-Identifier: Apache-2.0

package snp

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"strings"
)

// KernelHashes is what QEMU puts into guest memory for direct kernel boot
// with kernel-hashes=on. The firmware compares; only firmware that does
// (OVMF's AmdSev build) makes it mean anything.
type KernelHashes struct {
	// Kernel is SHA-256 of the file given to -kernel, whole.
	Kernel [32]byte
	// Initrd is SHA-256 of the file given to -initrd, NoInitrd without one.
	Initrd [32]byte
	// Append is the -append string exactly; nothing is trimmed.
	Append string
}

// NoInitrd returns the hash that stands for an absent or empty initrd.
func NoInitrd() [32]byte { return sha256.Sum256(nil) }

// Sizes of the table (QEMU, target/i386/sev.c).
const (
	hashTableSize   = 168
	hashTablePadded = 176
)

// Mixed-endian GUIDs of the table and its entries, as bytes in memory.
const (
	guidHashTable   = "\x06\xd6\x38\x94\x22\x4f\xc9\x4c\xb4\x79\xa7\x93\xd4\x11\xfd\x21"
	guidHashCmdline = "\xd8\x2d\xd0\x97\x20\xbd\x94\x4c\xaa\x78\xe7\x71\x4d\x36\xab\x2a"
	guidHashInitrd  = "\x31\xf7\xba\x44\x2f\x3a\xd7\x4b\x9a\xf1\x41\xe2\x91\x69\x78\x1d"
	guidHashKernel  = "\x37\x94\xe7\x4d\xd2\xab\x7f\x42\xb8\x35\xd5\xb1\x72\xd2\x04\x5b"
)

// maxAppend bounds a command line; Linux takes 2,048 bytes.
const maxAppend = 64 << 10

// Page returns size bytes, a multiple of PageSize, with the table at offset
// and zeros elsewhere.
func (k KernelHashes) Page(offset, size int) ([]byte, error) {
	if len(k.Append) > maxAppend || strings.IndexByte(k.Append, 0) >= 0 {
		return nil, fmt.Errorf("%w: command line is longer than %d bytes or holds a NUL", ErrLaunch, maxAppend)
	}
	if size <= 0 || size > MaxAreaSize || size%PageSize != 0 || offset < 0 || offset > size-hashTablePadded {
		return nil, fmt.Errorf("%w: no room for kernel hashes at %#x of %#x bytes", ErrLaunch, offset, size)
	}
	page := make([]byte, size)
	t := page[offset:]
	copy(t, guidHashTable)
	binary.LittleEndian.PutUint16(t[16:], hashTableSize)
	at := 18
	// The hash covers the command line and the NUL that ends it in memory.
	cmdline := sha256.Sum256(append([]byte(k.Append), 0))
	for _, e := range []struct {
		guid string
		hash [32]byte
	}{{guidHashCmdline, cmdline}, {guidHashInitrd, k.Initrd}, {guidHashKernel, k.Kernel}} {
		copy(t[at:], e.guid)
		binary.LittleEndian.PutUint16(t[at+16:], 50)
		copy(t[at+18:], e.hash[:])
		at += 50
	}
	return page, nil
}
