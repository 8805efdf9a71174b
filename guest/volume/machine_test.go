// SPDX-License-Identifier: Apache-2.0

package volume_test

import (
	"bufio"
	"bytes"
	"context"
	"debug/elf"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cavaliergopher/cpio"
)

// deadline ends a machine that hangs. Emulated machines take seconds.
const deadline = 4 * time.Minute

// lab is what every virtual machine of these tests is made of.
type lab struct {
	kernel  string
	mklayer string
	files   map[string][]byte // of the initrd, by path
}

// newLab builds the machine's programs. It skips the test where something is
// missing that make test would bring.
func newLab(t testing.TB) *lab {
	t.Helper()
	if testing.Short() {
		t.Skip("starts virtual machines")
	}
	if _, err := exec.LookPath("qemu-system-x86_64"); err != nil {
		t.Skip("no qemu-system-x86_64; install qemu-system-x86")
	}
	l := &lab{files: make(map[string][]byte)}
	kernel := fromEnv("COFFER_KERNEL_DIR", "../../build/cache/kernel")
	images, err := filepath.Glob(filepath.Join(kernel, "boot/vmlinuz-*"))
	if err != nil || len(images) != 1 {
		t.Skipf("%d kernels in %s; run scripts/fetch-kernel build/cache/kernel or set COFFER_KERNEL_DIR", len(images), kernel)
	}
	l.kernel = images[0]
	l.addModules(t, kernel, "virtio_pci", "virtio_blk", "dm_mod", "dm_verity", "overlay",
		"dm_integrity", "dm_crypt", "authenc", "ecb", "xts", "aesni_intel")
	l.mklayer = build(t, "./testdata/mklayer")
	l.files["init"] = content(t, build(t, "./internal/vminit"))
	return l
}

func fromEnv(name, otherwise string) string {
	if v := os.Getenv(name); v != "" {
		return v
	}
	return otherwise
}

func content(t testing.TB, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func build(t testing.TB, pkg string) string {
	t.Helper()
	out := filepath.Join(t.TempDir(), filepath.Base(pkg))
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", out, pkg)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if b, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("building %s: %v\n%s", pkg, err, b)
	}
	return out
}

// addModules adds modules, those they need, and the list that guest/boot reads.
func (l *lab) addModules(t testing.TB, dir string, names ...string) {
	t.Helper()
	paths := make(map[string]string)
	err := filepath.WalkDir(filepath.Join(dir, "lib/modules"), func(path string, d fs.DirEntry, err error) error {
		if name, ok := strings.CutSuffix(filepath.Base(path), ".ko"); ok {
			paths[strings.ReplaceAll(name, "-", "_")] = path
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	var list strings.Builder
	for i := 0; i < len(names); i++ { // names grows
		name := names[i]
		path, ok := paths[name]
		if !ok {
			t.Fatalf("no module %s in %s", name, dir)
		}
		f, err := elf.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		info, err := f.Section(".modinfo").Data()
		f.Close()
		if err != nil {
			t.Fatal(err)
		}
		line := []string{name, "/lib/modules/" + name + ".ko"}
		for _, field := range strings.Split(string(info), "\x00") {
			if needs, ok := strings.CutPrefix(field, "depends="); ok && needs != "" {
				for _, n := range strings.Split(strings.ReplaceAll(needs, "-", "_"), ",") {
					line = append(line, n)
					if !slices.Contains(names, n) {
						names = append(names, n)
					}
				}
			}
		}
		fmt.Fprintln(&list, strings.Join(line, " "))
		l.files["lib/modules/"+name+".ko"] = content(t, path)
	}
	l.files["lib/modules/list"] = []byte(list.String())
}

// addMke2fs adds what scripts/fetch-e2fs made.
func (l *lab) addMke2fs(t testing.TB) {
	t.Helper()
	dir := fromEnv("COFFER_E2FS_DIR", "../../build/cache/e2fs")
	if _, err := os.Stat(filepath.Join(dir, "sbin/mke2fs")); err != nil {
		t.Skipf("no mke2fs in %s; run scripts/fetch-e2fs build/cache/e2fs or set COFFER_E2FS_DIR", dir)
	}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		rel, err := filepath.Rel(dir, path)
		l.files[rel] = content(t, path)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// initrd writes the archive with one more file.
func (l *lab) initrd(t testing.TB, scenario any) string {
	t.Helper()
	text, err := json.Marshal(scenario)
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	w := cpio.NewWriter(&b)
	dirs := map[string]bool{".": true}
	add := func(name string, mode cpio.FileMode, body []byte) {
		var missing []string
		for d := filepath.Dir(name); !dirs[d]; d = filepath.Dir(d) {
			missing = append(missing, d)
			dirs[d] = true
		}
		slices.Reverse(missing)
		for _, d := range missing {
			if err := w.WriteHeader(&cpio.Header{Name: d, Mode: cpio.TypeDir | 0o755}); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.WriteHeader(&cpio.Header{Name: name, Mode: mode, Size: int64(len(body))}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(body); err != nil {
			t.Fatal(err)
		}
	}
	for name, body := range l.files {
		add(name, cpio.TypeReg|0o755, body)
	}
	add("scenario.json", cpio.TypeReg|0o644, text)
	add("dev", cpio.TypeDir|0o755, nil)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "initrd")
	if err := os.WriteFile(path, b.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// drive is a disk of a machine.
type drive struct {
	path, serial string
	writable     bool
}

// machine is a running virtual machine.
type machine struct {
	cmd     *exec.Cmd
	stdin   io.Writer
	console *bufio.Scanner
	lines   []string
}

func (l *lab) start(t testing.TB, scenario any, drives []drive) *machine {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), deadline)
	t.Cleanup(cancel)
	// As host/qemu starts the emulated TEE. qboot looks at no disk.
	args := []string{"-machine", "q35,hpet=off,vmport=off,smm=off", "-accel", "tcg,thread=multi",
		"-cpu", "qemu64,+ssse3,+sse4.1,+sse4.2,+popcnt,+rdrand,+aes,+pclmulqdq,+movbe,+fsgsbase,-svm", "-smp", "2", "-m", "768",
		"-nodefaults", "-no-user-config", "-display", "none", "-serial", "stdio", "-no-reboot", "-bios", "qboot.rom",
		"-kernel", l.kernel, "-initrd", l.initrd(t, scenario),
		"-append", "console=ttyS0 quiet loglevel=4 panic=-1 oops=panic"}
	for i, d := range drives {
		readonly := "on"
		if d.writable {
			readonly = "off"
		}
		// Eight to a slot. A processor has about 200 interrupt vectors, and a
		// disk would take three; so many share one of the four lines instead.
		few := ""
		if len(drives) > 64 {
			few = ",num-queues=1,vectors=0"
		}
		args = append(args, "-drive", fmt.Sprintf("if=none,id=d%d,format=raw,file=%s,readonly=%s", i, d.path, readonly),
			"-device", fmt.Sprintf("virtio-blk-pci,drive=d%d,serial=%s,addr=%x.%x,multifunction=on%s", i, d.serial, 3+i/8, i%8, few))
	}
	m := &machine{cmd: exec.CommandContext(ctx, "qemu-system-x86_64", args...)}
	stdin, err := m.cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := m.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var stderr bytes.Buffer
	m.cmd.Stderr = &stderr
	if err := m.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel()
		_ = m.cmd.Wait() // killed or ended: what matters was on the console
		if t.Failed() {
			t.Logf("console:\n%s\n%s", strings.Join(m.lines, "\n"), stderr.String())
		}
	})
	m.stdin, m.console = stdin, bufio.NewScanner(stdout)
	return m
}

// until reads the console up to a line that is stop, or to the machine's end;
// "" is no line.
func (m *machine) until(stop string) bool {
	for m.console.Scan() {
		line := strings.TrimSuffix(m.console.Text(), "\r")
		m.lines = append(m.lines, line)
		if stop != "" && line == stop {
			return true
		}
	}
	return false
}

// say writes a line to the guest's console.
func (m *machine) say(t testing.TB, line string) {
	t.Helper()
	if _, err := io.WriteString(m.stdin, line+"\n"); err != nil {
		t.Fatal(err)
	}
}

// report reads to the machine's end and holds the checks to be these, all passed.
func (m *machine) report(t testing.TB, want ...string) {
	t.Helper()
	m.until("")
	var passed []string
	for _, line := range m.lines {
		if name, ok := strings.CutPrefix(line, "PASS "); ok {
			passed = append(passed, name)
		}
		if strings.HasPrefix(line, "FAIL ") {
			t.Error(line)
		}
		if strings.HasPrefix(line, "INFO ") {
			t.Log(line)
		}
	}
	if !slices.Equal(passed, want) {
		t.Errorf("passed: got %q; want %q", passed, want)
	}
	if !slices.Contains(m.lines, "END") {
		t.Error("the machine did not come to its end")
	}
}

func (m *machine) said(words string) bool {
	return slices.ContainsFunc(m.lines, func(l string) bool { return strings.Contains(l, words) })
}
