// SPDX-License-Identifier: Apache-2.0

package attestation

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cavaliergopher/cpio"

	"github.com/coffer-dev/coffer/host/emulator"
	"github.com/coffer-dev/coffer/owner/verify"
	"github.com/coffer-dev/coffer/tee"
)

// portName is the virtio-serial port between guest and emulator.
const portName = "coffer.sev"

// guestModules are loaded by the test's guest, with what they depend on.
var guestModules = []string{"virtio_pci", "virtio_console", "cuse"}

// need skips the test for want of something, or fails where nothing may be
// skipped.
func need(t *testing.T, what string, err error) {
	t.Helper()
	if err == nil {
		return
	}
	if os.Getenv("COFFER_NO_SKIP") != "" {
		t.Fatalf("%s: %v", what, err)
	}
	t.Skipf("%s: %v", what, err)
}

// kernel returns the guest kernel and its modules' directory.
func kernel(t *testing.T) (image, modules string) {
	t.Helper()
	dir := os.Getenv("COFFER_KERNEL_DIR")
	if dir == "" {
		_, file, _, _ := runtime.Caller(0)
		dir = filepath.Join(filepath.Dir(file), "..", "..", "build", "cache", "kernel")
	}
	images, err := filepath.Glob(filepath.Join(dir, "boot", "vmlinuz-*"))
	if err == nil && len(images) == 0 {
		err = os.ErrNotExist
	}
	need(t, "guest kernel in "+dir+" (scripts/fetch-kernel)", err)
	release := strings.TrimPrefix(filepath.Base(images[0]), "vmlinuz-")
	return images[0], filepath.Join(dir, "lib", "modules", release)
}

// moduleFiles returns the modules and what they need, in the order to load.
func moduleFiles(t *testing.T, dir string) []string {
	t.Helper()
	var all []string
	err := filepath.WalkDir(filepath.Join(dir, "kernel"), func(path string, _ os.DirEntry, err error) error {
		if strings.HasSuffix(path, ".ko") {
			all = append(all, path)
		}
		return err
	})
	need(t, "kernel modules", err)
	find := func(name string) string {
		for _, path := range all {
			if strings.ReplaceAll(filepath.Base(path), "-", "_") == name+".ko" {
				return path
			}
		}
		return "" // built in
	}
	var order []string
	var add func(name string)
	add = func(name string) {
		path := find(name)
		if path == "" || slices.Contains(order, path) {
			return
		}
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for _, field := range bytes.Split(data, []byte{0}) {
			if deps, ok := bytes.CutPrefix(field, []byte("depends=")); ok {
				for dep := range strings.SplitSeq(string(deps), ",") {
					add(strings.ReplaceAll(dep, "-", "_"))
				}
			}
		}
		order = append(order, path)
	}
	for _, name := range guestModules {
		add(name)
	}
	return order
}

// buildInitrd writes an initrd whose init is this package's test binary.
func buildInitrd(t *testing.T, modules []string) string {
	t.Helper()
	dir := t.TempDir()
	binary := filepath.Join(dir, "init")
	build := exec.Command("go", "test", "-c", "-o", binary, ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("building the guest's init: %v\n%s", err, out)
	}
	file, err := os.Create(filepath.Join(dir, "initrd"))
	if err != nil {
		t.Fatal(err)
	}
	w := cpio.NewWriter(file)
	add := func(name, from string, mode cpio.FileMode) {
		var data []byte
		if from != "" {
			if data, err = os.ReadFile(from); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.WriteHeader(&cpio.Header{Name: name, Mode: mode, Size: int64(len(data))}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(data); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"dev", "proc", "sys", "modules"} {
		add(name, "", cpio.TypeDir|0o755)
	}
	add("init", binary, cpio.TypeReg|0o755)
	for i, path := range modules {
		add(filepath.Join("modules", string(rune('a'+i))+"-"+filepath.Base(path)), path, cpio.TypeReg|0o644)
	}
	if err := errors.Join(w.Close(), file.Close()); err != nil {
		t.Fatal(err)
	}
	return file.Name()
}

// TestDeviceUnderRealKernel boots a kernel in QEMU whose init serves
// /dev/sev-guest through CUSE and uses it as a container would, by go-sev-guest's
// own client; what comes out is verified here.
func TestDeviceUnderRealKernel(t *testing.T) {
	if testing.Short() {
		t.Skip("boots a machine, which takes seconds")
	}
	qemu, err := exec.LookPath("qemu-system-x86_64")
	need(t, "QEMU", err)
	image, modules := kernel(t)
	s := emulator.Started{
		Firmware: "/usr/share/seabios/bios-256k.bin", Kernel: image, Initrd: buildInitrd(t, moduleFiles(t, modules)),
		Append: "console=ttyS0 quiet panic=-1", VCPUs: 2,
	}
	_, err = os.Stat(s.Firmware)
	need(t, "firmware", err)
	measurement, err := emulator.Measure(s)
	if err != nil {
		t.Fatal(err)
	}
	p, err := emulator.New(root(t), emulator.Launch{Measurement: measurement, HostData: sha256.Sum256([]byte(policy))})
	if err != nil {
		t.Fatal(err)
	}
	evidence := runGuest(t, qemu, s, p)
	if len(evidence) != 3 {
		t.Fatalf("the guest sent %d pieces of evidence; want 3", len(evidence))
	}
	for _, e := range evidence {
		c, err := verifier(t, verify.Config{InsecureAcceptEmulated: true, EmulatedRoot: root(t).ARK()}).Verify(e, time.Now())
		if err != nil {
			t.Errorf("Verify = %v", err)
			continue
		}
		if c.Measurement != measurement || c.HostData != sha256.Sum256([]byte(policy)) || c.ReportData != guestBinding() {
			t.Errorf("claims = %x, %x, %x", c.Measurement, c.HostData, c.ReportData)
		}
	}
}

// runGuest starts the machine, answers its emulated secure processor, and
// returns the evidence that the guest prints before it ends well.
func runGuest(t *testing.T, qemu string, s emulator.Started, p *emulator.Processor) []tee.Evidence {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "sev")
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() {
		conn, err := listener.Accept()
		if err == nil {
			err = p.Serve(t.Context(), conn)
			err = errors.Join(err, conn.Close())
		}
		served <- err
	}()
	vm := exec.CommandContext(t.Context(), qemu, "-accel", "tcg", "-machine", "q35", "-cpu", "max", "-smp", "2", "-m", "512M",
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-bios", s.Firmware, "-kernel", s.Kernel, "-initrd", s.Initrd, "-append", s.Append, "-serial", "stdio",
		"-device", "virtio-serial-pci", "-chardev", "socket,id=sev,path="+socket, "-device", "virtserialport,chardev=sev,name="+portName)
	vm.WaitDelay = time.Second
	var errOut bytes.Buffer
	vm.Stderr = &errOut
	console, err := vm.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := vm.Start(); err != nil {
		t.Fatal(err)
	}
	evidence, log, ok := readConsole(t, console)
	if err := vm.Wait(); err != nil || !ok {
		t.Errorf("guest: %v, ended well %v, %s\n%s", err, ok, errOut.String(), log)
	}
	if err := listener.Close(); err != nil {
		t.Error(err)
	}
	if err := <-served; err != nil {
		t.Errorf("serving the secure processor: %v", err)
	}
	return evidence
}

func readConsole(t *testing.T, console io.Reader) (evidence []tee.Evidence, log string, ok bool) {
	lines := bufio.NewScanner(io.LimitReader(console, 16<<20))
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		line := strings.TrimRight(lines.Text(), "\r")
		if _, text, found := strings.Cut(line, "EVIDENCE "); found {
			doc, err := base64.StdEncoding.DecodeString(text)
			if err != nil {
				t.Errorf("evidence of the guest: %v", err)
				continue
			}
			e, err := tee.DecodeEvidence(doc)
			if err != nil {
				t.Errorf("evidence of the guest: %v", err)
				continue
			}
			evidence = append(evidence, e)
			continue
		}
		ok = ok || strings.HasSuffix(line, "GUEST OK")
		log += line + "\n"
	}
	return evidence, log, ok
}
