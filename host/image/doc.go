// SPDX-License-Identifier: Apache-2.0

// Package image fetches OCI and docker images and keeps them, each layer
// converted once into a disk that a guest can open by dm-verity.
//
// It promises that what it keeps under a digest has that digest, that a layer
// is converted at most once per store however many processes ask for it, and
// that a crash leaves nothing behind that the next [Open] does not clear.
//
// It runs in the host zone: nobody has to trust it. A store that lies changes
// a root hash, and the guest refuses the disk. Registries and archives are
// hostile to it; what they send is bounded and verified as it is read.
package image
