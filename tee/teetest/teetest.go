// SPDX-License-Identifier: Apache-2.0

// Package teetest is the suite that every TEE backend passes: an attester and
// the verifier for its evidence, tested against each other from outside. A
// backend is done when Run passes. It is linked into tests only and decides
// nothing.
package teetest

import (
	"bytes"
	"context"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/coffer-dev/coffer/tee"
)

// Run tests an attester whose evidence v must accept now. v must be strict
// but for what the attester's kind needs.
func Run(t *testing.T, a tee.Attester, v tee.Verifier) {
	s := &suite{a: a, v: v, now: time.Now()}
	s.good = s.attest(t, binding(t, 1))
	for _, tt := range []struct {
		name string
		run  func(*testing.T)
	}{
		{"fresh evidence", s.fresh},
		{"document", s.document},
		{"binding", s.binding},
		{"concurrent", s.concurrent},
		{"cancelled", s.cancelled},
		{"kind", s.kind},
		{"time", s.time},
		{"report bits", s.reportBits},
		{"report size", s.reportSize},
		{"spliced signature", s.splice},
		{"certificate bits", s.certificateBits},
		{"certificate size", s.certificateSize},
	} {
		t.Run(tt.name, tt.run)
	}
}

type suite struct {
	a    tee.Attester
	v    tee.Verifier
	now  time.Time
	good tee.Evidence
}

func binding(t *testing.T, seed byte) tee.Binding {
	t.Helper()
	b, err := tee.ChallengeBinding(bytes.Repeat([]byte{seed}, 32))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func (s *suite) attest(t *testing.T, b tee.Binding) tee.Evidence {
	t.Helper()
	e, err := s.a.Attest(t.Context(), b)
	if err != nil {
		t.Fatalf("Attest = %v", err)
	}
	return e
}

func (s *suite) verify(t *testing.T, e tee.Evidence) *tee.Claims {
	t.Helper()
	c, err := s.v.Verify(e, s.now)
	if err != nil {
		t.Fatalf("Verify = %v", err)
	}
	if c == nil {
		t.Fatal("Verify returned neither claims nor an error")
	}
	return c
}

// refused fails the test unless e is refused, without claims.
func (s *suite) refused(t *testing.T, e tee.Evidence, what string, args ...any) {
	t.Helper()
	c, err := s.v.Verify(e, s.now)
	if err == nil {
		t.Errorf("Verify accepted evidence with "+what, args...)
	} else if c != nil {
		t.Errorf("Verify returned claims and an error for evidence with "+what, args...)
	}
}

// edited returns the good evidence with its own copies of the bytes.
func (s *suite) edited() tee.Evidence {
	e := s.good
	e.Report, e.Certificates = bytes.Clone(e.Report), bytes.Clone(e.Certificates)
	return e
}

func (s *suite) fresh(t *testing.T) {
	c := s.verify(t, s.good)
	if c.Kind != s.good.Kind || !c.Kind.Valid() {
		t.Errorf("claims are of kind %q, evidence of kind %q", c.Kind, s.good.Kind)
	}
	if c.Insecure != (c.Kind == tee.Emulated) {
		t.Errorf("claims of kind %q say Insecure = %v", c.Kind, c.Insecure)
	}
	if want := binding(t, 1); c.ReportData != want {
		t.Errorf("ReportData = %x; want %x", c.ReportData, want)
	}
	if c.Measurement == [48]byte{} || c.ProductLine == "" || c.RootSHA256 == [32]byte{} || c.SigningKey == "" {
		t.Errorf("claims lack measurement, product line, root or signing key: %+v", c)
	}
	if c.GuestPolicy.Debug() || c.GuestPolicy.MigrationAgent() || c.VMPL != 0 {
		t.Errorf("strict verifier accepted policy %v at VMPL %d", c.GuestPolicy, c.VMPL)
	}
}

func (s *suite) document(t *testing.T) {
	doc, err := s.good.Encode()
	if err != nil {
		t.Fatal(err)
	}
	e, err := tee.DecodeEvidence(doc)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(s.verify(t, e), s.verify(t, s.good)); diff != "" {
		t.Errorf("claims after a round trip differ (-got +want):\n%s", diff)
	}
	if says := bytes.Contains(doc, []byte(`"platform":"emulated"`)); says != (e.Kind == tee.Emulated) {
		t.Errorf("document of kind %q says emulated: %v", e.Kind, says)
	}
}

// binding checks that a replay shows: evidence for one nonce never has the
// binding of another.
func (s *suite) binding(t *testing.T) {
	for _, b := range []tee.Binding{binding(t, 2), {}, {0: 0xFF, 63: 0xFF}} {
		c := s.verify(t, s.attest(t, b))
		if c.ReportData != b {
			t.Errorf("ReportData = %x; want %x", c.ReportData, b)
		}
	}
	if c := s.verify(t, s.good); c.ReportData == binding(t, 2) {
		t.Error("evidence for one nonce passes for another")
	}
}

func (s *suite) concurrent(t *testing.T) {
	var wg sync.WaitGroup
	for i := range 8 {
		b := binding(t, byte(100+i))
		wg.Go(func() {
			e, err := s.a.Attest(t.Context(), b)
			if err != nil {
				t.Errorf("Attest = %v", err)
				return
			}
			c, err := s.v.Verify(e, s.now)
			if err != nil || c.ReportData != b {
				t.Errorf("concurrent evidence: %v, or with another caller's binding", err)
			}
		})
	}
	wg.Wait()
}

func (s *suite) cancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if e, err := s.a.Attest(ctx, binding(t, 3)); err == nil || e.Report != nil {
		t.Errorf("Attest with a cancelled context = %d bytes, %v; want an error", len(e.Report), err)
	}
	s.verify(t, s.attest(t, binding(t, 4)))
}

func (s *suite) kind(t *testing.T) {
	for _, k := range []tee.Kind{"", tee.SEVSNP, tee.Emulated, "SEV-SNP", "sgx"} {
		if e := s.edited(); k != e.Kind {
			e.Kind = k
			s.refused(t, e, "kind %q", k)
		}
	}
}

func (s *suite) time(t *testing.T) {
	for _, at := range []time.Time{{}, time.Unix(0, 0), s.now.AddDate(100, 0, 0)} {
		if c, err := s.v.Verify(s.good, at); err == nil || c != nil {
			t.Errorf("Verify at %v = %v, %v; want an error", at, c, err)
		}
	}
}

// reportBits flips one bit in every byte of the report.
func (s *suite) reportBits(t *testing.T) {
	for i := range s.good.Report {
		e := s.edited()
		e.Report[i] ^= 1 << (i % 8)
		s.refused(t, e, "a flipped bit in report byte %#x", i)
	}
}

func (s *suite) reportSize(t *testing.T) {
	n := len(s.good.Report)
	for _, size := range []int{0, 1, n / 2, n - 1} {
		e := s.edited()
		e.Report = e.Report[:size]
		s.refused(t, e, "a report of %d bytes", size)
	}
	e := s.edited()
	e.Report = append(e.Report, 0)
	s.refused(t, e, "a report of %d bytes", n+1)
	e.Report = make([]byte, n)
	s.refused(t, e, "a report of zeros")
	e.Report = nil
	s.refused(t, e, "no report")
}

// splice puts one report's first half in front of another's second half.
func (s *suite) splice(t *testing.T) {
	other := s.attest(t, binding(t, 5))
	e := s.edited()
	half := len(e.Report) / 2
	copy(e.Report[:half], other.Report[:half])
	s.refused(t, e, "another report's first half")
}

// certificateBits flips one bit in every third byte of the certificates. What the
// verifier does not use may change, but then the claims stay as they are.
func (s *suite) certificateBits(t *testing.T) {
	want := s.verify(t, s.good)
	used := 0
	for i := 0; i < len(s.good.Certificates); i += 3 { // each takes a millisecond or two
		e := s.edited()
		e.Certificates[i] ^= 1 << (i % 8)
		c, err := s.v.Verify(e, s.now)
		switch {
		case err != nil && c != nil:
			t.Errorf("Verify returned claims and an error for a flipped bit in certificate byte %#x", i)
		case err != nil:
			used++
		case !cmp.Equal(c, want):
			t.Errorf("a flipped bit in certificate byte %#x changes the claims", i)
		}
	}
	if len(s.good.Certificates) > 0 && used == 0 {
		t.Error("no bit of the certificates matters")
	}
}

func (s *suite) certificateSize(t *testing.T) {
	n := len(s.good.Certificates)
	if n == 0 {
		t.Skip("this backend's evidence has no certificates")
	}
	for _, size := range []int{0, 1, 23, n / 2} {
		e := s.edited()
		e.Certificates = e.Certificates[:size]
		s.refused(t, e, "certificates of %d bytes", size)
	}
	e := s.edited()
	e.Certificates = append(e.Certificates, make([]byte, tee.MaxCertificatesSize)...)
	s.refused(t, e, "certificates of %d bytes", len(e.Certificates))
}
