// SPDX-License-Identifier: Apache-2.0

package emulator

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"fmt"
	"math/big"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/coffer-dev/coffer/tee/snp"
)

// rsaBits is the size of AMD's ARK and ASK keys, which verifiers expect.
const rsaBits = 4096

// lifetime of the whole chain. There is no renewal: a root that outlives it
// must be made anew.
const lifetime = 25 * 365 * 24 * time.Hour

// clockSkew is how far behind a verifier's clock may be.
const clockSkew = 24 * time.Hour

// amdOID returns an OID below AMD's arc for VCEK extensions (AMD 57230,
// section 3.1).
func amdOID(tail ...int) asn1.ObjectIdentifier {
	return append(asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 3704, 1}, tail...)
}

func oidHWID() asn1.ObjectIdentifier { return amdOID(4) }

// generate makes a whole root: two RSA keys at once, since each takes seconds.
func generate(now time.Time) (*Root, error) {
	var arkKey, askKey *rsa.PrivateKey
	var g errgroup.Group
	g.Go(func() (err error) { arkKey, err = rsa.GenerateKey(rand.Reader, rsaBits); return err })
	g.Go(func() (err error) { askKey, err = rsa.GenerateKey(rand.Reader, rsaBits); return err })
	vcekKey, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if gerr := g.Wait(); gerr != nil {
		err = gerr
	}
	if err != nil {
		return nil, fmt.Errorf("generating keys: %w", err)
	}
	r := &Root{vcekKey: vcekKey}
	if _, err := rand.Read(r.chipID[:]); err != nil {
		return nil, fmt.Errorf("generating chip ID: %w", err)
	}
	ark, ask, vcek := authority("ARK-"+snp.EmulatedProductLine, now), authority("SEV-"+snp.EmulatedProductLine, now), template("SEV-VCEK", now)
	// A root signs revocation lists too (AMD 57230, section 3.2).
	ark.KeyUsage |= x509.KeyUsageCRLSign
	ask.SerialNumber = big.NewInt(2) // the ARK issued both
	if vcek.ExtraExtensions, err = vcekExtensions(r.chipID); err != nil {
		return nil, fmt.Errorf("encoding VCEK extensions: %w", err)
	}
	if r.ark, err = x509.CreateCertificate(rand.Reader, ark, ark, &arkKey.PublicKey, arkKey); err != nil {
		return nil, fmt.Errorf("signing ARK: %w", err)
	}
	if r.ask, err = x509.CreateCertificate(rand.Reader, ask, ark, &askKey.PublicKey, arkKey); err != nil {
		return nil, fmt.Errorf("signing ASK: %w", err)
	}
	if r.vcek, err = x509.CreateCertificate(rand.Reader, vcek, ask, &vcekKey.PublicKey, askKey); err != nil {
		return nil, fmt.Errorf("signing VCEK: %w", err)
	}
	return r, nil
}

// template returns what all three certificates share. Organization and the
// rest must be AMD's for verifiers to read the chain; the common name's product
// line and the serialNumber say that it is not AMD's.
func template(commonName string, now time.Time) *x509.Certificate {
	return &x509.Certificate{
		SerialNumber: big.NewInt(1),
		Subject: pkix.Name{
			Country: []string{"US"}, Locality: []string{"Santa Clara"}, Province: []string{"CA"},
			Organization: []string{"Advanced Micro Devices"}, OrganizationalUnit: []string{"Engineering"},
			CommonName: commonName, SerialNumber: snp.EmulatedMarker,
		},
		NotBefore:          now.Add(-clockSkew),
		NotAfter:           now.Add(lifetime),
		SignatureAlgorithm: x509.SHA384WithRSAPSS,
	}
}

// authority returns the template of ARK and ASK.
func authority(commonName string, now time.Time) *x509.Certificate {
	t := template(commonName, now)
	t.BasicConstraintsValid, t.IsCA = true, true
	t.KeyUsage = x509.KeyUsageCertSign
	return t
}

// vcekExtensions returns AMD's extensions (AMD 57230, table 9) for the one
// emulated TCB.
func vcekExtensions(chipID [64]byte) ([]pkix.Extension, error) {
	tcb := platformTCB()
	var out []pkix.Extension
	for _, e := range []struct {
		oid    asn1.ObjectIdentifier
		value  any
		params string
	}{
		{amdOID(1), 0, ""},
		{amdOID(2), snp.EmulatedProductLine + "-A0", "ia5"},
		{amdOID(3, 1), int(tcb.BootLoader), ""},
		{amdOID(3, 2), int(tcb.TEE), ""},
		{amdOID(3, 3), int(tcb.SNP), ""},
		{amdOID(3, 4), 0, ""}, {amdOID(3, 5), 0, ""}, {amdOID(3, 6), 0, ""}, {amdOID(3, 7), 0, ""},
		{amdOID(3, 8), int(tcb.Microcode), ""},
	} {
		der, err := asn1.MarshalWithParams(e.value, e.params)
		if err != nil {
			return nil, err
		}
		out = append(out, pkix.Extension{Id: e.oid, Value: der})
	}
	// The hardware ID is bare bytes, as KDS issues it.
	return append(out, pkix.Extension{Id: oidHWID(), Value: chipID[:]}), nil
}
