// SPDX-License-Identifier: Apache-2.0

package emulator

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/x509"
	"errors"
	"io"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/coffer-dev/coffer/tee"
	"github.com/coffer-dev/coffer/tee/snp"
)

// made is the one root that the tests make, since it takes seconds.
type made struct {
	root     *Root
	others   []*Root
	progress [][]string
	file     []byte
	entries  []string
	mode     os.FileMode
	err      error
}

// makeRoot lets several callers make a root at the same time, in a directory
// where a crash has left half a file.
var makeRoot = sync.OnceValue(func() (m made) {
	dir, err := os.MkdirTemp("", "coffer-emulator-")
	if err != nil {
		return made{err: err}
	}
	defer os.RemoveAll(dir)
	sub := filepath.Join(dir, "state", "emulator")
	if m.err = os.MkdirAll(sub, 0o700); m.err != nil {
		return m
	}
	if m.err = os.WriteFile(filepath.Join(sub, "root.new-123"), []byte("half a"), 0o600); m.err != nil {
		return m
	}
	const callers = 4
	m.others, m.progress = make([]*Root, callers), make([][]string, callers)
	errs := make([]error, callers)
	var wg sync.WaitGroup
	for i := range callers {
		wg.Go(func() {
			m.others[i], errs[i] = LoadOrCreate(sub, func(s string) { m.progress[i] = append(m.progress[i], s) })
		})
	}
	wg.Wait()
	if m.err = errors.Join(errs...); m.err != nil {
		return m
	}
	m.root = m.others[0]
	if m.file, m.err = os.ReadFile(filepath.Join(sub, rootFile)); m.err != nil {
		return m
	}
	list, err := os.ReadDir(sub)
	for _, e := range list {
		m.entries = append(m.entries, e.Name())
	}
	info, statErr := os.Stat(filepath.Join(sub, rootFile))
	if m.err = errors.Join(err, statErr); m.err == nil {
		m.mode = info.Mode()
	}
	return m
})

func testRoot(t testing.TB) *Root {
	t.Helper()
	m := makeRoot()
	if m.err != nil {
		t.Fatal(m.err)
	}
	return m.root
}

func TestConcurrentCreation(t *testing.T) {
	testRoot(t)
	m := makeRoot()
	makers := 0
	for i, r := range m.others {
		if !bytes.Equal(r.ark, m.root.ark) || !bytes.Equal(r.vcek, m.root.vcek) || !r.vcekKey.Equal(m.root.vcekKey) || r.chipID != m.root.chipID {
			t.Errorf("caller %d has another root", i)
		}
		if len(m.progress[i]) > 0 {
			makers++
			if len(m.progress[i]) != 2 || !strings.Contains(m.progress[i][0], "once") {
				t.Errorf("progress = %q; want a line before and one after", m.progress[i])
			}
		}
	}
	if makers != 1 {
		t.Errorf("%d callers made a root; want 1", makers)
	}
	if m.mode.Perm() != 0o600 {
		t.Errorf("root file has mode %v; want 0600", m.mode)
	}
	if diff := cmp.Diff(m.entries, []string{lockFile, rootFile}); diff != "" {
		t.Errorf("files (-got +want):\n%s", diff)
	}
	if bytes.Count(m.file, []byte("PRIVATE KEY-----\n")) != 2 { // BEGIN and END of the VCEK's
		t.Error("the root file holds more than the VCEK's private key")
	}
}

func TestLoad(t *testing.T) {
	want := testRoot(t)
	good := makeRoot().file
	for _, tt := range []struct {
		name string
		data []byte
		mode os.FileMode
		text string
	}{
		{"whole", good, 0o600, ""},
		{"read-only", good, 0o400, ""},
		{"others can read", good, 0o644, "0600"},
		{"empty", nil, 0o600, "damaged"},
		{"cut off", good[:len(good)-100], 0o600, "damaged"},
		{"no ARK", good[bytes.Index(good[1:], []byte("-----BEGIN"))+1:], 0o600, "damaged"},
		{"order", append(bytes.Clone(good[bytes.Index(good, []byte("-----BEGIN PRIVATE")):]), good...), 0o600, "damaged"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			name := filepath.Join(dir, rootFile)
			if err := os.WriteFile(name, tt.data, tt.mode); err != nil {
				t.Fatal(err)
			}
			if err := os.Chmod(name, tt.mode); err != nil { // past the umask
				t.Fatal(err)
			}
			progress := func(s string) { t.Errorf("progress %q for a root that exists", s) }
			r, err := LoadOrCreate(dir, progress)
			if tt.text == "" {
				if err != nil || !bytes.Equal(r.ARK(), want.ark) || r.chipID != want.chipID || !r.vcekKey.Equal(want.vcekKey) {
					t.Errorf("LoadOrCreate = %v, or another root", err)
				}
				return
			}
			if err == nil || r != nil || !strings.Contains(err.Error(), tt.text) {
				t.Errorf("LoadOrCreate = %v; want an error with %q", err, tt.text)
			}
		})
	}
}

func TestOtherKeyRefused(t *testing.T) {
	r := *testRoot(t)
	key, err := ecdsa.GenerateKey(r.vcekKey.Curve, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	r.vcekKey = key
	dir := t.TempDir()
	if err := r.save(dir); err != nil {
		t.Fatal(err)
	}
	if r, err := LoadOrCreate(dir, nil); err == nil || r != nil || !strings.Contains(err.Error(), "does not fit") {
		t.Errorf("LoadOrCreate = %v; want a key that does not fit", err)
	}
}

func parse(t testing.TB, der []byte) *x509.Certificate {
	t.Helper()
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestChain(t *testing.T) {
	r := testRoot(t)
	ark, ask, vcek := parse(t, r.ark), parse(t, r.ask), parse(t, r.vcek)
	if err := errors.Join(ark.CheckSignatureFrom(ark), ask.CheckSignatureFrom(ark), vcek.CheckSignatureFrom(ask)); err != nil {
		t.Error(err)
	}
	for cn, c := range map[string]*x509.Certificate{"ARK-Coffer": ark, "SEV-Coffer": ask, "SEV-VCEK": vcek} {
		if c.Subject.CommonName != cn || c.Subject.SerialNumber != "emulated" || c.SignatureAlgorithm != x509.SHA384WithRSAPSS {
			t.Errorf("certificate %q, serial number %q, %v; want %q marked emulated", c.Subject.CommonName, c.Subject.SerialNumber, c.SignatureAlgorithm, cn)
		}
	}
	if vcek.KeyUsage != 0 || vcek.BasicConstraintsValid || len(vcek.SubjectKeyId) != 0 {
		t.Error("VCEK has extensions that verifiers refuse")
	}
	if r.chipID == [64]byte{} {
		t.Error("chip ID is zero")
	}
}

func testLaunch() Launch {
	return Launch{Measurement: [48]byte{1, 2}, HostData: [32]byte{3, 4}, GuestSVN: 5, FamilyID: [16]byte{6}, ImageID: [16]byte{7}}
}

func newProcessor(t testing.TB) *Processor {
	t.Helper()
	p, err := New(testRoot(t), testLaunch())
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// checkReport checks fields and signature.
func checkReport(t testing.TB, p *Processor, raw []byte, data [64]byte, vmpl uint32) {
	t.Helper()
	r, err := snp.ParseReport(raw)
	if err != nil {
		t.Fatal(err)
	}
	l := testLaunch()
	if r.ReportData != data || r.VMPL != vmpl || r.Measurement != l.Measurement || r.HostData != l.HostData || r.GuestSVN != 5 ||
		r.FamilyID != l.FamilyID || r.ImageID != l.ImageID || r.Policy != tee.PolicyDefault || r.Family != snp.EmulatedFamily || r.ChipID != p.root.chipID {
		t.Errorf("report = %+v", r)
	}
	number := func(le [snp.SignatureComponentSize]byte) *big.Int {
		slices.Reverse(le[:])
		return new(big.Int).SetBytes(le[:])
	}
	digest := sha512.Sum384(raw[:snp.SignedSize])
	key, ok := parse(t, p.root.vcek).PublicKey.(*ecdsa.PublicKey)
	if !ok || !ecdsa.Verify(key, digest[:], number(r.SignatureR), number(r.SignatureS)) {
		t.Error("signature does not verify")
	}
}

func TestReport(t *testing.T) {
	p, q := newProcessor(t), newProcessor(t)
	if p.reportID == q.reportID {
		t.Error("two guests have one report ID")
	}
	for vmpl := range uint32(4) {
		raw, err := p.Report([64]byte{9, byte(vmpl)}, vmpl)
		if err != nil {
			t.Fatal(err)
		}
		checkReport(t, p, raw, [64]byte{9, byte(vmpl)}, vmpl)
	}
	if raw, err := p.Report([64]byte{}, 4); !errors.Is(err, ErrVMPL) || raw != nil {
		t.Errorf("Report at VMPL 4 = %v; want ErrVMPL", err)
	}
	l := testLaunch()
	l.Policy = tee.PolicyDebug // without the bit that must be one
	if p, err := New(testRoot(t), l); !errors.Is(err, snp.ErrReport) || p != nil {
		t.Errorf("New with an impossible policy = %v; want ErrReport", err)
	}
}

func ask(t testing.TB, conn io.ReadWriter, r snp.ChannelRequest) snp.ChannelReply {
	t.Helper()
	frame := r.Encode()
	if _, err := conn.Write(frame[:]); err != nil {
		t.Fatal(err)
	}
	reply, err := snp.ReadChannelReply(conn)
	if err != nil {
		t.Fatal(err)
	}
	if reply.Sequence != r.Sequence || reply.Type != r.Type {
		t.Errorf("reply %d, %d to request %d, %d", reply.Type, reply.Sequence, r.Type, r.Sequence)
	}
	return reply
}

func TestServe(t *testing.T) {
	p := newProcessor(t)
	near, far := net.Pipe()
	done := make(chan error, 1)
	go func() { done <- p.Serve(t.Context(), near) }()
	reply := ask(t, far, snp.ChannelRequest{Type: snp.GetReport, Sequence: 1, VMPL: 1, Data: [64]byte{8}})
	checkReport(t, p, reply.Body, [64]byte{8}, 1)
	if reply = ask(t, far, snp.ChannelRequest{Type: snp.GetReport, Sequence: 2, VMPL: 0xFFFFFFFF}); reply.Status != snp.StatusInvalidParameter {
		t.Errorf("report at VMPL 0xFFFFFFFF has status %#x", uint32(reply.Status))
	}
	reply = ask(t, far, snp.ChannelRequest{Type: snp.GetCertificates, Sequence: 3})
	certs, err := snp.ParseCertificateTable(reply.Body)
	if err != nil || !bytes.Equal(snp.FindCertificate(certs, snp.CertARK), p.root.ark) || !bytes.Equal(snp.FindCertificate(certs, snp.CertASK), p.root.ask) || !bytes.Equal(snp.FindCertificate(certs, snp.CertVCEK), p.root.vcek) {
		t.Errorf("certificates differ: %v", err)
	}
	if err := far.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Errorf("Serve after the guest's end = %v", err)
	}
}

func TestServeEnds(t *testing.T) {
	good := snp.ChannelRequest{Type: snp.GetReport}.Encode()
	bad := good
	bad[0] = 'X'
	for _, tt := range []struct {
		name string
		send []byte
		want error
	}{
		{"nothing", nil, nil}, {"half a frame", good[:40], io.ErrUnexpectedEOF}, {"no frame", bad[:], snp.ErrChannel},
	} {
		near, far := net.Pipe()
		go func() {
			_, _ = far.Write(tt.send)
			_ = far.Close()
		}()
		if err := newProcessor(t).Serve(t.Context(), near); !errors.Is(err, tt.want) || (err == nil) != (tt.want == nil) {
			t.Errorf("%s: Serve = %v; want %v", tt.name, err, tt.want)
		}
	}
}

// closeOnly is a channel without deadlines.
type closeOnly struct{ io.ReadWriteCloser }

func TestServeCancelled(t *testing.T) {
	for name, wrap := range map[string]func(net.Conn) io.ReadWriter{
		"deadline": func(c net.Conn) io.ReadWriter { return c },
		"close":    func(c net.Conn) io.ReadWriter { return closeOnly{c} },
	} {
		near, far := net.Pipe()
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- newProcessor(t).Serve(ctx, wrap(near)) }()
		ask(t, far, snp.ChannelRequest{Type: snp.GetCertificates})
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("%s: Serve = %v; want %v", name, err, context.Canceled)
		}
		if err := far.Close(); err != nil {
			t.Error(err)
		}
	}
}

func TestMeasure(t *testing.T) {
	dir := t.TempDir()
	write := func(name, data string) string {
		name = filepath.Join(dir, name)
		if err := os.WriteFile(name, []byte(data), 0o600); err != nil {
			t.Fatal(err)
		}
		return name
	}
	s := Started{Firmware: write("bios", strings.Repeat("b", 8192)), Kernel: write("kernel", "k"), Initrd: write("initrd", "i"), Append: "quiet", VCPUs: 2}
	in := snp.Inputs{Firmware: []byte(strings.Repeat("b", 8192)), Kernel: sha256.Sum256([]byte("k")), Initrd: sha256.Sum256([]byte("i")), Append: "quiet", VCPUs: 2}
	for _, initrd := range []bool{true, false} {
		if !initrd {
			s.Initrd, in.Initrd = "", snp.NoInitrd()
		}
		want, err := snp.EmulatedDigest(in)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := Measure(s); err != nil || got != want {
			t.Errorf("Measure with initrd %v = %x, %v; want %x", initrd, got, err, want)
		}
	}
	for name, change := range map[string]func(*Started){
		"no firmware": func(s *Started) { s.Firmware = "" }, "no kernel": func(s *Started) { s.Kernel = filepath.Join(dir, "none") },
		"missing initrd": func(s *Started) { s.Initrd = filepath.Join(dir, "none") }, "empty firmware": func(s *Started) { s.Firmware = write("empty", "") },
		"no vCPU": func(s *Started) { s.VCPUs = 0 },
	} {
		bad := s
		change(&bad)
		if d, err := Measure(bad); err == nil || d != [48]byte{} {
			t.Errorf("%s: Measure = %x, %v; want an error", name, d, err)
		}
	}
}

// stream is a guest that says all it has to say at once.
type stream struct {
	*bytes.Reader
	out int
}

func (s *stream) Write(p []byte) (int, error) { s.out += len(p); return len(p), nil }

func FuzzServe(f *testing.F) {
	p := newProcessor(f)
	good := snp.ChannelRequest{Type: snp.GetReport, VMPL: 1}.Encode()
	certs := snp.ChannelRequest{Type: snp.GetCertificates}.Encode()
	f.Add(good[:])
	f.Add(append(append([]byte{}, certs[:]...), good[:]...))
	f.Add(good[:87])
	f.Fuzz(func(t *testing.T, data []byte) {
		s := &stream{Reader: bytes.NewReader(data)}
		err := p.serve(s)
		if err == nil && len(data)%snp.ChannelRequestSize != 0 {
			t.Errorf("serve took %d bytes for whole frames", len(data))
		}
		if limit := (len(data)/snp.ChannelRequestSize + 1) * (snp.MaxChannelBody + 64); s.out > limit {
			t.Errorf("%d bytes of replies to %d", s.out, len(data))
		}
	})
}
