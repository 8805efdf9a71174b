// SPDX-License-Identifier: Apache-2.0

package qemu

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// Probe is the answer to whether KVM really runs a guest here.
type Probe struct {
	Works bool `json:"works"`
	// Reason says why not, for a person.
	Reason string `json:"reason,omitempty"`
	// Key names what the answer depends on; an answer with another is stale.
	Key string `json:"key"`
}

// probeTime is long for a working KVM, which needs a fraction of a second.
const probeTime = 6 * time.Second

// ProbeKVM boots kernel under KVM until it looks for its root file system. A
// device file proves little: nested or emulated, KVM may exist and hang at the
// first page fault, or run small code and no real kernel. The answer is kept in
// file until the machine is booted again or QEMU changes; progress,
// if not nil, is told before a probe that takes time.
func ProbeKVM(ctx context.Context, binary, kernel, file string, progress func(string)) (Probe, error) {
	if f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0); err != nil {
		reason := err.Error()
		if errors.Is(err, os.ErrNotExist) {
			reason = "there is no /dev/kvm"
		} else if errors.Is(err, os.ErrPermission) {
			reason = "no permission for /dev/kvm (join the group kvm)"
		}
		return Probe{Reason: reason}, nil
	} else if err := f.Close(); err != nil {
		return Probe{}, fmt.Errorf("probing KVM: %w", err)
	}
	key, err := probeKey(binary)
	if err != nil {
		return Probe{}, err
	}
	var old Probe
	if raw, err := os.ReadFile(file); err == nil && json.Unmarshal(raw, &old) == nil && old.Key == key {
		return old, nil
	}
	if progress != nil {
		progress("trying whether /dev/kvm runs a guest (once per boot of this machine)")
	}
	p, err := probe(ctx, binary, kernel)
	if err != nil {
		return Probe{}, err
	}
	p.Key = key
	return p, keep(file, p)
}

// probe looks for the kernel's complaint about its missing root.
func probe(ctx context.Context, binary, kernel string) (Probe, error) {
	firmware, err := Firmware(binary)
	if err != nil {
		return Probe{}, err
	}
	short, cancel := context.WithTimeout(ctx, probeTime)
	defer cancel()
	cmd := exec.CommandContext(short, binary, "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-vga", "none",
		"-machine", "q35", "-accel", "kvm", "-cpu", "host", "-m", "256M", "-bios", firmware,
		"-kernel", kernel, "-append", "console=ttyS0 panic=-1", "-serial", "stdio")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	out := &tail{max: 64 << 10}
	cmd.Stdout, cmd.Stderr = out, out
	err = cmd.Run()
	text := out.String()
	switch {
	case ctx.Err() != nil:
		return Probe{}, ctx.Err()
	case strings.Contains(text, "Unable to mount root fs"):
		return Probe{Works: true}, nil
	case short.Err() != nil:
		return Probe{Reason: fmt.Sprintf("/dev/kvm exists, but a guest did not get through its boot in %v", probeTime)}, nil
	case err != nil:
		return Probe{Reason: "QEMU with KVM: " + lastLine(text)}, nil
	}
	return Probe{Reason: "a guest under KVM ended before it had booted"}, nil
}

func probeKey(binary string) (string, error) {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("probing KVM: %w", err)
	}
	key := string(bytes.TrimSpace(boot))
	st, err := os.Stat(binary)
	if err != nil {
		return "", fmt.Errorf("probing KVM: %w", err)
	}
	return fmt.Sprintf("%s %s %d %d", key, binary, st.Size(), st.ModTime().UnixNano()), nil
}

// keep writes the answer as a whole or not at all.
func keep(file string, p Probe) error {
	raw, err := json.Marshal(p)
	if err != nil {
		return fmt.Errorf("keeping probe: %w", err)
	}
	f, err := os.CreateTemp(filepath.Dir(file), ".probe-")
	if err != nil {
		return fmt.Errorf("keeping probe: %w", err)
	}
	_, err = f.Write(raw)
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), file)
	}
	if err != nil {
		os.Remove(f.Name())
		return fmt.Errorf("keeping probe: %w", err)
	}
	return nil
}

// Capabilities are what QEMU says of the host's SEV.
type Capabilities struct {
	CBitPosition    uint32 `json:"cbitpos"`
	ReducedPhysBits uint32 `json:"reduced-phys-bits"`
}

// maxQMP bounds what QEMU answers, in bytes; its certificate chain is in it.
const maxQMP = 1 << 20

// AskSEV asks the binary for the host's SEV parameters. An error means that
// the host, or this user, cannot start SEV guests.
func AskSEV(ctx context.Context, binary string) (Capabilities, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, binary, "-machine", "none,accel=kvm", "-nodefaults", "-display", "none", "-qmp", "stdio")
	cmd.Stdin = strings.NewReader(`{"execute":"qmp_capabilities"}{"execute":"query-sev-capabilities","id":"sev"}{"execute":"quit"}`)
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return Capabilities{}, fmt.Errorf("asking QEMU for SEV: %w", err)
	}
	stderr := &tail{max: 4 << 10}
	cmd.Stderr = stderr
	if err := cmd.Start(); err != nil {
		return Capabilities{}, fmt.Errorf("asking QEMU for SEV: %w", err)
	}
	caps, err := readCapabilities(io.LimitReader(stdout, maxQMP))
	if waited := cmd.Wait(); err != nil && waited != nil && stderr.String() != "" {
		err = errors.New(lastLine(stderr.String()))
	}
	if err != nil {
		return Capabilities{}, fmt.Errorf("asking QEMU for SEV: %w", err)
	}
	return caps, nil
}

func readCapabilities(r io.Reader) (Capabilities, error) {
	s := bufio.NewScanner(r)
	s.Buffer(nil, maxQMP)
	for s.Scan() {
		var m struct {
			ID     string        `json:"id"`
			Return *Capabilities `json:"return"`
			Error  *struct {
				Desc string `json:"desc"`
			} `json:"error"`
		}
		if err := json.Unmarshal(s.Bytes(), &m); err != nil {
			return Capabilities{}, fmt.Errorf("reading QMP: %w", err)
		}
		switch {
		case m.ID != "sev":
		case m.Error != nil:
			return Capabilities{}, errors.New(m.Error.Desc)
		case m.Return != nil:
			return *m.Return, nil
		}
	}
	return Capabilities{}, errors.Join(errors.New("no answer"), s.Err())
}
