// SPDX-License-Identifier: Apache-2.0

package snp

import (
	"bytes"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"io"
	"os"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/coffer-dev/coffer/tee"
)

func realReport(t testing.TB) []byte {
	t.Helper()
	data, err := os.ReadFile("testdata/snp_report.bin")
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func TestParseRealReport(t *testing.T) {
	data := realReport(t)
	r, err := ParseReport(data)
	if err != nil {
		t.Fatal(err)
	}
	if r.Version != 2 || r.GuestSVN != 2 || r.VMPL != 0 || r.Signer != SignedByVCEK {
		t.Errorf("version %d, guest SVN %d, VMPL %d, signer %d; want 2, 2, 0, 0", r.Version, r.GuestSVN, r.VMPL, r.Signer)
	}
	if got, want := hex.EncodeToString(r.Measurement[:4]), "51068107"; got != want {
		t.Errorf("measurement starts %s; want %s", got, want)
	}
	if got, want := hex.EncodeToString(r.HostData[:4]), "cadd74f7"; got != want {
		t.Errorf("host data starts %s; want %s", got, want)
	}
	if got, want := DecodeTCB(r.ReportedTCB, r.Family), (tee.TCB{BootLoader: 3, SNP: 8, Microcode: 115}); got != want {
		t.Errorf("reported TCB = %v; want %v", got, want)
	}
	again, err := r.Marshal()
	if err != nil || !bytes.Equal(again, data) {
		t.Errorf("Marshal(ParseReport(data)) differs or fails: %v", err)
	}
}

func TestParseReportRefuses(t *testing.T) {
	le := binary.LittleEndian
	for _, tt := range []struct {
		name   string
		change func([]byte) []byte
	}{
		{"empty", func([]byte) []byte { return nil }},
		{"short", func(b []byte) []byte { return b[:ReportSize-1] }},
		{"long", func(b []byte) []byte { return append(b, 0) }},
		{"version 1", func(b []byte) []byte { le.PutUint32(b, 1); return b }},
		{"version 6", func(b []byte) []byte { le.PutUint32(b, 6); return b }},
		{"VMPL 4", func(b []byte) []byte { b[0x30] = 4; return b }},
		{"VMPL of a host request", func(b []byte) []byte { le.PutUint32(b[0x30:], 0xFFFFFFFF); return b }},
		{"algorithm 0", func(b []byte) []byte { b[0x34] = 0; return b }},
		{"signing key 3", func(b []byte) []byte { b[0x48] = 3 << 2; return b }},
		{"signer bit 5", func(b []byte) []byte { b[0x48] |= 1 << 5; return b }},
		{"policy bit 17 clear", func(b []byte) []byte { b[0x0A] &^= 2; return b }},
		{"policy bit 26", func(b []byte) []byte { b[0x0B] |= 4; return b }},
		{"family in version 2", func(b []byte) []byte { b[0x188] = 0x19; return b }},
		{"mitigations in version 2", func(b []byte) []byte { b[0x1F8] = 1; return b }},
		{"reserved 0x4c", func(b []byte) []byte { b[0x4C] = 1; return b }},
		{"reserved 0x18b", func(b []byte) []byte { b[0x18B] = 1; return b }},
		{"reserved 0x1eb", func(b []byte) []byte { b[0x1EB] = 1; return b }},
		{"reserved 0x1ef", func(b []byte) []byte { b[0x1EF] = 1; return b }},
		{"reserved 0x208", func(b []byte) []byte { b[0x208] = 1; return b }},
		{"reserved 0x29f", func(b []byte) []byte { b[0x29F] = 1; return b }},
		{"after the signature", func(b []byte) []byte { b[0x330] = 1; return b }},
		{"last byte", func(b []byte) []byte { b[ReportSize-1] = 1; return b }},
	} {
		if r, err := ParseReport(tt.change(realReport(t))); !errors.Is(err, ErrReport) || r != nil {
			t.Errorf("%s: ParseReport = %v, %v; want ErrReport", tt.name, r, err)
		}
	}
}

func TestReportVersion5(t *testing.T) {
	want := &Report{
		Version: 5, GuestSVN: 1, Policy: tee.PolicyDefault, VMPL: 1, SignatureAlg: 1, CurrentTCB: 1 << 56, PlatformInfo: 7,
		AuthorKeyEnabled: true, MaskChipKey: true, Signer: SignedByVLEK, ReportedTCB: 2, CommittedTCB: 3, LaunchTCB: 4,
		Family: 0x1A, Model: 2, Stepping: 1, Current: FirmwareVersion{1, 2, 3}, Committed: FirmwareVersion{4, 5, 6},
		LaunchMitigation: 8, CurrentMitigation: 9,
	}
	for i, f := range want.fields() {
		f.into[0], f.into[len(f.into)-1] = byte(i+1), byte(i+101)
	}
	data, err := want.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	got, err := ParseReport(data)
	if diff := cmp.Diff(got, want); err != nil || diff != "" {
		t.Errorf("ParseReport(Marshal(r)) = %v (-got +want):\n%s", err, diff)
	}
	want.Policy = 0
	if _, err := want.Marshal(); !errors.Is(err, ErrReport) {
		t.Errorf("Marshal with a zero policy = %v; want ErrReport", err)
	}
}

func FuzzParseReport(f *testing.F) {
	f.Add(realReport(f))
	f.Add(make([]byte, ReportSize))
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := ParseReport(data)
		if err != nil {
			return
		}
		if again, err := r.Marshal(); err != nil || !bytes.Equal(again, data) {
			t.Errorf("Marshal(ParseReport(data)) differs: %v", err)
		}
	})
}

func TestTCBLayouts(t *testing.T) {
	want := tee.TCB{FMC: 1, BootLoader: 2, TEE: 3, SNP: 4, Microcode: 5}
	if got := DecodeTCB(EncodeTCB(want, FamilyTurin), FamilyTurin); got != want {
		t.Errorf("Turin: %v; want %v", got, want)
	}
	want.FMC = 0
	for _, family := range []uint8{0, 0x19, EmulatedFamily} {
		if got := DecodeTCB(EncodeTCB(want, family), family); got != want {
			t.Errorf("family %#x: %v; want %v", family, got, want)
		}
	}
	if got, want := EncodeTCB(tee.TCB{BootLoader: 3, SNP: 8, Microcode: 0x73}, 0x19), uint64(0x7308000000000003); got != want {
		t.Errorf("EncodeTCB = %#x; want %#x", got, want)
	}
}

func mustGUID(t testing.TB, k CertificateKind) GUID {
	t.Helper()
	g, err := ParseGUID(string(k))
	if err != nil {
		t.Fatal(err)
	}
	return g
}

func sampleTable(t testing.TB) []byte {
	t.Helper()
	table, err := EncodeCertificateTable([]Certificate{
		{mustGUID(t, CertVCEK), []byte("vcek")}, {mustGUID(t, CertASK), []byte("ask")}, {mustGUID(t, CertARK), []byte("the ark")},
	})
	if err != nil {
		t.Fatal(err)
	}
	return table
}

func TestCertificateTable(t *testing.T) {
	table := sampleTable(t)
	// The layout by hand: four entries of 24 bytes, then the data.
	if got := table[:16]; hex.EncodeToString(got) != "63da758de6644564adc5f4b93be8accd" {
		t.Errorf("first GUID = %x", got)
	}
	if at, n := binary.LittleEndian.Uint32(table[16:]), binary.LittleEndian.Uint32(table[20:]); at != 96 || n != 4 {
		t.Errorf("first entry has %d bytes at %d; want 4 at 96", n, at)
	}
	// The guest pads to whole pages.
	certs, err := ParseCertificateTable(append(table, make([]byte, 4096-len(table))...))
	if err != nil {
		t.Fatal(err)
	}
	for k, want := range map[CertificateKind]string{CertVCEK: "vcek", CertASK: "ask", CertARK: "the ark", CertVLEK: ""} {
		if got := string(FindCertificate(certs, k)); got != want {
			t.Errorf("FindCertificate(%s) = %q; want %q", k, got, want)
		}
	}
	if certs, err := ParseCertificateTable(nil); certs != nil || err != nil {
		t.Errorf("ParseCertificateTable(nil) = %v, %v", certs, err)
	}
}

func TestCertificateTableRefuses(t *testing.T) {
	le := binary.LittleEndian
	for _, tt := range []struct {
		name   string
		change func([]byte) []byte
	}{
		{"one byte", func(b []byte) []byte { return b[:1] }},
		{"no end of entries", func(b []byte) []byte { return b[:72] }},
		{"cut in the data", func(b []byte) []byte { return b[:len(b)-1] }},
		{"too large", func(b []byte) []byte { return append(b, make([]byte, MaxCertificateTable)...) }},
		{"offset in the header", func(b []byte) []byte { le.PutUint32(b[16:], 95); return b }},
		{"offset past the end", func(b []byte) []byte { le.PutUint32(b[16:], 0xFFFFFFFF); return b }},
		{"length past the end", func(b []byte) []byte { le.PutUint32(b[20:], 0xFFFFFFFF); return b }},
		{"length zero", func(b []byte) []byte { le.PutUint32(b[20:], 0); return b }},
		{"GUID twice", func(b []byte) []byte { copy(b[24:40], b[:16]); return b }},
		{"many entries", func([]byte) []byte {
			var b []byte
			for i := range maxCertificateEntries + 1 {
				b = append(b, make([]byte, certificateEntrySize)...)
				b[i*certificateEntrySize] = byte(i + 1)
			}
			return append(b, make([]byte, certificateEntrySize)...)
		}},
	} {
		if certs, err := ParseCertificateTable(tt.change(sampleTable(t))); !errors.Is(err, ErrCertificateTable) || certs != nil {
			t.Errorf("%s: ParseCertificateTable = %v, %v; want ErrCertificateTable", tt.name, certs, err)
		}
	}
	if _, err := EncodeCertificateTable([]Certificate{{mustGUID(t, CertARK), make([]byte, MaxCertificateTable)}}); !errors.Is(err, ErrCertificateTable) {
		t.Errorf("EncodeCertificateTable of too much = %v; want ErrCertificateTable", err)
	}
	for _, s := range []string{"", "63da758d", "63da758d-e664-4564-adc5-f4b93be8acc-", "63da758d-e664-4564-adc5-f4b93be8acxx"} {
		if _, err := ParseGUID(s); err == nil {
			t.Errorf("ParseGUID(%q) succeeded", s)
		}
	}
}

func FuzzCertificateTable(f *testing.F) {
	f.Add(sampleTable(f))
	f.Add(make([]byte, 24))
	f.Fuzz(func(t *testing.T, data []byte) {
		certs, err := ParseCertificateTable(data)
		if err != nil || len(certs) == 0 {
			return
		}
		size := (len(certs) + 1) * certificateEntrySize
		for _, c := range certs {
			size += len(c.Data)
		}
		if size > MaxCertificateTable {
			return // entries share data, which a table written out cannot
		}
		again, err := EncodeCertificateTable(certs)
		if err != nil {
			t.Fatalf("EncodeCertificateTable = %v", err)
		}
		got, err := ParseCertificateTable(again)
		if diff := cmp.Diff(got, certs); err != nil || diff != "" {
			t.Errorf("round trip: %v\n%s", err, diff)
		}
	})
}

func TestVMSAPages(t *testing.T) {
	// SHA-384 of the two pages of published vector P2.
	for _, tt := range []struct {
		eip  uint32
		want string
	}{
		{bootEIP, "77920c4c629ff47e90c0e174fc1ad0eb6fa664f88cd4739488058a8c6cb1a77b3856f55378e9518d0da99452d51c553a"},
		{0x80B004, "8413b852790765a310d95867a8b00bfca3a802b5a80830044b45e253fe96222657e11e53fcf63eb0e0afd722385bf7b4"},
	} {
		page := VMSA(tt.eip, CPUSignature(23, 1, 2), 1)
		if got := sha512.Sum384(page[:]); hex.EncodeToString(got[:]) != tt.want {
			t.Errorf("SHA-384 of VMSA(%#x) = %x; want %s", tt.eip, got, tt.want)
		}
	}
}

func TestCPUSignature(t *testing.T) {
	for _, tt := range []struct {
		f, m, s uint8
		want    uint32
	}{{23, 1, 2, 0x800F12}, {23, 49, 0, 0x830F10}, {25, 1, 1, 0xA00F11}, {25, 17, 0, 0xA10F10}, {26, 0, 0, 0xB00F00}, {EmulatedFamily, 0, 0, 0x7000F00}} {
		if got := CPUSignature(tt.f, tt.m, tt.s); got != tt.want {
			t.Errorf("CPUSignature(%d, %d, %d) = %#x; want %#x", tt.f, tt.m, tt.s, got, tt.want)
		}
	}
}

func emulatedInputs() Inputs {
	firmware := make([]byte, 65536)
	for i := range firmware {
		firmware[i] = byte(i * 7)
	}
	return Inputs{Firmware: firmware, Kernel: sha256.Sum256([]byte("kernel")), Initrd: sha256.Sum256([]byte("initrd")), Append: "console=hvc0 panic=-1", VCPUs: 2}
}

// TestEmulatedDigest holds the layout of docs/attestation.md: a digest written
// out again from first principles, and every input changing it.
func TestEmulatedDigest(t *testing.T) {
	got, err := EmulatedDigest(emulatedInputs())
	if err != nil {
		t.Fatal(err)
	}
	const want = "fe5ce1c3baaed6ae7d3f1baec6b03bff525ce02e2ff176d9402a8356e94076bf71dfc1ae6b4df400ca4c16fde630e2ff"
	if hex.EncodeToString(got[:]) != want {
		t.Errorf("EmulatedDigest = %x; want %s", got, want)
	}
	for name, change := range map[string]func(*Inputs){
		"firmware":     func(in *Inputs) { in.Firmware[40000] ^= 1 },
		"kernel":       func(in *Inputs) { in.Kernel[31] ^= 1 },
		"initrd":       func(in *Inputs) { in.Initrd[0] ^= 1 },
		"no initrd":    func(in *Inputs) { in.Initrd = NoInitrd() },
		"command line": func(in *Inputs) { in.Append += " " },
		"one vCPU":     func(in *Inputs) { in.VCPUs = 1 },
		"three vCPUs":  func(in *Inputs) { in.VCPUs = 3 },
	} {
		in := emulatedInputs()
		change(&in)
		if other, err := EmulatedDigest(in); err != nil || other == got {
			t.Errorf("%s changed: EmulatedDigest = %x, %v; want another digest", name, other, err)
		}
	}
}

func TestEmulatedDigestPadding(t *testing.T) {
	in := emulatedInputs()
	whole, err := EmulatedDigest(Inputs{Firmware: append(make([]byte, 4096-5), 1, 2, 3, 4, 5), VCPUs: 1})
	if err != nil {
		t.Fatal(err)
	}
	padded, err := EmulatedDigest(Inputs{Firmware: []byte{1, 2, 3, 4, 5}, VCPUs: 1})
	if err != nil || padded != whole {
		t.Errorf("EmulatedDigest of five bytes = %x, %v; want %x", padded, err, whole)
	}
	for name, change := range map[string]func(*Inputs){
		"no firmware":      func(in *Inputs) { in.Firmware = nil },
		"large firmware":   func(in *Inputs) { in.Firmware = make([]byte, MaxFirmwareSize+1) },
		"no vCPU":          func(in *Inputs) { in.VCPUs = 0 },
		"many vCPUs":       func(in *Inputs) { in.VCPUs = MaxVCPUs + 1 },
		"NUL":              func(in *Inputs) { in.Append = "\x00" },
		"long comand line": func(in *Inputs) { in.Append = string(make([]byte, maxAppend+1)) },
	} {
		in = emulatedInputs()
		change(&in)
		if d, err := EmulatedDigest(in); !errors.Is(err, ErrLaunch) || d != [48]byte{} {
			t.Errorf("%s: EmulatedDigest = %x, %v; want ErrLaunch", name, d, err)
		}
	}
}

func TestDigestRefuses(t *testing.T) {
	var d Digest
	for name, err := range map[string]error{
		"pages of type zero": d.Pages(PageZero, 0, make([]byte, 4096)),
		"half a page":        d.Pages(PageNormal, 0, make([]byte, 2048)),
		"odd address":        d.Pages(PageNormal, 1, make([]byte, 4096)),
		"area of type 1":     d.Area(PageNormal, 0, 4096),
		"area of type 7":     d.Area(7, 0, 4096),
		"odd area":           d.Area(PageZero, 0, 4095),
		"large area":         d.Area(PageZero, 0, MaxAreaSize+4096),
		"no reset address":   d.VCPUs(2, 0, 1, 1),
	} {
		if !errors.Is(err, ErrLaunch) {
			t.Errorf("%s: %v; want ErrLaunch", name, err)
		}
	}
	if d != (Digest{}) {
		t.Error("a refused update changed the digest")
	}
}

func TestChannelRequest(t *testing.T) {
	want := ChannelRequest{Type: GetReport, Sequence: 1 << 60, VMPL: 3, Data: [64]byte{1, 63: 2}}
	got, err := DecodeChannelRequest(want.Encode())
	if err != nil || got != want {
		t.Errorf("DecodeChannelRequest(Encode(r)) = %v, %v; want %v", got, err, want)
	}
	for name, change := range map[string]func(*[ChannelRequestSize]byte){
		"magic": func(f *[ChannelRequestSize]byte) { f[0]++ }, "version": func(f *[ChannelRequestSize]byte) { f[4]++ },
		"type 0": func(f *[ChannelRequestSize]byte) { f[6] = 0 }, "type 3": func(f *[ChannelRequestSize]byte) { f[6] = 3 },
		"reserved":                    func(f *[ChannelRequestSize]byte) { f[20] = 1 },
		"parameters for certificates": func(f *[ChannelRequestSize]byte) { f[6] = 2 },
	} {
		f := want.Encode()
		change(&f)
		if _, err := DecodeChannelRequest(f); !errors.Is(err, ErrChannel) {
			t.Errorf("%s: DecodeChannelRequest = %v; want ErrChannel", name, err)
		}
	}
}

func TestChannelReply(t *testing.T) {
	for _, want := range []ChannelReply{
		{Type: GetReport, Sequence: 7, Body: make([]byte, ReportSize)},
		{Type: GetReport, Sequence: 7, Status: StatusInvalidParameter, Body: []byte{}},
		{Type: GetCertificates, Body: []byte("table")},
	} {
		f, err := want.Encode()
		if err != nil {
			t.Fatal(err)
		}
		from := bytes.NewReader(append(f, "next"...))
		got, err := ReadChannelReply(from)
		if diff := cmp.Diff(got, want); err != nil || diff != "" {
			t.Errorf("ReadChannelReply(Encode(r)) = %v (-got +want):\n%s", err, diff)
		}
		if from.Len() != 4 {
			t.Errorf("ReadChannelReply left %d bytes; want 4", from.Len())
		}
		for cut := range len(f) {
			_, err := ReadChannelReply(bytes.NewReader(f[:cut]))
			want := io.ErrUnexpectedEOF
			if cut == 0 {
				want = io.EOF
			}
			if !errors.Is(err, want) {
				t.Fatalf("ReadChannelReply of %d of %d bytes = %v", cut, len(f), err)
			}
		}
	}
	for _, r := range []ChannelReply{
		{}, {Type: 9}, {Type: GetReport}, {Type: GetReport, Body: make([]byte, 5)},
		{Type: GetReport, Status: 1, Body: make([]byte, ReportSize)},
		{Type: GetCertificates, Body: make([]byte, MaxChannelBody+1)},
	} {
		if f, err := r.Encode(); !errors.Is(err, ErrChannel) || f != nil {
			t.Errorf("Encode of type %d, status %d, %d bytes = %v; want ErrChannel", r.Type, r.Status, len(r.Body), err)
		}
	}
}

func FuzzChannel(f *testing.F) {
	request := ChannelRequest{Type: GetReport, Sequence: 2}.Encode()
	f.Add(request[:])
	reply, err := ChannelReply{Type: GetReport, Body: make([]byte, ReportSize)}.Encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(reply)
	huge := bytes.Clone(reply)
	binary.LittleEndian.PutUint32(huge[20:], 0xFFFFFFFF)
	f.Add(huge)
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) >= ChannelRequestSize {
			frame := [ChannelRequestSize]byte(data)
			if r, err := DecodeChannelRequest(frame); err == nil && r.Encode() != frame {
				t.Errorf("request %x reads as %v", frame, r)
			}
		}
		r, err := ReadChannelReply(bytes.NewReader(data))
		if err != nil {
			return
		}
		if again, err := r.Encode(); err != nil || !bytes.HasPrefix(data, again) {
			t.Errorf("reply round trip: %v", err)
		}
	})
}
