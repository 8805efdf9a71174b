// SPDX-License-Identifier: Apache-2.0

package verify

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha512"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"math/big"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/go-sev-guest/verify/trust"

	"github.com/coffer-dev/coffer/tee"
	"github.com/coffer-dev/coffer/tee/snp"
)

// testKeys are made once per test binary, since RSA 4096 takes seconds.
type testKeys struct {
	ark, ask *rsa.PrivateKey
	vcek     *ecdsa.PrivateKey
	err      error
}

var keys = sync.OnceValue(func() (k testKeys) {
	var wg sync.WaitGroup
	var errs [3]error
	wg.Go(func() { k.ark, errs[0] = rsa.GenerateKey(rand.Reader, 4096) })
	wg.Go(func() { k.ask, errs[1] = rsa.GenerateKey(rand.Reader, 4096) })
	k.vcek, errs[2] = ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	wg.Wait()
	k.err = errors.Join(errs[:]...)
	return k
})

// forgery is an emulated attestation with one thing to change at a time. The
// unchanged one is accepted.
type forgery struct {
	ark, ask, vcek *x509.Certificate
	report         *snp.Report
	// signWith signs the report; arkIssuer signs the ASK.
	signWith  *ecdsa.PrivateKey
	arkSigner *rsa.PrivateKey
	kind      tee.Kind
	leaf      snp.CertificateKind
	omit      snp.CertificateKind
}

func template(cn string, at time.Time) *x509.Certificate {
	return &x509.Certificate{
		SerialNumber: big.NewInt(1),
		Subject: pkix.Name{
			Country: []string{"US"}, Locality: []string{"Santa Clara"}, Province: []string{"CA"},
			Organization: []string{"Advanced Micro Devices"}, OrganizationalUnit: []string{"Engineering"},
			CommonName: cn, SerialNumber: snp.EmulatedMarker,
		},
		NotBefore: at.Add(-time.Hour), NotAfter: at.Add(time.Hour), SignatureAlgorithm: x509.SHA384WithRSAPSS,
	}
}

func amdExtension(t testing.TB, value any, params string, tail ...int) pkix.Extension {
	t.Helper()
	der, err := asn1.MarshalWithParams(value, params)
	if err != nil {
		t.Fatal(err)
	}
	return pkix.Extension{Id: append(asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 3704, 1}, tail...), Value: der}
}

func newForgery(t testing.TB) *forgery {
	t.Helper()
	k := keys()
	if k.err != nil {
		t.Fatal(k.err)
	}
	f := &forgery{
		ark: template("ARK-Coffer", within()), ask: template("SEV-Coffer", within()), vcek: template("SEV-VCEK", within()),
		signWith: k.vcek, arkSigner: k.ark, kind: tee.Emulated, leaf: snp.CertVCEK,
	}
	for _, ca := range []*x509.Certificate{f.ark, f.ask} {
		ca.BasicConstraintsValid, ca.IsCA, ca.KeyUsage = true, true, x509.KeyUsageCertSign
	}
	chip := [64]byte{1, 2, 3}
	f.vcek.ExtraExtensions = []pkix.Extension{amdExtension(t, 0, "", 1), amdExtension(t, "Milan-B1", "ia5", 2)}
	for spl, value := range []int{2, 0, 3, 0, 0, 0, 0, 4} {
		f.vcek.ExtraExtensions = append(f.vcek.ExtraExtensions, amdExtension(t, value, "", 3, spl+1))
	}
	f.vcek.ExtraExtensions = append(f.vcek.ExtraExtensions, pkix.Extension{Id: asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 3704, 1, 4}, Value: chip[:]})
	tcb := snp.EncodeTCB(tee.TCB{BootLoader: 2, SNP: 3, Microcode: 4}, snp.EmulatedFamily)
	f.report = &snp.Report{
		Version: 3, Policy: tee.PolicyDefault, SignatureAlg: 1, Family: snp.EmulatedFamily, ChipID: chip,
		CurrentTCB: tcb, ReportedTCB: tcb, CommittedTCB: tcb, LaunchTCB: tcb, Measurement: [48]byte{5},
		Current: snp.FirmwareVersion{Build: 1, Minor: 2, Major: 3}, Committed: snp.FirmwareVersion{Build: 1, Minor: 2, Major: 3},
	}
	return f
}

func create(t testing.TB, c, parent *x509.Certificate, public any, signer *rsa.PrivateKey) []byte {
	t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, c, parent, public, signer)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// evidence signs everything and packs it.
func (f *forgery) evidence(t testing.TB) tee.Evidence {
	t.Helper()
	k := keys()
	certs := []any{
		f.leaf, create(t, f.vcek, f.ask, &k.vcek.PublicKey, k.ask),
		snp.CertASK, create(t, f.ask, f.ark, &k.ask.PublicKey, f.arkSigner),
		snp.CertARK, create(t, f.ark, f.ark, &k.ark.PublicKey, k.ark),
	}
	if i := slices.Index(certs, any(f.omit)); i >= 0 {
		certs = slices.Delete(certs, i, i+2)
	}
	raw, err := f.report.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	digest := sha512.Sum384(raw[:snp.SignedSize])
	r, s, err := ecdsa.Sign(rand.Reader, f.signWith, digest[:])
	if err != nil {
		t.Fatal(err)
	}
	r.FillBytes(f.report.SignatureR[:])
	s.FillBytes(f.report.SignatureS[:])
	slices.Reverse(f.report.SignatureR[:])
	slices.Reverse(f.report.SignatureS[:])
	if raw, err = f.report.Marshal(); err != nil {
		t.Fatal(err)
	}
	return tee.Evidence{Kind: f.kind, Report: raw, Certificates: table(t, certs...)}
}

func TestEmulated(t *testing.T) {
	e := newForgery(t).evidence(t)
	c, err := newVerifier(t, Config{InsecureAcceptEmulated: true}).Verify(e, within())
	if err != nil {
		t.Fatal(err)
	}
	if !c.Insecure || c.Kind != tee.Emulated || c.ProductLine != "Coffer" || c.Measurement != [48]byte{5} {
		t.Errorf("claims = %q, insecure %v, line %s", c.Kind, c.Insecure, c.ProductLine)
	}
	if c, err := newVerifier(t, Config{InsecureAcceptEmulated: true, EmulatedRoot: arkOf(t, e)}).Verify(e, within()); err != nil {
		t.Errorf("Verify with its own root pinned = %v, %v", c, err)
	}
	for name, cfg := range map[string]Config{
		"zero config":             {},
		"pinned but not accepted": {EmulatedRoot: arkOf(t, e)},
		"other options": {
			InsecureAllowDebug: true, InsecureAllowMigrationAgent: true, InsecureAllowProvisionalFirmware: true,
		},
	} {
		if c, err := newVerifier(t, cfg).Verify(e, within()); !errors.Is(err, ErrNotAccepted) || c != nil {
			t.Errorf("%s: Verify = %v, %v; want ErrNotAccepted", name, c, err)
		}
		e := e
		e.Kind = tee.SEVSNP
		if c, err := newVerifier(t, cfg).Verify(e, within()); !errors.Is(err, ErrChain) || c != nil {
			t.Errorf("%s, called sev-snp: Verify = %v, %v; want ErrChain", name, c, err)
		}
	}
}

// TestEmulatedOtherRoot checks a pin against a root of the same names.
func TestEmulatedOtherRoot(t *testing.T) {
	pin := newForgery(t)
	pin.ark.SerialNumber = big.NewInt(77)
	v := newVerifier(t, Config{InsecureAcceptEmulated: true, EmulatedRoot: arkOf(t, pin.evidence(t))})
	if c, err := v.Verify(newForgery(t).evidence(t), within()); !errors.Is(err, ErrChain) || c != nil {
		t.Errorf("Verify under another root = %v, %v; want ErrChain", c, err)
	}
}

// TestEmulatedRefused changes one thing at a time.
func TestEmulatedRefused(t *testing.T) {
	other, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name   string
		change func(*forgery)
		want   error
	}{
		{"ARK called Milan's", func(f *forgery) { f.ark.Subject.CommonName = "ARK-Milan" }, ErrChain},
		{"ASK called Milan's", func(f *forgery) { f.ask.Subject.CommonName = "SEV-Milan" }, ErrChain},
		{"VCEK called VLEK", func(f *forgery) { f.vcek.Subject.CommonName = "SEV-VLEK" }, ErrChain},
		{"ARK not marked", func(f *forgery) { f.ark.Subject.SerialNumber = "" }, ErrChain},
		{"ASK not marked", func(f *forgery) { f.ask.Subject.SerialNumber = "" }, ErrChain},
		{"VCEK not marked", func(f *forgery) { f.vcek.Subject.SerialNumber = "" }, ErrChain},
		{"ASK signed by another", func(f *forgery) { f.arkSigner = keys().ask }, ErrChain},
		{"ASK no authority", func(f *forgery) { f.ask.IsCA, f.ask.KeyUsage = false, 0 }, ErrChain},
		{"ARK expired", func(f *forgery) { f.ark.NotAfter = within().Add(-time.Minute) }, ErrChain},
		{"ASK expired", func(f *forgery) { f.ask.NotAfter = within().Add(-time.Minute) }, ErrChain},
		{"VCEK expired", func(f *forgery) { f.vcek.NotAfter = within().Add(-time.Minute) }, ErrChain},
		{"no ARK", func(f *forgery) { f.omit = snp.CertARK }, ErrChain},
		{"no ASK", func(f *forgery) { f.omit = snp.CertASK }, ErrChain},
		{"no VCEK", func(f *forgery) { f.omit = snp.CertVCEK }, ErrMalformed},
		{"report signed by another key", func(f *forgery) { f.signWith = other }, ErrChain},
		{"version 2", func(f *forgery) { f.report.Version, f.report.Family = 2, 0 }, ErrChain},
		{"Milan's family", func(f *forgery) { f.report.Family, f.report.Model = 0x19, 1 }, ErrChain},
		{"no family", func(f *forgery) { f.report.Family = 0 }, ErrChain},
		{"another unknown family", func(f *forgery) { f.report.Family = 0x7E }, ErrChain},
		{"signed by VLEK", func(f *forgery) { f.report.Signer = snp.SignedByVLEK }, ErrChain},
		{"signed by none", func(f *forgery) { f.report.Signer = snp.SignedByNone }, ErrFields},
		{"another chip", func(f *forgery) { f.report.ChipID[0]++ }, ErrFields},
		{"reported TCB differs", func(f *forgery) { f.report.ReportedTCB++ }, ErrFields},
		{"current TCB below", func(f *forgery) { f.report.CurrentTCB--; f.report.CommittedTCB-- }, ErrFields},
		{"committed TCB below", func(f *forgery) { f.report.CommittedTCB-- }, ErrFields},
		{"committed version differs", func(f *forgery) { f.report.Committed.Minor-- }, ErrFields},
		{"debug", func(f *forgery) { f.report.Policy |= tee.PolicyDebug }, ErrFields},
		{"migration agent", func(f *forgery) { f.report.Policy |= tee.PolicyMigrationAgent }, ErrFields},
		{"VMPL 1", func(f *forgery) { f.report.VMPL = 1 }, ErrFields},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := newForgery(t)
			tt.change(f)
			e := f.evidence(t)
			c, err := newVerifier(t, Config{InsecureAcceptEmulated: true}).Verify(e, within())
			if !errors.Is(err, tt.want) || c != nil {
				t.Errorf("Verify = %v, %v; want %v", c, err, tt.want)
			}
			// Whatever it pretends to be, it is not AMD's.
			e.Kind = tee.SEVSNP
			if c, err := newVerifier(t, Config{InsecureAcceptEmulated: true}).Verify(e, within()); err == nil || c != nil {
				t.Errorf("Verify called sev-snp = %v, %v; want an error", c, err)
			}
		})
	}
}

// TestInsecureOptions checks that each option loosens what it names, no more.
func TestInsecureOptions(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(*forgery)
		cfg    Config
	}{
		{"debug", func(f *forgery) { f.report.Policy |= tee.PolicyDebug }, Config{InsecureAllowDebug: true}},
		{"migration agent", func(f *forgery) { f.report.Policy |= tee.PolicyMigrationAgent }, Config{InsecureAllowMigrationAgent: true}},
		{"provisional firmware", func(f *forgery) { f.report.Committed.Minor-- }, Config{InsecureAllowProvisionalFirmware: true}},
	} {
		f := newForgery(t)
		tt.change(f)
		e := f.evidence(t)
		for _, other := range []Config{{InsecureAllowDebug: true}, {InsecureAllowMigrationAgent: true}, {InsecureAllowProvisionalFirmware: true}} {
			want := other.InsecureAllowDebug == tt.cfg.InsecureAllowDebug && other.InsecureAllowMigrationAgent == tt.cfg.InsecureAllowMigrationAgent
			other.InsecureAcceptEmulated = true
			c, err := newVerifier(t, other).Verify(e, within())
			if (err == nil) != want || (c != nil) != want {
				t.Errorf("%s with %+v: Verify = %v; want accepted %v", tt.name, other, err, want)
			}
		}
	}
}

// hardware changes a forgery into what a secure processor of line would make,
// if the roots that it returns were AMD's.
func (f *forgery) hardware(t testing.TB, line string, family, model uint8) func(*Verifier) {
	t.Helper()
	f.ark.Subject.CommonName, f.ask.Subject.CommonName = "ARK-"+line, "SEV-"+line
	for _, c := range []*x509.Certificate{f.ark, f.ask, f.vcek} {
		c.Subject.SerialNumber = ""
	}
	f.report.Family, f.report.Model, f.kind = family, model, tee.SEVSNP
	return func(v *Verifier) {
		k := keys()
		parse := func(der []byte) *x509.Certificate {
			c, err := x509.ParseCertificate(der)
			if err != nil {
				t.Fatal(err)
			}
			return c
		}
		root := trust.AMDRootCertsProduct(line)
		root.ProductCerts = &trust.ProductCerts{Ark: parse(create(t, f.ark, f.ark, &k.ark.PublicKey, k.ark))}
		ica := parse(create(t, f.ask, f.ark, &k.ask.PublicKey, k.ark))
		if f.leaf == snp.CertVLEK {
			root.ProductCerts.Asvk = ica
		} else {
			root.ProductCerts.Ask = ica
		}
		v.amd = rootSet{line: {root}}
	}
}

// TestHardwareVLEK signs as a cloud provider's key does, which no vector at
// hand shows.
func TestHardwareVLEK(t *testing.T) {
	f := newForgery(t)
	roots := f.hardware(t, lineMilan, 0x19, 1)
	f.leaf, f.report.Signer = snp.CertVLEK, snp.SignedByVLEK
	f.ask.Subject.CommonName, f.vcek.Subject.CommonName = "SEV-VLEK-Milan", "SEV-VLEK"
	ext := f.vcek.ExtraExtensions
	ext[1] = amdExtension(t, "Milan", "ia5", 2)
	ext[len(ext)-1] = amdExtension(t, "a cloud", "ia5", 5)
	v := newVerifier(t, Config{})
	e := f.evidence(t)
	if c, err := v.Verify(e, within()); !errors.Is(err, ErrChain) || c != nil {
		t.Errorf("Verify under AMD's roots = %v, %v; want ErrChain", c, err)
	}
	roots(v)
	c, err := v.Verify(e, within())
	if err != nil {
		t.Fatal(err)
	}
	if c.SigningKey != tee.VLEK || c.ProductLine != lineMilan || c.Insecure || c.Kind != tee.SEVSNP {
		t.Errorf("claims = %s, %s, %q", c.SigningKey, c.ProductLine, c.Kind)
	}
	f.report.ReportedTCB++
	if c, err := v.Verify(f.evidence(t), within()); !errors.Is(err, ErrFields) || c != nil {
		t.Errorf("Verify with another TCB = %v, %v; want ErrFields", c, err)
	}
}

// TestHardwareVersions goes through report versions and product lines.
func TestHardwareVersions(t *testing.T) {
	for _, tt := range []struct {
		name          string
		line          string
		family, model uint8
		version       uint32
		fmc           bool
		want          error
	}{
		{"Milan, version 3", lineMilan, 0x19, 1, 3, false, nil},
		{"Milan, version 5", lineMilan, 0x19, 1, 5, false, nil},
		{"Genoa, version 3", lineGenoa, 0x19, 0x11, 3, false, nil},
		{"Genoa's report under Milan's root", lineMilan, 0x19, 0x11, 3, false, ErrChain},
		{"emulated family under Milan's root", lineMilan, snp.EmulatedFamily, 0, 3, false, ErrChain},
		// A limit of go-sev-guest v0.15.0 (docs/attestation.md).
		{"Turin with its FMC extension", lineTurin, 0x1A, 2, 5, true, ErrChain},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := newForgery(t)
			roots := f.hardware(t, tt.line, tt.family, tt.model)
			f.report.Version = tt.version
			if tt.fmc {
				f.vcek.ExtraExtensions = append(f.vcek.ExtraExtensions, amdExtension(t, 1, "", 3, 9))
			}
			v := newVerifier(t, Config{InsecureAcceptEmulated: true})
			roots(v)
			c, err := v.Verify(f.evidence(t), within())
			if !errors.Is(err, tt.want) || (c == nil) != (err != nil) {
				t.Errorf("Verify = %v; want %v", err, tt.want)
			}
		})
	}
}
