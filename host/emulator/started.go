// SPDX-License-Identifier: Apache-2.0

package emulator

import (
	"crypto/sha256"
	"fmt"
	"io"
	"os"

	"github.com/coffer-dev/coffer/tee/snp"
)

// Started is what a VM is started with, as QEMU's arguments have it.
type Started struct {
	Firmware string // the file given to -bios
	Kernel   string // the file given to -kernel
	Initrd   string // the file given to -initrd; empty without one
	Append   string // the -append string exactly
	VCPUs    int    // -smp cpus
}

// Measure computes the launch digest of s from the files as they are now.
func Measure(s Started) ([48]byte, error) {
	in := snp.Inputs{Append: s.Append, VCPUs: s.VCPUs, Initrd: snp.NoInitrd()}
	var err error
	if in.Firmware, err = readFirmware(s.Firmware); err != nil {
		return [48]byte{}, fmt.Errorf("measuring firmware: %w", err)
	}
	if in.Kernel, err = hashFile(s.Kernel); err != nil {
		return [48]byte{}, fmt.Errorf("measuring kernel: %w", err)
	}
	if s.Initrd != "" {
		if in.Initrd, err = hashFile(s.Initrd); err != nil {
			return [48]byte{}, fmt.Errorf("measuring initrd: %w", err)
		}
	}
	return snp.EmulatedDigest(in)
}

// readFirmware reads at most one byte more than a digest takes.
func readFirmware(name string) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, snp.MaxFirmwareSize+1))
}

func hashFile(name string) ([32]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return [32]byte{}, err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return [32]byte{}, err
	}
	return [32]byte(h.Sum(nil)), nil
}
