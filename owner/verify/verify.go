// SPDX-License-Identifier: Apache-2.0

// Package verify turns evidence into claims: it proves that a report was
// signed by a secure processor whose key chains to a trusted root, and that
// report, certificate and TCB fit together. It does no I/O and reads no clock,
// so that a relying party can repeat its answer years later; the price is that
// revocation lists are not consulted.
//
// The owner must trust this package and the roots it is given. Evidence comes
// from hosts and guests that may both lie; it is bounded and never causes a
// panic. Claims are facts, not a judgement: whether the measurement is the
// right one is owner/appraise's question.
//
// Hardware and emulation have separate sets of roots. No option makes an
// emulated root vouch for hardware, or the reverse.
package verify

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"time"

	"github.com/google/go-sev-guest/abi"
	spb "github.com/google/go-sev-guest/proto/sevsnp"
	"github.com/google/go-sev-guest/validate"
	sevverify "github.com/google/go-sev-guest/verify"
	"github.com/google/go-sev-guest/verify/trust"

	"github.com/coffer-dev/coffer/tee"
	"github.com/coffer-dev/coffer/tee/snp"
)

// What callers branch on. Every error of a Verifier wraps one of them.
var (
	// ErrKind means that no verifier is known for the evidence.
	ErrKind = errors.New("evidence of an unknown kind")
	// ErrNotAccepted means that the evidence is emulated and the Config does
	// not accept that.
	ErrNotAccepted = errors.New("emulated evidence is not accepted: it proves nothing, since no hardware stands behind it")
	// ErrMalformed means that report or certificates do not parse.
	ErrMalformed = errors.New("malformed evidence")
	// ErrChain means that no trusted root vouches for the report.
	ErrChain = errors.New("not signed under a trusted root")
	// ErrFields means that the report is genuine, but its fields contradict
	// each other or its certificate, or break a rule for every guest.
	ErrFields = errors.New("unacceptable report")
)

// Config says what a Verifier accepts. The zero Config accepts SEV-SNP on
// AMD's hardware under AMD's roots and nothing else.
type Config struct {
	// InsecureAcceptEmulated lets emulated evidence pass. Its claims say
	// Insecure. It never affects how hardware's evidence is checked.
	InsecureAcceptEmulated bool
	// EmulatedRoot is the DER certificate of the only root that emulated
	// evidence may come from. Nil lets every emulated root pass, so that
	// anybody can have made the evidence. It accepts nothing by itself.
	EmulatedRoot []byte

	// InsecureAllowDebug lets reports of guests pass whose memory the host may
	// read.
	InsecureAllowDebug bool
	// InsecureAllowMigrationAgent lets reports of guests pass that may be
	// moved by a migration agent, which nothing here examines.
	InsecureAllowMigrationAgent bool
	// InsecureAllowProvisionalFirmware lets platforms pass whose firmware can
	// still be rolled back (committed below current TCB or version).
	InsecureAllowProvisionalFirmware bool
}

// Verifier implements tee.Verifier for every kind that its Config accepts. It
// is safe for concurrent use.
type Verifier struct {
	config Config
	amd    rootSet
	// pinned is Config.EmulatedRoot, nil without one.
	pinned *x509.Certificate
}

// rootSet is trusted roots by product line, in go-sev-guest's terms. Sets for
// hardware and for emulation are never the same map: a root in it vouches for
// its whole line.
type rootSet map[string][]*trust.AMDRootCerts

// New returns a verifier.
func New(cfg Config) (*Verifier, error) {
	v := &Verifier{config: cfg}
	var err error
	if v.amd, err = amdRoots(); err != nil {
		return nil, fmt.Errorf("loading AMD's roots: %w", err)
	}
	if cfg.EmulatedRoot != nil {
		if v.pinned, err = parseAuthority(cfg.EmulatedRoot, emulatedARKName); err != nil {
			return nil, fmt.Errorf("loading the emulated root to trust: %w", err)
		}
	}
	return v, nil
}

// Verify implements tee.Verifier. Every error wraps one of this package's.
func (v *Verifier) Verify(e tee.Evidence, now time.Time) (*tee.Claims, error) {
	c, err := v.verify(e, now)
	if err != nil {
		return nil, fmt.Errorf("verifying %s evidence: %w", e.Kind, err)
	}
	return c, nil
}

func (v *Verifier) verify(e tee.Evidence, now time.Time) (*tee.Claims, error) {
	// What the evidence says of itself only selects the rules to check it by.
	switch e.Kind {
	case tee.SEVSNP:
	case tee.Emulated:
		if !v.config.InsecureAcceptEmulated {
			return nil, ErrNotAccepted
		}
	default:
		return nil, fmt.Errorf("%w: %q", ErrKind, string(e.Kind))
	}
	report, err := snp.ParseReport(e.Report)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	certs, err := parseChain(e.Certificates)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	if err := v.checkFields(report); err != nil {
		return nil, err
	}
	roots := v.amd
	if e.Kind == tee.Emulated {
		if roots, err = v.emulatedRoots(report, certs); err != nil {
			return nil, err
		}
	}
	if err := v.checkSignature(e.Report, certs, roots, now); err != nil {
		return nil, err
	}
	c, err := newClaims(report, certs, roots)
	if err != nil {
		return nil, err
	}
	c.Kind, c.Insecure = e.Kind, e.Kind != tee.SEVSNP
	return c, nil
}

// chain is the certificate table's content that matters, DER, nil if missing.
type chain struct{ vcek, vlek, ask, ark []byte }

func parseChain(table []byte) (chain, error) {
	certs, err := snp.ParseCertificateTable(table)
	if err != nil {
		return chain{}, err
	}
	return chain{
		vcek: snp.FindCertificate(certs, snp.CertVCEK), vlek: snp.FindCertificate(certs, snp.CertVLEK),
		ask: snp.FindCertificate(certs, snp.CertASK), ark: snp.FindCertificate(certs, snp.CertARK),
	}, nil
}

// checkFields applies the rules that hold for every guest. go-sev-guest's
// validate repeats some of them; here they have errors a reader can act on.
func (v *Verifier) checkFields(r *snp.Report) error {
	switch {
	case r.VMPL != 0:
		return fmt.Errorf("%w: it was asked for at VMPL %d, not by the guest's highest privilege level", ErrFields, r.VMPL)
	case r.Policy.Debug() && !v.config.InsecureAllowDebug:
		return fmt.Errorf("%w: the guest policy allows debugging, so the host may read the guest's memory", ErrFields)
	case r.Policy.MigrationAgent() && !v.config.InsecureAllowMigrationAgent:
		return fmt.Errorf("%w: the guest policy allows a migration agent", ErrFields)
	case r.Signer == snp.SignedByNone:
		return fmt.Errorf("%w: nobody signed it", ErrFields)
	}
	return nil
}

// checkSignature calls both halves of go-sev-guest. verify follows the chain
// and checks the signature, but not that certificate and report belong
// together; validate does that, and no signature.
func (v *Verifier) checkSignature(raw []byte, certs chain, roots rootSet, now time.Time) error {
	// An empty map would make go-sev-guest fall back on AMD's roots.
	if len(roots) == 0 || now.IsZero() {
		return fmt.Errorf("%w: no root or no time to check it at", ErrChain)
	}
	report, err := abi.ReportToProto(raw)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	attestation := &spb.Attestation{Report: report, CertificateChain: &spb.CertificateChain{
		VcekCert: certs.vcek, VlekCert: certs.vlek, AskCert: certs.ask, ArkCert: certs.ark,
	}}
	err = sevverify.SnpAttestation(attestation, &sevverify.Options{DisableCertFetching: true, Now: now, TrustedRoots: roots})
	if err != nil {
		return fmt.Errorf("%w: %w", ErrChain, err)
	}
	vmpl := 0
	err = validate.SnpAttestation(attestation, &validate.Options{
		GuestPolicy: abi.SnpPolicy{
			SMT: true, CXLAllowed: true,
			Debug: v.config.InsecureAllowDebug, MigrateMA: v.config.InsecureAllowMigrationAgent,
		},
		VMPL:                      &vmpl,
		PermitProvisionalFirmware: v.config.InsecureAllowProvisionalFirmware,
	})
	if err != nil {
		return fmt.Errorf("%w: %w", ErrFields, err)
	}
	return nil
}

// newClaims copies a report whose signature has been checked.
func newClaims(r *snp.Report, certs chain, roots rootSet) (*tee.Claims, error) {
	c := &tee.Claims{
		SigningKey:       tee.VCEK,
		ReportVersion:    r.Version,
		Measurement:      r.Measurement,
		HostData:         r.HostData,
		ReportData:       r.ReportData,
		GuestPolicy:      r.Policy,
		VMPL:             r.VMPL,
		GuestSVN:         r.GuestSVN,
		FamilyID:         r.FamilyID,
		ImageID:          r.ImageID,
		IDKeyDigest:      r.IDKeyDigest,
		AuthorKeyEnabled: r.AuthorKeyEnabled,
		AuthorKeyDigest:  r.AuthorKeyDigest,
		ReportID:         r.ReportID,
		ReportIDMA:       r.ReportIDMA,
		ReportedTCB:      snp.DecodeTCB(r.ReportedTCB, r.Family),
		CurrentTCB:       snp.DecodeTCB(r.CurrentTCB, r.Family),
		CommittedTCB:     snp.DecodeTCB(r.CommittedTCB, r.Family),
		LaunchTCB:        snp.DecodeTCB(r.LaunchTCB, r.Family),
		PlatformInfo:     r.PlatformInfo,
		ChipID:           r.ChipID,
	}
	leaf := certs.vcek
	if r.Signer == snp.SignedByVLEK {
		c.SigningKey, leaf = tee.VLEK, certs.vlek
	}
	root, err := rootOf(leaf, roots)
	if err != nil {
		return nil, err
	}
	c.ProductLine, c.RootSHA256 = root.ProductLine, sha256.Sum256(root.ProductCerts.Ark.Raw)
	return c, nil
}

// rootOf returns the root that vouched for the leaf: the one of whose
// intermediates has the leaf's issuer name, which differs per line and kind of
// key.
func rootOf(leaf []byte, roots rootSet) (*trust.AMDRootCerts, error) {
	cert, err := x509.ParseCertificate(leaf)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	for _, line := range roots {
		for _, root := range line {
			for _, ica := range []*x509.Certificate{root.ProductCerts.Ask, root.ProductCerts.Asvk} {
				if ica != nil && bytes.Equal(ica.RawSubject, cert.RawIssuer) {
					return root, nil
				}
			}
		}
	}
	return nil, fmt.Errorf("%w: no root issued the signing key", ErrChain)
}
