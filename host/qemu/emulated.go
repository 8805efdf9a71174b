// SPDX-License-Identifier: Apache-2.0

package qemu

// Emulated is a machine without memory encryption, whose secure processor is
// host/emulator.
type Emulated struct{}

// emulatedCPU has what distributions compile for today (x86-64-v2) and RDRAND,
// without which a guest waits for entropy. More features mean slower emulation.
const emulatedCPU = "qemu64,+ssse3,+sse4.1,+sse4.2,+popcnt,+rdrand,+aes,+pclmulqdq,+movbe,+fsgsbase,-svm"

func (Emulated) arguments(m *Machine) (launch, error) {
	l := launch{machine: "q35,hpet=off,vmport=off,smm=off", cpu: emulatedCPU, sev: true}
	if m.Accel == "kvm" {
		l.cpu = "host"
	}
	return l, nil
}
