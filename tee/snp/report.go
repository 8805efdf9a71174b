// SPDX-License-Identifier: Apache-2.0

package snp

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/coffer-dev/coffer/tee"
)

// Sizes and places in a report, in bytes.
const (
	// ReportSize is the size of a whole attestation report.
	ReportSize = 0x4A0
	// SignedSize is how much of it, from its start, the signature covers.
	SignedSize = 0x2A0
	// SignatureComponentSize is the size of R and of S, little-endian.
	SignatureComponentSize = 72
)

// Versions of the report that this package knows.
const (
	MinReportVersion = 2
	MaxReportVersion = 5
)

// SignatureECDSAP384SHA384 is the only signature algorithm the ABI defines.
const SignatureECDSAP384SHA384 = 1

// Signer is who signed a report (the ABI, SIGNING_KEY).
type Signer uint8

// Values of Signer; 2 to 6 are reserved.
const (
	SignedByVCEK Signer = 0
	SignedByVLEK Signer = 1
	SignedByNone Signer = 7
)

// ErrReport is wrapped by every refusal to parse or build a report.
var ErrReport = errors.New("malformed SEV-SNP report")

// FirmwareVersion is the version of the secure processor's firmware.
type FirmwareVersion struct{ Build, Minor, Major uint8 }

// Report is an attestation report (the ABI, ATTESTATION_REPORT). TCB values
// are raw: their layout depends on the product, see DecodeTCB.
type Report struct {
	Version      uint32
	GuestSVN     uint32
	Policy       tee.GuestPolicy
	FamilyID     [16]byte
	ImageID      [16]byte
	VMPL         uint32
	SignatureAlg uint32
	CurrentTCB   uint64
	PlatformInfo uint64
	// AuthorKeyEnabled, MaskChipKey and Signer are the parts of the word at
	// 0x48.
	AuthorKeyEnabled bool
	MaskChipKey      bool
	Signer           Signer
	ReportData       [64]byte
	Measurement      [48]byte
	HostData         [32]byte
	IDKeyDigest      [48]byte
	AuthorKeyDigest  [48]byte
	ReportID         [32]byte
	ReportIDMA       [32]byte
	ReportedTCB      uint64
	// Family, Model and Stepping are the combined CPUID values; zero in
	// version 2.
	Family, Model, Stepping uint8
	ChipID                  [64]byte
	CommittedTCB            uint64
	Current                 FirmwareVersion
	Committed               FirmwareVersion
	LaunchTCB               uint64
	LaunchMitigation        uint64 // zero before version 5
	CurrentMitigation       uint64 // zero before version 5
	// SignatureR and SignatureS are little-endian.
	SignatureR, SignatureS [SignatureComponentSize]byte
}

// reservedRanges are the bytes that must be zero in every version.
func reservedRanges(version uint32) [][2]int {
	r := [][2]int{{0x4C, 0x50}, {0x18B, 0x1A0}, {0x1EB, 0x1EC}, {0x1EF, 0x1F0}, {0x208, SignedSize}, {SignedSize + 2*SignatureComponentSize, ReportSize}}
	if version < 3 {
		r = append(r, [2]int{0x188, 0x18B})
	}
	if version < 5 {
		r = append(r, [2]int{0x1F8, 0x208})
	}
	return r
}

// ParseReport reads a report of exactly ReportSize bytes. It refuses versions
// and reserved values that it does not know and non-zero reserved bytes. It
// does not look at the signature: whoever made the bytes may lie about
// everything in them.
func ParseReport(data []byte) (*Report, error) {
	if len(data) != ReportSize {
		return nil, fmt.Errorf("%w: %d bytes, want %d", ErrReport, len(data), ReportSize)
	}
	le := binary.LittleEndian
	r := &Report{
		Version:      le.Uint32(data[0x00:]),
		GuestSVN:     le.Uint32(data[0x04:]),
		Policy:       tee.GuestPolicy(le.Uint64(data[0x08:])),
		VMPL:         le.Uint32(data[0x30:]),
		SignatureAlg: le.Uint32(data[0x34:]),
		CurrentTCB:   le.Uint64(data[0x38:]),
		PlatformInfo: le.Uint64(data[0x40:]),
		ReportedTCB:  le.Uint64(data[0x180:]),
		Family:       data[0x188], Model: data[0x189], Stepping: data[0x18A],
		CommittedTCB:      le.Uint64(data[0x1E0:]),
		Current:           FirmwareVersion{data[0x1E8], data[0x1E9], data[0x1EA]},
		Committed:         FirmwareVersion{data[0x1EC], data[0x1ED], data[0x1EE]},
		LaunchTCB:         le.Uint64(data[0x1F0:]),
		LaunchMitigation:  le.Uint64(data[0x1F8:]),
		CurrentMitigation: le.Uint64(data[0x200:]),
	}
	signer := le.Uint32(data[0x48:])
	r.AuthorKeyEnabled = signer&1 != 0
	r.MaskChipKey = signer&2 != 0
	r.Signer = Signer(signer >> 2 & 7)
	if signer>>5 != 0 {
		return nil, fmt.Errorf("%w: reserved bits %#x in signer information", ErrReport, signer)
	}
	for _, f := range r.fields() {
		copy(f.into, data[f.at:])
	}
	if err := r.check(); err != nil {
		return nil, err
	}
	for _, z := range reservedRanges(r.Version) {
		for i := z[0]; i < z[1]; i++ {
			if data[i] != 0 {
				return nil, fmt.Errorf("%w: reserved byte %#x is not zero", ErrReport, i)
			}
		}
	}
	return r, nil
}

type reportField struct {
	at   int
	into []byte
}

// fields lists the members that are plain bytes, with their offsets.
func (r *Report) fields() []reportField {
	return []reportField{
		{0x10, r.FamilyID[:]}, {0x20, r.ImageID[:]}, {0x50, r.ReportData[:]},
		{0x90, r.Measurement[:]}, {0xC0, r.HostData[:]}, {0xE0, r.IDKeyDigest[:]},
		{0x110, r.AuthorKeyDigest[:]}, {0x140, r.ReportID[:]}, {0x160, r.ReportIDMA[:]},
		{0x1A0, r.ChipID[:]}, {SignedSize, r.SignatureR[:]},
		{SignedSize + SignatureComponentSize, r.SignatureS[:]},
	}
}

// check refuses values that the ABI does not define.
func (r *Report) check() error {
	switch {
	case r.Version < MinReportVersion || r.Version > MaxReportVersion:
		return fmt.Errorf("%w: version %d, known are %d to %d", ErrReport, r.Version, MinReportVersion, MaxReportVersion)
	case r.VMPL > 3:
		return fmt.Errorf("%w: VMPL %d", ErrReport, r.VMPL)
	case r.SignatureAlg != SignatureECDSAP384SHA384:
		return fmt.Errorf("%w: signature algorithm %d", ErrReport, r.SignatureAlg)
	case r.Signer != SignedByVCEK && r.Signer != SignedByVLEK && r.Signer != SignedByNone:
		return fmt.Errorf("%w: reserved signing key %d", ErrReport, r.Signer)
	case r.Policy&tee.PolicyReserved1 == 0:
		return fmt.Errorf("%w: guest policy bit 17 must be one", ErrReport)
	case r.Policy>>26 != 0:
		return fmt.Errorf("%w: reserved bits in guest policy %#x", ErrReport, uint64(r.Policy))
	case r.Version < 3 && (r.Family != 0 || r.Model != 0 || r.Stepping != 0):
		return fmt.Errorf("%w: processor family in version %d", ErrReport, r.Version)
	case r.Version < 5 && (r.LaunchMitigation != 0 || r.CurrentMitigation != 0):
		return fmt.Errorf("%w: mitigation vector in version %d", ErrReport, r.Version)
	}
	return nil
}

// Marshal returns the report's ReportSize bytes. It refuses what ParseReport
// would refuse.
func (r *Report) Marshal() ([]byte, error) {
	if err := r.check(); err != nil {
		return nil, err
	}
	data := make([]byte, ReportSize)
	le := binary.LittleEndian
	le.PutUint32(data[0x00:], r.Version)
	le.PutUint32(data[0x04:], r.GuestSVN)
	le.PutUint64(data[0x08:], uint64(r.Policy))
	le.PutUint32(data[0x30:], r.VMPL)
	le.PutUint32(data[0x34:], r.SignatureAlg)
	le.PutUint64(data[0x38:], r.CurrentTCB)
	le.PutUint64(data[0x40:], r.PlatformInfo)
	signer := uint32(r.Signer) << 2
	if r.AuthorKeyEnabled {
		signer |= 1
	}
	if r.MaskChipKey {
		signer |= 2
	}
	le.PutUint32(data[0x48:], signer)
	le.PutUint64(data[0x180:], r.ReportedTCB)
	data[0x188], data[0x189], data[0x18A] = r.Family, r.Model, r.Stepping
	le.PutUint64(data[0x1E0:], r.CommittedTCB)
	data[0x1E8], data[0x1E9], data[0x1EA] = r.Current.Build, r.Current.Minor, r.Current.Major
	data[0x1EC], data[0x1ED], data[0x1EE] = r.Committed.Build, r.Committed.Minor, r.Committed.Major
	le.PutUint64(data[0x1F0:], r.LaunchTCB)
	le.PutUint64(data[0x1F8:], r.LaunchMitigation)
	le.PutUint64(data[0x200:], r.CurrentMitigation)
	for _, f := range r.fields() {
		copy(data[f.at:], f.into)
	}
	return data, nil
}
