// SPDX-License-Identifier: Apache-2.0

// Package qemu starts and watches one virtual machine.
//
// It promises that the arguments are a pure function of a [Machine], that
// the guest's disks are read-only but for the scratch disk, that no firmware
// but the one named is loaded, and that QEMU dies with the process that
// started it. It runs in the host zone: nobody has to trust it. What a guest
// could be harmed by here shows in its launch measurement, or is met by
// dm-verity.
package qemu

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"strconv"
	"strings"
)

// Limits of one machine.
const (
	MaxLayers = 216 // PCI functions kept free for layer disks
	MaxCPUs   = 255
	MaxPorts  = 1024
	// MinMemory is the least memory that a guest boots with, in bytes.
	MinMemory = 128 << 20
)

// Names of the virtio-serial ports, as the guest finds them.
const (
	ControlPort = "coffer.control"
	SEVPort     = "coffer.sev"
)

// Port is one published port.
type Port struct {
	Proto string // tcp or udp
	// Host is where QEMU listens; an unspecified address is all of them.
	Host  netip.AddrPort
	Guest uint16
}

// String is docker's form: 0.0.0.0:8080->80/tcp.
func (p Port) String() string { return fmt.Sprintf("%s->%d/%s", p.Host, p.Guest, p.Proto) }

// Addresses of QEMU's user-mode network.
const (
	GuestAddress = "10.0.2.15/24"
	Gateway      = "10.0.2.2"
	NameServer   = "10.0.2.3"
)

// TEE is what one trusted execution environment adds to a machine.
type TEE interface {
	// arguments returns the machine properties and whole arguments, the CPU
	// model, and whether virtio devices must go through the IOMMU platform.
	arguments(m *Machine) (launch, error)
}

// launch is what a TEE wants of the command line.
type launch struct {
	machine  string // the value of -machine, without the accelerator
	cpu      string
	args     []string
	platform bool // virtio devices need iommu_platform=on
	sev      bool // the second port exists
}

// Machine says how to start a virtual machine. Paths are absolute.
type Machine struct {
	Binary   string // qemu-system-x86_64
	TEE      TEE
	Accel    string // kvm or tcg
	CPUs     int
	Memory   int64  // bytes, a multiple of 1 MiB
	Firmware string // given to -bios, and so measured
	Kernel   string
	Initrd   string
	Append   string
	// Layers are disk images, opened read-only; the guest sees serial layerN.
	Layers []string
	// Scratch is a raw disk image to write to, or "".
	Scratch string
	// Network: false is no network interface at all.
	Network bool
	Ports   []Port
}

// File descriptors of the child: what Start passes.
const (
	controlFD = 3
	consoleFD = 4
	sevFD     = 5
)

// Args returns QEMU's arguments, without the name of the binary.
func (m *Machine) Args() ([]string, error) {
	if err := m.check(); err != nil {
		return nil, fmt.Errorf("checking machine: %w", err)
	}
	l, err := m.TEE.arguments(m)
	if err != nil {
		return nil, fmt.Errorf("checking machine: %w", err)
	}
	accel := m.Accel
	if accel == "tcg" {
		accel = "tcg,thread=multi"
	}
	mib := strconv.FormatInt(m.Memory>>20, 10)
	args := []string{
		"-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-vga", "none",
		"-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
		"-machine", l.machine, "-accel", accel, "-cpu", l.cpu,
		"-smp", fmt.Sprintf("%d,maxcpus=%d", m.CPUs, m.CPUs), "-m", mib + "M",
	}
	args = append(args, l.args...)
	args = append(args, "-bios", m.Firmware, "-kernel", m.Kernel, "-initrd", m.Initrd, "-append", m.Append)
	args = append(args, m.serial(l)...)
	args = append(args, m.network(l)...)
	return append(args, m.disks(l)...), nil
}

func (m *Machine) check() error {
	switch {
	case m.TEE == nil:
		return errors.New("no TEE")
	case m.Accel != "kvm" && m.Accel != "tcg":
		return fmt.Errorf("unknown accelerator %q", m.Accel)
	case m.CPUs < 1 || m.CPUs > MaxCPUs:
		return fmt.Errorf("%d CPUs, want 1 to %d", m.CPUs, MaxCPUs)
	case m.Memory < MinMemory || m.Memory%(1<<20) != 0:
		return fmt.Errorf("%d bytes of memory, want whole MiB and at least %d MiB", m.Memory, MinMemory>>20)
	case len(m.Layers) > MaxLayers:
		return fmt.Errorf("%d layers, more than %d", len(m.Layers), MaxLayers)
	case len(m.Ports) > MaxPorts:
		return fmt.Errorf("%d ports, more than %d", len(m.Ports), MaxPorts)
	case len(m.Ports) > 0 && !m.Network:
		return errors.New("ports cannot be published without a network")
	}
	paths := []string{m.Firmware, m.Kernel, m.Initrd}
	paths = append(paths, m.Layers...)
	if m.Scratch != "" {
		paths = append(paths, m.Scratch)
	}
	for _, p := range paths {
		if !filepath.IsAbs(p) {
			return fmt.Errorf("path %q is not absolute", p)
		}
	}
	return nil
}

// virtio returns a device's name with the properties that every one has.
func virtio(l launch, device, props string) string {
	s := device + "," + props
	if l.platform {
		s += ",disable-legacy=on,iommu_platform=on"
	}
	return s
}

// serial is the console and the ports to the host. Their other ends are
// inherited sockets, so that nothing on disk leads into the guest.
func (m *Machine) serial(l launch) []string {
	args := []string{
		"-chardev", fmt.Sprintf("socket,id=console,fd=%d", consoleFD), "-serial", "chardev:console",
		"-device", virtio(l, "virtio-serial-pci", "id=serial,addr=1.0,max_ports=4"),
		"-chardev", fmt.Sprintf("socket,id=control,fd=%d", controlFD),
		"-device", "virtserialport,bus=serial.0,nr=1,chardev=control,name=" + ControlPort,
	}
	if l.sev {
		args = append(args,
			"-chardev", fmt.Sprintf("socket,id=sev,fd=%d", sevFD),
			"-device", "virtserialport,bus=serial.0,nr=2,chardev=sev,name="+SEVPort)
	}
	return args
}

func (m *Machine) network(l launch) []string {
	if !m.Network {
		return nil
	}
	guest, _, _ := strings.Cut(GuestAddress, "/")
	net := "user,id=net,ipv6=off"
	for _, p := range m.Ports {
		host := ""
		if a := p.Host.Addr(); a.IsValid() && !a.IsUnspecified() {
			host = a.String()
		}
		net += fmt.Sprintf(",hostfwd=%s:%s:%d-%s:%d", p.Proto, host, p.Host.Port(), guest, p.Guest)
	}
	return []string{"-netdev", net, "-device", virtio(l, "virtio-net-pci", "netdev=net,addr=2.0,romfile=")}
}

// firstDiskSlot and the 26 PCI slots after it hold eight layer disks each.
const firstDiskSlot = 4

// vectorDisks is how many layer disks get interrupt vectors of their own: a CPU
// has some 200, a disk takes two or more. With more disks they share lines.
const vectorDisks = 32

func (m *Machine) disks(l launch) []string {
	var args []string
	props := ""
	if len(m.Layers) > vectorDisks {
		props = ",num-queues=1,vectors=0"
	}
	disk := func(name, file, addr string, readOnly bool) {
		args = append(args, "-blockdev", blockdev(name, file, readOnly),
			"-device", virtio(l, "virtio-blk-pci", "drive="+name+",serial="+name+props+",addr="+addr))
	}
	if m.Scratch != "" {
		disk("scratch", m.Scratch, "3.0", false)
	}
	for i, file := range m.Layers {
		addr := fmt.Sprintf("%x.%x", firstDiskSlot+i/8, i%8)
		if i%8 == 0 && i+1 < len(m.Layers) {
			addr += ",multifunction=on"
		}
		disk(fmt.Sprintf("layer%d", i), file, addr, true)
	}
	return args
}

// blockdev is JSON, in which no character of a path has a meaning.
func blockdev(name, file string, readOnly bool) string {
	type fileNode struct {
		Driver   string `json:"driver"`
		Filename string `json:"filename"`
		Locking  string `json:"locking"`
		Discard  string `json:"discard,omitempty"`
	}
	node := struct {
		Driver   string   `json:"driver"`
		Name     string   `json:"node-name"`
		ReadOnly bool     `json:"read-only"`
		Discard  string   `json:"discard,omitempty"`
		File     fileNode `json:"file"`
	}{"raw", name, readOnly, "", fileNode{"file", file, "off", ""}}
	if !readOnly {
		node.Discard, node.File.Discard = "unmap", "unmap"
	}
	b, err := json.Marshal(node)
	if err != nil {
		return "" // strings and booleans always encode
	}
	return string(b)
}

// escape doubles the commas of a value in a comma-separated option.
func escape(s string) string { return strings.ReplaceAll(s, ",", ",,") }
