// SPDX-License-Identifier: Apache-2.0

// Package attestation holds the tests of attestation across zones: evidence
// made by the guest's code and the host's emulator, judged by the owner's, and
// /dev/sev-guest under a real kernel. Nobody has to trust it.
package attestation
