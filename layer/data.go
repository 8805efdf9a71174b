// SPDX-License-Identifier: Apache-2.0

package layer

import (
	"encoding/binary"
	"errors"
	"io"
)

const (
	extentMagic = 0xf30a
	extentSize  = 12 // of a header, an extent and an index entry
	// maxExtent is the largest extent in blocks.
	maxExtent     = 1 << 15
	inlineExtents = 4
	// leafExtents is how many extents fit into a block behind its header.
	leafExtents = BlockSize/extentSize - 1
	// maxFileSize in bytes is what one block of extents describes, less one extent: at that number the reference
	// converter begins a second block, whose extents point to the wrong places.
	maxFileSize = (leafExtents - 1) * maxExtent * BlockSize
)

// fillFile gives a regular file its data, which r yields up to io.EOF: n.size bytes.
func (fs *builder) fillFile(n *node, r io.Reader) error {
	for left := n.size; ; {
		buf, err := fs.s.room()
		if err != nil {
			return err
		}
		got, err := r.Read(buf)
		if int64(got) > left {
			return errors.New("more data than announced")
		}
		fs.s.advance(got)
		left -= int64(got)
		switch {
		case errors.Is(err, io.EOF) && left > 0:
			return io.ErrUnexpectedEOF
		case errors.Is(err, io.EOF):
			return fs.endData(n)
		case err != nil:
			return err
		}
	}
}

// endData pads what has just been streamed for n, n.size bytes from the start of a block, and records its extents.
// They are put into the inode or, if there are more than four, into a block behind the data.
func (fs *builder) endData(n *node) error {
	if n.size == 0 {
		return nil
	}
	if err := fs.s.align(); err != nil {
		return err
	}
	count := uint32(blocksFor(n.size, BlockSize))
	end := uint32(fs.s.blocks())
	start := end - count
	n.extents = true
	n.blocks += count
	extents := (count + maxExtent - 1) / maxExtent
	if extents <= inlineExtents {
		putExtents(n.data[:], start, count, inlineExtents)
		return nil
	}
	if extents >= leafExtents {
		return errDisk(fs.s.limit)
	}
	var leaf [BlockSize]byte
	putExtents(leaf[:], start, count, leafExtents)
	putExtentHeader(n.data[:], 1, inlineExtents, 1)
	binary.LittleEndian.PutUint32(n.data[extentSize+4:], end) // first block 0; the high half of the place is 0
	n.blocks++
	return fs.s.add(leaf[:])
}

func putExtentHeader(dst []byte, entries, most, depth uint16) {
	le := binary.LittleEndian
	le.PutUint16(dst, extentMagic)
	le.PutUint16(dst[2:], entries)
	le.PutUint16(dst[4:], most)
	le.PutUint16(dst[6:], depth)
}

// putExtents describes count contiguous blocks.
func putExtents(dst []byte, start, count uint32, most uint16) {
	le := binary.LittleEndian
	entries := uint16(0)
	for block := uint32(0); block < count; block += maxExtent {
		entries++
		e := dst[int(entries)*extentSize:]
		le.PutUint32(e, block)
		le.PutUint16(e[4:], uint16(min(maxExtent, count-block)))
		le.PutUint32(e[8:], start+block)
	}
	putExtentHeader(dst, entries, most, 0)
}
