// SPDX-License-Identifier: Apache-2.0

// Package guestimage builds what a guest is started from: the kernel, the initrd
// and guest.json, which lists the launch digests that follow from them. The same
// inputs give the same bytes, so that anybody can build the image again and find
// the digest that a report shows. Who relies on a digest must trust this package
// and its inputs: the kernel package, the agent, runc and mke2fs.
package guestimage

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/coffer-dev/coffer/owner/appraise"
	"github.com/coffer-dev/coffer/owner/measure"
	"github.com/coffer-dev/coffer/tee"
	"github.com/coffer-dev/coffer/tee/snp"
)

// Names of the files in Config.Out.
const (
	KernelFile    = "vmlinux" // ELF, entered directly: what emulation starts
	BzImageFile   = "bzImage" // what firmware starts
	InitrdFile    = "initrd.img"
	ReferenceFile = "guest.json"
	// SNPReferenceFile is the reference for SEV-SNP, with BzImageFile and
	// SNPFirmwareFile. It is written only when Config.SNPFirmware is given.
	SNPReferenceFile = "guest-sev-snp.json"
	FirmwareFile     = "firmware.bin"
	SNPFirmwareFile  = "OVMF.fd"
)

// MaxVCPUs is the highest number of vCPUs that guest.json has digests for.
const MaxVCPUs = 8

// maxProgram bounds a program that goes into the initrd, in bytes.
const maxProgram = 256 << 20

// Config says what to build from. Nothing of the machine that builds enters the
// image: no names, times or users.
type Config struct {
	// KernelDir is an unpacked kernel package: boot/vmlinuz-* and lib/modules/*.
	KernelDir string
	// E2fsDir is a root of its own with sbin/mke2fs and the libraries it needs,
	// as scripts/fetch-e2fs makes it. Empty: no scratch disks.
	E2fsDir string
	Agent   string // the static binary that becomes /init
	Runc    string // the static binary that becomes /bin/runc
	// Firmware is the file that the emulated machine is started with.
	Firmware string
	// SNPFirmware is an OVMF for SEV-SNP with kernel hashes; empty: the image
	// gets no SEV-SNP reference.
	SNPFirmware string
	// Out is the directory to write to; it is made if it is missing.
	Out         string
	Compression Compression
}

// Image says what was built.
type Image struct {
	Kernel     string // release
	InitrdSize int    // bytes
	// Reference is what guest.json holds.
	Reference appraise.Reference
}

// Build builds a guest image into c.Out. Each file is replaced atomically, the
// references last; after an error the files there may be of two builds, which
// the digests in the references show.
func Build(ctx context.Context, c Config) (Image, error) {
	image, err := build(ctx, c)
	if err != nil {
		return Image{}, fmt.Errorf("building guest image: %w", err)
	}
	return image, nil
}

func build(ctx context.Context, c Config) (Image, error) {
	if err := os.MkdirAll(c.Out, 0o755); err != nil {
		return Image{}, err
	}
	release, files, err := contents(c)
	if err != nil {
		return Image{}, err
	}
	if err := ctx.Err(); err != nil {
		return Image{}, err
	}
	image := Image{Kernel: release, InitrdSize: len(files[InitrdFile])}
	if image.Reference, err = emulatedReference(files); err != nil {
		return Image{}, err
	}
	references := map[string]appraise.Reference{ReferenceFile: image.Reference}
	if files[SNPFirmwareFile] != nil {
		if references[SNPReferenceFile], err = snpReference(files); err != nil {
			return Image{}, err
		}
	}
	for name, content := range files {
		if err := ctx.Err(); err != nil {
			return Image{}, err
		}
		if err := replace(filepath.Join(c.Out, name), content); err != nil {
			return Image{}, err
		}
	}
	for name, r := range references {
		text, err := r.Encode()
		if err != nil {
			return Image{}, err
		}
		if err := replace(filepath.Join(c.Out, name), text); err != nil {
			return Image{}, err
		}
	}
	return image, nil
}

// contents makes all files but the references, by name, and says which kernel
// release it is.
func contents(c Config) (string, map[string][]byte, error) {
	mods, release, err := findModules(c.KernelDir)
	if err != nil {
		return "", nil, err
	}
	files := make(map[string][]byte)
	if files[BzImageFile], err = readBounded(filepath.Join(c.KernelDir, "boot", "vmlinuz-"+release), maxBzImage); err != nil {
		return "", nil, fmt.Errorf("reading the kernel: %w", err)
	}
	if files[KernelFile], err = extractELF(files[BzImageFile]); err != nil {
		return "", nil, err
	}
	if files[FirmwareFile], err = readBounded(c.Firmware, snp.MaxFirmwareSize); err != nil {
		return "", nil, fmt.Errorf("reading the firmware: %w", err)
	}
	if c.SNPFirmware != "" {
		if files[SNPFirmwareFile], err = readBounded(c.SNPFirmware, snp.MaxFirmwareSize); err != nil {
			return "", nil, fmt.Errorf("reading the SEV-SNP firmware: %w", err)
		}
	}
	t, err := root(c, mods)
	if err != nil {
		return "", nil, err
	}
	if files[InitrdFile], err = t.pack(c.Compression); err != nil {
		return "", nil, err
	}
	return release, files, nil
}

// root is what the guest finds at /.
func root(c Config, mods *modules) (tree, error) {
	t := make(tree)
	for _, d := range []string{"dev", "proc", "run", "sys"} {
		t.dir(d, 0o755)
	}
	t.dir("tmp", 0o1777)
	for name, from := range map[string]string{"init": c.Agent, "bin/runc": c.Runc} {
		content, err := readBounded(from, maxProgram)
		if err != nil {
			return nil, fmt.Errorf("adding /%s: %w", name, err)
		}
		if !bytes.HasPrefix(content, []byte("\x7fELF")) {
			return nil, fmt.Errorf("adding /%s: %s is not a program", name, from)
		}
		t.file(name, 0o755, content)
	}
	if c.E2fsDir != "" {
		// mke2fs is told everything by its arguments.
		if err := t.copyTree(c.E2fsDir, "etc/mke2fs.conf"); err != nil {
			return nil, fmt.Errorf("adding mke2fs: %w", err)
		}
		if _, ok := t["sbin/mke2fs"]; !ok {
			return nil, fmt.Errorf("adding mke2fs: no sbin/mke2fs in %s", c.E2fsDir)
		}
	}
	if err := mods.choose(t); err != nil {
		return nil, fmt.Errorf("choosing modules: %w", err)
	}
	return t, nil
}

func fileOf(files map[string][]byte, name string) appraise.File {
	return appraise.File{Name: name, SHA256: sha256.Sum256(files[name])}
}

func emulatedReference(files map[string][]byte) (appraise.Reference, error) {
	firmware := fileOf(files, FirmwareFile)
	r := appraise.Reference{Kernel: fileOf(files, KernelFile), Initrd: fileOf(files, InitrdFile), Firmware: &firmware, Append: CommandLine}
	for n := 1; n <= MaxVCPUs; n++ {
		digest, err := measure.Emulated(snp.Inputs{Firmware: files[FirmwareFile], Kernel: r.Kernel.SHA256,
			Initrd: r.Initrd.SHA256, Append: r.Append, VCPUs: n})
		if err != nil {
			return appraise.Reference{}, err
		}
		r.Measurements = append(r.Measurements, appraise.ReferenceDigest{TEE: tee.Emulated, VCPUs: n, Digest: digest})
	}
	return r, nil
}

func snpReference(files map[string][]byte) (appraise.Reference, error) {
	firmware := fileOf(files, SNPFirmwareFile)
	r := appraise.Reference{Kernel: fileOf(files, BzImageFile), Initrd: fileOf(files, InitrdFile), Firmware: &firmware, Append: CommandLine}
	for _, cpu := range measure.Types() {
		for n := 1; n <= MaxVCPUs; n++ {
			digest, err := measure.SNP(measure.Launch{Firmware: files[SNPFirmwareFile], Kernel: &r.Kernel.SHA256,
				Initrd: &r.Initrd.SHA256, Append: r.Append, VCPUs: n, VCPUType: cpu})
			if err != nil {
				return appraise.Reference{}, err
			}
			r.Measurements = append(r.Measurements, appraise.ReferenceDigest{TEE: tee.SEVSNP, VCPUs: n, CPU: cpu, Digest: digest})
		}
	}
	return r, nil
}

// replace writes a file so that there is the old one or the new one, never half
// of one.
func replace(name string, content []byte) (err error) {
	f, err := os.CreateTemp(filepath.Dir(name), ".new-*")
	if err != nil {
		return fmt.Errorf("writing %s: %w", name, err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("writing %s: %w", name, err), f.Close(), os.Remove(f.Name()))
		}
	}()
	if _, err := f.Write(content); err != nil {
		return err
	}
	if err := f.Chmod(0o644); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	return os.Rename(f.Name(), name)
}
