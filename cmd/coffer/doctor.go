// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/coffer-dev/coffer/host/qemu"
)

// finding is one line of `doctor`.
type finding struct {
	What string `json:"what"`
	OK   bool   `json:"ok"`
	Says string `json:"says"`
	// Do is what to do; "" if there is nothing.
	Do string `json:"do,omitempty"`
	// Needed: without it nothing runs.
	Needed bool `json:"needed"`
}

func (a *app) doctorCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "doctor", Short: "Show what this machine can do, and what to do about the rest",
		Long: `Looks at QEMU, the accelerator (a short probe tells whether /dev/kvm really runs a
guest), SEV-SNP, TDX, the guest image and the state directory. The exit status is
0 if groups can run at all.`,
		Args: usage(cobra.NoArgs),
		RunE: func(c *cobra.Command, _ []string) error { return a.doctor(c.Context()) },
	}
	cmd.Flags().BoolVar(&a.json, "json", false, "write JSON")
	return cmd
}

func (a *app) doctor(ctx context.Context) error {
	binary, q := findQEMU(ctx)
	guest, g := a.findGuest()
	findings := []finding{q, g, a.accelerator(ctx, binary, guest), sevSNP(ctx, binary), tdx(), a.state()}
	broken := false
	for _, f := range findings {
		broken = broken || f.Needed && !f.OK
	}
	if a.json {
		if err := printJSON(a.stdout, findings); err != nil {
			return err
		}
	} else {
		for _, f := range findings {
			state := "ok"
			if !f.OK {
				state = "no"
			}
			fmt.Fprintf(a.stdout, "%-12s %-3s %s\n", f.What, state, f.Says)
			if f.Do != "" {
				fmt.Fprintf(a.stdout, "%-12s     -> %s\n", "", f.Do)
			}
		}
	}
	if broken {
		return &statusError{code: exitFailure}
	}
	return nil
}

func findQEMU(ctx context.Context) (string, finding) {
	f := finding{What: "qemu", Needed: true}
	binary, err := qemu.Find("")
	if err != nil {
		f.Says, f.Do = err.Error(), "apt-get install qemu-system-x86"
		return "", f
	}
	major, minor, err := qemu.Version(ctx, binary)
	if err != nil {
		f.Says, f.Do = err.Error(), "reinstall qemu-system-x86"
		return "", f
	}
	f.OK, f.Says = true, fmt.Sprintf("%s, version %d.%d", binary, major, minor)
	return binary, f
}

func (a *app) findGuest() (string, finding) {
	f := finding{What: "guest image", Needed: true}
	dir, err := a.guest()
	if err == nil {
		_, err = readReference(filepath.Join(dir, "guest.json"))
	}
	if err != nil {
		f.Says, f.Do = err.Error(), strings.Join(hints(err), "; ")
		return "", f
	}
	f.OK, f.Says = true, dir
	return dir, f
}

func (a *app) accelerator(ctx context.Context, binary, guest string) finding {
	f := finding{What: "accelerator"}
	if binary == "" || guest == "" {
		f.Says = "not looked at: it takes QEMU and a guest image"
		return f
	}
	if err := os.MkdirAll(a.root, 0o700); err != nil {
		f.Says = err.Error()
		return f
	}
	p, err := qemu.ProbeKVM(ctx, binary, filepath.Join(guest, "vmlinux"), filepath.Join(a.root, "kvm.json"),
		func(s string) { fmt.Fprintln(a.stderr, s) })
	switch {
	case err != nil:
		f.Says = err.Error()
	case p.Works:
		f.OK, f.Says = true, "KVM runs a guest"
	default:
		f.Says = "no KVM, QEMU emulates (10 to 30 times slower): " + p.Reason
		f.Do = "enable virtualisation in the firmware, or nested virtualisation in the hypervisor, and give yourself /dev/kvm (group kvm)"
	}
	return f
}

func sevSNP(ctx context.Context, binary string) finding {
	f := finding{What: "sev-snp"}
	param, err := os.ReadFile("/sys/module/kvm_amd/parameters/sev_snp")
	switch {
	case err != nil || strings.TrimSpace(string(param)) != "Y":
		f.Says = "not here: groups run in the EMULATED TEE, which protects nothing"
		f.Do = "for protection: an AMD EPYC 7003 or later with SEV-SNP enabled in its firmware, and Linux 6.11 or later"
		return f
	case binary == "":
		f.Says = "the kernel offers it; not looked at further without QEMU"
		return f
	}
	c, err := qemu.AskSEV(ctx, binary)
	if err != nil {
		f.Says, f.Do = "the kernel offers it, but QEMU does not: "+err.Error(), "QEMU 9.1 or later, and read and write access to /dev/sev"
		return f
	}
	f.OK, f.Says = true, fmt.Sprintf("C-bit %d, %d reduced physical bits", c.CBitPosition, c.ReducedPhysBits)
	if _, err := qemu.SNPFirmware(); err != nil {
		f.OK, f.Do = false, "install an OVMF built for SEV-SNP with kernel hashes (AmdSev): "+err.Error()
	}
	return f
}

func tdx() finding {
	f := finding{What: "tdx"}
	param, err := os.ReadFile("/sys/module/kvm_intel/parameters/tdx")
	if err == nil && strings.TrimSpace(string(param)) == "Y" {
		f.Says = "this machine has it, Coffer does not support it yet"
	} else {
		f.Says = "not here (nor supported yet)"
	}
	return f
}

func (a *app) state() finding {
	f := finding{What: "state", Needed: true}
	if _, err := a.store(); err != nil {
		f.Says, f.Do = err.Error(), "name a directory you may write to with --root"
		return f
	}
	f.OK, f.Says = true, a.root
	return f
}
