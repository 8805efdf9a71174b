// SPDX-License-Identifier: Apache-2.0

package layer

import "encoding/binary"

// shaState is a SHA-256 state in the order of the processor's registers: F E B A, H G D C.
type shaState [8]uint32

const shaBlock = 64

// twoBlocks adds n blocks of 64 bytes at p to state[0] and n blocks at q to state[1].
// It needs SHA, SSSE3 and SSE4.1.
//
//go:noescape
func twoBlocks(state *[2]shaState, p, q *byte, n int)

func cpuid(leaf, sub uint32) (a, b, c, d uint32)

func canPair() bool {
	const (
		ssse3 = 1 << 9  // leaf 1, ECX
		sse41 = 1 << 19 // leaf 1, ECX
		sha   = 1 << 29 // leaf 7, EBX
	)
	if last, _, _, _ := cpuid(0, 0); last < 7 {
		return false
	}
	_, _, one, _ := cpuid(1, 0)
	_, seven, _, _ := cpuid(7, 0)
	return one&ssse3 != 0 && one&sse41 != 0 && seven&sha != 0
}

// sumPair puts the hashes of two blocks, of BlockSize bytes, into a and b. The salt has half the size of a SHA-256
// block, so both ends of a block are hashed from copies: the first half after the salt, the last before the padding.
func (h *hasher) sumPair(a, b, p, q []byte) {
	if !h.pairs {
		h.sum(a, p)
		h.sum(b, q)
		return
	}
	const half = shaBlock - hashSize
	p, q = p[:BlockSize], q[:BlockSize]
	iv := shaState{
		0x9b05688c, 0x510e527f, 0xbb67ae85, 0x6a09e667,
		0x5be0cd19, 0x1f83d9ab, 0xa54ff53a, 0x3c6ef372,
	}
	state := [2]shaState{iv, iv}
	var first [2][shaBlock]byte // starts with the salt
	copy(first[0][hashSize:], p)
	copy(first[1][hashSize:], q)
	twoBlocks(&state, &first[0][0], &first[1][0], 1)
	twoBlocks(&state, &p[half], &q[half], (BlockSize-half)/shaBlock)
	last := [shaBlock]byte{half: 0x80}
	binary.BigEndian.PutUint64(last[shaBlock-8:], 8*(hashSize+BlockSize))
	lasts := [2][shaBlock]byte{last, last}
	copy(lasts[0][:half], p[BlockSize-half:])
	copy(lasts[1][:half], q[BlockSize-half:])
	twoBlocks(&state, &lasts[0][0], &lasts[1][0], 1)
	state[0].put(a)
	state[1].put(b)
}

// put writes the hash.
func (s *shaState) put(dst []byte) {
	for i, from := range [...]int{3, 2, 7, 6, 1, 0, 5, 4} {
		binary.BigEndian.PutUint32(dst[4*i:], s[from])
	}
}
