// SPDX-License-Identifier: Apache-2.0

// Package e2e holds the end-to-end tests: the real binaries of bin/, the real
// guest of build/guest, the real images of build/images, and a real QEMU. Nobody
// has to trust it; it plays the user, and it plays the hostile host.
package e2e
