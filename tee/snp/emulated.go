// SPDX-License-Identifier: Apache-2.0

package snp

import "fmt"

// What sets the emulated processor apart from AMD's. The family is one that
// AMD never issued, so that neither the launch digest nor the product line of
// an emulated report can equal a real one by accident.
const (
	EmulatedFamily   = 0x7F
	EmulatedModel    = 0
	EmulatedStepping = 0
	// EmulatedProductLine stands in the common names of the emulated chain.
	EmulatedProductLine = "Coffer"
	// EmulatedMarker is the subject serialNumber of every emulated
	// certificate.
	EmulatedMarker = "emulated"
)

// emulatedResetEIP is where further vCPUs start in the emulated layout.
const emulatedResetEIP = 0x0080B004

// emulatedSections is the metadata of the emulated layout: that of OVMF's
// AmdSev build, written out, since the firmware of an emulated launch has none
// (docs/attestation.md, "Emulated launch digest"). A zero type is the page of
// kernel hashes.
var emulatedSections = [...]struct {
	gpa, size uint64
	typ       PageType
}{
	{0x800000, 0x9000, PageZero},
	{0x80A000, 0x3000, PageZero},
	{0x80D000, 0x1000, PageSecrets},
	{0x80E000, 0x1000, PageCPUID},
	{0x80F000, 0x1000, PageZero},
	{0x810000, 0x1000, 0},
	{0x811000, 0xF000, PageZero},
}

// emulatedHashOffset is where in its page the hash table lies.
const emulatedHashOffset = 0xC00

// Inputs are what an emulated launch digest covers.
type Inputs struct {
	// Firmware is the whole file given to QEMU with -bios; not empty. A size
	// that is no multiple of PageSize is filled up with zeros in front.
	Firmware []byte
	// Kernel is SHA-256 of the file given to -kernel, in whichever form it is
	// given.
	Kernel [32]byte
	// Initrd is SHA-256 of the file given to -initrd, NoInitrd without one.
	Initrd [32]byte
	// Append is the -append string exactly.
	Append string
	// VCPUs is the number of vCPUs present at launch, 1 to MaxVCPUs.
	VCPUs int
}

// EmulatedDigest computes the MEASUREMENT of an emulated launch. The host's
// emulator computes it from what it really starts, the owner from what should
// be started.
func EmulatedDigest(in Inputs) ([48]byte, error) {
	d, err := emulatedDigest(in)
	if err != nil {
		return [48]byte{}, fmt.Errorf("computing emulated launch digest: %w", err)
	}
	return d, nil
}

func emulatedDigest(in Inputs) (d Digest, err error) {
	if len(in.Firmware) > MaxFirmwareSize {
		return d, fmt.Errorf("%w: firmware of %d bytes, at most %d", ErrLaunch, len(in.Firmware), MaxFirmwareSize)
	}
	image := in.Firmware
	if odd := len(image) % PageSize; odd != 0 {
		image = append(make([]byte, PageSize-odd, PageSize-odd+len(image)), image...)
	}
	if err := d.Firmware(image); err != nil {
		return d, err
	}
	hashes := KernelHashes{Kernel: in.Kernel, Initrd: in.Initrd, Append: in.Append}
	for _, s := range emulatedSections {
		if s.typ != 0 {
			err = d.Area(s.typ, s.gpa, s.size)
		} else {
			var page []byte
			if page, err = hashes.Page(emulatedHashOffset, int(s.size)); err == nil {
				err = d.Pages(PageNormal, s.gpa, page)
			}
		}
		if err != nil {
			return d, err
		}
	}
	err = d.VCPUs(in.VCPUs, emulatedResetEIP, CPUSignature(EmulatedFamily, EmulatedModel, EmulatedStepping), 1)
	return d, err
}
