// SPDX-License-Identifier: Apache-2.0

package appraise

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/coffer-dev/coffer/tee"
)

var testNonce = []byte("0123456789abcdef")

const testPolicy = "package policy\n"

func goodClaims(t testing.TB) *tee.Claims {
	t.Helper()
	b, err := tee.ChallengeBinding(testNonce)
	if err != nil {
		t.Fatal(err)
	}
	return &tee.Claims{
		Kind: tee.SEVSNP, ProductLine: "Milan", SigningKey: tee.VCEK, GuestPolicy: tee.PolicyDefault,
		Measurement: [48]byte{1}, HostData: sha256.Sum256([]byte(testPolicy)), ReportData: b,
		ReportedTCB: tee.TCB{BootLoader: 3, SNP: 8, Microcode: 115},
	}
}

func goodExpected() Expected {
	return Expected{
		Measurements: []Measurement{{"first", tee.SEVSNP, [48]byte{2}}, {"second", tee.SEVSNP, [48]byte{1}}},
		Policy:       []byte(testPolicy), Nonce: testNonce,
		MinTCB: &tee.TCB{BootLoader: 3, SNP: 8, Microcode: 115},
	}
}

func TestTrusted(t *testing.T) {
	v, err := Appraise(goodClaims(t), goodExpected())
	if err != nil {
		t.Fatal(err)
	}
	if !v.Trusted {
		t.Errorf("Trusted = false: %+v", v.Checks)
	}
	var names []string
	for _, c := range v.Checks {
		names = append(names, c.Name)
		if c.Status != Passed || c.Reason == "" {
			t.Errorf("check %s: %s, %q; want passed with a reason", c.Name, c.Status, c.Reason)
		}
	}
	want := []string{"chain", "tcb", "debug", "measurement", "host-data", "report-data"}
	if diff := cmp.Diff(names, want); diff != "" {
		t.Errorf("order of checks (-got +want):\n%s", diff)
	}
}

// TestOneChange changes one thing and wants exactly one check to notice.
func TestOneChange(t *testing.T) {
	hostData := sha256.Sum256([]byte(testPolicy))
	for _, tt := range []struct {
		name    string
		change  func(*tee.Claims, *Expected)
		check   string
		status  Status
		trusted bool
		reason  string
	}{
		{"emulated", func(c *tee.Claims, e *Expected) {
			c.Kind, c.Insecure = tee.Emulated, true
			e.Measurements[1].TEE = tee.Emulated
		}, CheckChain, Failed, false, "not accepted"},
		{"insecure claims of hardware's kind", func(c *tee.Claims, _ *Expected) { c.Insecure = true }, CheckChain, Failed, false, "not accepted"},
		{"old firmware", func(c *tee.Claims, _ *Expected) { c.ReportedTCB.Microcode-- }, CheckTCB, Failed, false, "older"},
		{"no minimum", func(_ *tee.Claims, e *Expected) { e.MinTCB = nil }, CheckTCB, Skipped, true, "no minimum"},
		{"debug", func(c *tee.Claims, _ *Expected) { c.GuestPolicy |= tee.PolicyDebug }, CheckDebug, Failed, false, "read"},
		{"debug allowed", func(c *tee.Claims, e *Expected) {
			c.GuestPolicy |= tee.PolicyDebug
			e.InsecureAllowDebug = true
		}, CheckDebug, Skipped, true, "read"},
		{"other measurement", func(c *tee.Claims, _ *Expected) { c.Measurement[47]++ }, CheckMeasurement, Failed, false, "none of 2 references"},
		{"measurement of another TEE", func(_ *tee.Claims, e *Expected) { e.Measurements[1].TEE = tee.Emulated }, CheckMeasurement, Failed, false, "none of 2"},
		{"measurement skipped", func(c *tee.Claims, e *Expected) {
			c.Measurement, e.Measurements, e.InsecureSkipMeasurement = [48]byte{9}, nil, true
		}, CheckMeasurement, Skipped, true, "not compared"},
		{"other policy", func(_ *tee.Claims, e *Expected) { e.Policy = append(e.Policy, '\n') }, CheckHostData, Failed, false, "another policy"},
		{"empty policy", func(_ *tee.Claims, e *Expected) { e.Policy = []byte{} }, CheckHostData, Failed, false, "another policy"},
		{"other host data", func(_ *tee.Claims, e *Expected) { e.Policy, e.HostData = nil, &[32]byte{} }, CheckHostData, Failed, false, "expected value"},
		{"host data and its policy", func(_ *tee.Claims, e *Expected) { e.HostData = &hostData }, CheckHostData, Passed, true, "SHA-256"},
		{"host data skipped", func(_ *tee.Claims, e *Expected) { e.Policy, e.InsecureSkipHostData = nil, true }, CheckHostData, Skipped, true, "any policy"},
		{"other nonce", func(_ *tee.Claims, e *Expected) { e.Nonce = []byte("0123456789abcdeF") }, CheckReportData, Failed, false, "another challenge"},
		{"nonce as report data", func(c *tee.Claims, _ *Expected) {
			c.ReportData = tee.Binding{}
			copy(c.ReportData[:], testNonce)
		}, CheckReportData, Failed, false, "another challenge"},
		{"other report data", func(_ *tee.Claims, e *Expected) { e.Nonce, e.ReportData = nil, &tee.Binding{} }, CheckReportData, Failed, false, "expected binding"},
		{"report data", func(c *tee.Claims, e *Expected) { e.Nonce, e.ReportData = nil, &c.ReportData }, CheckReportData, Passed, true, "expected binding"},
		{"nonce skipped", func(_ *tee.Claims, e *Expected) { e.Nonce, e.InsecureSkipReportData = nil, true }, CheckReportData, Skipped, true, "old"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c, e := goodClaims(t), goodExpected()
			tt.change(c, &e)
			v, err := Appraise(c, e)
			if err != nil {
				t.Fatal(err)
			}
			if v.Trusted != tt.trusted {
				t.Errorf("Trusted = %v; want %v", v.Trusted, tt.trusted)
			}
			for _, got := range v.Checks {
				want := Passed
				if got.Name == tt.check {
					want = tt.status
					if !strings.Contains(got.Reason, tt.reason) {
						t.Errorf("reason %q lacks %q", got.Reason, tt.reason)
					}
					if got.Status == Failed && got.Name != CheckDebug && (len(got.Want) == 0 || got.Got == "") {
						t.Errorf("check %s does not say what was wanted and got: %+v", got.Name, got)
					}
				}
				if got.Status != want {
					t.Errorf("check %s: %s (%s); want %s", got.Name, got.Status, got.Reason, want)
				}
			}
		})
	}
}

func TestEmulatedAccepted(t *testing.T) {
	c, e := goodClaims(t), goodExpected()
	c.Kind, c.Insecure, e.Measurements[1].TEE, e.InsecureAcceptEmulated = tee.Emulated, true, tee.Emulated, true
	v, err := Appraise(c, e)
	if err != nil || !v.Trusted || !strings.Contains(v.Checks[0].Reason, "EMULATED") {
		t.Errorf("Appraise = %+v, %v; want trusted and marked EMULATED", v, err)
	}
}

func TestMissedReferences(t *testing.T) {
	c, e := goodClaims(t), goodExpected()
	c.Measurement = [48]byte{7}
	v, err := Appraise(c, e)
	if err != nil {
		t.Fatal(err)
	}
	got := v.Checks[3]
	want := []string{"02" + strings.Repeat("00", 47) + " (sev-snp, first)", "01" + strings.Repeat("00", 47) + " (sev-snp, second)"}
	if diff := cmp.Diff(got.Want, want); diff != "" || got.Got != "07"+strings.Repeat("00", 47) {
		t.Errorf("got %s, references (-got +want):\n%s", got.Got, diff)
	}
}

func TestNoVerdict(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(**tee.Claims, *Expected)
		want   error
	}{
		{"no claims", func(c **tee.Claims, _ *Expected) { *c = nil }, ErrNoClaims},
		{"zero claims", func(c **tee.Claims, _ *Expected) { *c = &tee.Claims{} }, ErrNoClaims},
		{"zero expectations", func(_ **tee.Claims, e *Expected) { *e = Expected{} }, ErrIncomplete},
		{"no references", func(_ **tee.Claims, e *Expected) { e.Measurements = []Measurement{} }, ErrIncomplete},
		{"references and skip", func(_ **tee.Claims, e *Expected) { e.InsecureSkipMeasurement = true }, ErrIncomplete},
		{"reference of no kind", func(_ **tee.Claims, e *Expected) { e.Measurements[0].TEE = "" }, ErrIncomplete},
		{"no policy", func(_ **tee.Claims, e *Expected) { e.Policy = nil }, ErrIncomplete},
		{"policy and skip", func(_ **tee.Claims, e *Expected) { e.InsecureSkipHostData = true }, ErrIncomplete},
		{"policy against host data", func(_ **tee.Claims, e *Expected) { e.HostData = &[32]byte{} }, ErrIncomplete},
		{"no nonce", func(_ **tee.Claims, e *Expected) { e.Nonce = nil }, ErrIncomplete},
		{"nonce and report data", func(_ **tee.Claims, e *Expected) { e.ReportData = &tee.Binding{} }, ErrIncomplete},
		{"short nonce", func(_ **tee.Claims, e *Expected) { e.Nonce = []byte("short") }, tee.ErrNonceSize},
		{"empty nonce", func(_ **tee.Claims, e *Expected) { e.Nonce = []byte{} }, tee.ErrNonceSize},
	} {
		c, e := goodClaims(t), goodExpected()
		tt.change(&c, &e)
		if v, err := Appraise(c, e); !errors.Is(err, tt.want) || v != nil {
			t.Errorf("%s: Appraise = %v, %v; want %v", tt.name, v, err, tt.want)
		}
	}
}

func TestVerdictJSON(t *testing.T) {
	v, err := Appraise(goodClaims(t), goodExpected())
	if err != nil {
		t.Fatal(err)
	}
	out, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	var doc map[string]any
	if err := json.Unmarshal(out, &doc); err != nil {
		t.Fatal(err)
	}
	claims := doc["claims"].(map[string]any)
	if doc["trusted"] != true || doc["platform"] != "sev-snp" || doc["insecure"] != false || doc["version"] != 1.0 ||
		claims["measurement"] != "01"+strings.Repeat("00", 47) || claims["guest_policy"] != "0x30000" {
		t.Errorf("verdict = %s", out)
	}
	if _, err := json.Marshal(&Verdict{Trusted: true}); err == nil {
		t.Error("a verdict without claims was encoded")
	}
}

func goodReference() Reference {
	return Reference{
		Kernel: File{"vmlinuz", [32]byte{1}}, Initrd: File{"initrd", [32]byte{2}}, Firmware: &File{"bios.bin", [32]byte{3}},
		Append: "console=hvc0 <&> panic=-1",
		Measurements: []ReferenceDigest{
			{TEE: tee.Emulated, VCPUs: 1, Digest: [48]byte{4}}, {TEE: tee.Emulated, VCPUs: 2, Digest: [48]byte{5}},
			{TEE: tee.SEVSNP, VCPUs: 1, CPU: "EPYC-Milan", Digest: [48]byte{6}}, {TEE: tee.SEVSNP, VCPUs: 1, CPU: "EPYC-v4", Digest: [48]byte{7}},
		},
	}
}

func TestReferenceRoundTrip(t *testing.T) {
	for name, change := range map[string]func(*Reference){
		"whole": func(*Reference) {}, "no firmware": func(r *Reference) { r.Firmware = nil },
		"no command line": func(r *Reference) { r.Append = "" },
	} {
		want := goodReference()
		change(&want)
		doc, err := want.Encode()
		if err != nil {
			t.Fatalf("%s: Encode = %v", name, err)
		}
		got, err := ParseReference(doc)
		if diff := cmp.Diff(got, want); err != nil || diff != "" {
			t.Errorf("%s: ParseReference(Encode(r)) = %v (-got +want):\n%s", name, err, diff)
		}
	}
	labels := fmt.Sprint(goodReference().Expect()[0].Label, "; ", goodReference().Expect()[2].Label)
	if want := "vmlinuz with 1 vCPU; vmlinuz with 1 vCPU of type EPYC-Milan"; labels != want {
		t.Errorf("labels = %q; want %q", labels, want)
	}
}

func TestReferenceRefused(t *testing.T) {
	good, err := goodReference().Encode()
	if err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string][2]string{
		"version 2":        {`"version": 1`, `"version": 2`},
		"capital member":   {`"append"`, `"Append"`},
		"unknown member":   {`"append"`, `"apend"`},
		"misplaced member": {`"append"`, `"digest"`},
		"repeated member":  {`"append"`, `"version": 1, "append"`},
		"capital hex":      {"0100000000", "0A00000000"},
		"short hex":        {`"sha256": "01`, `"sha256": "`},
		"directory":        {`"vmlinuz"`, `"../vmlinuz"`},
		"dots":             {`"vmlinuz"`, `".."`},
		"no file name":     {`"vmlinuz"`, `""`},
		"unknown TEE":      {`"emulated"`, `"tdx"`},
		"no vCPU":          {`"vcpus": 2`, `"vcpus": 0`},
		"same twice":       {`"vcpus": 2`, `"vcpus": 1`},
		"null":             {`"console=hvc0 <&> panic=-1"`, `null`},
		"number":           {`"console=hvc0 <&> panic=-1"`, `7`},
		"hardware, no CPU": {`"tee": "emulated"`, `"tee": "sev-snp"`},
		"zero digest":      {`"04`, `"00`},
	} {
		doc := strings.Replace(string(good), change[0], change[1], 1)
		if doc == string(good) {
			t.Errorf("%s: nothing changed", name)
		}
		if r, err := ParseReference([]byte(doc)); !errors.Is(err, ErrReference) || r.Measurements != nil {
			t.Errorf("%s: ParseReference = %v, %v; want ErrReference", name, r, err)
		}
	}
	for name, doc := range map[string]string{
		"empty": "", "array": "[]", "cut off": string(good[:100]), "two documents": string(good) + "{}",
		"no measurements": `{"version":1}`, "large": string(good) + strings.Repeat(" ", MaxReferenceSize),
		"deep": strings.Repeat(`{"kernel":`, 1000),
	} {
		if r, err := ParseReference([]byte(doc)); !errors.Is(err, ErrReference) || r.Measurements != nil {
			t.Errorf("%s: ParseReference = %v, %v; want ErrReference", name, r, err)
		}
	}
	r := goodReference()
	r.Append = "\xff"
	if _, err := r.Encode(); !errors.Is(err, ErrReference) {
		t.Errorf("Encode of a command line that is no text = %v; want ErrReference", err)
	}
}

func FuzzParseReference(f *testing.F) {
	good, err := goodReference().Encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add([]byte(`{"version":1,"kernel":{"file":"k","sha256":""},"measurements":[{}]}`))
	f.Fuzz(func(t *testing.T, doc []byte) {
		r, err := ParseReference(doc)
		if err != nil {
			return
		}
		out, err := r.Encode()
		if err != nil {
			t.Fatalf("Encode = %v", err)
		}
		again, err := ParseReference(out)
		if diff := cmp.Diff(again, r); err != nil || diff != "" {
			t.Errorf("round trip: %v\n%s", err, diff)
		}
		if two, err := again.Encode(); err != nil || !bytes.Equal(two, out) {
			t.Errorf("encoding is not stable: %v", err)
		}
	})
}
