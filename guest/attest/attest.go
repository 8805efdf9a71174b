// SPDX-License-Identifier: Apache-2.0

// Package attest gets evidence from the TEE that the guest runs in: from the
// kernel's SEV-SNP driver on hardware, from the host's emulated secure
// processor otherwise. In the second case it also offers /dev/sev-guest to the
// containers, so that programs written for the hardware work unchanged.
//
// It is part of the guest's TCB. It promises that emulation is never used
// where the kernel sees SEV-SNP, because the emulated processor says what the
// host wants to hear: with it, a host could tell a real guest a false
// HOST_DATA and so have it take a policy that was not measured. It verifies no
// signatures; on hardware the kernel's channel to the secure processor is
// encrypted and authenticated, on emulation there is nothing to trust.
package attest

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"

	"github.com/coffer-dev/coffer/tee"
	"github.com/coffer-dev/coffer/tee/snp"
)

// Errors that callers branch on.
var (
	// ErrNoTEE means that there is neither hardware nor an emulated channel.
	ErrNoTEE = errors.New("no TEE: the kernel offers no SEV-SNP device and there is no emulated secure processor")
	// ErrEmulationRefused means that an emulated channel was offered to a
	// guest that runs on real SEV-SNP.
	ErrEmulationRefused = errors.New("the host offers an emulated secure processor to a guest on real SEV-SNP")
	// ErrAnswer means that the secure processor's answer does not fit the
	// question.
	ErrAnswer = errors.New("unfitting answer of the secure processor")
)

// StatusError is a refusal by the secure processor.
type StatusError struct{ Status snp.Status }

// Error names the status in hex, as AMD's documents do.
func (e *StatusError) Error() string {
	return fmt.Sprintf("secure processor refuses with status %#x", uint32(e.Status))
}

// Config says where to look for the TEE.
type Config struct {
	// Emulated is the channel to the host's emulated secure processor, a
	// virtio-serial port; nil on hardware. Open takes it over, also when it
	// fails.
	Emulated *os.File

	// root stands before all paths; tests set it.
	root string
}

// Paths of the kernel's interfaces. The kernel makes platformPath, and sysPath
// since 6.11, exactly when SEV_STATUS, a register that the host cannot fake,
// says that SEV-SNP is active. tsmPath says nothing: it comes with a module.
const (
	devicePath   = "/dev/sev-guest"
	tsmPath      = "/sys/kernel/config/tsm/report"
	platformPath = "/sys/bus/platform/devices/sev-guest"
	sysPath      = "/sys/devices/system/cpu/sev"
)

// source is one way to the secure processor.
type source interface {
	// report returns a report over data at vmpl, and the certificate table if
	// the way has one at hand (nil otherwise). A *StatusError is the secure
	// processor's refusal.
	report(ctx context.Context, data [64]byte, vmpl uint32) (report, certs []byte, err error)
	close() error
}

// Processor is the guest's way to its secure processor. It is safe for
// concurrent use; the secure processor answers one request at a time.
type Processor struct {
	kind tee.Kind
	src  source

	closing  sync.Once
	closeErr error
}

// Open finds the TEE. The caller has loaded the kernel's drivers (sev-guest).
// It prefers /dev/sev-guest, then configfs-tsm, and uses cfg.Emulated only
// where the kernel says that this is no SEV-SNP guest.
func Open(cfg Config) (*Processor, error) {
	p, err := open(cfg)
	if err != nil {
		if cfg.Emulated != nil {
			err = errors.Join(err, cfg.Emulated.Close())
		}
		return nil, fmt.Errorf("opening TEE: %w", err)
	}
	return p, nil
}

func open(cfg Config) (*Processor, error) {
	device := filepath.Join(cfg.root, devicePath)
	tsm := filepath.Join(cfg.root, tsmPath)
	hardware := false
	for _, path := range []string{device, filepath.Join(cfg.root, platformPath), filepath.Join(cfg.root, sysPath)} {
		if _, err := os.Lstat(path); err == nil {
			hardware = true
		} else if !errors.Is(err, os.ErrNotExist) {
			// Not knowing is not the same as not being there.
			return nil, err
		}
	}
	if cfg.Emulated != nil {
		if hardware {
			return nil, ErrEmulationRefused
		}
		return newProcessor(tee.Emulated, newChannel(cfg.Emulated)), nil
	}
	f, err := os.OpenFile(device, os.O_RDWR, 0)
	if err == nil {
		return newProcessor(tee.SEVSNP, newDevice(f)), nil
	}
	if !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	if _, err := os.Stat(tsm); err == nil {
		return newProcessor(tee.SEVSNP, newConfigFS(osFS{tsm})), nil
	}
	return nil, ErrNoTEE
}

func newProcessor(kind tee.Kind, src source) *Processor { return &Processor{kind: kind, src: src} }

// Kind returns the kind of the evidence.
func (p *Processor) Kind() tee.Kind { return p.kind }

// Close ends the way to the secure processor, waiting for a request that is
// under way.
func (p *Processor) Close() error {
	p.closing.Do(func() { p.closeErr = p.src.close() })
	return p.closeErr
}

// Report returns a report of snp.ReportSize bytes over data at vmpl, and the
// certificate table, nil if there is none. A refusal is a *StatusError. On
// emulation the host may withhold the answer, so give ctx an end.
func (p *Processor) Report(ctx context.Context, data [64]byte, vmpl uint32) (report, certs []byte, err error) {
	if err := ctx.Err(); err != nil {
		return nil, nil, err
	}
	report, certs, err = p.src.report(ctx, data, vmpl)
	if err != nil {
		return nil, nil, err
	}
	r, err := snp.ParseReport(report)
	if err != nil {
		return nil, nil, fmt.Errorf("%w: %w", ErrAnswer, err)
	}
	if r.ReportData != data || r.VMPL != vmpl {
		return nil, nil, fmt.Errorf("%w: report for other data or VMPL %d", ErrAnswer, r.VMPL)
	}
	// An emulated report cannot pass for another kind, nor the reverse.
	if (r.Family == snp.EmulatedFamily) != (p.kind == tee.Emulated) {
		return nil, nil, fmt.Errorf("%w: CPU family %#x on %s", ErrAnswer, r.Family, p.kind)
	}
	list, err := snp.ParseCertificateTable(certs)
	if err != nil {
		return nil, nil, fmt.Errorf("%w: %w", ErrAnswer, err)
	}
	if len(list) == 0 {
		return report, nil, nil
	}
	// The kernel hands out whole pages; leave the padding behind.
	if certs, err = snp.EncodeCertificateTable(list); err != nil {
		return nil, nil, fmt.Errorf("%w: %w", ErrAnswer, err)
	}
	return report, certs, nil
}

// Attest implements tee.Attester. The evidence has no Policy; the caller may
// add it.
func (p *Processor) Attest(ctx context.Context, b tee.Binding) (tee.Evidence, error) {
	report, certs, err := p.Report(ctx, b, 0)
	if err != nil {
		return tee.Evidence{}, fmt.Errorf("attesting: %w", err)
	}
	return tee.Evidence{Kind: p.kind, Report: report, Certificates: certs}, nil
}

// HostData returns the HOST_DATA that the guest was launched with, as the
// guest's own secure processor tells it now.
func (p *Processor) HostData(ctx context.Context) ([32]byte, error) {
	var nonce [32]byte
	if _, err := rand.Read(nonce[:]); err != nil {
		return [32]byte{}, fmt.Errorf("reading host data: %w", err)
	}
	b, err := tee.ChallengeBinding(nonce[:])
	if err != nil {
		return [32]byte{}, fmt.Errorf("reading host data: %w", err)
	}
	report, _, err := p.Report(ctx, b, 0)
	if err != nil {
		return [32]byte{}, fmt.Errorf("reading host data: %w", err)
	}
	r, err := snp.ParseReport(report)
	if err != nil {
		return [32]byte{}, fmt.Errorf("reading host data: %w", err)
	}
	return r.HostData, nil
}
