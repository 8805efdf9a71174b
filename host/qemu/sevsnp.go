// SPDX-License-Identifier: Apache-2.0

package qemu

import (
	"encoding/base64"
	"fmt"
)

// SEVSNP is a machine under AMD's memory encryption with nested paging. It
// needs QEMU 9.1 and firmware with SNP metadata and kernel hashes (OVMF's
// AmdSev build). docs: QEMU, qapi/qom.json, SevSnpGuestProperties.
type SEVSNP struct {
	// HostData is SHA-256 of the execution policy.
	HostData [32]byte
	// CBitPosition and ReducedPhysBits are the host's, see Capabilities.
	CBitPosition    uint32
	ReducedPhysBits uint32
	// CPU is the CPU model, which the launch digest covers; "" is EPYC-v4.
	CPU string
	// Policy is the guest policy; 0 is 0x30000: no debugging, no migration
	// agent, SMT allowed.
	Policy uint64
}

// DefaultSNPCPU is the model that Coffer starts and measures SNP guests with.
const DefaultSNPCPU = "EPYC-v4"

const defaultSNPPolicy = 0x30000

func (s SEVSNP) arguments(m *Machine) (launch, error) {
	if m.Accel != "kvm" {
		return launch{}, fmt.Errorf("SEV-SNP needs KVM, not %s", m.Accel)
	}
	if s.CBitPosition == 0 || s.ReducedPhysBits == 0 || s.ReducedPhysBits > 63 {
		return launch{}, fmt.Errorf("position of the C-bit %d, reduced physical bits %d: ask the host's QEMU",
			s.CBitPosition, s.ReducedPhysBits)
	}
	cpu, policy := s.CPU, s.Policy
	if cpu == "" {
		cpu = DefaultSNPCPU
	}
	if policy == 0 {
		policy = defaultSNPPolicy
	}
	return launch{
		machine: "q35,hpet=off,vmport=off,kernel-irqchip=split,confidential-guest-support=sev0,memory-backend=ram1",
		cpu:     escape(cpu),
		args: []string{
			"-object", fmt.Sprintf("memory-backend-memfd,id=ram1,size=%dM,share=true,prealloc=false", m.Memory>>20),
			"-object", fmt.Sprintf("sev-snp-guest,id=sev0,policy=%#x,cbitpos=%d,reduced-phys-bits=%d,kernel-hashes=on,host-data=%s",
				policy, s.CBitPosition, s.ReducedPhysBits, base64.StdEncoding.EncodeToString(s.HostData[:])),
		},
		platform: true,
	}, nil
}
