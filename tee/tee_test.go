// SPDX-License-Identifier: Apache-2.0

package tee

import (
	"bytes"
	"crypto/sha512"
	"encoding/base64"
	"errors"
	"strings"
	"testing"
)

func TestChallengeBinding(t *testing.T) {
	for _, tt := range []struct {
		size int
		want error
	}{{0, ErrNonceSize}, {15, ErrNonceSize}, {16, nil}, {32, nil}, {64, nil}, {65, ErrNonceSize}} {
		if _, err := ChallengeBinding(make([]byte, tt.size)); !errors.Is(err, tt.want) {
			t.Errorf("ChallengeBinding(%d bytes) = %v; want %v", tt.size, err, tt.want)
		}
	}
	seen := make(map[Binding]string)
	for _, nonce := range []string{"0123456789abcdef", "0123456789abcdeg", "0123456789abcdef\x00", strings.Repeat("\x00", 64), strings.Repeat("\x00", 32)} {
		b, err := ChallengeBinding([]byte(nonce))
		if err != nil {
			t.Fatal(err)
		}
		if other, dup := seen[b]; dup {
			t.Errorf("nonces %q and %q have one binding", nonce, other)
		}
		seen[b] = nonce
	}
}

// TestChallengeBindingDomain holds the format, and the reason for it: what a
// host can have signed by choosing nonces is neither its own 64 bytes nor the
// key-release protocol's digest followed by zeros.
func TestChallengeBindingDomain(t *testing.T) {
	nonce := bytes.Repeat([]byte{7}, 64)
	got, err := ChallengeBinding(nonce)
	if err != nil {
		t.Fatal(err)
	}
	if want := sha512.Sum512(append([]byte("coffer.dev/tee/challenge-binding/v1\x00"), nonce...)); got != want {
		t.Errorf("ChallengeBinding = %x; want %x", got, want)
	}
	if bytes.Equal(got[:], nonce) || got == sha512.Sum512(nonce) || bytes.Equal(got[32:], make([]byte, 32)) {
		t.Errorf("ChallengeBinding = %x, which has a meaning outside its domain", got)
	}
}

func TestKind(t *testing.T) {
	if Kind("").Valid() || Kind("SEV-SNP").Valid() {
		t.Error("the zero Kind or another spelling is valid")
	}
	for _, k := range []Kind{SEVSNP, Emulated} {
		if got, err := ParseKind(k.String()); err != nil || got != k {
			t.Errorf("ParseKind(%q) = %q, %v", k, got, err)
		}
	}
	if k, err := ParseKind("sgx"); err == nil || k != "" {
		t.Errorf("ParseKind(sgx) = %q, %v; want an error", k, err)
	}
}

func TestTCBAtLeast(t *testing.T) {
	min := TCB{FMC: 1, BootLoader: 2, TEE: 3, SNP: 4, Microcode: 5}
	if !min.AtLeast(min) {
		t.Error("a TCB is below itself")
	}
	for _, lower := range []TCB{{0, 2, 3, 4, 5}, {1, 1, 3, 4, 5}, {1, 2, 2, 4, 5}, {1, 2, 3, 3, 5}, {1, 2, 3, 4, 4}} {
		if lower.AtLeast(min) {
			t.Errorf("(%v).AtLeast(%v) = true", lower, min)
		}
	}
}

func TestGuestPolicyString(t *testing.T) {
	p := PolicyDefault | PolicyDebug | PolicyMigrationAgent
	if got, want := p.String(), "0xf0000 (smt migration-agent debug)"; got != want {
		t.Errorf("String = %q; want %q", got, want)
	}
	if !p.Debug() || !p.MigrationAgent() || PolicyDefault.Debug() || PolicyDefault.MigrationAgent() {
		t.Error("Debug or MigrationAgent reads another bit")
	}
}

// equalEvidence tells a nil policy from an empty one; go-cmp takes half a
// minute for 16 MiB.
func equalEvidence(a, b Evidence) bool {
	return a.Kind == b.Kind && bytes.Equal(a.Report, b.Report) && bytes.Equal(a.Certificates, b.Certificates) &&
		bytes.Equal(a.Policy, b.Policy) && (a.Policy == nil) == (b.Policy == nil)
}

func TestEvidenceRoundTrip(t *testing.T) {
	for _, e := range []Evidence{
		{Kind: SEVSNP, Report: []byte{1, 2, 3}},
		{Kind: Emulated, Report: make([]byte, 1184), Certificates: []byte("certs"), Policy: []byte("package policy\n")},
		{Kind: Emulated, Report: []byte{0}, Policy: []byte{}},
		{Kind: SEVSNP, Report: []byte{0}, Policy: make([]byte, MaxPolicySize)},
	} {
		doc, err := e.Encode()
		if err != nil {
			t.Fatalf("Encode = %v", err)
		}
		got, err := DecodeEvidence(doc)
		if err != nil {
			t.Fatalf("DecodeEvidence(Encode(e)) = %v", err)
		}
		if !equalEvidence(got, e) {
			t.Errorf("DecodeEvidence(Encode(e)) differs for kind %q with a policy of %d bytes", e.Kind, len(e.Policy))
		}
	}
}

func TestEvidenceDocument(t *testing.T) {
	doc, err := Evidence{Kind: Emulated, Report: []byte("r"), Certificates: []byte("c"), Policy: []byte("p")}.Encode()
	if err != nil {
		t.Fatal(err)
	}
	want := `{"version":1,"platform":"emulated","report":"cg==","certificates":"Yw==","policy":"cA=="}` + "\n"
	if string(doc) != want {
		t.Errorf("Encode = %s; want %s", doc, want)
	}
}

func TestEncodeRefuses(t *testing.T) {
	for _, e := range []Evidence{
		{},
		{Kind: "sgx", Report: []byte{1}},
		{Kind: SEVSNP},
		{Kind: SEVSNP, Report: make([]byte, MaxReportSize+1)},
		{Kind: SEVSNP, Report: []byte{1}, Certificates: make([]byte, MaxCertificatesSize+1)},
		{Kind: SEVSNP, Report: []byte{1}, Policy: make([]byte, MaxPolicySize+1)},
	} {
		if doc, err := e.Encode(); !errors.Is(err, ErrEvidence) || doc != nil {
			t.Errorf("Encode(kind %q, %d, %d, %d bytes) = %d bytes, %v; want ErrEvidence", e.Kind, len(e.Report), len(e.Certificates), len(e.Policy), len(doc), err)
		}
	}
}

func badDocuments() map[string]string {
	return map[string]string{
		"empty":                ``,
		"array":                `[]`,
		"null":                 `null`,
		"no members":           `{}`,
		"cut off":              `{"version":1,"platform":"emulated","report":"cg=="`,
		"trailing document":    `{"version":1,"platform":"emulated","report":"cg=="}{}`,
		"trailing text":        `{"version":1,"platform":"emulated","report":"cg=="} x`,
		"version 2":            `{"version":2,"platform":"emulated","report":"cg=="}`,
		"version text":         `{"version":"1","platform":"emulated","report":"cg=="}`,
		"version null":         `{"version":null,"platform":"emulated","report":"cg=="}`,
		"no version":           `{"platform":"emulated","report":"cg=="}`,
		"no platform":          `{"version":1,"report":"cg=="}`,
		"platform null":        `{"version":1,"platform":null,"report":"cg=="}`,
		"unknown platform":     `{"version":1,"platform":"Emulated","report":"cg=="}`,
		"two platforms":        `{"version":1,"platform":"emulated","platform":"sev-snp","report":"cg=="}`,
		"two platforms, cases": `{"version":1,"platform":"emulated","Platform":"sev-snp","report":"cg=="}`,
		"unknown member":       `{"version":1,"platform":"emulated","report":"cg==","note":1}`,
		"no report":            `{"version":1,"platform":"emulated"}`,
		"empty report":         `{"version":1,"platform":"emulated","report":""}`,
		"report null":          `{"version":1,"platform":"emulated","report":null}`,
		"report a number":      `{"version":1,"platform":"emulated","report":12}`,
		"unpadded base64":      `{"version":1,"platform":"emulated","report":"cg"}`,
		"loose base64":         `{"version":1,"platform":"emulated","report":"ch=="}`,
		"url base64":           `{"version":1,"platform":"emulated","report":"__8="}`,
		"escaped base64":       `{"version":1,"platform":"emulated","report":"c\u0067=="}`,
		"line break in base64": `{"version":1,"platform":"emulated","report":"cg\n=="}`,
		"empty certificates":   `{"version":1,"platform":"emulated","report":"cg==","certificates":""}`,
		"large certificates":   `{"version":1,"platform":"emulated","report":"cg==","certificates":"` + base64.StdEncoding.EncodeToString(make([]byte, MaxCertificatesSize+1)) + `"}`,
	}
}

func TestDecodeEvidenceRefuses(t *testing.T) {
	for name, doc := range badDocuments() {
		e, err := DecodeEvidence([]byte(doc))
		if !errors.Is(err, ErrEvidence) || e.Kind != "" || e.Report != nil {
			t.Errorf("%s: DecodeEvidence = %v, %v; want ErrEvidence", name, e.Kind, err)
		}
	}
	if _, err := DecodeEvidence(make([]byte, MaxEvidenceSize+1)); !errors.Is(err, ErrEvidence) {
		t.Errorf("DecodeEvidence of too large a document = %v; want ErrEvidence", err)
	}
}

func FuzzDecodeEvidence(f *testing.F) {
	for _, doc := range badDocuments() {
		f.Add([]byte(doc))
	}
	f.Add([]byte(`{"version":1,"platform":"emulated","report":"cg==","certificates":"Yw==","policy":"cA=="}`))
	f.Fuzz(func(t *testing.T, doc []byte) {
		e, err := DecodeEvidence(doc)
		if err != nil {
			if !errors.Is(err, ErrEvidence) {
				t.Errorf("DecodeEvidence = %v; want ErrEvidence", err)
			}
			return
		}
		again, err := e.Encode()
		if err != nil {
			t.Fatalf("Encode of decoded evidence = %v", err)
		}
		got, err := DecodeEvidence(again)
		if err != nil || !equalEvidence(got, e) {
			t.Errorf("round trip of %s: %v", doc, err)
		}
	})
}
