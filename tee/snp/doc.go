// SPDX-License-Identifier: Apache-2.0

// Package snp is the SEV-SNP part of the attestation vocabulary: the report's
// ABI, the certificate table, the rules of the launch digest, and the channel
// to Coffer's emulated secure processor. It is pure: no I/O, no clock, no
// dependency outside the standard library, since host, guest and owner all
// link it.
//
// It parses and builds; it verifies nothing. A report that parses may be a
// lie. Every parser takes hostile bytes and bounds them first.
//
// The facts are those of AMD's SEV-SNP firmware ABI (document 56860), called
// "the ABI" in comments here, of Linux's include/uapi/linux/sev-guest.h and of
// QEMU's target/i386/sev.c; see docs/attestation.md.
package snp
