// SPDX-License-Identifier: Apache-2.0

package launch

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"

	"github.com/coffer-dev/coffer/host/qemu"
	"github.com/coffer-dev/coffer/tee"
	"github.com/coffer-dev/coffer/wire"
)

// Spec is all that a supervisor needs to know. It lies in the group's directory.
type Spec struct {
	TEE tee.Kind `json:"tee"`
	// Machine is what to start. Its TEE, layers and scratch are set here.
	Machine qemu.Machine `json:"machine"`
	SNP     *SNP         `json:"snp,omitempty"`
	// EmulatorDir holds the emulated processor's root; for tee.Emulated.
	EmulatorDir string `json:"emulator_dir,omitempty"`

	// Disks are the read-only disks; a device's number is its index.
	Disks []Disk `json:"disks"`
	// ScratchBytes is the size of an encrypted disk for what containers write;
	// 0 keeps it in the guest's memory.
	ScratchBytes int64  `json:"scratch_bytes,omitempty"`
	Hostname     string `json:"hostname"`
	// Hosts are more lines of /etc/hosts.
	Hosts     []wire.HostEntry `json:"hosts,omitempty"`
	Container Container        `json:"container"`
}

// SNP is what SEV-SNP takes besides the policy's digest.
type SNP struct {
	qemu.Capabilities
	CPU string `json:"cpu,omitempty"`
}

// Disk is one verified disk of the guest.
type Disk struct {
	Path       string `json:"path"`
	RootHash   string `json:"root_hash"`
	DataBlocks int64  `json:"data_blocks"`
	// Label names it in messages: the layer's digest, or the host's directory.
	Label string `json:"label"`
}

// Container is the group's container.
type Container struct {
	Layers          []int              `json:"layers"` // device numbers, topmost first
	Args            []string           `json:"args"`
	Env             []string           `json:"env"`
	Cwd             string             `json:"cwd"`
	User            string             `json:"user"`
	Mounts          []wire.Mount       `json:"mounts,omitempty"`
	ReadOnlyRoot    bool               `json:"read_only_root,omitempty"`
	Privileged      bool               `json:"privileged,omitempty"`
	NoNewPrivileges bool               `json:"no_new_privileges,omitempty"`
	Capabilities    *wire.Capabilities `json:"capabilities,omitempty"`
	Resources       wire.Resources     `json:"resources"`
	Terminal        bool               `json:"terminal,omitempty"`
	// Stdin: the container gets one. StdinOnce closes it when the client that
	// was there from the start has no more.
	Stdin     bool `json:"stdin,omitempty"`
	StdinOnce bool `json:"stdin_once,omitempty"`
	// StopSignal is what stop sends first; 0 is SIGTERM.
	StopSignal int    `json:"stop_signal,omitempty"`
	Cols       uint16 `json:"cols,omitempty"`
	Rows       uint16 `json:"rows,omitempty"`
}

// Names of files in a group's directory.
const (
	specFile    = "spec.json"
	policyFile  = "policy.rego"
	scratchFile = "scratch"
	socketFile  = "sock"
	consoleFile = "console.log"
	logFile     = "container.log"
	ownLogFile  = "supervisor.log"
)

// PolicyFile is where a group's policy is, given the group's directory.
func PolicyFile(dir string) string { return filepath.Join(dir, policyFile) }

// ConsoleFile is where a group's console log is.
func ConsoleFile(dir string) string { return filepath.Join(dir, consoleFile) }

// maxSpec bounds a spec, in bytes.
const maxSpec = 64 << 20

// Write puts spec and policy into a group's directory.
func Write(dir string, s *Spec, policy []byte) error {
	raw, err := json.Marshal(s)
	if err != nil {
		return fmt.Errorf("encoding group: %w", err)
	}
	if err := os.WriteFile(filepath.Join(dir, specFile), raw, 0o600); err != nil {
		return fmt.Errorf("writing group: %w", err)
	}
	if err := os.WriteFile(filepath.Join(dir, policyFile), policy, 0o600); err != nil {
		return fmt.Errorf("writing policy: %w", err)
	}
	return nil
}

// ReadSpec reads what Write wrote.
func ReadSpec(dir string) (*Spec, error) {
	raw, err := os.ReadFile(filepath.Join(dir, specFile))
	if err != nil {
		return nil, fmt.Errorf("reading group: %w", err)
	}
	if len(raw) > maxSpec {
		return nil, fmt.Errorf("reading group: more than %d bytes", maxSpec)
	}
	var s Spec
	if err := json.Unmarshal(raw, &s); err != nil {
		return nil, fmt.Errorf("reading group: %w", err)
	}
	return &s, nil
}

// machine completes the machine for this spec. Paths are as they are now.
func (s *Spec) machine(dir string, hostData [32]byte) (*qemu.Machine, error) {
	m := s.Machine
	switch s.TEE {
	case tee.Emulated:
		m.TEE = qemu.Emulated{}
	case tee.SEVSNP:
		if s.SNP == nil {
			return nil, fmt.Errorf("starting group: no parameters for %s", s.TEE)
		}
		m.TEE = qemu.SEVSNP{HostData: hostData, CBitPosition: s.SNP.CBitPosition,
			ReducedPhysBits: s.SNP.ReducedPhysBits, CPU: s.SNP.CPU}
	default:
		return nil, fmt.Errorf("starting group: no launch for TEE %s", s.TEE)
	}
	for _, d := range s.Disks {
		m.Layers = append(m.Layers, d.Path)
	}
	if s.ScratchBytes > 0 {
		m.Scratch = filepath.Join(dir, scratchFile)
		if err := makeScratch(m.Scratch, s.ScratchBytes); err != nil {
			return nil, err
		}
	}
	return &m, nil
}

// makeScratch makes a sparse file. What the guest writes to it is encrypted
// under a key that only the guest has.
func makeScratch(name string, size int64) error {
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("making scratch disk: %w", err)
	}
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		return fmt.Errorf("making scratch disk: %w", err)
	}
	return nil
}
