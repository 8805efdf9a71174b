// SPDX-License-Identifier: Apache-2.0

// Package appraise compares verified claims with what their reader expects and
// says why they are or are not good enough. It promises that a Verdict is
// trusted only if every check that was asked for passed, and that leaving a
// check out takes a field whose name begins with Insecure. It does no I/O and
// reads no clock. The owner must trust this package; the claims must come from
// owner/verify.
package appraise

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"

	"github.com/coffer-dev/coffer/tee"
)

// Measurement is one acceptable launch digest.
type Measurement struct {
	// Label says what the digest stands for, in a reader's words.
	Label string
	// TEE is the kind of claims that it is compared with.
	TEE    tee.Kind
	Digest [48]byte
}

// Expected is what claims are compared with. The zero Expected is refused:
// for each of measurement, host data and nonce there must be a value or the
// explicit wish not to compare.
type Expected struct {
	// InsecureAcceptEmulated lets claims pass behind which no hardware stands.
	InsecureAcceptEmulated bool

	// Measurements are the acceptable launch digests; one must match.
	Measurements            []Measurement
	InsecureSkipMeasurement bool

	// Policy is the text whose SHA-256 must be the host data; nil compares
	// with HostData instead. Give both only if they agree.
	Policy []byte
	// HostData must be the host data; nil compares with Policy only.
	HostData             *[32]byte
	InsecureSkipHostData bool

	// Nonce is the reader's challenge, whose tee.ChallengeBinding must be the
	// report data; nil compares with ReportData instead.
	Nonce []byte
	// ReportData is for protocols with a binding of their own; nil compares
	// with Nonce only.
	ReportData             *tee.Binding
	InsecureSkipReportData bool

	// MinTCB is the oldest acceptable reported TCB; nil accepts any, which
	// the verdict says.
	MinTCB *tee.TCB
	// InsecureAllowDebug lets guests pass that the host may read. The verifier
	// needs the same option, or there are no claims.
	InsecureAllowDebug bool
}

// Why no verdict could be reached.
var (
	ErrNoClaims   = errors.New("no claims to appraise")
	ErrIncomplete = errors.New("incomplete expectations")
)

// Status is the outcome of one check.
type Status string

// Outcomes of a check.
const (
	Passed  Status = "passed"
	Failed  Status = "failed"
	Skipped Status = "skipped"
)

// Check is the outcome of one comparison.
type Check struct {
	Name   string `json:"name"`
	Status Status `json:"status"`
	// Reason is for people.
	Reason string `json:"reason"`
	// Want and Got are set when something was compared and differs, or when it
	// was not compared (Got only).
	Want []string `json:"want,omitempty"`
	Got  string   `json:"got,omitempty"`
}

// Names of the checks, in the order in which a Verdict has them.
const (
	CheckChain       = "chain"
	CheckTCB         = "tcb"
	CheckDebug       = "debug"
	CheckMeasurement = "measurement"
	CheckHostData    = "host-data"
	CheckReportData  = "report-data"
)

// Verdict is the outcome of an appraisal. Checks always has all six, in the
// order above.
type Verdict struct {
	// Trusted is true if no check failed. Read Checks for what was skipped and
	// Claims.Insecure for emulation.
	Trusted bool
	Checks  []Check
	Claims  *tee.Claims
}

// Appraise compares claims with what is expected. A Verdict that is not
// trusted is not an error; an error means that there is no verdict.
func Appraise(claims *tee.Claims, want Expected) (*Verdict, error) {
	if claims == nil || !claims.Kind.Valid() {
		return nil, fmt.Errorf("appraising: %w", ErrNoClaims)
	}
	if err := want.check(); err != nil {
		return nil, fmt.Errorf("appraising: %w", err)
	}
	reportData, err := want.reportData(claims)
	if err != nil {
		return nil, fmt.Errorf("appraising: %w", err)
	}
	v := &Verdict{Trusted: true, Claims: claims, Checks: []Check{
		want.chain(claims), want.tcb(claims), want.debug(claims),
		want.measurement(claims), want.hostData(claims), reportData,
	}}
	for _, c := range v.Checks {
		if c.Status == Failed {
			v.Trusted = false
		}
	}
	return v, nil
}

// check refuses expectations that would compare nothing without saying so, or
// say two things.
func (e Expected) check() error {
	for _, f := range []struct {
		what        string
		given, skip bool
	}{
		{"reference measurements", len(e.Measurements) > 0, e.InsecureSkipMeasurement},
		{"policy or host data", e.Policy != nil || e.HostData != nil, e.InsecureSkipHostData},
		{"nonce or report data", e.Nonce != nil || e.ReportData != nil, e.InsecureSkipReportData},
	} {
		if !f.given && !f.skip {
			return fmt.Errorf("%w: no %s, and nobody asked to skip the check", ErrIncomplete, f.what)
		}
		if f.given && f.skip {
			return fmt.Errorf("%w: %s given and to be skipped", ErrIncomplete, f.what)
		}
	}
	for _, m := range e.Measurements {
		if !m.TEE.Valid() {
			return fmt.Errorf("%w: reference %q is for no known TEE", ErrIncomplete, m.Label)
		}
	}
	if e.Policy != nil && e.HostData != nil && sha256.Sum256(e.Policy) != *e.HostData {
		return fmt.Errorf("%w: host data is not SHA-256 of the policy", ErrIncomplete)
	}
	if e.Nonce != nil && e.ReportData != nil {
		return fmt.Errorf("%w: both nonce and report data", ErrIncomplete)
	}
	return nil
}

func (e Expected) chain(c *tee.Claims) Check {
	out := Check{Name: CheckChain, Status: Passed}
	signer := fmt.Sprintf("%s of product line %s, root SHA-256 %x", c.SigningKey, c.ProductLine, c.RootSHA256)
	switch {
	case !c.Insecure && c.Kind == tee.SEVSNP:
		out.Reason = "signed by AMD hardware: " + signer
	case e.InsecureAcceptEmulated:
		out.Reason = "EMULATED, no hardware stands behind it: " + signer
	default:
		out.Status = Failed
		out.Reason = "emulated, and emulation is not accepted"
		out.Want, out.Got = []string{string(tee.SEVSNP)}, string(c.Kind)
	}
	return out
}

func (e Expected) tcb(c *tee.Claims) Check {
	out := Check{Name: CheckTCB, Status: Passed, Reason: "firmware is new enough", Got: c.ReportedTCB.String()}
	switch {
	case e.MinTCB == nil:
		out.Status, out.Reason = Skipped, "no minimum was given"
	case !c.ReportedTCB.AtLeast(*e.MinTCB):
		out.Status, out.Reason = Failed, "firmware is older than the minimum"
		out.Want = []string{e.MinTCB.String()}
	}
	return out
}

func (e Expected) debug(c *tee.Claims) Check {
	out := Check{Name: CheckDebug, Status: Passed, Reason: "the host may not debug the guest"}
	if c.GuestPolicy.Debug() {
		out.Status, out.Reason, out.Got = Failed, "the host may read the guest's memory", c.GuestPolicy.String()
		if e.InsecureAllowDebug {
			out.Status = Skipped
		}
	}
	return out
}

func (e Expected) measurement(c *tee.Claims) Check {
	got := hex.EncodeToString(c.Measurement[:])
	if e.InsecureSkipMeasurement {
		return Check{Name: CheckMeasurement, Status: Skipped, Reason: "not compared: any guest may have signed this", Got: got}
	}
	out := Check{Name: CheckMeasurement, Status: Failed, Got: got}
	for _, m := range e.Measurements {
		if m.TEE == c.Kind && m.Digest == c.Measurement {
			return Check{Name: CheckMeasurement, Status: Passed, Reason: "launched as " + m.Label}
		}
		out.Want = append(out.Want, fmt.Sprintf("%x (%s, %s)", m.Digest, m.TEE, m.Label))
	}
	out.Reason = fmt.Sprintf("what was launched is none of %d references: firmware, kernel, initrd, command line or vCPUs differ", len(e.Measurements))
	return out
}

func (e Expected) hostData(c *tee.Claims) Check {
	got := hex.EncodeToString(c.HostData[:])
	if e.InsecureSkipHostData {
		return Check{Name: CheckHostData, Status: Skipped, Reason: "not compared: the guest may run under any policy", Got: got}
	}
	want, what := [32]byte{}, "the expected value"
	if e.HostData != nil {
		want = *e.HostData
	}
	if e.Policy != nil {
		want, what = sha256.Sum256(e.Policy), "SHA-256 of the policy"
	}
	if c.HostData == want {
		return Check{Name: CheckHostData, Status: Passed, Reason: "host data is " + what}
	}
	return Check{
		Name: CheckHostData, Status: Failed, Reason: "host data is not " + what + ": the guest runs under another policy",
		Want: []string{hex.EncodeToString(want[:])}, Got: got,
	}
}

// reportData fails without a verdict on a nonce of a size that cannot be bound.
func (e Expected) reportData(c *tee.Claims) (Check, error) {
	got := hex.EncodeToString(c.ReportData[:])
	if e.InsecureSkipReportData {
		return Check{Name: CheckReportData, Status: Skipped, Reason: "not compared: the evidence may be old or meant for somebody else", Got: got}, nil
	}
	var want tee.Binding
	what := "the expected binding"
	if e.ReportData != nil {
		want = *e.ReportData
	} else {
		var err error
		if want, err = tee.ChallengeBinding(e.Nonce); err != nil {
			return Check{}, err
		}
		what = "the binding of the nonce"
	}
	if bytes.Equal(c.ReportData[:], want[:]) {
		return Check{Name: CheckReportData, Status: Passed, Reason: "report data is " + what}, nil
	}
	return Check{
		Name: CheckReportData, Status: Failed, Reason: "report data is not " + what + ": the evidence was made for another challenge",
		Want: []string{hex.EncodeToString(want[:])}, Got: got,
	}, nil
}
