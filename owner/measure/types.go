// SPDX-License-Identifier: Apache-2.0

package measure

import (
	"fmt"
	"strings"

	"github.com/coffer-dev/coffer/tee/snp"
)

// vcpuType is a QEMU CPU model. Only its CPUID signature enters the digest.
type vcpuType struct {
	name                    string
	family, model, stepping uint8
}

// vcpuTypes returns the named models of QEMU's target/i386/cpu.c on AMD
// hardware with SEV-SNP. "host" is left out: its digest depends on the
// machine.
func vcpuTypes() []vcpuType {
	return []vcpuType{
		{"EPYC", 23, 1, 2}, {"EPYC-v1", 23, 1, 2}, {"EPYC-v2", 23, 1, 2}, {"EPYC-IBPB", 23, 1, 2},
		{"EPYC-v3", 23, 1, 2}, {"EPYC-v4", 23, 1, 2},
		{"EPYC-Rome", 23, 49, 0}, {"EPYC-Rome-v1", 23, 49, 0}, {"EPYC-Rome-v2", 23, 49, 0}, {"EPYC-Rome-v3", 23, 49, 0},
		{"EPYC-Milan", 25, 1, 1}, {"EPYC-Milan-v1", 25, 1, 1}, {"EPYC-Milan-v2", 25, 1, 1},
		{"EPYC-Genoa", 25, 17, 0}, {"EPYC-Genoa-v1", 25, 17, 0}, {"EPYC-Genoa-v2", 25, 17, 0},
		{"EPYC-Turin", 26, 0, 0},
	}
}

// Types returns the CPU models that a Launch can name, for help texts.
func Types() []string {
	var names []string
	for _, t := range vcpuTypes() {
		names = append(names, t.name)
	}
	return names
}

func signatureOf(name string) (uint32, error) {
	for _, t := range vcpuTypes() {
		if t.name == name {
			return snp.CPUSignature(t.family, t.model, t.stepping), nil
		}
	}
	return 0, fmt.Errorf("%w: unknown vCPU type %.40q, known are %s", snp.ErrLaunch, name, strings.Join(Types(), ", "))
}
