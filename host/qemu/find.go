// SPDX-License-Identifier: Apache-2.0

package qemu

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"time"
)

// ErrNoFirmware means that QEMU's data directory was not found or lacks the file.
var ErrNoFirmware = errors.New("QEMU's firmware not found")

// Find returns the path of QEMU's binary. name may be "" for the usual one.
func Find(name string) (string, error) {
	if name == "" {
		name = "qemu-system-x86_64"
	}
	path, err := exec.LookPath(name)
	if err != nil {
		return "", fmt.Errorf("finding QEMU: %w", err)
	}
	return filepath.Abs(path)
}

// Firmware returns qboot, which boots a kernel by its PVH entry or as a
// bzImage without an option ROM, so that all code before the kernel is in this
// one file. It is searched for where distributions put QEMU's data.
func Firmware(binary string) (string, error) {
	real, err := filepath.EvalSymlinks(binary)
	if err != nil {
		return "", fmt.Errorf("finding firmware: %w", err)
	}
	prefix := filepath.Dir(filepath.Dir(real))
	for _, dir := range []string{filepath.Join(prefix, "share", "qemu"), "/usr/share/qemu", "/usr/local/share/qemu", "/usr/share/qemu-kvm"} {
		name := filepath.Join(dir, "qboot.rom")
		if _, err := os.Stat(name); err == nil {
			return filepath.EvalSymlinks(name)
		}
	}
	return "", fmt.Errorf("%w: no qboot.rom in %s/share/qemu", ErrNoFirmware, prefix)
}

// snpFirmware is where distributions put OVMF's AmdSev build.
var snpFirmware = []string{
	"/usr/share/ovmf/OVMF.amdsev.fd",
	"/usr/share/OVMF/OVMF.amdsev.fd",
	"/usr/share/edk2/ovmf/OVMF.amdsev.fd",
	"/usr/share/edk2/x64/OVMF.amdsev.fd",
	"/usr/share/qemu/OVMF.amdsev.fd",
}

// SNPFirmware returns OVMF's build with kernel hashes.
func SNPFirmware() (string, error) {
	for _, name := range snpFirmware {
		if _, err := os.Stat(name); err == nil {
			return name, nil
		}
	}
	return "", fmt.Errorf("%w: no OVMF.amdsev.fd; name one with --firmware", ErrNoFirmware)
}

// Version asks a binary for its version.
func Version(ctx context.Context, binary string) (major, minor int, err error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, binary, "--version").Output()
	if err != nil {
		return 0, 0, fmt.Errorf("asking %s for its version: %w", binary, err)
	}
	return parseVersion(string(out))
}

func parseVersion(s string) (major, minor int, err error) {
	m := regexp.MustCompile(`version (\d{1,4})\.(\d{1,4})`).FindStringSubmatch(s)
	if m == nil {
		return 0, 0, fmt.Errorf("reading QEMU's version: not found in its answer")
	}
	major, _ = strconv.Atoi(m[1]) // at most four digits
	minor, _ = strconv.Atoi(m[2])
	return major, minor, nil
}
