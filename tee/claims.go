// SPDX-License-Identifier: Apache-2.0

package tee

import (
	"fmt"
	"strings"
)

// Claims are the facts that verified evidence proves. Only a Verifier makes
// them. Byte order is the report's own.
type Claims struct {
	Kind Kind
	// Insecure is true when no hardware stands behind the claims (emulation).
	Insecure bool

	// ProductLine is "Milan", "Genoa", "Turin", or "Coffer" for emulation.
	ProductLine string
	// RootSHA256 is the SHA-256 of the DER certificate of the root that the
	// chain ends in.
	RootSHA256 [32]byte
	SigningKey SigningKey

	ReportVersion uint32
	// Measurement is the launch digest: what was in memory at launch.
	Measurement [48]byte
	// HostData was chosen by the host at launch. It proves something only
	// together with a Measurement whose code checks it; Coffer's guest
	// compares it with SHA-256 of its policy.
	HostData [32]byte
	// ReportData is the Binding the guest asked for.
	ReportData Binding

	GuestPolicy GuestPolicy
	// VMPL is the privilege level that asked for the report, 0 the highest.
	VMPL             uint32
	GuestSVN         uint32
	FamilyID         [16]byte
	ImageID          [16]byte
	IDKeyDigest      [48]byte
	AuthorKeyEnabled bool
	AuthorKeyDigest  [48]byte
	// ReportID is one guest's for its whole life; ReportIDMA that of its
	// migration agent, all ones without one.
	ReportID   [32]byte
	ReportIDMA [32]byte

	// ReportedTCB is the one that the signing key stands for; compare this
	// with a minimum.
	ReportedTCB  TCB
	CurrentTCB   TCB
	CommittedTCB TCB
	LaunchTCB    TCB
	PlatformInfo uint64
	// ChipID is zero when the host masks it or the signing key is a VLEK.
	ChipID [64]byte
}

// SigningKey names the key that signed a report.
type SigningKey string

const (
	// VCEK is a key of one chip and one TCB.
	VCEK SigningKey = "VCEK"
	// VLEK is a key that AMD loaned to a cloud provider.
	VLEK SigningKey = "VLEK"
)

// TCB is the security version of each part of the platform's firmware.
// Parts that a product line lacks are zero.
type TCB struct {
	FMC        uint8 `json:"fmc,omitempty"` // Turin and later
	BootLoader uint8 `json:"boot_loader"`
	TEE        uint8 `json:"tee"`
	SNP        uint8 `json:"snp"`
	Microcode  uint8 `json:"microcode"`
}

// AtLeast reports whether every part of t is at least as new as in min.
func (t TCB) AtLeast(min TCB) bool {
	return t.FMC >= min.FMC && t.BootLoader >= min.BootLoader && t.TEE >= min.TEE &&
		t.SNP >= min.SNP && t.Microcode >= min.Microcode
}

// String writes the parts in the order of AMD's names.
func (t TCB) String() string {
	s := fmt.Sprintf("bootloader %d, tee %d, snp %d, microcode %d", t.BootLoader, t.TEE, t.SNP, t.Microcode)
	if t.FMC != 0 {
		s = fmt.Sprintf("fmc %d, %s", t.FMC, s)
	}
	return s
}

// GuestPolicy is the policy under which the secure processor runs the guest
// (SEV-SNP ABI, section 4.3). It is not Coffer's execution policy.
type GuestPolicy uint64

// Bits of a GuestPolicy.
const (
	PolicySMT              GuestPolicy = 1 << 16
	PolicyReserved1        GuestPolicy = 1 << 17 // must be one
	PolicyMigrationAgent   GuestPolicy = 1 << 18
	PolicyDebug            GuestPolicy = 1 << 19
	PolicySingleSocket     GuestPolicy = 1 << 20
	PolicyCXL              GuestPolicy = 1 << 21
	PolicyMemAES256XTS     GuestPolicy = 1 << 22
	PolicyRAPLDisabled     GuestPolicy = 1 << 23
	PolicyCiphertextHiding GuestPolicy = 1 << 24
	PolicyPageSwapDisabled GuestPolicy = 1 << 25

	// PolicyDefault is what QEMU launches with: SMT allowed, nothing else.
	PolicyDefault = PolicySMT | PolicyReserved1
)

// Debug reports whether the host may read the guest's memory.
func (p GuestPolicy) Debug() bool { return p&PolicyDebug != 0 }

// MigrationAgent reports whether a migration agent may take the guest's
// memory elsewhere.
func (p GuestPolicy) MigrationAgent() bool { return p&PolicyMigrationAgent != 0 }

// String writes the number and the names of the bits that are set.
func (p GuestPolicy) String() string {
	var names []string
	for _, b := range []struct {
		bit  GuestPolicy
		name string
	}{
		{PolicySMT, "smt"}, {PolicyMigrationAgent, "migration-agent"}, {PolicyDebug, "debug"},
		{PolicySingleSocket, "single-socket"}, {PolicyCXL, "cxl"}, {PolicyMemAES256XTS, "aes-256-xts"},
		{PolicyRAPLDisabled, "rapl-disabled"}, {PolicyCiphertextHiding, "ciphertext-hiding"},
		{PolicyPageSwapDisabled, "page-swap-disabled"},
	} {
		if p&b.bit != 0 {
			names = append(names, b.name)
		}
	}
	return fmt.Sprintf("%#x (%s)", uint64(p), strings.Join(names, " "))
}
