// SPDX-License-Identifier: Apache-2.0

package layer

import (
	"encoding/binary"
	"fmt"
)

// The layout follows the kernel's Documentation/filesystems/ext4; the choices are the reference converter's.
const (
	inodeSize = 256
	inodeUsed = 152 // up to the creation time
	groupSize = BlockSize * 8
	// descriptorBlocks is the space for group descriptors of a file system of maxDisk.
	descriptorBlocks = maxDisk / BlockSize / groupSize / descriptorsPerBlock

	descriptorSize      = 32
	descriptorsPerBlock = BlockSize / descriptorSize
	maxGroups           = descriptorBlocks * descriptorsPerBlock

	inodesPerBlock = BlockSize / inodeSize
	superOffset    = 1024
	superMagic     = 0xef53

	flagHugeFile = 0x40000
	flagExtents  = 0x80000
)

// geometry is what is known of the file system when all directories have been written.
type geometry struct {
	groups, inodesPerGroup         uint32
	inodeTable, bitmaps            uint32 // first block of each
	used                           uint32 // blocks in use from the start
	blocks                         uint32 // of the file system; more than used if the last group needs it
	usedInodes, usedBlocks, inodes uint32
}

// patches returns the blocks that differ from what went through the stream, other than block 0.
func (fs *builder) patches() map[int64][]byte { return fs.rewritten }

// finish writes everything but file data, pads the file system to its size, and returns its block 0.
func (fs *builder) finish() ([]byte, error) {
	if err := fs.writeDirs(); err != nil {
		return nil, err
	}
	g := geometry{inodeTable: uint32(fs.s.blocks()), inodes: uint32(len(fs.nodes))}
	g.groups, g.inodesPerGroup = bestGroups(g.inodeTable, g.inodes)
	if err := fs.writeInodes(int64(g.groups) * int64(g.inodesPerGroup)); err != nil {
		return nil, err
	}
	g.bitmaps = uint32(fs.s.blocks())
	g.used = g.bitmaps + 2*g.groups
	g.blocks = max(g.used, (g.groups-1)*groupSize+1)
	if g.groups > maxGroups {
		return nil, errDisk(fs.s.limit)
	}
	if err := fs.writeGroups(&g); err != nil {
		return nil, err
	}
	if err := fs.s.zero(int64(g.blocks-g.used) * BlockSize); err != nil {
		return nil, err
	}
	return superblock(&g), nil
}

// bestGroups returns the smallest number of groups that holds the blocks and inodes, and with it the smallest number
// of inodes per group that allows it.
func bestGroups(blocks, inodes uint32) (groups, inodesPerGroup uint32) {
	groups = ^uint32(0)
	for per := uint32(inodesPerBlock); per <= groupSize; per += inodesPerBlock {
		data := groupSize - per/inodesPerBlock - 2 // less inode table and bitmaps
		// A group must begin for every per inodes.
		need := max(blocks, (inodes-1)/per*data+1)
		if g := (need + data - 1) / data; g < groups {
			groups, inodesPerGroup = g, per
		}
	}
	return groups, inodesPerGroup
}

// writeInodes writes the inode table, with room for count inodes.
func (fs *builder) writeInodes(count int64) error {
	if int64(len(fs.nodes)) > count {
		return fmt.Errorf("%w: %d inodes do not fit", ErrLimit, len(fs.nodes))
	}
	for _, n := range fs.nodes {
		var b [inodeSize]byte
		if n != nil {
			n.encode(&b)
		}
		if err := fs.s.add(b[:]); err != nil {
			return err
		}
	}
	return fs.s.zero((count - int64(len(fs.nodes))) * inodeSize)
}

func (n *node) encode(b *[inodeSize]byte) {
	le := binary.LittleEndian
	flags := uint32(flagHugeFile) // counts are in blocks
	if n.extents {
		flags |= flagExtents
	}
	le.PutUint16(b[0:], n.mode)
	le.PutUint16(b[2:], uint16(n.uid))
	le.PutUint32(b[4:], uint32(n.size))
	le.PutUint32(b[8:], uint32(n.atime))
	le.PutUint32(b[12:], uint32(n.ctime))
	le.PutUint32(b[16:], uint32(n.mtime))
	le.PutUint16(b[24:], uint16(n.gid))
	le.PutUint16(b[26:], uint16(n.links))
	le.PutUint32(b[28:], n.blocks)
	le.PutUint32(b[32:], flags)
	switch n.mode & typeMask {
	case typeDir, typeReg, typeLink:
		copy(b[40:100], n.data[:])
	case typeBlk, typeChar:
		putDevice(b[44:], n.major, n.minor)
	}
	le.PutUint32(b[104:], n.xattrBlock)
	le.PutUint32(b[108:], uint32(n.size>>32))
	le.PutUint16(b[120:], uint16(n.uid>>16))
	le.PutUint16(b[122:], uint16(n.gid>>16))
	le.PutUint16(b[128:], inodeUsed-128)
	le.PutUint32(b[132:], uint32(n.ctime>>32))
	le.PutUint32(b[136:], uint32(n.mtime>>32))
	le.PutUint32(b[140:], uint32(n.atime>>32))
	le.PutUint32(b[144:], uint32(n.crtime))
	le.PutUint32(b[148:], uint32(n.crtime>>32))
	if n.xattrs != nil {
		copy(b[inodeUsed:], n.xattrs[:])
	}
}

// writeGroups writes the bitmaps, two blocks for each group, and leaves the descriptors in rewritten.
func (fs *builder) writeGroups(g *geometry) error {
	var descriptors [descriptorBlocks * BlockSize]byte
	for i := range g.groups {
		var bits [2 * BlockSize]byte
		blocks := g.markBlocks(bits[:BlockSize], i)
		inodes, dirs := fs.markInodes(bits[BlockSize:], g, i)
		if err := fs.s.add(bits[:]); err != nil {
			return err
		}
		d := descriptors[i*descriptorSize:]
		le := binary.LittleEndian
		le.PutUint32(d[0:], g.bitmaps+2*i)
		le.PutUint32(d[4:], g.bitmaps+2*i+1)
		le.PutUint32(d[8:], g.inodeTable+i*(g.inodesPerGroup/inodesPerBlock))
		le.PutUint16(d[12:], uint16(groupSize-blocks))
		le.PutUint16(d[14:], uint16(g.inodesPerGroup-inodes))
		le.PutUint16(d[16:], uint16(dirs))
		g.usedBlocks += blocks
		g.usedInodes += inodes
	}
	for i := range int64(descriptorBlocks) {
		fs.rewritten[1+i] = descriptors[i*BlockSize:][:BlockSize]
	}
	return nil
}

// markBlocks sets the bits of the blocks in use in group i, and of those that do not exist, and counts them.
func (g *geometry) markBlocks(bits []byte, i uint32) (used uint32) {
	set := func(from, to uint32) {
		for j := from; j < to; j++ {
			bits[j/8] |= 1 << (j % 8)
		}
		used += to - from
	}
	first := i * groupSize
	if first < g.used {
		set(0, min(g.used-first, groupSize))
	}
	if i == 0 {
		// Space for descriptors of groups that do not exist is free.
		from, to := uint32(1+(g.groups-1)/descriptorsPerBlock+1), uint32(1+descriptorBlocks)
		for j := from; j < to; j++ {
			bits[j/8] &^= 1 << (j % 8)
			used--
		}
	}
	if rest := g.blocks % groupSize; i == g.groups-1 && rest != 0 {
		set(rest, groupSize)
	}
	return used
}

// markInodes sets the bits of the inodes in use in group i, reserved ones included, and counts them and directories.
// The bits of inodes that do not exist stay clear; e2fsck complains about it, the kernel does not care.
func (fs *builder) markInodes(bits []byte, g *geometry, i uint32) (used, dirs uint32) {
	for j := range g.inodesPerGroup {
		at := i*g.inodesPerGroup + j
		if at >= uint32(len(fs.nodes)) {
			break
		}
		bits[j/8] |= 1 << (j % 8)
		used++
		if n := fs.nodes[at]; n != nil && n.isDir() {
			dirs++
		}
	}
	return used, dirs
}

// superblock returns block 0. All times, the UUID and the volume's name are zero.
func superblock(g *geometry) []byte {
	const (
		compat   = 0x8 | 0x200               // extended attributes, sparse_super2
		incompat = 0x2 | 0x40 | 0x200        // filetype, extents, flex_bg
		roCompat = 0x2 | 0x8 | 0x40 | 0x1000 // large_file, huge_file, extra_isize, readonly
	)
	block := make([]byte, BlockSize)
	b := block[superOffset:]
	le := binary.LittleEndian
	inodes := g.inodesPerGroup * g.groups
	le.PutUint32(b[0:], inodes)
	le.PutUint32(b[4:], g.blocks)
	le.PutUint32(b[12:], groupSize*g.groups-g.usedBlocks)
	le.PutUint32(b[16:], inodes-g.usedInodes)
	le.PutUint32(b[24:], 2) // block size: 1024 << 2
	le.PutUint32(b[28:], 2) // cluster size: the same
	le.PutUint32(b[32:], groupSize)
	le.PutUint32(b[36:], groupSize)
	le.PutUint32(b[40:], g.inodesPerGroup)
	le.PutUint16(b[56:], superMagic)
	le.PutUint16(b[58:], 1) // state: clean
	le.PutUint16(b[60:], 1) // on errors: continue
	le.PutUint32(b[76:], 1) // revision: inode sizes vary
	le.PutUint32(b[84:], lostFoundInode)
	le.PutUint16(b[88:], inodeSize)
	le.PutUint32(b[92:], compat)
	le.PutUint32(b[96:], incompat)
	le.PutUint32(b[100:], roCompat)
	le.PutUint16(b[348:], inodeUsed-128) // least and wanted extra size of an inode
	le.PutUint16(b[350:], inodeUsed-128)
	b[372] = 31 // log2 of groups per flex group: all
	le.PutUint32(b[616:], lostFoundInode)
	return block
}
