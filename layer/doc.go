// SPDX-License-Identifier: Apache-2.0

// Package layer turns an OCI layer (an uncompressed tar) into a disk image that a guest can check block by block:
//
//	[ ext4 file system: DataBlocks blocks of 4096 bytes ][ dm-verity superblock: 1 block ][ Merkle tree, top level first ]
//
// The image is a pure function of the tar. Its bytes, and so its root hash, are those that Azure's tools produce
// (hcsshim's tar2ext4 with whiteouts converted and a maximal disk size of 128 GiB, followed by its dm-verity tree);
// a policy written for Azure names the same hashes. One field differs: hcsshim puts a random UUID into the dm-verity
// superblock. It is not hashed, nothing reads it, and here it is zero.
//
// Who must be trusted. Nobody here trusts the tar: it is bounded, and a layer that cannot be represented is refused.
// The host runs Convert but is not believed: the guest recomputes every block's hash as it reads it and takes the root
// from the owner's policy. The owner, who computes roots with RootOf, must be trusted with this code.
//
// What it does not do: it does not decompress, apply layers on top of each other or mount anything. Whiteouts become
// overlayfs whiteouts, to be interpreted by the overlay mount in the guest.
//
// # Bounds
//
// Memory is bounded independently of the layer: at most 1 GiB of metadata (names, inodes, extended attributes) by a
// conservative estimate, 32 bytes per 4096-byte data block that is not zero, and about a dozen 1 MiB buffers. A tar
// header's extension (PAX, GNU long name, sparse map) is at most 1 MiB, a name at most 255 bytes, all extended
// attributes of a file together at most 4156 bytes with their headers, a directory at most 64,998 subdirectories.
// The image's file system is at most 128 GiB, zeros included: a small tar with a huge sparse file makes a huge image
// which takes seconds of time, no memory and, if the output can have holes, no disk space.
//
// # Where the reference converter is not followed
//
// Where hcsshim panics, loops or writes a file system that cannot be read, Convert returns an error:
//
//   - extended attribute names that it cannot read back (panics when the entry is met again)
//   - files of more than 42.375 GiB (its extent trees are wrong from there)
//   - more than 2,097,344 inodes (its 32-bit arithmetic wraps and cuts the inode table off)
//   - more than 1 GiB of metadata (as above; it has no bound)
package layer
