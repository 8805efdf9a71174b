// SPDX-License-Identifier: Apache-2.0

// Package volume opens the disks that the host attached, and mounts them.
//
// The host is hostile: a disk may be altered, replayed, swapped, cut off or
// missing, at any moment. A layer is read through dm-verity under a root hash
// that the policy names, so that what is read is what the owner meant; a block
// that is not ends the guest by a kernel panic. A scratch disk is read through
// dm-crypt over dm-integrity under a key that is made here and kept by the
// kernel alone; a block that was not written under that key is an I/O error.
//
// What the host still can do: refuse to read or write; and give back an
// earlier content of a scratch sector, with the tag that belonged to it. It
// cannot do that to a layer.
//
// The whole guest trusts this package with the parameters of the mappings. It
// decides nothing: which root hash may be mounted, where, and in which order
// layers are stacked has been decided by the policy before it is called.
package volume
