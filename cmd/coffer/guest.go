// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/coffer-dev/coffer/host/qemu"
	"github.com/coffer-dev/coffer/owner/guestimage"
	"github.com/coffer-dev/coffer/owner/measure"
	"github.com/coffer-dev/coffer/tee"
	"github.com/coffer-dev/coffer/tee/snp"
)

func (a *app) guestCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "guest", Short: "Build and measure guest images", Args: usage(cobra.NoArgs),
		RunE: func(c *cobra.Command, _ []string) error { return c.Help() }}
	cmd.AddCommand(a.guestBuildCommand(), a.guestMeasureCommand())
	return cmd
}

func (a *app) guestBuildCommand() *cobra.Command {
	var cfg guestimage.Config
	cmd := &cobra.Command{
		Use: "build", Short: "Build a guest image: the same inputs give the same bytes",
		Args: usage(cobra.NoArgs),
		RunE: func(c *cobra.Command, _ []string) error {
			if cfg.Firmware == "" {
				binary, err := qemu.Find("")
				if err != nil {
					return err
				}
				if cfg.Firmware, err = qemu.Firmware(binary); err != nil {
					return err
				}
			}
			img, err := guestimage.Build(c.Context(), cfg)
			if err != nil {
				return err
			}
			if a.json {
				return printJSON(a.stdout, map[string]any{"kernel": img.Kernel, "initrd_bytes": img.InitrdSize, "directory": cfg.Out})
			}
			fmt.Fprintf(a.stderr, "guest image in %s: kernel %s, initrd %.1f MB\n", cfg.Out, img.Kernel, float64(img.InitrdSize)/1e6)
			return nil
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&cfg.KernelDir, "kernel-dir", "", "unpacked kernel package `directory` (boot/ and lib/modules/)")
	flags.StringVar(&cfg.E2fsDir, "e2fs-dir", "", "`directory` with sbin/mke2fs and its libraries; without it there are no scratch disks")
	flags.StringVar(&cfg.Agent, "agent", "", "coffer-guest `binary`")
	flags.StringVar(&cfg.Runc, "runc", "", "static runc `binary`")
	flags.StringVar(&cfg.Firmware, "firmware", "", "firmware `file` of the emulated TEE (default: QEMU's own)")
	flags.StringVar(&cfg.SNPFirmware, "snp-firmware", "", "OVMF `file` built for SEV-SNP with kernel hashes")
	flags.StringVar(&cfg.Out, "out", "", "`directory` to write to")
	flags.StringVar((*string)(&cfg.Compression), "compression", "", "lz4, zstd or none (default lz4)")
	flags.BoolVar(&a.json, "json", false, "write JSON")
	for _, name := range []string{"kernel-dir", "agent", "runc", "out"} {
		_ = cmd.MarkFlagRequired(name) // fails only for a flag that does not exist
	}
	return cmd
}

type measureFlags struct {
	tee, firmware, kernel, initrd, append, vcpuType, features string
	vcpus                                                     int
}

func (a *app) guestMeasureCommand() *cobra.Command {
	var f measureFlags
	cmd := &cobra.Command{
		Use:   "measure",
		Short: "Print the launch digest of the guest image, or of any launch",
		Long: `Without --kernel, prints the digest of the built guest image for --vcpus.
With it, computes the digest of a launch from its parts:

  coffer guest measure --tee sev-snp --firmware OVMF.fd --kernel K --initrd I \
    --append "console=ttyS0" --vcpus 2 --vcpu-type EPYC-v4

vCPU types: ` + strings.Join(measure.Types(), " "),
		Args: usage(cobra.NoArgs),
		RunE: func(c *cobra.Command, _ []string) error {
			digest, err := a.measure(c, f)
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(a.stdout, "%x\n", digest)
			return err
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&f.tee, "tee", "emulated", "emulated or sev-snp")
	flags.StringVar(&f.firmware, "firmware", "", "firmware `file` given to -bios")
	flags.StringVar(&f.kernel, "kernel", "", "`file` given to -kernel")
	flags.StringVar(&f.initrd, "initrd", "", "`file` given to -initrd")
	flags.StringVar(&f.append, "append", "", "the kernel's command line, exactly")
	flags.IntVar(&f.vcpus, "vcpus", 1, "number of vCPUs at launch")
	flags.StringVar(&f.vcpuType, "vcpu-type", "EPYC-v4", "QEMU's -cpu model (sev-snp)")
	flags.StringVar(&f.features, "guest-features", "0x1", "SEV_FEATURES in `hex` (sev-snp)")
	return cmd
}

func (a *app) measure(c *cobra.Command, f measureFlags) ([48]byte, error) {
	kind, err := tee.ParseKind(f.tee)
	if err != nil {
		return [48]byte{}, usageError(c, err)
	}
	var features uint64
	if _, err := fmt.Sscanf(strings.TrimPrefix(f.features, "0x"), "%x", &features); err != nil {
		return [48]byte{}, usageError(c, fmt.Errorf("--guest-features %q is not hex", f.features))
	}
	if f.kernel == "" && f.firmware == "" {
		return a.builtDigest(kind, f)
	}
	if f.firmware == "" {
		return [48]byte{}, usageError(c, errors.New("--kernel without --firmware: the firmware is measured too"))
	}
	firmware, err := readFile(f.firmware, snp.MaxFirmwareSize)
	if err != nil {
		return [48]byte{}, err
	}
	kernel, err := hashFile(f.kernel)
	if err != nil {
		return [48]byte{}, err
	}
	initrd, err := hashFile(f.initrd)
	if err != nil {
		return [48]byte{}, err
	}
	if kind == tee.SEVSNP {
		return measure.SNP(measure.Launch{Firmware: firmware, Kernel: kernel, Initrd: initrd, Append: f.append,
			VCPUs: f.vcpus, VCPUType: f.vcpuType, GuestFeatures: features})
	}
	if kernel == nil {
		return [48]byte{}, usageError(c, errors.New("the emulated TEE always has a --kernel"))
	}
	in := snp.Inputs{Firmware: firmware, Kernel: *kernel, Initrd: snp.NoInitrd(), Append: f.append, VCPUs: f.vcpus}
	if initrd != nil {
		in.Initrd = *initrd
	}
	return measure.Emulated(in)
}

// builtDigest finds the digest in the guest image's references.
func (a *app) builtDigest(kind tee.Kind, f measureFlags) ([48]byte, error) {
	dir, err := a.guest()
	if err != nil {
		return [48]byte{}, err
	}
	name := guestimage.ReferenceFile
	if kind == tee.SEVSNP {
		name = guestimage.SNPReferenceFile
	}
	ref, err := readReference(filepath.Join(dir, name))
	if errors.Is(err, os.ErrNotExist) {
		return [48]byte{}, hint(fmt.Errorf("the guest image in %s was built without a firmware for %s", dir, kind),
			"build it with `coffer guest build --snp-firmware OVMF.fd ...`, or name --firmware, --kernel, --initrd and --append")
	}
	if err != nil {
		return [48]byte{}, err
	}
	for _, m := range ref.Measurements {
		if m.TEE == kind && m.VCPUs == f.vcpus && (kind == tee.Emulated || m.CPU == f.vcpuType) {
			return m.Digest, nil
		}
	}
	return [48]byte{}, fmt.Errorf("%s has no digest for %s with %d vCPUs of type %s", name, kind, f.vcpus, f.vcpuType)
}

// hashFile is nil for no file.
func hashFile(path string) (*[32]byte, error) {
	if path == "" {
		return nil, nil
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	h, err := measure.HashFile(f)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return &h, nil
}
