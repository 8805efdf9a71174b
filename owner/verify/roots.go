// SPDX-License-Identifier: Apache-2.0

package verify

import (
	"bytes"
	"crypto/rsa"
	"crypto/x509"
	"fmt"

	"github.com/google/go-sev-guest/verify/trust"

	"github.com/coffer-dev/coffer/tee/snp"
)

// Names of AMD's product lines that go-sev-guest embeds roots for.
const (
	lineMilan = "Milan"
	lineGenoa = "Genoa"
	lineTurin = "Turin"
)

// lineUnknown is what go-sev-guest calls the product line of every CPU family
// that it does not know, the emulated one among them.
const lineUnknown = "Unknown"

// amdRoots returns AMD's roots: per product line one chain for VCEKs and one
// for VLEKs, as published by AMD and embedded in go-sev-guest.
func amdRoots() (rootSet, error) {
	roots := make(rootSet)
	for _, l := range []struct {
		line       string
		vcek, vlek []byte
	}{
		{lineMilan, trust.AskArkMilanVcekBytes, trust.AskArkMilanVlekBytes},
		{lineGenoa, trust.AskArkGenoaVcekBytes, trust.AskArkGenoaVlekBytes},
		{lineTurin, trust.AskArkTurinVcekBytes, trust.AskArkTurinVlekBytes},
	} {
		for _, pem := range [][]byte{l.vcek, l.vlek} {
			certs := &trust.ProductCerts{}
			if err := certs.FromKDSCertBytes(bytes.TrimSpace(pem)); err != nil {
				return nil, fmt.Errorf("product line %s: %w", l.line, err)
			}
			root := trust.AMDRootCertsProduct(l.line)
			root.ProductCerts = certs
			roots[l.line] = append(roots[l.line], root)
		}
	}
	return roots, nil
}

// Common names of the emulated chain.
const (
	emulatedARKName = "ARK-" + snp.EmulatedProductLine
	emulatedASKName = "SEV-" + snp.EmulatedProductLine
)

// minEmulatedVersion is the first report version that carries the CPU family,
// without which nothing in a report sets emulation apart.
const minEmulatedVersion = 3

// emulatedRoots returns the one root that may vouch for an emulated report:
// the one in its own certificates, which must be the pinned one if there is
// one. Everything about it must say that it is emulated.
func (v *Verifier) emulatedRoots(r *snp.Report, certs chain) (rootSet, error) {
	if r.Version < minEmulatedVersion || r.Family != snp.EmulatedFamily {
		return nil, fmt.Errorf("%w: version %d and CPU family %#x are not the emulated processor's", ErrChain, r.Version, r.Family)
	}
	if r.Signer != snp.SignedByVCEK {
		return nil, fmt.Errorf("%w: the emulated processor signs with a VCEK only", ErrChain)
	}
	ark, err := parseAuthority(certs.ark, emulatedARKName)
	if err != nil {
		return nil, fmt.Errorf("%w: ARK: %w", ErrChain, err)
	}
	if v.pinned != nil && !bytes.Equal(ark.Raw, v.pinned.Raw) {
		return nil, fmt.Errorf("%w: the emulated root is not the one to trust", ErrChain)
	}
	ask, err := parseAuthority(certs.ask, emulatedASKName)
	if err != nil {
		return nil, fmt.Errorf("%w: ASK: %w", ErrChain, err)
	}
	if err := ark.CheckSignatureFrom(ark); err != nil {
		return nil, fmt.Errorf("%w: ARK: %w", ErrChain, err)
	}
	if err := ask.CheckSignatureFrom(ark); err != nil {
		return nil, fmt.Errorf("%w: ASK: %w", ErrChain, err)
	}
	vcek, err := x509.ParseCertificate(certs.vcek)
	if err != nil {
		return nil, fmt.Errorf("%w: VCEK: %w", ErrMalformed, err)
	}
	if vcek.Subject.SerialNumber != snp.EmulatedMarker {
		return nil, fmt.Errorf("%w: VCEK does not say that it is emulated", ErrChain)
	}
	root := trust.AMDRootCertsProduct(snp.EmulatedProductLine)
	root.ProductCerts = &trust.ProductCerts{Ark: ark, Ask: ask}
	return rootSet{lineUnknown: {root}}, nil
}

// authorityBits is the size of ARK and ASK keys. Checking it first also bounds
// the work that a hostile key can cause.
const authorityBits = 4096

// parseAuthority reads the certificate of an emulated ARK or ASK.
func parseAuthority(der []byte, commonName string) (*x509.Certificate, error) {
	if len(der) == 0 {
		return nil, fmt.Errorf("missing certificate of %s", commonName)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	key, ok := cert.PublicKey.(*rsa.PublicKey)
	if !ok || key.N.BitLen() != authorityBits {
		return nil, fmt.Errorf("key of %s is not RSA %d", commonName, authorityBits)
	}
	if cert.Subject.CommonName != commonName || cert.Subject.SerialNumber != snp.EmulatedMarker {
		return nil, fmt.Errorf("subject %q, want %s marked %q", cert.Subject, commonName, snp.EmulatedMarker)
	}
	return cert, nil
}
