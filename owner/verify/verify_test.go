// SPDX-License-Identifier: Apache-2.0

package verify

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/coffer-dev/coffer/tee"
	"github.com/coffer-dev/coffer/tee/snp"
)

func readFile(t testing.TB, name string) []byte {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// table packs certificates given by kind.
func table(t testing.TB, certs ...any) []byte {
	t.Helper()
	var list []snp.Certificate
	for i := 0; i < len(certs); i += 2 {
		guid, err := snp.ParseGUID(string(certs[i].(snp.CertificateKind)))
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, snp.Certificate{GUID: guid, Data: certs[i+1].([]byte)})
	}
	out, err := snp.EncodeCertificateTable(list)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// azure returns a report that AMD's hardware signed, with its certificates.
func azure(t testing.TB) tee.Evidence {
	t.Helper()
	var doc struct{ VcekCert, CertificateChain string }
	if err := json.Unmarshal(readFile(t, "uvm_host_amd_certificate.json"), &doc); err != nil {
		t.Fatal(err)
	}
	vcek, _ := pem.Decode([]byte(doc.VcekCert))
	ask, rest := pem.Decode([]byte(doc.CertificateChain))
	ark, _ := pem.Decode(rest)
	return tee.Evidence{
		Kind: tee.SEVSNP, Report: readFile(t, "snp_report.bin"),
		Certificates: table(t, snp.CertVCEK, vcek.Bytes, snp.CertASK, ask.Bytes, snp.CertARK, ark.Bytes),
	}
}

// within is a time at which the VCEK of the Azure report is valid.
func within() time.Time { return time.Date(2024, 6, 1, 0, 0, 0, 0, time.UTC) }

func newVerifier(t testing.TB, cfg Config) *Verifier {
	t.Helper()
	v, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func TestRealReport(t *testing.T) {
	c, err := newVerifier(t, Config{}).Verify(azure(t), within())
	if err != nil {
		t.Fatal(err)
	}
	if c.Kind != tee.SEVSNP || c.Insecure || c.ProductLine != "Milan" || c.SigningKey != tee.VCEK || c.GuestSVN != 2 {
		t.Errorf("claims = %q, insecure %v, %s, %s, SVN %d", c.Kind, c.Insecure, c.ProductLine, c.SigningKey, c.GuestSVN)
	}
	if want := (tee.TCB{BootLoader: 3, SNP: 8, Microcode: 115}); c.ReportedTCB != want {
		t.Errorf("reported TCB = %v; want %v", c.ReportedTCB, want)
	}
	policy, err := base64.StdEncoding.DecodeString(strings.TrimSpace(string(readFile(t, "uvm_security_policy.base64"))))
	if err != nil {
		t.Fatal(err)
	}
	if want := sha256.Sum256(policy); c.HostData != want {
		t.Errorf("HostData = %x; want %x", c.HostData, want)
	}
	runtime := sha256.Sum256([]byte("{\n   \"akey\" : \"avalue\"\n}\n"))
	if want := tee.Binding(append(runtime[:], make([]byte, 32)...)); c.ReportData != want {
		t.Errorf("ReportData = %x; want %x", c.ReportData, want)
	}
	if got := hex.EncodeToString(c.Measurement[:4]); got != "51068107" {
		t.Errorf("measurement starts %s; want 51068107", got)
	}
}

// TestRealReportInsecureOptions checks that looseness for emulation changes
// nothing for hardware.
func TestRealReportInsecureOptions(t *testing.T) {
	c, err := newVerifier(t, Config{InsecureAcceptEmulated: true}).Verify(azure(t), within())
	if err != nil || c.Insecure || c.Kind != tee.SEVSNP {
		t.Errorf("Verify = %+v, %v", c, err)
	}
}

func TestRealReportBits(t *testing.T) {
	v := newVerifier(t, Config{
		InsecureAcceptEmulated: true, InsecureAllowDebug: true,
		InsecureAllowMigrationAgent: true, InsecureAllowProvisionalFirmware: true,
	})
	e := azure(t)
	for i := range e.Report {
		for _, bit := range []byte{1, 0x80} {
			e.Report[i] ^= bit
			if c, err := v.Verify(e, within()); err == nil || c != nil {
				t.Errorf("Verify accepted bit %#x of byte %#x flipped", bit, i)
			}
			e.Report[i] ^= bit
		}
	}
	if _, err := v.Verify(e, within()); err != nil {
		t.Errorf("Verify of the unchanged report = %v", err)
	}
}

func TestRealReportRefused(t *testing.T) {
	good := azure(t)
	certs, err := snp.ParseCertificateTable(good.Certificates)
	if err != nil {
		t.Fatal(err)
	}
	vcek, ask := snp.FindCertificate(certs, snp.CertVCEK), snp.FindCertificate(certs, snp.CertASK)
	le := binary.LittleEndian
	for _, tt := range []struct {
		name   string
		now    time.Time
		change func(*tee.Evidence)
		want   error
	}{
		{"before the VCEK", time.Date(2022, 11, 1, 0, 0, 0, 0, time.UTC), func(*tee.Evidence) {}, ErrChain},
		{"after the VCEK", time.Date(2029, 12, 1, 0, 0, 0, 0, time.UTC), func(*tee.Evidence) {}, ErrChain},
		{"no time", time.Time{}, func(*tee.Evidence) {}, ErrChain},
		{"no kind", within(), func(e *tee.Evidence) { e.Kind = "" }, ErrKind},
		{"called emulated", within(), func(e *tee.Evidence) { e.Kind = tee.Emulated }, ErrNotAccepted},
		{"no certificates", within(), func(e *tee.Evidence) { e.Certificates = nil }, ErrChain},
		{"only the ASK", within(), func(e *tee.Evidence) { e.Certificates = table(t, snp.CertASK, ask) }, ErrChain},
		{"ASK for VCEK", within(), func(e *tee.Evidence) { e.Certificates = table(t, snp.CertVCEK, ask) }, ErrChain},
		{"VCEK as VLEK", within(), func(e *tee.Evidence) { e.Certificates = table(t, snp.CertVLEK, vcek) }, ErrChain},
		{"signer VLEK", within(), func(e *tee.Evidence) { e.Report[0x48] = 1 << 2 }, ErrChain},
		{"signer none", within(), func(e *tee.Evidence) { e.Report[0x48] = 7 << 2 }, ErrFields},
		{"VCEK in PEM", within(), func(e *tee.Evidence) {
			e.Certificates = table(t, snp.CertVCEK, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: vcek}))
		}, ErrFields},
		{"debug bit", within(), func(e *tee.Evidence) { e.Report[0x0A] |= 8 }, ErrFields},
		{"migration agent bit", within(), func(e *tee.Evidence) { e.Report[0x0A] |= 4 }, ErrFields},
		{"VMPL 1", within(), func(e *tee.Evidence) { e.Report[0x30] = 1 }, ErrFields},
		{"version 3, Genoa", within(), func(e *tee.Evidence) {
			le.PutUint32(e.Report, 3)
			e.Report[0x188], e.Report[0x189] = 0x19, 0x11
		}, ErrChain},
		{"version 3, emulated family", within(), func(e *tee.Evidence) {
			le.PutUint32(e.Report, 3)
			e.Report[0x188] = snp.EmulatedFamily
		}, ErrChain},
		{"other measurement", within(), func(e *tee.Evidence) { e.Report[0x90] ^= 1 }, ErrChain},
		{"other host data", within(), func(e *tee.Evidence) { e.Report[0xC0] ^= 1 }, ErrChain},
		{"other report data", within(), func(e *tee.Evidence) { e.Report[0x50] ^= 1 }, ErrChain},
		{"zero signature", within(), func(e *tee.Evidence) { clear(e.Report[snp.SignedSize:]) }, ErrChain},
		{"short", within(), func(e *tee.Evidence) { e.Report = e.Report[:1000] }, ErrMalformed},
		{"table cut off", within(), func(e *tee.Evidence) { e.Certificates = e.Certificates[:100] }, ErrMalformed},
	} {
		t.Run(tt.name, func(t *testing.T) {
			e := azure(t)
			tt.change(&e)
			c, err := newVerifier(t, Config{}).Verify(e, tt.now)
			if !errors.Is(err, tt.want) || c != nil {
				t.Errorf("Verify = %v, %v; want %v", c, err, tt.want)
			}
		})
	}
}

// TestRealReportUnneededCertificates checks that roots come from the verifier,
// not from the evidence.
func TestRealReportUnneededCertificates(t *testing.T) {
	e := azure(t)
	certs, err := snp.ParseCertificateTable(e.Certificates)
	if err != nil {
		t.Fatal(err)
	}
	e.Certificates = table(t, snp.CertVCEK, snp.FindCertificate(certs, snp.CertVCEK))
	if _, err := newVerifier(t, Config{}).Verify(e, within()); err != nil {
		t.Errorf("Verify with the VCEK only = %v", err)
	}
}

func TestNewRefuses(t *testing.T) {
	for name, der := range map[string][]byte{"empty": {}, "garbage": []byte("garbage"), "AMD's ARK": arkOf(t, azure(t))} {
		if v, err := New(Config{InsecureAcceptEmulated: true, EmulatedRoot: der}); err == nil || v != nil {
			t.Errorf("%s: New = %v, %v; want an error", name, v, err)
		}
	}
}

func arkOf(t testing.TB, e tee.Evidence) []byte {
	t.Helper()
	certs, err := snp.ParseCertificateTable(e.Certificates)
	if err != nil {
		t.Fatal(err)
	}
	return bytes.Clone(snp.FindCertificate(certs, snp.CertARK))
}

func TestAMDRootsPerLine(t *testing.T) {
	roots, err := amdRoots()
	if err != nil {
		t.Fatal(err)
	}
	if len(roots) != 3 {
		t.Errorf("%d product lines; want 3", len(roots))
	}
	if _, mixed := roots[lineUnknown]; mixed {
		t.Error("AMD's roots vouch for unknown CPU families")
	}
	for line, list := range roots {
		var vcek, vlek bool
		for _, r := range list {
			vcek = vcek || r.ProductCerts.Ask != nil && r.ProductCerts.Ask.Subject.CommonName == "SEV-"+line
			vlek = vlek || r.ProductCerts.Asvk != nil && r.ProductCerts.Asvk.Subject.CommonName == "SEV-VLEK-"+line
			if got, want := r.ProductCerts.Ark.Subject.CommonName, "ARK-"+line; got != want {
				t.Errorf("root of %s is %q; want %q", line, got, want)
			}
			// What Microsoft's CCF pins: SHA-256 of the roots' public keys.
			key := sha256.Sum256(r.ProductCerts.Ark.RawSubjectPublicKeyInfo)
			if got, want := hex.EncodeToString(key[:4]), map[string]string{lineMilan: "9f056bee", lineGenoa: "429a69c9", lineTurin: "4f125410"}[line]; got != want {
				t.Errorf("key of %s's root hashes to %s...; want %s...", line, got, want)
			}
		}
		if !vcek || !vlek {
			t.Errorf("%s: roots for VCEK %v, for VLEK %v; want both", line, vcek, vlek)
		}
	}
}

func FuzzVerify(f *testing.F) {
	v, err := New(Config{InsecureAcceptEmulated: true})
	if err != nil {
		f.Fatal(err)
	}
	good := azure(f)
	want, err := v.Verify(good, within())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good.Report, good.Certificates, true)
	f.Add(good.Report, good.Certificates, false)
	f.Fuzz(func(t *testing.T, report, certs []byte, hardware bool) {
		e := tee.Evidence{Kind: tee.Emulated, Report: report, Certificates: certs}
		if hardware {
			e.Kind = tee.SEVSNP
		}
		c, err := v.Verify(e, within())
		if (c == nil) != (err != nil) {
			t.Fatalf("Verify = %v, %v", c, err)
		}
		if err == nil && hardware && c.Measurement != want.Measurement {
			t.Error("a measurement that the hardware never signed")
		}
	})
}
