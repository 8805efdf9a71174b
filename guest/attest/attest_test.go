// SPDX-License-Identifier: Apache-2.0

package attest

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/coffer-dev/coffer/tee"
	"github.com/coffer-dev/coffer/tee/snp"
)

// makeReport returns an unsigned emulated report; this package checks no
// signatures.
func makeReport(t testing.TB, data [64]byte, vmpl uint32) []byte {
	t.Helper()
	r := snp.Report{
		Version: 3, Policy: tee.PolicyDefault, SignatureAlg: 1, Family: snp.EmulatedFamily,
		VMPL: vmpl, ReportData: data, HostData: [32]byte{0xAB},
	}
	out, err := r.Marshal()
	if err != nil {
		t.Error(err)
	}
	return out
}

func makeTable(t testing.TB, size int) []byte {
	t.Helper()
	guid, err := snp.ParseGUID(string(snp.CertVCEK))
	if err != nil {
		t.Fatal(err)
	}
	out, err := snp.EncodeCertificateTable([]snp.Certificate{{GUID: guid, Data: bytes.Repeat([]byte{0xC5}, size-48)}})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// fakeProcessor answers on the far end of a channel. change, if not nil, may
// spoil a reply; returning false withholds it.
func fakeProcessor(t testing.TB, table []byte, change func(*snp.ChannelReply) bool) *Processor {
	t.Helper()
	near, far := net.Pipe()
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			var frame [snp.ChannelRequestSize]byte
			if _, err := io.ReadFull(far, frame[:]); err != nil {
				return
			}
			q, err := snp.DecodeChannelRequest(frame)
			if err != nil {
				t.Errorf("guest sent a bad request: %v", err)
				return
			}
			r := snp.ChannelReply{Type: q.Type, Sequence: q.Sequence, Body: table}
			if q.Type == snp.GetReport {
				if r.Body = nil; q.VMPL > 3 {
					r.Status = snp.StatusInvalidParameter
				} else {
					r.Body = makeReport(t, q.Data, q.VMPL)
				}
			}
			if change != nil && !change(&r) {
				continue
			}
			out, err := r.Encode()
			if err != nil {
				t.Errorf("encoding reply: %v", err)
				return
			}
			if _, err := far.Write(out); err != nil {
				return
			}
		}
	})
	p := newProcessor(tee.Emulated, newChannel(near))
	t.Cleanup(func() {
		_ = far.Close()
		if err := p.Close(); err != nil {
			t.Errorf("Close = %v", err)
		}
		wg.Wait()
	})
	return p
}

func TestAttest(t *testing.T) {
	table := makeTable(t, 500)
	p := fakeProcessor(t, table, nil)
	b := tee.Binding{1, 2, 3}
	e, err := p.Attest(t.Context(), b)
	if err != nil {
		t.Fatal(err)
	}
	r, err := snp.ParseReport(e.Report)
	if err != nil || r.ReportData != b || e.Kind != tee.Emulated || !bytes.Equal(e.Certificates, table) {
		t.Errorf("Attest = kind %q, report data %x, %d bytes of certificates, %v", e.Kind, r.ReportData, len(e.Certificates), err)
	}
	host, err := p.HostData(t.Context())
	if err != nil || host != [32]byte{0xAB} {
		t.Errorf("HostData = %x, %v", host, err)
	}
	var refused *StatusError
	if _, _, err := p.Report(t.Context(), b, 4); !errors.As(err, &refused) || refused.Status != snp.StatusInvalidParameter {
		t.Errorf("Report at VMPL 4 = %v; want status %#x", err, uint32(snp.StatusInvalidParameter))
	}
	// A refusal leaves the channel in step.
	if _, err := p.Attest(t.Context(), b); err != nil {
		t.Errorf("Attest after a refusal = %v", err)
	}
}

// TestLyingHost spoils the reply to each report.
func TestLyingHost(t *testing.T) {
	spoil := func(at int, with byte) func(*snp.ChannelReply) bool {
		return func(r *snp.ChannelReply) bool {
			if r.Type == snp.GetReport {
				r.Body[at] ^= with
			}
			return true
		}
	}
	for _, tt := range []struct {
		name   string
		change func(*snp.ChannelReply) bool
		want   error
	}{
		{"other report data", spoil(0x50, 1), ErrAnswer},
		{"other VMPL", spoil(0x30, 1), ErrAnswer},
		{"hardware's family", spoil(0x188, snp.EmulatedFamily^0x19), ErrAnswer},
		{"malformed report", spoil(0x4C, 1), ErrAnswer},
		{"version 9", spoil(0, 3^9), ErrAnswer},
		{"sequence", func(r *snp.ChannelReply) bool { r.Sequence++; return true }, ErrAnswer},
		{"certificates for a report", func(r *snp.ChannelReply) bool { r.Type = snp.GetCertificates; return true }, ErrAnswer},
		{"malformed table", func(r *snp.ChannelReply) bool {
			if r.Type == snp.GetCertificates {
				r.Body = []byte("no table")
			}
			return true
		}, ErrAnswer},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := fakeProcessor(t, makeTable(t, 100), tt.change)
			if e, err := p.Attest(t.Context(), tee.Binding{}); !errors.Is(err, tt.want) || e.Report != nil {
				t.Errorf("Attest = %d bytes, %v; want %v", len(e.Report), err, tt.want)
			}
		})
	}
}

// TestWithheld checks that callers can leave a host that does not answer, and
// that its late answer does not reach another caller.
func TestWithheld(t *testing.T) {
	release := make(chan struct{})
	first := true
	p := fakeProcessor(t, makeTable(t, 100), func(*snp.ChannelReply) bool {
		if first {
			<-release
			first = false
		}
		return true
	})
	ctx, cancel := context.WithCancel(t.Context())
	left := make(chan error)
	for i := range 2 {
		go func() {
			_, err := p.Attest(ctx, tee.Binding{byte(i)})
			left <- err
		}()
	}
	cancel()
	for range 2 {
		if err := <-left; !errors.Is(err, context.Canceled) {
			t.Errorf("Attest of a withheld report = %v; want %v", err, context.Canceled)
		}
	}
	close(release)
	b := tee.Binding{0xEE}
	e, err := p.Attest(t.Context(), b)
	if err != nil {
		t.Fatal(err)
	}
	if r, err := snp.ParseReport(e.Report); err != nil || r.ReportData != b {
		t.Errorf("Attest got another caller's report: %v", err)
	}
}

func TestHostHangsUp(t *testing.T) {
	near, far := net.Pipe()
	p := newProcessor(tee.Emulated, newChannel(near))
	if err := far.Close(); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if _, err := p.Attest(t.Context(), tee.Binding{}); err == nil {
			t.Error("Attest without a host succeeded")
		}
	}
	for range 2 {
		if err := p.Close(); err != nil {
			t.Errorf("Close = %v", err)
		}
	}
	if _, err := p.Attest(t.Context(), tee.Binding{}); !errors.Is(err, errClosed) {
		t.Errorf("Attest after Close = %v; want %v", err, errClosed)
	}
}

func FuzzChannelReplies(f *testing.F) {
	good, err := snp.ChannelReply{Type: snp.GetReport, Sequence: 1, Body: makeReport(f, [64]byte{}, 0)}.Encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add([]byte("CSP1"))
	f.Fuzz(func(t *testing.T, bytes []byte) {
		p := newProcessor(tee.Emulated, inline{newChannel(&replay{data: bytes})})
		e, err := p.Attest(t.Context(), tee.Binding{})
		if (err == nil) != (e.Report != nil) {
			t.Errorf("Attest = %d bytes, %v", len(e.Report), err)
		}
	})
}

// inline is a channel without goroutines, which fuzzing's coverage dislikes.
type inline struct{ *channel }

func (c inline) report(_ context.Context, data [64]byte, vmpl uint32) ([]byte, []byte, error) {
	return c.fetch(data, vmpl)
}

// replay is a channel on which a host says data, whatever it is asked.
type replay struct{ data []byte }

func (r *replay) Read(p []byte) (int, error) {
	if len(r.data) == 0 {
		return 0, io.EOF
	}
	n := copy(p, r.data)
	r.data = r.data[n:]
	return n, nil
}
func (*replay) Write(p []byte) (int, error) { return len(p), nil }
func (*replay) Close() error                { return nil }

// root makes a file system with empty files at paths; a path ending in a slash
// is a directory.
func root(t *testing.T, paths ...string) string {
	t.Helper()
	dir := t.TempDir()
	for _, p := range paths {
		full := filepath.Join(dir, p)
		var err error
		if strings.HasSuffix(p, "/") {
			err = os.MkdirAll(full, 0o755)
		} else if err = os.MkdirAll(filepath.Dir(full), 0o755); err == nil {
			err = os.WriteFile(full, nil, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestOpen(t *testing.T) {
	for _, tt := range []struct {
		name     string
		paths    []string
		emulated bool
		kind     tee.Kind
		want     error
	}{
		{"nothing", nil, false, "", ErrNoTEE},
		{"device", []string{devicePath}, false, tee.SEVSNP, nil},
		{"configfs", []string{tsmPath + "/"}, false, tee.SEVSNP, nil},
		{"emulated", nil, true, tee.Emulated, nil},
		{"emulated, configfs without SNP", []string{tsmPath + "/"}, true, tee.Emulated, nil},
		{"emulated offered beside the device", []string{devicePath}, true, "", ErrEmulationRefused},
		{"emulated offered beside the platform device", []string{platformPath}, true, "", ErrEmulationRefused},
		{"emulated offered beside sysfs", []string{sysPath + "/"}, true, "", ErrEmulationRefused},
	} {
		t.Run(tt.name, func(t *testing.T) {
			cfg := Config{root: root(t, tt.paths...)}
			var far *os.File
			if tt.emulated {
				var err error
				if far, cfg.Emulated, err = os.Pipe(); err != nil {
					t.Fatal(err)
				}
				defer far.Close()
			}
			p, err := Open(cfg)
			if !errors.Is(err, tt.want) || (p == nil) != (err != nil) {
				t.Fatalf("Open = %v, %v; want %v", p, err, tt.want)
			}
			if p == nil {
				if tt.emulated && cfg.Emulated.Close() == nil {
					t.Error("Open left the refused channel open")
				}
				return
			}
			if p.Kind() != tt.kind {
				t.Errorf("Kind = %q; want %q", p.Kind(), tt.kind)
			}
			if err := p.Close(); err != nil {
				t.Errorf("Close = %v", err)
			}
		})
	}
}

// fakeTSM is configfs-tsm as its documentation says.
type fakeTSM struct {
	t          testing.TB
	provider   string
	generation int
	files      map[string][]byte
	intruder   bool // somebody else writes between our writes and reads
	entries    int
}

func (f *fakeTSM) mkdir(string) error { f.entries++; return nil }

func (f *fakeTSM) remove(string) error { f.entries--; return nil }

func (f *fakeTSM) write(name string, data []byte) error {
	f.files[filepath.Base(name)] = bytes.Clone(data)
	f.generation++
	return nil
}

func (f *fakeTSM) read(name string, limit int64) ([]byte, error) {
	switch filepath.Base(name) {
	case "provider":
		return []byte(f.provider + "\n"), nil
	case "generation":
		return fmt.Appendln(nil, f.generation), nil
	case "outblob":
		if f.intruder {
			f.generation++
		}
		if string(f.files["privlevel"]) != "0" || len(f.files["inblob"]) != 64 {
			return nil, fs.ErrInvalid
		}
		r, err := snp.ParseReport(makeReport(f.t, [64]byte(f.files["inblob"]), 0))
		if err != nil {
			return nil, err
		}
		r.Family, r.Model = 0x19, 1
		return r.Marshal()
	case "auxblob":
		return append(makeTable(f.t, 200), make([]byte, 4096-200)...), nil
	}
	return nil, fs.ErrNotExist
}

func TestConfigFS(t *testing.T) {
	for _, tt := range []struct {
		name string
		tsm  fakeTSM
		want error
	}{
		{"sev_guest", fakeTSM{provider: "sev_guest"}, nil},
		{"tdx_guest", fakeTSM{provider: "tdx_guest"}, ErrNoTEE},
		{"intruder", fakeTSM{provider: "sev_guest", intruder: true}, ErrAnswer},
	} {
		tt.tsm.t, tt.tsm.files = t, make(map[string][]byte)
		p := newProcessor(tee.SEVSNP, newConfigFS(&tt.tsm))
		var b tee.Binding
		if _, err := rand.Read(b[:]); err != nil {
			t.Fatal(err)
		}
		e, err := p.Attest(t.Context(), b)
		if !errors.Is(err, tt.want) || (e.Report == nil) != (err != nil) {
			t.Errorf("%s: Attest = %d bytes, %v; want %v", tt.name, len(e.Report), err, tt.want)
		}
		if err == nil && (e.Kind != tee.SEVSNP || len(e.Certificates) != 200) {
			t.Errorf("%s: Attest = kind %q with %d bytes of certificates; want sev-snp, 200", tt.name, e.Kind, len(e.Certificates))
		}
		if tt.tsm.entries != 0 {
			t.Errorf("%s: %d configfs entries are left", tt.name, tt.tsm.entries)
		}
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	}
}
