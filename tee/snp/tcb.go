// SPDX-License-Identifier: Apache-2.0

package snp

import "github.com/coffer-dev/coffer/tee"

// FamilyTurin is the combined CPUID family from which on TCB values have
// Turin's layout.
const FamilyTurin = 0x1A

// DecodeTCB splits a raw TCB value. family is the report's, zero for version
// 2 reports, which only Milan and Genoa issue. The emulated family has Milan's
// layout.
func DecodeTCB(raw uint64, family uint8) tee.TCB {
	b := func(i uint) uint8 { return uint8(raw >> (8 * i)) }
	if family == FamilyTurin {
		return tee.TCB{FMC: b(0), BootLoader: b(1), TEE: b(2), SNP: b(3), Microcode: b(7)}
	}
	return tee.TCB{BootLoader: b(0), TEE: b(1), SNP: b(6), Microcode: b(7)}
}

// EncodeTCB is the inverse of DecodeTCB. Parts that the family's layout lacks
// are dropped.
func EncodeTCB(t tee.TCB, family uint8) uint64 {
	if family == FamilyTurin {
		return uint64(t.FMC) | uint64(t.BootLoader)<<8 | uint64(t.TEE)<<16 | uint64(t.SNP)<<24 | uint64(t.Microcode)<<56
	}
	return uint64(t.BootLoader) | uint64(t.TEE)<<8 | uint64(t.SNP)<<48 | uint64(t.Microcode)<<56
}
