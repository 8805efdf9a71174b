// SPDX-License-Identifier: Apache-2.0

// Package measure computes the launch digests that an owner should expect:
// for SEV-SNP under QEMU and KVM from the firmware, kernel, initrd, command
// line, vCPUs and CPU model, and for Coffer's emulation from the same kind of
// inputs. It promises the value the secure processor would report for exactly
// these inputs; whether they deserve trust is the owner's question. The inputs
// may be hostile files: parsing is bounded, unknown firmware structures are
// refused rather than guessed.
//
// One digest stands for one configuration. It covers nothing else: not memory
// size, devices, ACPI tables or machine type, and the kernel only if the
// firmware enforces kernel hashes (OVMF's AmdSev build does).
package measure

import (
	"crypto/sha256"
	"fmt"
	"io"

	"github.com/coffer-dev/coffer/tee/snp"
)

// DefaultGuestFeatures is SEV_FEATURES on current Linux and QEMU: SNPActive.
const DefaultGuestFeatures = 0x1

// knownFeatures are the SEV_FEATURES bits that are not reserved.
const knownFeatures = 0xD7FF

// Launch describes a SEV-SNP launch under QEMU.
type Launch struct {
	// Firmware is the whole file given to -bios: an OVMF image built for
	// SEV-SNP.
	Firmware []byte
	// Kernel is SHA-256 of the whole file given to -kernel; nil for a launch
	// without direct kernel boot (and then Initrd must be nil and Append
	// empty). See HashFile.
	Kernel *[32]byte
	// Initrd is SHA-256 of the file given to -initrd; nil without one.
	Initrd *[32]byte
	// Append is the -append string exactly: strip a trailing newline when it
	// comes from a file.
	Append string
	// VCPUs is the number of vCPUs at launch (-smp cpus), at least 1.
	VCPUs int
	// VCPUType is the -cpu model's name, one of Types.
	VCPUType string
	// GuestFeatures is SEV_FEATURES; zero means DefaultGuestFeatures.
	GuestFeatures uint64
}

// HashFile returns SHA-256 of all that r holds, for Kernel and Initrd.
func HashFile(r io.Reader) ([32]byte, error) {
	h := sha256.New()
	if _, err := io.Copy(h, r); err != nil {
		return [32]byte{}, fmt.Errorf("hashing file: %w", err)
	}
	return [32]byte(h.Sum(nil)), nil
}

// SNP returns the MEASUREMENT of the launch that l describes.
func SNP(l Launch) ([48]byte, error) {
	d, err := snpDigest(l)
	if err != nil {
		return [48]byte{}, fmt.Errorf("computing SEV-SNP launch digest: %w", err)
	}
	return d, nil
}

func snpDigest(l Launch) (snp.Digest, error) {
	var d snp.Digest
	m, err := parseFirmware(l.Firmware)
	if err != nil {
		return d, err
	}
	if err := d.Firmware(l.Firmware); err != nil {
		return d, err
	}
	err = extend(&d, m, l)
	return d, err
}

// extend adds everything after the firmware image to d.
func extend(d *snp.Digest, m *metadata, l Launch) error {
	signature, err := signatureOf(l.VCPUType)
	if err != nil {
		return err
	}
	features := l.GuestFeatures
	if features == 0 {
		features = DefaultGuestFeatures
	}
	if features&^knownFeatures != 0 || features&1 == 0 {
		return fmt.Errorf("%w: guest features %#x: bit 0 (SNPActive) must be one, reserved bits zero", snp.ErrLaunch, features)
	}
	if m.resetEIP == 0 {
		return fmt.Errorf("%w: no SEV-ES reset block", ErrFirmware)
	}
	hashes, err := kernelHashes(m, l)
	if err != nil {
		return err
	}
	for i, s := range m.sections {
		if err := extendSection(d, m, s, hashes); err != nil {
			return fmt.Errorf("adding firmware section %d: %w", i, err)
		}
	}
	return d.VCPUs(l.VCPUs, m.resetEIP, signature, features)
}

// kernelHashes returns the hashes for the launch, nil when no kernel is given,
// and refuses what QEMU and the firmware would refuse.
func kernelHashes(m *metadata, l Launch) (*snp.KernelHashes, error) {
	if l.Kernel == nil {
		if l.Initrd != nil || l.Append != "" {
			return nil, fmt.Errorf("%w: initrd or command line without a kernel", snp.ErrLaunch)
		}
		return nil, nil
	}
	if m.hashesGPA == 0 || m.hashesSize < 176 {
		return nil, fmt.Errorf("%w: it takes no kernel hashes, so a kernel given to it is not measured; use OVMF's AmdSev build", ErrFirmware)
	}
	n := 0
	for _, s := range m.sections {
		if s.typ == sectionKernelHashes {
			n++
			if s.gpa != m.hashesGPA&^(snp.PageSize-1) {
				return nil, fmt.Errorf("%w: kernel hashes section at %#x, table at %#x", ErrFirmware, s.gpa, m.hashesGPA)
			}
		}
	}
	if n != 1 {
		return nil, fmt.Errorf("%w: %d kernel hashes sections, want 1", ErrFirmware, n)
	}
	h := &snp.KernelHashes{Kernel: *l.Kernel, Initrd: snp.NoInitrd(), Append: l.Append}
	if l.Initrd != nil {
		h.Initrd = *l.Initrd
	}
	return h, nil
}

// extendSection adds one section as QEMU does, and refuses a type that this
// package does not know, which QEMU would add as zeros.
func extendSection(d *snp.Digest, m *metadata, s section, hashes *snp.KernelHashes) error {
	gpa, size := uint64(s.gpa), uint64(s.size)
	switch s.typ {
	case sectionMemory, sectionSVSMArea:
		return d.Area(snp.PageZero, gpa, size)
	case sectionSecrets:
		return d.Area(snp.PageSecrets, gpa, size)
	case sectionCPUID:
		return d.Area(snp.PageCPUID, gpa, size)
	case sectionKernelHashes:
		if hashes == nil {
			return d.Area(snp.PageZero, gpa, size)
		}
		page, err := hashes.Page(int(m.hashesGPA%snp.PageSize), int(size))
		if err != nil {
			return err
		}
		return d.Pages(snp.PageNormal, gpa, page)
	}
	return fmt.Errorf("%w: unknown section type %#x", ErrFirmware, uint32(s.typ))
}

// Emulated returns the MEASUREMENT of an emulated launch, the reference value
// for what host/emulator computes from what is really started.
func Emulated(in snp.Inputs) ([48]byte, error) { return snp.EmulatedDigest(in) }
