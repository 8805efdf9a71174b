// SPDX-License-Identifier: Apache-2.0

package guestimage

// CommandLine is the kernel's command line, the same for every guest, measured
// with it. docs/guest-image.md has the reason for each word and docs/performance.md
// what it gives.
const CommandLine = "console=ttyS0 quiet loglevel=4 panic=-1 oops=panic"
