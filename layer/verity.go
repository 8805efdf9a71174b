// SPDX-License-Identifier: Apache-2.0

package layer

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"hash"
	"io"
)

const hashSize = sha256.Size

// hashBlock is one block of the tree: 128 hashes.
type hashBlock [BlockSize]byte

func (b *hashBlock) hash(i int) []byte { return b[i*hashSize:][:hashSize] }

// hasher computes dm-verity hashes, format 1: SHA-256 of the salt (32 zero bytes) and the block.
type hasher struct {
	h    hash.Hash
	salt [hashSize]byte
	zero [BlockSize]byte
	// ofZero is the hash of a zero block.
	ofZero [hashSize]byte
	// pairs says that two blocks are hashed faster together.
	pairs bool
}

func newHasher() *hasher {
	h := &hasher{h: sha256.New(), pairs: canPair()}
	h.sum(h.ofZero[:], h.zero[:])
	return h
}

// sum puts the hash of block into dst, which has room for it.
func (h *hasher) sum(dst, block []byte) {
	h.h.Reset()
	h.h.Write(h.salt[:])
	h.h.Write(block)
	h.h.Sum(dst[:0])
}

// hashBatch returns the tree blocks of a batch, nil for 128 zero blocks, and marks the zero blocks as holes.
func (h *hasher) hashBatch(b *batch) []*hashBlock {
	blocks := b.n / BlockSize
	leaves := make([]*hashBlock, (blocks+hashesPerBlock-1)/hashesPerBlock)
	for l := range leaves {
		first := l * hashesPerBlock
		n := min(hashesPerBlock, blocks-first)
		zeros := 0
		leaf := new(hashBlock)
		wait := -1 // a block that is to be hashed with the next
		for i := range n {
			block := b.block(first + i)
			zero := isZero(block, &h.zero)
			b.holes[first+i] = zero
			switch {
			case zero:
				copy(leaf.hash(i), h.ofZero[:])
				zeros++
			case wait < 0:
				wait = i
			default:
				h.sumPair(leaf.hash(wait), leaf.hash(i), b.block(first+wait), block)
				wait = -1
			}
		}
		if wait >= 0 {
			h.sum(leaf.hash(wait), b.block(first+wait))
		}
		if zeros < hashesPerBlock {
			leaves[l] = leaf
		}
	}
	return leaves
}

// level is one level of a tree.
type level struct {
	blocks []*hashBlock // nil stands for fill
	fill   hashBlock    // 128 times the hash of what lies under a nil
}

// tree is a Merkle tree, the lowest level first. It is kept up to date by patch.
type tree struct {
	h      *hasher
	data   int64 // data blocks
	levels []level
}

// newTree builds the tree over data blocks whose hashes are given, nil for 128 zero blocks.
// Leaves that are missing at the end stand for zeros, too. The tree owns the leaves.
func newTree(leaves []*hashBlock, data int64) *tree {
	t := &tree{h: newHasher(), data: data}
	for int64(len(leaves)) < blocksFor(data, hashesPerBlock) {
		leaves = append(leaves, nil)
	}
	t.grow(leaves, t.h.ofZero[:], data)
	for {
		below := &t.levels[len(t.levels)-1]
		n := len(below.blocks)
		if n == 1 {
			return t
		}
		var fill [hashSize]byte
		t.h.sum(fill[:], below.fill[:])
		t.grow(t.parents(below, fill[:]), fill[:], int64(n))
	}
}

// grow adds a level of n hashes on top. In its last block, what lies behind the last hash is zero.
func (t *tree) grow(blocks []*hashBlock, fill []byte, n int64) {
	l := level{blocks: blocks}
	for i := 0; i < BlockSize; i += hashSize {
		copy(l.fill[i:], fill)
	}
	if last := len(blocks) - 1; n%hashesPerBlock != 0 {
		used := int(n%hashesPerBlock) * hashSize
		b := l.fill
		if blocks[last] != nil {
			b = *blocks[last]
		}
		clear(b[used:])
		blocks[last] = &b
	}
	t.levels = append(t.levels, l)
}

// parents returns the hashes of a level's blocks; fill is the hash of the level's fill.
func (t *tree) parents(below *level, fill []byte) []*hashBlock {
	up := make([]*hashBlock, blocksFor(int64(len(below.blocks)), hashesPerBlock))
	for i, b := range below.blocks {
		if b == nil && up[i/hashesPerBlock] == nil {
			continue
		}
		p := up[i/hashesPerBlock]
		if p == nil {
			p = new(hashBlock)
			for j := range i % hashesPerBlock {
				copy(p.hash(j), fill)
			}
			up[i/hashesPerBlock] = p
		}
		dst := p.hash(i % hashesPerBlock)
		if b == nil {
			copy(dst, fill)
			continue
		}
		t.h.sum(dst, b[:])
	}
	return up
}

// patch replaces the hash of a data block, up to the root.
func (t *tree) patch(block int64, data []byte) {
	for i := range t.levels {
		l := &t.levels[i]
		b := l.blocks[block/hashesPerBlock]
		if b == nil {
			c := l.fill
			b = &c
			l.blocks[block/hashesPerBlock] = b
		}
		t.h.sum(b.hash(int(block%hashesPerBlock)), data)
		data = b[:]
		block /= hashesPerBlock
	}
}

func (t *tree) root() RootHash {
	top := t.levels[len(t.levels)-1]
	var r RootHash
	t.h.sum(r[:], top.at(0)[:])
	return r
}

func (l *level) at(i int) *hashBlock {
	if l.blocks[i] == nil {
		return &l.fill
	}
	return l.blocks[i]
}

// each calls f with the tree's bytes in the order of the disk, in pieces of at most 1 MiB, and with their place.
func (t *tree) each(ctx context.Context, f func(p []byte, at int64) error) error {
	at := (t.data + 1) * BlockSize
	buf := make([]byte, 0, batchSize)
	emit := func() error {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := f(buf, at); err != nil {
			return err
		}
		at += int64(len(buf))
		buf = buf[:0]
		return nil
	}
	for k := len(t.levels) - 1; k >= 0; k-- {
		l := &t.levels[k]
		for i := range l.blocks {
			buf = append(buf, l.at(i)[:]...)
			if len(buf) < batchSize {
				continue
			}
			if err := emit(); err != nil {
				return err
			}
		}
	}
	if len(buf) == 0 {
		return nil
	}
	return emit()
}

// write writes the dm-verity superblock and the tree.
func (t *tree) write(ctx context.Context, w io.WriterAt) error {
	if _, err := w.WriteAt(veritySuperblock(t.data), t.data*BlockSize); err != nil {
		return fmt.Errorf("writing dm-verity superblock: %w", err)
	}
	err := t.each(ctx, func(p []byte, at int64) error {
		_, err := w.WriteAt(p, at)
		return err
	})
	if err != nil {
		return fmt.Errorf("writing hash tree: %w", err)
	}
	return nil
}

// veritySuperblock returns the block between data and tree, as cryptsetup defines it: 512 bytes, padded to a block.
// The UUID at byte 16 stays zero.
func veritySuperblock(data int64) []byte {
	b := make([]byte, BlockSize)
	le := binary.LittleEndian
	copy(b, "verity\x00\x00")
	le.PutUint32(b[8:], 1)          // version
	le.PutUint32(b[12:], 1)         // hash type: salt first
	copy(b[32:], "sha256")          // 32 bytes
	le.PutUint32(b[64:], BlockSize) // data block
	le.PutUint32(b[68:], BlockSize) // hash block
	le.PutUint64(b[72:], uint64(data))
	le.PutUint16(b[80:], hashSize) // salt size; the salt, 256 bytes from 88, is zero
	return b
}

// imageSize is the size in bytes of an image with the given number of data blocks.
func imageSize(data int64) int64 {
	total := data + 1
	for n := data; ; {
		n = blocksFor(n, hashesPerBlock)
		total += n
		if n == 1 {
			return total * BlockSize
		}
	}
}

// blocksFor is n/per, rounded up.
func blocksFor(n, per int64) int64 { return (n + per - 1) / per }
