// SPDX-License-Identifier: Apache-2.0

// Package tee is the vocabulary of attestation that all zones share: kinds of
// trusted execution environment, the 64 bytes a guest has signed (Binding),
// what crosses untrusted hands (Evidence) and what a verifier makes of it
// (Claims). It does no I/O, reads no clock and imports only the standard
// library, because every zone, the guest included, must trust it.
//
// Nothing in this package decides whether evidence is true. That is
// owner/verify; whether it is good enough is owner/appraise.
package tee

import (
	"context"
	"crypto/sha512"
	"errors"
	"fmt"
	"time"
)

// Kind names a kind of trusted execution environment. The zero Kind is
// invalid.
type Kind string

const (
	// SEVSNP is AMD SEV-SNP on AMD's hardware, under AMD's roots.
	SEVSNP Kind = "sev-snp"
	// Emulated speaks SEV-SNP's report format but is signed by a root that
	// somebody generated on their own machine. It protects nothing.
	Emulated Kind = "emulated"
)

// Valid reports whether k is a kind that this version of Coffer knows.
func (k Kind) Valid() bool { return k == SEVSNP || k == Emulated }

// String returns the kind as documents spell it, or "invalid".
func (k Kind) String() string {
	if k == "" {
		return "invalid"
	}
	return string(k)
}

// ParseKind returns the kind that s spells exactly.
func ParseKind(s string) (Kind, error) {
	if k := Kind(s); k.Valid() {
		return k, nil
	}
	return "", fmt.Errorf("parsing TEE kind: unknown kind %q", s)
}

// Binding is the 64 bytes that the secure processor signs on the guest's
// behalf (REPORT_DATA in SEV-SNP).
type Binding [64]byte

// Sizes of a challenge nonce in bytes.
const (
	MinNonceSize = 16
	MaxNonceSize = 64
)

// ErrNonceSize is returned for a nonce outside MinNonceSize..MaxNonceSize.
var ErrNonceSize = errors.New("nonce must be 16 to 64 bytes")

// challengeDomain separates challenge bindings from every other use of
// REPORT_DATA. It ends in NUL so that no longer label can continue it.
const challengeDomain = "coffer.dev/tee/challenge-binding/v1\x00"

// ChallengeBinding returns the binding that answers a verifier's nonce:
// SHA-512 over a domain-separation string and the nonce.
//
// The domain matters because the host may ask the guest for evidence, so the
// host chooses the nonce. If the nonce went into REPORT_DATA as it is, the
// host could have the guest sign any 64 bytes, among them values that mean
// something to a relying party: the key-release protocol reads
// SHA-256(runtime data) followed by 32 zero bytes as "the guest owns the key
// in this runtime data". With the domain in front and SHA-512 over both, what
// the host can obtain is never such a value, nor the binding of another
// protocol that hashes under a domain of its own.
func ChallengeBinding(nonce []byte) (Binding, error) {
	if len(nonce) < MinNonceSize || len(nonce) > MaxNonceSize {
		return Binding{}, fmt.Errorf("binding a nonce of %d bytes: %w", len(nonce), ErrNonceSize)
	}
	h := sha512.New()
	h.Write([]byte(challengeDomain))
	h.Write(nonce)
	var b Binding
	h.Sum(b[:0])
	return b, nil
}

// An Attester runs in the guest.
type Attester interface {
	// Attest returns evidence that binds b. A nil error means that the secure
	// processor, or the host in its place, answered in the right form, not
	// that the evidence is true: only a Verifier can tell. The host sees the
	// evidence and may withhold it, in which case Attest returns ctx's error.
	Attest(ctx context.Context, b Binding) (Evidence, error)
}

// A Verifier runs at the owner's. It does no I/O and reads no clock.
type Verifier interface {
	// Verify returns what the vendor's chain proves at time now. The evidence
	// comes from hostile hands. Claims are non-nil if and only if the error
	// is nil. They are true, which does not make them acceptable: compare
	// them with reference values (owner/appraise).
	Verify(e Evidence, now time.Time) (*Claims, error)
}
