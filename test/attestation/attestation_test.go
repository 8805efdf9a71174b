// SPDX-License-Identifier: Apache-2.0

package attestation

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-sev-guest/abi"
	"github.com/google/go-sev-guest/validate"
	sevverify "github.com/google/go-sev-guest/verify"
	"github.com/google/go-sev-guest/verify/trust"
	"golang.org/x/sys/unix"

	"github.com/coffer-dev/coffer/guest/attest"
	"github.com/coffer-dev/coffer/host/emulator"
	"github.com/coffer-dev/coffer/owner/appraise"
	"github.com/coffer-dev/coffer/owner/measure"
	"github.com/coffer-dev/coffer/owner/verify"
	"github.com/coffer-dev/coffer/tee"
	"github.com/coffer-dev/coffer/tee/snp"
	"github.com/coffer-dev/coffer/tee/teetest"
)

// newRoot makes the one emulated root of these tests.
var newRoot = sync.OnceValues(func() (*emulator.Root, error) {
	dir, err := os.MkdirTemp("", "coffer-attestation-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	return emulator.LoadOrCreate(dir, nil)
})

func root(t testing.TB) *emulator.Root {
	t.Helper()
	r, err := newRoot()
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// channel returns the two ends of a byte channel like a virtio-serial port.
func channel(t testing.TB) (host, guest *os.File) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	return os.NewFile(uintptr(fds[0]), "host"), os.NewFile(uintptr(fds[1]), "guest")
}

const policy = "package policy\n"

// started is what the "VM" of these tests is started with.
func started(t testing.TB) emulator.Started {
	t.Helper()
	dir := t.TempDir()
	write := func(name string) string {
		name = filepath.Join(dir, name)
		if err := os.WriteFile(name, []byte(strings.Repeat(filepath.Base(name), 1000)), 0o600); err != nil {
			t.Fatal(err)
		}
		return name
	}
	return emulator.Started{Firmware: write("bios"), Kernel: write("kernel"), Initrd: write("initrd"), Append: "console=hvc0", VCPUs: 2}
}

// guest starts an emulated secure processor for what s says and returns the
// guest's way to it.
func guest(t testing.TB, s emulator.Started) *attest.Processor {
	t.Helper()
	measurement, err := emulator.Measure(s)
	if err != nil {
		t.Fatal(err)
	}
	p, err := emulator.New(root(t), emulator.Launch{Measurement: measurement, HostData: sha256.Sum256([]byte(policy))})
	if err != nil {
		t.Fatal(err)
	}
	host, port := channel(t)
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- p.Serve(ctx, host) }()
	a, err := attest.Open(attest.Config{Emulated: port})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel()
		if err := <-served; !errors.Is(err, context.Canceled) {
			t.Errorf("Serve = %v; want %v", err, context.Canceled)
		}
		if err := errors.Join(host.Close(), a.Close()); err != nil {
			t.Error(err)
		}
	})
	return a
}

func verifier(t testing.TB, cfg verify.Config) *verify.Verifier {
	t.Helper()
	v, err := verify.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func TestEmulatedBackend(t *testing.T) {
	teetest.Run(t, guest(t, started(t)), verifier(t, verify.Config{InsecureAcceptEmulated: true}))
}

func TestEmulatedBackendPinned(t *testing.T) {
	teetest.Run(t, guest(t, started(t)), verifier(t, verify.Config{InsecureAcceptEmulated: true, EmulatedRoot: root(t).ARK()}))
}

func attestNonce(t testing.TB, a tee.Attester, nonce []byte) tee.Evidence {
	t.Helper()
	b, err := tee.ChallengeBinding(nonce)
	if err != nil {
		t.Fatal(err)
	}
	e, err := a.Attest(t.Context(), b)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func TestHardwareVerifierRefusesEmulation(t *testing.T) {
	e := attestNonce(t, guest(t, started(t)), make([]byte, 32))
	if c, err := verifier(t, verify.Config{}).Verify(e, time.Now()); !errors.Is(err, verify.ErrNotAccepted) || c != nil {
		t.Errorf("Verify = %v, %v; want ErrNotAccepted", c, err)
	}
	e.Kind = tee.SEVSNP
	for _, cfg := range []verify.Config{{}, {InsecureAcceptEmulated: true, EmulatedRoot: root(t).ARK()}} {
		if c, err := verifier(t, cfg).Verify(e, time.Now()); !errors.Is(err, verify.ErrChain) || c != nil {
			t.Errorf("Verify of emulation called sev-snp = %v, %v; want ErrChain", c, err)
		}
	}
}

// TestStockVerifier gives the evidence to go-sev-guest as another relying
// party would: it refuses it under AMD's roots and takes it under ours.
func TestStockVerifier(t *testing.T) {
	e := attestNonce(t, guest(t, started(t)), make([]byte, 32))
	attestation, err := abi.ReportCertsToProto(append(e.Report, e.Certificates...))
	if err != nil {
		t.Fatal(err)
	}
	if err := sevverify.SnpAttestation(attestation, &sevverify.Options{DisableCertFetching: true}); err == nil {
		t.Error("go-sev-guest took an emulated report under AMD's roots")
	}
	emulated := trust.AMDRootCertsProduct(snp.EmulatedProductLine)
	emulated.ProductCerts = &trust.ProductCerts{}
	chain := attestation.GetCertificateChain()
	if err := emulated.ProductCerts.Decode(chain.GetAskCert(), chain.GetArkCert()); err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{"Milan", "Genoa", "Turin", "Unknown"} {
		err := sevverify.SnpAttestation(attestation, &sevverify.Options{
			DisableCertFetching: true, TrustedRoots: map[string][]*trust.AMDRootCerts{line: {emulated}},
		})
		if (err == nil) != (line == "Unknown") {
			t.Errorf("verify with the emulated root filed under %s = %v", line, err)
		}
	}
	host := sha256.Sum256([]byte(policy))
	if err := validate.SnpAttestation(attestation, &validate.Options{GuestPolicy: abi.SnpPolicy{SMT: true}, HostData: host[:]}); err != nil {
		t.Errorf("validate = %v", err)
	}
}

// TestWhatWasStarted follows a launch from its files to the verdict, and
// changes each file in turn.
func TestWhatWasStarted(t *testing.T) {
	s := started(t)
	read := func(name string) []byte {
		data, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	digest, err := measure.Emulated(snp.Inputs{
		Firmware: read(s.Firmware), Kernel: sha256.Sum256(read(s.Kernel)), Initrd: sha256.Sum256(read(s.Initrd)), Append: s.Append, VCPUs: s.VCPUs,
	})
	if err != nil {
		t.Fatal(err)
	}
	nonce := []byte("a nonce of the relying party")
	want := appraise.Expected{
		InsecureAcceptEmulated: true, Policy: []byte(policy), Nonce: nonce,
		Measurements: []appraise.Measurement{{Label: "the reviewed guest", TEE: tee.Emulated, Digest: digest}},
	}
	if v := judge(t, s, nonce, want); !v.Trusted {
		t.Errorf("verdict on what was reviewed: %s", show(t, v))
	}
	for name, change := range map[string]func(*emulator.Started, *appraise.Expected) string{
		"kernel": func(s *emulator.Started, _ *appraise.Expected) string {
			s.Kernel = s.Initrd
			return appraise.CheckMeasurement
		},
		"initrd": func(s *emulator.Started, _ *appraise.Expected) string {
			s.Initrd = s.Kernel
			return appraise.CheckMeasurement
		},
		"no initrd": func(s *emulator.Started, _ *appraise.Expected) string {
			s.Initrd = ""
			return appraise.CheckMeasurement
		},
		"firmware": func(s *emulator.Started, _ *appraise.Expected) string {
			s.Firmware = s.Kernel
			return appraise.CheckMeasurement
		},
		"command line": func(s *emulator.Started, _ *appraise.Expected) string {
			s.Append += " init=/bin/sh"
			return appraise.CheckMeasurement
		},
		"vCPUs": func(s *emulator.Started, _ *appraise.Expected) string { s.VCPUs++; return appraise.CheckMeasurement },
		"policy": func(_ *emulator.Started, e *appraise.Expected) string {
			e.Policy = []byte("x")
			return appraise.CheckHostData
		},
		"replay": func(_ *emulator.Started, e *appraise.Expected) string {
			e.Nonce = make([]byte, 32)
			return appraise.CheckReportData
		},
		"not accepted": func(_ *emulator.Started, e *appraise.Expected) string {
			e.InsecureAcceptEmulated = false
			return appraise.CheckChain
		},
	} {
		s, want := s, want
		failed := change(&s, &want)
		v := judge(t, s, nonce, want)
		for _, c := range v.Checks {
			if (c.Status == appraise.Failed) != (c.Name == failed) {
				t.Errorf("%s changed: check %s %s: %s", name, c.Name, c.Status, c.Reason)
			}
		}
		if v.Trusted {
			t.Errorf("%s changed: trusted", name)
		}
	}
}

// judge launches s, asks for evidence with nonce and appraises it.
func judge(t *testing.T, s emulator.Started, nonce []byte, want appraise.Expected) *appraise.Verdict {
	t.Helper()
	c, err := verifier(t, verify.Config{InsecureAcceptEmulated: true}).Verify(attestNonce(t, guest(t, s), nonce), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	v, err := appraise.Appraise(c, want)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func show(t *testing.T, v *appraise.Verdict) string {
	t.Helper()
	out, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}
