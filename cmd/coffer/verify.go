// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/coffer-dev/coffer/owner/appraise"
	"github.com/coffer-dev/coffer/owner/verify"
	"github.com/coffer-dev/coffer/tee"
)

type verifyFlags struct {
	nonce, policy, hostData, emulatedRoot string
	references                            []string
	insecureEmulated, insecureSkipMeasure bool
	insecureSkipHostData, insecureSkip    bool
	insecureDebug                         bool
}

func (a *app) verifyCommand() *cobra.Command {
	var f verifyFlags
	cmd := &cobra.Command{
		Use:   "verify EVIDENCE",
		Short: "Check evidence offline, and say why it is or is not to be trusted",
		Long: `Checks an evidence document, as ` + "`coffer attest`" + ` writes it: the chain of
certificates up to AMD's root, the report's signature, the debug bit, the launch
digest against reference values, HOST_DATA against the policy, and REPORT_DATA
against the nonce. The platform's TCB is shown (--json) and not judged yet.
Nothing is fetched. EVIDENCE may be -.

The exit status is 0 only if every check that was made passed; only those that an
--insecure flag names, and the TCB, are left out.`,
		Args: usage(cobra.ExactArgs(1)),
		RunE: func(c *cobra.Command, args []string) error { return a.verify(c, f, args[0]) },
	}
	flags := cmd.Flags()
	flags.StringVar(&f.nonce, "nonce", "", "the `hex` nonce that the evidence must answer")
	flags.StringVar(&f.policy, "policy", "", "`file` with the policy that the group must run under")
	flags.StringVar(&f.hostData, "host-data", "", "the policy's SHA-256 in `hex`, instead of the policy")
	flags.StringArrayVar(&f.references, "reference", nil, "`guest.json` whose launch digests are acceptable (may be repeated)")
	flags.BoolVar(&f.insecureEmulated, "insecure-accept-emulated", false, "accept an emulated TEE, which proves nothing")
	flags.StringVar(&f.emulatedRoot, "emulated-root", "", "PEM `file` of the only emulated root to accept")
	flags.BoolVar(&f.insecureSkipMeasure, "insecure-skip-measurement", false, "do not compare the launch digest")
	flags.BoolVar(&f.insecureSkipHostData, "insecure-skip-policy", false, "do not compare HOST_DATA")
	flags.BoolVar(&f.insecureSkip, "insecure-skip-nonce", false, "do not compare REPORT_DATA: the evidence may be a replay")
	flags.BoolVar(&f.insecureDebug, "insecure-allow-debug", false, "accept guests whose memory the host may read")
	flags.BoolVar(&a.json, "json", false, "write the verdict as JSON")
	return cmd
}

func (a *app) verify(c *cobra.Command, f verifyFlags, path string) error {
	want, err := f.expected()
	if err != nil {
		return usageError(c, err)
	}
	doc, err := readFile(path, tee.MaxEvidenceSize)
	if err != nil {
		return err
	}
	evidence, err := tee.DecodeEvidence(doc)
	if err != nil {
		return hint(fmt.Errorf("%s: %w", path, err), "`coffer attest NAME --nonce HEX` writes evidence")
	}
	if err := f.files(&want); err != nil {
		return err
	}
	verifier, err := f.verifier()
	if err != nil {
		return err
	}
	claims, err := verifier.Verify(evidence, time.Now())
	if err != nil {
		return adviseVerify(err)
	}
	verdict, err := appraise.Appraise(claims, want)
	if err != nil {
		return err
	}
	if a.json {
		if err := printJSON(a.stdout, verdict); err != nil {
			return err
		}
	} else {
		a.printVerdict(verdict)
	}
	if !verdict.Trusted {
		return &statusError{code: exitFailure}
	}
	return nil
}

func (f *verifyFlags) expected() (appraise.Expected, error) {
	want := appraise.Expected{InsecureAcceptEmulated: f.insecureEmulated, InsecureSkipMeasurement: f.insecureSkipMeasure,
		InsecureSkipHostData: f.insecureSkipHostData, InsecureSkipReportData: f.insecureSkip, InsecureAllowDebug: f.insecureDebug}
	switch {
	case f.nonce == "" && !f.insecureSkip:
		return want, errors.New("no --nonce: without one the evidence may be a replay (--insecure-skip-nonce accepts that)")
	case len(f.references) == 0 && !f.insecureSkipMeasure:
		return want, errors.New("no --reference: any guest would do (--insecure-skip-measurement accepts that)")
	case f.policy == "" && f.hostData == "" && !f.insecureSkipHostData:
		return want, errors.New("no --policy and no --host-data: any policy would do (--insecure-skip-policy accepts that)")
	}
	var err error
	if f.nonce != "" {
		if want.Nonce, err = hex.DecodeString(f.nonce); err != nil {
			return want, fmt.Errorf("--nonce is not hex: %w", err)
		}
	}
	if f.hostData != "" {
		b, err := hex.DecodeString(f.hostData)
		if err != nil || len(b) != 32 {
			return want, errors.New("--host-data must be 64 hex digits")
		}
		want.HostData = (*[32]byte)(b)
	}
	return want, nil
}

// files adds what is read from files.
func (f *verifyFlags) files(want *appraise.Expected) error {
	if f.policy != "" {
		text, err := readFile(f.policy, tee.MaxPolicySize)
		if err != nil {
			return err
		}
		want.Policy = text
	}
	for _, path := range f.references {
		ref, err := readReference(path)
		if err != nil {
			return err
		}
		want.Measurements = append(want.Measurements, ref.Expect()...)
	}
	return nil
}

func (f *verifyFlags) verifier() (*verify.Verifier, error) {
	cfg := verify.Config{InsecureAcceptEmulated: f.insecureEmulated, InsecureAllowDebug: f.insecureDebug}
	if f.emulatedRoot != "" {
		text, err := readFile(f.emulatedRoot, 64<<10)
		if err != nil {
			return nil, err
		}
		block, _ := pem.Decode(text)
		if block == nil {
			return nil, fmt.Errorf("%s: not PEM", f.emulatedRoot)
		}
		cfg.EmulatedRoot = block.Bytes
	}
	return verify.New(cfg)
}

func adviseVerify(err error) error {
	if errors.Is(err, verify.ErrNotAccepted) {
		return hint(err, "this evidence is emulated: anybody can have made it. For trying out, --insecure-accept-emulated accepts it")
	}
	return err
}

func (a *app) printVerdict(v *appraise.Verdict) {
	c := v.Claims
	fmt.Fprintf(a.stdout, "platform     %s", c.Kind)
	if c.Insecure {
		fmt.Fprint(a.stdout, "  (NOT HARDWARE: this proves nothing to anybody)")
	}
	fmt.Fprintf(a.stdout, "\nproduct      %s, signed by %s\n", c.ProductLine, c.SigningKey)
	for _, check := range v.Checks {
		fmt.Fprintf(a.stdout, "%-12s %s  %s\n", check.Name, mark(check.Status), check.Reason)
		if check.Status != appraise.Failed {
			continue
		}
		for _, w := range check.Want {
			fmt.Fprintf(a.stdout, "%-12s       want %s\n", "", w)
		}
		if check.Got != "" {
			fmt.Fprintf(a.stdout, "%-12s       got  %s\n", "", check.Got)
		}
	}
	verdict := "TRUSTED"
	switch {
	case !v.Trusted:
		verdict = "REFUSED"
	case c.Insecure:
		verdict = "as expected, but emulated"
	case slices.ContainsFunc(v.Checks, func(c appraise.Check) bool { return c.Status == appraise.Skipped }):
		verdict = "TRUSTED as far as it was checked"
	}
	fmt.Fprintf(a.stdout, "verdict      %s\n", verdict)
}

func mark(s appraise.Status) string {
	switch s {
	case appraise.Passed:
		return "ok  "
	case appraise.Failed:
		return "FAIL"
	default:
		return "skip"
	}
}
