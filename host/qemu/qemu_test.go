// SPDX-License-Identifier: Apache-2.0

package qemu

import (
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write the golden files")

func machine() Machine {
	return Machine{Binary: "qemu-system-x86_64", TEE: Emulated{}, Accel: "tcg", CPUs: 2, Memory: 512 << 20,
		Firmware: "/fw/qboot.rom", Kernel: "/g/vmlinux", Initrd: "/g/initrd", Append: "console=ttyS0 quiet, please"}
}

func TestArgs(t *testing.T) {
	snp := SEVSNP{HostData: [32]byte{1, 2, 3}, CBitPosition: 51, ReducedPhysBits: 1}
	ports := []Port{
		{Proto: "tcp", Host: netip.MustParseAddrPort("0.0.0.0:8080"), Guest: 80},
		{Proto: "udp", Host: netip.MustParseAddrPort("127.0.0.1:53"), Guest: 5353},
	}
	var nine []string
	for i := range 9 {
		nine = append(nine, fmt.Sprintf("/s/l%d/image", i))
	}
	for _, tt := range []struct {
		name   string
		change func(*Machine)
	}{
		{"emulated", func(*Machine) {}},
		{"emulated-kvm", func(m *Machine) { m.Accel = "kvm" }},
		{"emulated-full", func(m *Machine) {
			m.Layers, m.Scratch, m.Network, m.Ports = nine, `/s/a "odd", name`, true, ports
		}},
		{"sevsnp", func(m *Machine) { m.TEE, m.Accel = snp, "kvm" }},
		{"sevsnp-full", func(m *Machine) {
			s := snp
			s.CPU, s.Policy = "EPYC-Milan", 0xb0000
			m.TEE, m.Accel, m.Firmware, m.Kernel = s, "kvm", "/fw/OVMF.amdsev.fd", "/g/vmlinuz"
			m.Layers, m.Scratch, m.Network, m.Ports = nine[:1], "/s/scratch", true, ports
		}},
	} {
		m := machine()
		tt.change(&m)
		got, err := m.Args()
		if err != nil {
			t.Errorf("%s: %v", tt.name, err)
			continue
		}
		golden := filepath.Join("testdata", tt.name+".args")
		text := strings.Join(got, "\n") + "\n"
		if *update {
			if err := os.WriteFile(golden, []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(golden)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(string(want), text); diff != "" {
			t.Errorf("%s: Args (-want +got):\n%s", tt.name, diff)
		}
	}
}

func TestArgsRefused(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(*Machine)
	}{
		{"no TEE", func(m *Machine) { m.TEE = nil }},
		{"accelerator", func(m *Machine) { m.Accel = "kvm,x=y" }},
		{"no CPU", func(m *Machine) { m.CPUs = 0 }},
		{"odd memory", func(m *Machine) { m.Memory++ }},
		{"little memory", func(m *Machine) { m.Memory = 1 << 20 }},
		{"relative path", func(m *Machine) { m.Layers = []string{"x"} }},
		{"many layers", func(m *Machine) { m.Layers = make([]string, MaxLayers+1) }},
		{"ports without network", func(m *Machine) { m.Ports = make([]Port, 1) }},
		{"SNP without KVM", func(m *Machine) { m.TEE = SEVSNP{CBitPosition: 51, ReducedPhysBits: 1} }},
		{"SNP without C-bit", func(m *Machine) { m.TEE, m.Accel = SEVSNP{ReducedPhysBits: 1}, "kvm" }},
	} {
		m := machine()
		tt.change(&m)
		if got, err := m.Args(); err == nil {
			t.Errorf("%s: Args = %v; want an error", tt.name, got)
		}
	}
}

// tinyKernel is an ELF file whose PVH entry writes K to the serial port and halts.
func tinyKernel() []byte {
	const load = 0x100000
	code := []byte{
		0x66, 0xba, 0xf8, 0x03, // mov $0x3f8, %dx
		0xb0, 'K', // mov $'K', %al
		0xee,       // out %al, %dx
		0xf4,       // hlt
		0xeb, 0xfd, // jmp to the hlt
	}
	le := binary.LittleEndian
	b := make([]byte, 0x1000, 0x2000)
	b = append(b, code...)
	copy(b, "\x7fELF\x02\x01\x01")
	le.PutUint16(b[16:], 2)    // executable
	le.PutUint16(b[18:], 62)   // x86-64
	le.PutUint32(b[20:], 1)    // version
	le.PutUint64(b[24:], load) // entry
	le.PutUint64(b[32:], 64)   // program headers
	le.PutUint16(b[52:], 64)   // size of this header
	le.PutUint16(b[54:], 56)   // size of a program header
	le.PutUint16(b[56:], 2)    // how many
	segment := func(at int, kind, flags uint32, off, addr, size, align uint64) {
		le.PutUint32(b[at:], kind)
		le.PutUint32(b[at+4:], flags)
		for i, v := range []uint64{off, addr, addr, size, size, align} {
			le.PutUint64(b[at+8+8*i:], v)
		}
	}
	segment(64, 1, 7, 0x1000, load, uint64(len(code)), 0x1000)
	segment(120, 4, 4, 0x200, 0, 24, 4)
	le.PutUint32(b[0x200:], 4)  // name size
	le.PutUint32(b[0x204:], 8)  // value size
	le.PutUint32(b[0x208:], 18) // XEN_ELFNOTE_PHYS32_ENTRY
	copy(b[0x20c:], "Xen\x00")
	le.PutUint64(b[0x210:], load)
	return b
}

// TestRealQEMU starts the largest machine that there can be and waits for its kernel.
func TestRealQEMU(t *testing.T) {
	bin, err := Find("")
	if err != nil {
		t.Skip("no QEMU here")
	}
	firmware, err := Firmware(bin)
	if err != nil {
		t.Skip("no qboot here")
	}
	dir := t.TempDir()
	disk, kernel := filepath.Join(dir, `a "b", c`), filepath.Join(dir, "kernel")
	for name, b := range map[string][]byte{disk: make([]byte, 1<<20), kernel: tinyKernel()} {
		if err := os.WriteFile(name, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	m := machine()
	m.Binary, m.Firmware, m.Kernel, m.Initrd = bin, firmware, kernel, disk
	m.Memory, m.Network, m.Scratch = MinMemory, true, disk
	for range MaxLayers {
		m.Layers = append(m.Layers, disk)
	}
	p, err := Start(&m)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	defer p.Kill()
	var b [1]byte
	if _, err := io.ReadFull(p.Console, b[:]); err != nil || b[0] != 'K' {
		<-p.Done()
		t.Errorf("console: %q, %v, %v, %s; want K from the kernel", b, err, p.Err(), p.Stderr())
	}
}

func TestStartErrors(t *testing.T) {
	m := machine()
	m.Binary = "/none/qemu"
	if _, err := Start(&m); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Start without a binary: %v; want ErrNotExist", err)
	}
	m.Binary = "/bin/false"
	p, err := Start(&m)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	<-p.Done()
	if p.Err() == nil {
		t.Error("Err after exit status 1 is nil")
	}
	p.Kill() // after the end, it returns at once
}

func TestParseVersion(t *testing.T) {
	if a, b, err := parseVersion("QEMU emulator version 9.1.2 (Debian)"); err != nil || a != 9 || b != 1 {
		t.Errorf("parseVersion = %d, %d, %v; want 9, 1", a, b, err)
	}
	if _, _, err := parseVersion("nonsense"); err == nil {
		t.Error("parseVersion of nonsense succeeded")
	}
}

func TestReadCapabilities(t *testing.T) {
	hello := `{"QMP": {"version": {}}}` + "\n" + `{"return": {}}` + "\n"
	got, err := readCapabilities(strings.NewReader(hello + `{"return": {"cbitpos": 51, "reduced-phys-bits": 1, "pdh": "x"}, "id": "sev"}` + "\n"))
	if err != nil || got.CBitPosition != 51 || got.ReducedPhysBits != 1 {
		t.Errorf("readCapabilities = %+v, %v; want 51 and 1", got, err)
	}
	for _, in := range []string{"", hello, "x\n", hello + `{"error": {"desc": "SEV is not enabled"}, "id": "sev"}` + "\n"} {
		if got, err := readCapabilities(strings.NewReader(in)); err == nil {
			t.Errorf("readCapabilities(%q) = %+v; want an error", in, got)
		}
	}
}

func TestTail(t *testing.T) {
	w := &tail{max: 10}
	for range 100 {
		fmt.Fprint(w, "abcdefg\n")
	}
	fmt.Fprint(w, "end")
	if got := w.String(); got != "abcdefg\nend"[1:] {
		t.Errorf("tail = %q", got)
	}
	if got := lastLine("a\nqemu-system-x86_64: -netdev user: no"); got != "-netdev user: no" {
		t.Errorf("lastLine = %q", got)
	}
}
