// SPDX-License-Identifier: Apache-2.0

// Package emulator plays the secure processor of SEV-SNP where the hardware is
// missing. It signs reports in SEV-SNP's own format under a root made on this
// machine and reaches the guest over one byte channel, on which it answers
// only requests for reports and for its certificates.
//
// It protects nothing and promises nothing to a relying party: whoever runs
// the host holds the keys and can have any report signed. Its use is that all
// other code, the policy path included, runs as on hardware. CPU family,
// product line and a marker in every certificate set it apart from AMD's, so
// that no verifier of hardware can take it for such by accident.
//
// The guest on the other side of the channel is hostile to this package:
// frames have fixed sizes and nothing that a guest sends is kept.
package emulator

import (
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha512"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/coffer-dev/coffer/tee"
	"github.com/coffer-dev/coffer/tee/snp"
)

// Launch is what the secure processor knows of one guest.
type Launch struct {
	// Measurement is the launch digest of what is really started, see Started.
	Measurement [48]byte
	// HostData is SHA-256 of the execution policy, zero without one.
	HostData [32]byte
	// Policy is the guest policy; zero means tee.PolicyDefault.
	Policy   tee.GuestPolicy
	GuestSVN uint32
	FamilyID [16]byte
	ImageID  [16]byte
}

// Processor is the emulated secure processor of one guest. It may serve
// several channels at once.
type Processor struct {
	root     *Root
	launch   Launch
	reportID [32]byte
	table    []byte
}

// reportVersion is the first whose reports carry the CPU family, which is what
// keeps the emulated product line apart.
const reportVersion = 3

// firmwareVersion is the API version of the emulated firmware.
const (
	firmwareBuild = 1
	firmwareMinor = 55
	firmwareMajor = 1
)

// platformTCB returns the one TCB that every emulated platform has.
func platformTCB() tee.TCB { return tee.TCB{BootLoader: 1, TEE: 1, SNP: 1, Microcode: 1} }

// New returns the secure processor of a guest that is about to start. Each has
// its own report ID.
func New(root *Root, l Launch) (*Processor, error) {
	if l.Policy == 0 {
		l.Policy = tee.PolicyDefault
	}
	table, err := root.certificateTable()
	if err != nil {
		return nil, fmt.Errorf("starting emulated processor: %w", err)
	}
	p := &Processor{root: root, launch: l, table: table}
	if _, err := rand.Read(p.reportID[:]); err != nil {
		return nil, fmt.Errorf("starting emulated processor: %w", err)
	}
	// Fail now rather than at the first report if the launch makes no report.
	if _, err := p.Report([64]byte{}, 0); err != nil {
		return nil, fmt.Errorf("starting emulated processor: %w", err)
	}
	return p, nil
}

// ErrVMPL is returned for a report at a VMPL that does not exist.
var ErrVMPL = errors.New("VMPL must be 0 to 3")

// Report returns a signed report of snp.ReportSize bytes over data. The guest
// is taken to run at VMPL 0, so any level may be asked for.
func (p *Processor) Report(data [64]byte, vmpl uint32) ([]byte, error) {
	if vmpl > 3 {
		return nil, ErrVMPL
	}
	tcb := snp.EncodeTCB(platformTCB(), snp.EmulatedFamily)
	version := snp.FirmwareVersion{Build: firmwareBuild, Minor: firmwareMinor, Major: firmwareMajor}
	r := &snp.Report{
		Version:      reportVersion,
		GuestSVN:     p.launch.GuestSVN,
		Policy:       p.launch.Policy,
		FamilyID:     p.launch.FamilyID,
		ImageID:      p.launch.ImageID,
		VMPL:         vmpl,
		SignatureAlg: snp.SignatureECDSAP384SHA384,
		CurrentTCB:   tcb, ReportedTCB: tcb, CommittedTCB: tcb, LaunchTCB: tcb,
		Signer:      snp.SignedByVCEK,
		ReportData:  data,
		Measurement: p.launch.Measurement,
		HostData:    p.launch.HostData,
		ReportID:    p.reportID,
		Family:      snp.EmulatedFamily, Model: snp.EmulatedModel, Stepping: snp.EmulatedStepping,
		ChipID:  p.root.chipID,
		Current: version, Committed: version,
	}
	for i := range r.ReportIDMA {
		r.ReportIDMA[i] = 0xFF // no migration agent
	}
	unsigned, err := r.Marshal()
	if err != nil {
		return nil, fmt.Errorf("building report: %w", err)
	}
	if err := sign(r, unsigned, p.root.vcekKey); err != nil {
		return nil, fmt.Errorf("signing report: %w", err)
	}
	return r.Marshal()
}

// sign puts the ECDSA signature over r's signed part into r, R and S
// little-endian (the ABI, table 134).
func sign(r *snp.Report, unsigned []byte, key *ecdsa.PrivateKey) error {
	digest := sha512.Sum384(unsigned[:snp.SignedSize])
	x, y, err := ecdsa.Sign(rand.Reader, key, digest[:])
	if err != nil {
		return err
	}
	x.FillBytes(r.SignatureR[:])
	y.FillBytes(r.SignatureS[:])
	slices.Reverse(r.SignatureR[:])
	slices.Reverse(r.SignatureS[:])
	return nil
}

// Serve answers a guest's requests on its channel until the channel ends,
// which gives nil, or ctx is done, which gives ctx's error. It ends the
// channel, by its deadline or by closing it, to leave a blocked read; a channel
// that has neither must be closed by the caller. A frame that makes no sense
// ends Serve with an error that wraps snp.ErrChannel: the guest is broken or
// hostile.
func (p *Processor) Serve(ctx context.Context, channel io.ReadWriter) error {
	stop := context.AfterFunc(ctx, func() { interrupt(channel) })
	defer stop()
	err := p.serve(channel)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil {
		return fmt.Errorf("serving emulated processor: %w", err)
	}
	return nil
}

func (p *Processor) serve(channel io.ReadWriter) error {
	var frame [snp.ChannelRequestSize]byte
	for {
		if _, err := io.ReadFull(channel, frame[:]); err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return fmt.Errorf("reading request: %w", err)
		}
		request, err := snp.DecodeChannelRequest(frame)
		if err != nil {
			return err
		}
		reply, err := p.answer(request)
		if err != nil {
			return err
		}
		out, err := reply.Encode()
		if err != nil {
			return err
		}
		if _, err := channel.Write(out); err != nil {
			return fmt.Errorf("writing reply: %w", err)
		}
	}
}

// answer returns the reply to a well-formed request.
func (p *Processor) answer(request snp.ChannelRequest) (snp.ChannelReply, error) {
	reply := snp.ChannelReply{Type: request.Type, Sequence: request.Sequence}
	if request.Type == snp.GetCertificates {
		reply.Body = p.table
		return reply, nil
	}
	body, err := p.Report(request.Data, request.VMPL)
	if errors.Is(err, ErrVMPL) {
		reply.Status = snp.StatusInvalidParameter
		return reply, nil
	}
	reply.Body = body
	return reply, err
}

// interrupt makes blocked reads and writes on the channel return.
func interrupt(channel io.ReadWriter) {
	if d, ok := channel.(interface{ SetDeadline(time.Time) error }); ok {
		if d.SetDeadline(time.Unix(1, 0)) == nil {
			return
		}
	}
	if c, ok := channel.(io.Closer); ok {
		_ = c.Close() // only to unblock; the caller closes and reports
	}
}
