// SPDX-License-Identifier: Apache-2.0

package measure

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/coffer-dev/coffer/tee/snp"
)

// blob is a file described in testdata/vectors.json.
type blob struct {
	Kind                string
	Byte, Mod, Mul, Add int
	Len                 int
}

func (b *blob) bytes() []byte {
	data := make([]byte, b.Len)
	for i := range data {
		switch b.Kind {
		case "repeat":
			data[i] = byte(b.Byte)
		case "mod":
			data[i] = byte(i % b.Mod)
		case "affine":
			data[i] = byte(i*b.Mul + b.Add)
		}
	}
	return data
}

// hash returns what measure takes for an optional file.
func (b *blob) hash(t *testing.T) *[32]byte {
	if b == nil || b.Kind == "null" {
		return nil
	}
	h, err := HashFile(bytes.NewReader(b.bytes()))
	if err != nil {
		t.Fatal(err)
	}
	return &h
}

type vector struct {
	ID            string
	Ovmf          string
	VCPUs         int    `json:"vcpus"`
	VCPUType      string `json:"vcpu_type"`
	GuestFeatures uint64 `json:"guest_features"`
	Kernel        *blob
	Initrd        *blob
	Cmdline       *string
	KernelSHA256  string `json:"kernel_sha256"`
	LaunchDigest  string `json:"launch_digest"`
}

func readFile(t testing.TB, name string) []byte {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func vectors(t testing.TB) []vector {
	var doc struct{ Vectors []vector }
	if err := json.Unmarshal(readFile(t, "vectors.json"), &doc); err != nil {
		t.Fatal(err)
	}
	if len(doc.Vectors) != 8 {
		t.Fatalf("testdata/vectors.json has %d vectors; want 8", len(doc.Vectors))
	}
	return doc.Vectors
}

func (v vector) launch(t *testing.T) Launch {
	l := Launch{
		Firmware: readFile(t, v.Ovmf), Kernel: v.Kernel.hash(t), Initrd: v.Initrd.hash(t),
		VCPUs: v.VCPUs, VCPUType: v.VCPUType, GuestFeatures: v.GuestFeatures,
	}
	if v.Cmdline != nil {
		l.Append = *v.Cmdline
	}
	return l
}

func TestPublishedVectors(t *testing.T) {
	for _, v := range vectors(t) {
		t.Run(v.ID, func(t *testing.T) {
			l := v.launch(t)
			if v.KernelSHA256 != "" {
				if got := hex.EncodeToString(l.Kernel[:]); got != v.KernelSHA256 {
					t.Fatalf("kernel of %s has SHA-256 %s; want %s", v.ID, got, v.KernelSHA256)
				}
			}
			got, err := SNP(l)
			if err != nil {
				t.Fatalf("SNP(%s) = %v", v.ID, err)
			}
			if hex.EncodeToString(got[:]) != v.LaunchDigest {
				t.Errorf("SNP(%s) = %x; want %s", v.ID, got, v.LaunchDigest)
			}
		})
	}
}

func unhex[T ~[32]byte | ~[48]byte](t *testing.T, s string) (v T) {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	switch p := any(&v).(type) {
	case *[32]byte:
		*p = [32]byte(b)
	case *[48]byte:
		*p = [48]byte(b)
	case *snp.Digest:
		*p = snp.Digest(b)
	default:
		t.Fatalf("unhex of %T", v)
	}
	return v
}

// TestHardwareMeasurement reproduces a MEASUREMENT that real hardware signed,
// quoted by Dstack-TEE/dstack (dstack/dstack-mr/src/sev.rs, Apache-2.0), from
// the digest after its firmware image.
func TestHardwareMeasurement(t *testing.T) {
	d := unhex[snp.Digest](t, "ffb57e393469a497c0e3b07bd1c97d8611e555f464d14491837665893ac642b263a71f9507ff100a847897fe0c3f8c6f")
	m := &metadata{
		resetEIP: 0x80B004, hashesGPA: 0x810C00, hashesSize: 0x400,
		sections: []section{
			{0x800000, 0x9000, 1}, {0x80A000, 0x3000, 1}, {0x80D000, 0x1000, 2}, {0x80E000, 0x1000, 3},
			{0x80F000, 0x1000, 4}, {0x811000, 0xF000, 1}, {0x810000, 0x1000, 0x10},
		},
	}
	kernel := unhex[[32]byte](t, "dd9ea274ce9a07090b22e8284b0c841b65c021c2d15ca57d0f16731089dd226c")
	initrd := unhex[[32]byte](t, "5f844c4a2ca5a3d0711b3db38293b21ba929bb8e0b3c5bc1a779a57f69221c19")
	err := extend(&d, m, Launch{
		Kernel: &kernel, Initrd: &initrd, VCPUs: 2, VCPUType: "EPYC-v4",
		Append: "console=ttyS0 init=/init panic=1 net.ifnames=0 biosdevname=0 mce=off oops=panic pci=noearly pci=nommconf random.trust_cpu=y random.trust_bootloader=n tsc=reliable no-kvmclock dstack.rootfs_hash=ca5adaef0ac3a36108035925763b48a5818f634e700fbaab561d419fd30d7121 dstack.rootfs_size=490713088",
	})
	if err != nil {
		t.Fatal(err)
	}
	want := unhex[snp.Digest](t, "7f51e17f72a04d5422cb2c00998166536019a217376f3aa45a630e59c805a599847ff250dbffcd07e1ba639771d6f05d")
	if d != want {
		t.Errorf("digest = %x; want %x", d, want)
	}
}

func TestParseFirmware(t *testing.T) {
	common := []section{
		{0x800000, 0x9000, 1}, {0x80A000, 0x3000, 1}, {0x80D000, 0x1000, 2}, {0x80E000, 0x1000, 3}, {0x80F000, 0x1000, 4},
	}
	for _, tt := range []struct {
		file string
		want *metadata
	}{
		{"ovmf_AmdSev_suffix.bin", &metadata{
			sections: append(slices.Clone(common), section{0x810000, 0x1000, 0x10}, section{0x811000, 0xF000, 1}),
			resetEIP: 0x80B004, hashesGPA: 0x810C00, hashesSize: 0x400,
		}},
		{"ovmf_OvmfX64_suffix.bin", &metadata{
			sections: append(slices.Clone(common), section{0x810000, 0x10000, 1}), resetEIP: 0x80B004,
		}},
	} {
		got, err := parseFirmware(readFile(t, tt.file))
		if err != nil {
			t.Errorf("parseFirmware(%s) = %v", tt.file, err)
			continue
		}
		if diff := cmp.Diff(got, tt.want, cmp.AllowUnexported(metadata{}, section{})); diff != "" {
			t.Errorf("parseFirmware(%s) differs (-got +want):\n%s", tt.file, diff)
		}
	}
}

// edit returns a copy of the AmdSev fixture with one occurrence of old
// replaced by as many bytes.
func edit(t testing.TB, old, new string) []byte {
	t.Helper()
	image := readFile(t, "ovmf_AmdSev_suffix.bin")
	at := bytes.Index(image, []byte(old))
	if at < 0 || len(old) != len(new) {
		t.Fatalf("cannot replace %x by %x in the fixture", old, new)
	}
	copy(image[at:], new)
	return image
}

func le32(values ...uint32) string {
	var b []byte
	for _, v := range values {
		b = binary.LittleEndian.AppendUint32(b, v)
	}
	return string(b)
}

func TestRefusedLaunches(t *testing.T) {
	kernel := sha256.Sum256([]byte("kernel"))
	good := func() Launch {
		return Launch{Firmware: readFile(t, "ovmf_AmdSev_suffix.bin"), Kernel: &kernel, VCPUs: 2, VCPUType: "EPYC-Milan"}
	}
	if _, err := SNP(good()); err != nil {
		t.Fatalf("SNP of the unchanged launch = %v", err)
	}
	secrets := le32(0x80D000, 0x1000, 2)
	for _, tt := range []struct {
		name   string
		change func(*Launch)
		want   error
		text   string
	}{
		{"kernel with OvmfX64", func(l *Launch) { l.Firmware = readFile(t, "ovmf_OvmfX64_suffix.bin") }, ErrFirmware, "AmdSev"},
		{"no reset block", func(l *Launch) { l.Firmware = edit(t, guidResetBlock, strings.Repeat("x", 16)) }, ErrFirmware, "reset block"},
		{"no reset block, one vCPU", func(l *Launch) {
			l.Firmware, l.VCPUs = edit(t, guidResetBlock, strings.Repeat("x", 16)), 1
		}, ErrFirmware, "reset block"},
		{"unknown section type", func(l *Launch) { l.Firmware = edit(t, secrets, le32(0x80D000, 0x1000, 9)) }, ErrFirmware, "unknown section type 0x9"},
		{"section of half a page", func(l *Launch) { l.Firmware = edit(t, secrets, le32(0x80D000, 0x800, 2)) }, ErrFirmware, "whole pages"},
		{"section of 2 GiB", func(l *Launch) { l.Firmware = edit(t, secrets, le32(0x80D000, 0x80000000, 2)) }, ErrFirmware, "more than"},
		{"metadata version 2", func(l *Launch) {
			l.Firmware = edit(t, "ASEV"+le32(0x64, 1), "ASEV"+le32(0x64, 2))
		}, ErrFirmware, "version 2"},
		{"a million sections", func(l *Launch) {
			l.Firmware = edit(t, "ASEV"+le32(0x64, 1, 7), "ASEV"+le32(0x64, 1, 1000000))
		}, ErrFirmware, "1000000 sections"},
		{"no footer", func(l *Launch) { l.Firmware = make([]byte, 8192) }, ErrFirmware, "footer"},
		{"empty firmware", func(l *Launch) { l.Firmware = nil }, ErrFirmware, "0 bytes"},
		{"odd firmware", func(l *Launch) { l.Firmware = l.Firmware[1:] }, ErrFirmware, "4095 bytes"},
		{"no vCPU", func(l *Launch) { l.VCPUs = 0 }, snp.ErrLaunch, "0 vCPUs"},
		{"unknown vCPU type", func(l *Launch) { l.VCPUType = "host" }, snp.ErrLaunch, "EPYC-Genoa"},
		{"features without SNP", func(l *Launch) { l.GuestFeatures = 0x20 }, snp.ErrLaunch, "0x20"},
		{"reserved feature", func(l *Launch) { l.GuestFeatures = 0x801 }, snp.ErrLaunch, "0x801"},
		{"command line without kernel", func(l *Launch) { l.Kernel, l.Append = nil, "quiet" }, snp.ErrLaunch, "without a kernel"},
		{"NUL in the command line", func(l *Launch) { l.Append = "a\x00b" }, snp.ErrLaunch, "NUL"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l := good()
			tt.change(&l)
			got, err := SNP(l)
			if !errors.Is(err, tt.want) || !strings.Contains(err.Error(), tt.text) {
				t.Errorf("SNP = %v; want an error with %q", err, tt.text)
			}
			if got != [48]byte{} {
				t.Errorf("SNP returned digest %x with an error", got)
			}
		})
	}
}

func TestDefaultsAndTypes(t *testing.T) {
	v := vectors(t)[4]
	l := v.launch(t)
	with, err := SNP(l)
	if err != nil {
		t.Fatal(err)
	}
	l.GuestFeatures = 0
	without, err := SNP(l)
	if err != nil || with != without {
		t.Errorf("SNP with default features = %x, %v; want %x", without, err, with)
	}
	for _, name := range Types() {
		if sig, err := signatureOf(name); err != nil || sig&0xF00 != 0xF00 {
			t.Errorf("signatureOf(%q) = %#x, %v", name, sig, err)
		}
	}
}

func FuzzFirmware(f *testing.F) {
	for _, name := range []string{"ovmf_AmdSev_suffix.bin", "ovmf_OvmfX64_suffix.bin"} {
		f.Add(readFile(f, name))
	}
	f.Add(edit(f, le32(0x80D000, 0x1000, 2), le32(0xFFFFF000, 0xFFFFF000, 2)))
	f.Add(make([]byte, 4096))
	f.Fuzz(func(t *testing.T, image []byte) {
		m, err := parseFirmware(image)
		if err != nil {
			if !errors.Is(err, ErrFirmware) {
				t.Errorf("parseFirmware = %v; want ErrFirmware", err)
			}
			return
		}
		var total uint64
		for _, s := range m.sections {
			total += uint64(s.size)
		}
		if len(m.sections) > maxSections || total > maxMeasuredAreas {
			t.Errorf("parseFirmware let %d sections of %d bytes pass", len(m.sections), total)
		}
		if total < 1<<20 {
			_, _ = SNP(Launch{Firmware: image, VCPUs: 1, VCPUType: "EPYC"})
		}
	})
}
