// SPDX-License-Identifier: Apache-2.0

// Package guestboot_test boots the guest's kernel and modules in QEMU, with a
// small program in the agent's place.
package guestboot_test

import (
	"bufio"
	"bytes"
	"context"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/coffer-dev/coffer/owner/guestimage"
)

const deadline = 3 * time.Minute // for a machine that hangs; one takes seconds

// machine is a guest image with testinit in it.
type machine struct {
	qemu string
	dir  string
}

// build builds the image, or skips the test where something is missing that
// make test would bring.
func build(t *testing.T) machine {
	t.Helper()
	if testing.Short() {
		t.Skip("starts virtual machines")
	}
	qemu, err := exec.LookPath("qemu-system-x86_64")
	if err != nil {
		t.Skip("no qemu-system-x86_64; install qemu-system-x86")
	}
	firmware := "/usr/share/qemu/qboot.rom"
	if _, err := os.Stat(firmware); err != nil {
		t.Skipf("no %s; install qemu-system-data", firmware)
	}
	kernel := os.Getenv("COFFER_KERNEL_DIR")
	if kernel == "" {
		kernel = "../../build/cache/kernel"
	}
	if _, err := os.Stat(filepath.Join(kernel, "lib/modules")); err != nil {
		t.Skipf("no kernel in %s; run scripts/fetch-kernel build/cache/kernel or set COFFER_KERNEL_DIR", kernel)
	}
	m := machine{qemu: qemu, dir: t.TempDir()}
	agent := filepath.Join(m.dir, "testinit")
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", agent, "../../guest/boot/internal/testinit")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("building testinit: %v\n%s", err, out)
	}
	_, err = guestimage.Build(t.Context(), guestimage.Config{KernelDir: kernel, Agent: agent, Runc: agent,
		Firmware: firmware, Out: m.dir, Compression: guestimage.None})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func (m machine) file(name string) string { return filepath.Join(m.dir, name) }

// command returns the machine doing what mode says, its console on stdout.
func (m machine) command(ctx context.Context, mode string, more ...string) *exec.Cmd {
	return exec.CommandContext(ctx, m.qemu, append([]string{"-accel", "tcg", "-cpu", "max", "-machine", "q35", "-smp", "2", "-m", "256",
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-serial", "stdio",
		"-bios", m.file(guestimage.FirmwareFile), "-kernel", m.file(guestimage.KernelFile), "-initrd", m.file(guestimage.InitrdFile),
		"-append", guestimage.CommandLine + " testinit=" + mode, "-device", "virtio-serial-pci"}, more...)...)
}

// lines are the console's lines without what the kernel prints in front.
func lines(console []byte) []string {
	stamp := regexp.MustCompile(`^\[ *[0-9.]+\] `)
	var out []string
	for line := range strings.Lines(string(console)) {
		if line = strings.TrimSpace(line); line != "" {
			out = append(out, stamp.ReplaceAllString(line, ""))
		}
	}
	return out
}

func TestBoot(t *testing.T) {
	m := build(t)
	ctx, cancel := context.WithTimeout(t.Context(), deadline)
	defer cancel()
	for _, tt := range []struct{ mode, first string }{
		{"check", "testinit: booted in "},
		{"fatal", "coffer-guest: fatal: testing: the end"},
		{"panic", "goroutine "}, // the stack, before the one line
	} {
		t.Run(tt.mode, func(t *testing.T) {
			out, err := m.command(ctx, tt.mode).Output()
			if err != nil {
				t.Fatalf("qemu: %v\n%s", err, out)
			}
			got := lines(out)
			// Nothing but this on the console, and a power-off at the end.
			if len(got) < 2 || !strings.HasPrefix(got[0], tt.first) || got[len(got)-1] != "reboot: Power down" {
				t.Errorf("console:\n%s\nwant %q and a power-off", out, tt.first)
			}
			if tt.mode == "panic" && got[len(got)-2] != "coffer-guest: fatal: panic: testing the end" {
				t.Errorf("console:\n%s\nwant the panic in one line", out)
			}
		})
	}
}

func TestPort(t *testing.T) {
	m := build(t)
	ctx, cancel := context.WithTimeout(t.Context(), deadline)
	defer cancel()
	listener, err := net.Listen("unix", m.file("control"))
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	var console bytes.Buffer
	cmd := m.command(ctx, "echo", "-chardev", "socket,id=c,path="+m.file("control"), "-device", "virtserialport,chardev=c,name=coffer.control")
	cmd.Stdout = &console
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	conn, err := listener.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.Write([]byte("hello\n")); err != nil {
		t.Fatal(err)
	}
	answer, err := bufio.NewReader(conn).ReadString('\n')
	if err != nil || answer != "echo hello\n" {
		t.Errorf("answer = %q, %v; want %q", answer, err, "echo hello\n")
	}
	conn.Close()
	if err := cmd.Wait(); err != nil {
		t.Errorf("qemu: %v", err)
	}
	if got := lines(console.Bytes()); len(got) != 2 || !strings.HasPrefix(got[0], "testinit: booted") {
		t.Errorf("console:\n%s\nwant the channel's end to be noticed", console.Bytes())
	}
}
