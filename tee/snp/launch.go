// SPDX-License-Identifier: Apache-2.0

package snp

import (
	"crypto/sha512"
	"encoding/binary"
	"errors"
	"fmt"
)

// PageSize is the unit of the launch digest.
const PageSize = 4096

// PageType is the type of a page in the launch digest (the ABI, 8.17).
type PageType uint8

// Page types. The content of Normal and VMSA pages is measured, of the others
// only their place and type.
const (
	PageNormal     PageType = 1
	PageVMSA       PageType = 2
	PageZero       PageType = 3
	PageUnmeasured PageType = 4
	PageSecrets    PageType = 5
	PageCPUID      PageType = 6
)

// GPAs that QEMU and KVM fix.
const (
	// FirmwareEnd is where the firmware image ends: 4 GiB.
	FirmwareEnd = 1 << 32
	// VMSAGPA is KVM's INITIAL_VMSA_GPA.
	VMSAGPA = 0xFFFFFFFFF000
)

// Bounds on a launch, which keep the work for hostile input small.
const (
	MaxFirmwareSize = 64 << 20
	MaxAreaSize     = 256 << 20
	MaxVCPUs        = 4096
)

// ErrLaunch is wrapped by every refusal to compute a launch digest.
var ErrLaunch = errors.New("unusable launch input")

// Digest is a launch digest in the making: the value that LAUNCH_UPDATE
// extends page by page. The zero Digest is the start of every launch. The
// final value is the report's MEASUREMENT.
type Digest [48]byte

// update replaces the digest by SHA-384 of PAGE_INFO (the ABI, table 67).
func (d *Digest) update(t PageType, gpa uint64, contents *[48]byte) {
	var info [0x70]byte
	copy(info[:], d[:])
	copy(info[0x30:], contents[:])
	binary.LittleEndian.PutUint16(info[0x60:], uint16(len(info)))
	info[0x62] = byte(t)
	binary.LittleEndian.PutUint64(info[0x68:], gpa)
	*d = sha512.Sum384(info[:])
}

// Pages adds data, a multiple of PageSize, as pages of type PageNormal or
// PageVMSA from gpa upwards.
func (d *Digest) Pages(t PageType, gpa uint64, data []byte) error {
	if t != PageNormal && t != PageVMSA {
		return fmt.Errorf("%w: pages of type %d have no measured content", ErrLaunch, t)
	}
	if len(data)%PageSize != 0 || gpa%PageSize != 0 {
		return fmt.Errorf("%w: %d bytes at %#x are not whole pages", ErrLaunch, len(data), gpa)
	}
	for at := 0; at < len(data); at += PageSize {
		contents := sha512.Sum384(data[at : at+PageSize])
		d.update(t, gpa+uint64(at), &contents)
	}
	return nil
}

// Area adds size bytes, a multiple of PageSize and at most MaxAreaSize, whose
// content is not measured.
func (d *Digest) Area(t PageType, gpa, size uint64) error {
	if t < PageZero || t > PageCPUID {
		return fmt.Errorf("%w: an area cannot have type %d", ErrLaunch, t)
	}
	if size%PageSize != 0 || gpa%PageSize != 0 || size > MaxAreaSize {
		return fmt.Errorf("%w: area of %#x bytes at %#x", ErrLaunch, size, gpa)
	}
	var none [48]byte
	for at := uint64(0); at < size; at += PageSize {
		d.update(t, gpa+at, &none)
	}
	return nil
}

// Firmware adds a firmware image, a positive multiple of PageSize, ending at
// FirmwareEnd.
func (d *Digest) Firmware(image []byte) error {
	if len(image) == 0 || len(image) > MaxFirmwareSize {
		return fmt.Errorf("%w: firmware of %d bytes, want 1 to %d", ErrLaunch, len(image), MaxFirmwareSize)
	}
	return d.Pages(PageNormal, FirmwareEnd-uint64(len(image)), image)
}

// VCPUs adds the initial state of n vCPUs: the boot processor at the reset
// vector, the others at resetEIP. signature is the CPU model's CPUID
// Fn0000_0001 EAX, features the SEV_FEATURES of every vCPU. resetEIP matters
// only when n > 1 and must not be zero then.
func (d *Digest) VCPUs(n int, resetEIP, signature uint32, features uint64) error {
	if n < 1 || n > MaxVCPUs {
		return fmt.Errorf("%w: %d vCPUs, want 1 to %d", ErrLaunch, n, MaxVCPUs)
	}
	if n > 1 && resetEIP == 0 {
		return fmt.Errorf("%w: firmware without a reset address for further vCPUs", ErrLaunch)
	}
	page := VMSA(bootEIP, signature, features)
	contents := sha512.Sum384(page[:])
	d.update(PageVMSA, VMSAGPA, &contents)
	page = VMSA(resetEIP, signature, features)
	contents = sha512.Sum384(page[:])
	for range n - 1 {
		d.update(PageVMSA, VMSAGPA, &contents)
	}
	return nil
}

// bootEIP is where the boot processor starts on every x86.
const bootEIP = 0xFFFFFFF0

// VMSA returns the page with a vCPU's initial state as QEMU makes it on Linux
// 6.10 and later (APM volume 2, table B-4).
func VMSA(eip, signature uint32, features uint64) [PageSize]byte {
	var p [PageSize]byte
	le := binary.LittleEndian
	for _, s := range []struct {
		at             int
		selector, attr uint16
		limit          uint32
		base           uint64
	}{
		{0x000, 0, 0x93, 0xFFFF, 0},                             // ES
		{0x010, 0xF000, 0x9B, 0xFFFF, uint64(eip & 0xFFFF0000)}, // CS
		{0x020, 0, 0x93, 0xFFFF, 0},                             // SS
		{0x030, 0, 0x93, 0xFFFF, 0},                             // DS
		{0x040, 0, 0x93, 0xFFFF, 0},                             // FS
		{0x050, 0, 0x93, 0xFFFF, 0},                             // GS
		{0x060, 0, 0, 0xFFFF, 0},                                // GDTR
		{0x070, 0, 0x82, 0xFFFF, 0},                             // LDTR
		{0x080, 0, 0, 0xFFFF, 0},                                // IDTR
		{0x090, 0, 0x8B, 0xFFFF, 0},                             // TR
	} {
		le.PutUint16(p[s.at:], s.selector)
		le.PutUint16(p[s.at+2:], s.attr)
		le.PutUint32(p[s.at+4:], s.limit)
		le.PutUint64(p[s.at+8:], s.base)
	}
	for _, r := range []struct {
		at    int
		value uint64
	}{
		{0x0D0, 0x1000},               // EFER.SVME
		{0x148, 0x40},                 // CR4.MCE
		{0x158, 0x10},                 // CR0.ET
		{0x160, 0x400},                // DR7
		{0x168, 0xFFFF0FF0},           // DR6
		{0x170, 0x2},                  // RFLAGS
		{0x178, uint64(eip & 0xFFFF)}, // RIP
		{0x268, 0x0007040600070406},   // G_PAT
		{0x310, uint64(signature)},    // RDX
		{0x3B0, features},             // SEV_FEATURES
		{0x3E8, 0x1},                  // XCR0
	} {
		le.PutUint64(p[r.at:], r.value)
	}
	le.PutUint32(p[0x408:], 0x1F80) // MXCSR
	le.PutUint16(p[0x410:], 0x037F) // X87_FCW
	return p
}

// CPUSignature returns CPUID Fn0000_0001 EAX for combined family, model and
// stepping (AMD 25481, Fn0000_0001_EAX). family is at least 15.
func CPUSignature(family, model, stepping uint8) uint32 {
	return uint32(family-15)<<20 | uint32(model>>4)<<16 | 0xF<<8 | uint32(model&0xF)<<4 | uint32(stepping&0xF)
}
