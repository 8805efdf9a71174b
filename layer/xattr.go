// SPDX-License-Identifier: Apache-2.0

package layer

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sort"
	"strings"
)

const (
	xattrMagic = 0xea020000
	// inodeExtra is what an inode has left for attributes: 256 bytes less the 152 that are in use.
	inodeExtra = inodeSize - inodeUsed
	// inodeXattrHead is a magic number in front; blockXattrHead is that with counts and padding.
	inodeXattrHead = 4
	blockXattrHead = 32
	// xattrEnd is the room for the zero word that ends the list.
	xattrEnd   = 4
	xattrEntry = 16 // an entry without its name
)

var errXattrReread = errors.New("cannot read its extended attributes back: a name is too long")

// xattrPrefixes are the prefixes that ext4 stores as a number. The first match counts.
func xattrPrefixes() [7]struct {
	index  byte
	prefix string
} {
	return [...]struct {
		index  byte
		prefix string
	}{
		{2, "system.posix_acl_access"},
		{3, "system.posix_acl_default"},
		{8, "system.richacl"},
		{7, "system."},
		{1, "user."},
		{4, "trusted."},
		{6, "security."},
	}
}

type xattr struct {
	index byte
	name  string // without the prefix
	value []byte
}

func (x *xattr) entryLen() int { return xattrEntry + (len(x.name)+3)&^3 }
func (x *xattr) valueLen() int { return (len(x.value) + 3) &^ 3 }

// newXattr splits a full name into ext4's number and the rest.
func newXattr(name string, value []byte) xattr {
	for _, p := range xattrPrefixes() {
		if rest, ok := strings.CutPrefix(name, p.prefix); ok {
			return xattr{index: p.index, name: rest, value: value}
		}
	}
	return xattr{name: name, value: value}
}

// fullName is the inverse of newXattr.
func (x *xattr) fullName() string {
	for _, p := range xattrPrefixes() {
		if p.index == x.index {
			return p.prefix + x.name
		}
	}
	return x.name
}

// hash is what ext4 stores in an entry.
func (x *xattr) hash() uint32 {
	var h uint32
	for i := range len(x.name) {
		h = h<<5 ^ h>>27 ^ uint32(x.name[i])
	}
	for v := x.value; len(v) > 0; {
		var word [4]byte
		n := copy(word[:], v)
		h = h<<16 ^ h>>16 ^ binary.LittleEndian.Uint32(word[:])
		v = v[n:]
	}
	return h
}

// placeXattrs distributes attributes, in the order of their names, over the inode and the attribute block: each goes
// into the inode if it still fits there, else into the block.
func placeXattrs(attrs map[string][]byte) (inode, block []xattr, err error) {
	inodeLeft := inodeExtra - inodeXattrHead - xattrEnd
	blockLeft := BlockSize - blockXattrHead - xattrEnd
	for _, name := range slices.Sorted(maps.Keys(attrs)) {
		x := newXattr(name, attrs[name])
		n := x.entryLen() + x.valueLen()
		switch {
		case n <= inodeLeft:
			inode = append(inode, x)
			inodeLeft -= n
		case n <= blockLeft:
			block = append(block, x)
			blockLeft -= n
		default:
			return nil, nil, fmt.Errorf("%w: no room for extended attribute %s", ErrLimit, quote(name))
		}
	}
	return inode, block, nil
}

// putXattrs encodes a list that fits into dst, which is zero: entries from the front, values from the back.
// Offsets of values count from delta bytes before dst. A name's length is cut to 8 bits, as the reference does.
func putXattrs(dst []byte, list []xattr, delta int) {
	le := binary.LittleEndian
	at, end := 0, len(dst)
	for i := range list {
		x := &list[i]
		end -= x.valueLen()
		e := dst[at:]
		e[0] = byte(len(x.name))
		e[1] = x.index
		le.PutUint16(e[2:], uint16(end+delta))
		le.PutUint32(e[8:], uint32(len(x.value)))
		le.PutUint32(e[12:], x.hash())
		copy(e[xattrEntry:], x.name)
		copy(dst[end:], x.value)
		at += x.entryLen()
	}
}

// getXattrs adds what putXattrs encoded to attrs. The values point into src.
// It fails for names which the reference converter could write but not read: those of 240 bytes and more, whose
// length does not fit where it keeps it.
func getXattrs(attrs map[string][]byte, src []byte, delta int) error {
	le := binary.LittleEndian
	for e := src; len(e) > 0 && e[0] != 0; {
		nameLen := int(e[0])
		if xattrEntry+nameLen > 0xff || xattrEntry+nameLen > len(e) {
			return errXattrReread
		}
		from := int(le.Uint16(e[2:]) - uint16(delta))
		size := int64(le.Uint32(e[8:]))
		if int64(from)+size > int64(len(src)) {
			return errXattrReread
		}
		x := xattr{index: e[1], name: string(e[xattrEntry:][:nameLen]), value: src[from:][:size]}
		attrs[x.fullName()] = x.value
		if x.entryLen() > len(e) {
			return errXattrReread
		}
		e = e[x.entryLen():]
	}
	return nil
}

// inodeXattrs encodes the attributes kept in an inode.
func inodeXattrs(list []xattr) *[inodeExtra]byte {
	b := new([inodeExtra]byte)
	binary.LittleEndian.PutUint32(b[:], xattrMagic)
	putXattrs(b[inodeXattrHead:], list, 0)
	return b
}

// blockXattrs encodes an attribute block and sorts the list. The comparison is not an order: a smaller number, a
// shorter name or a lesser name each suffice. What sort.Slice makes of it is in the root hash.
func blockXattrs(list []xattr) []byte {
	sort.Slice(list, func(i, j int) bool {
		a, b := &list[i], &list[j]
		return a.index < b.index || len(a.name) < len(b.name) || a.name < b.name
	})
	b := make([]byte, BlockSize)
	le := binary.LittleEndian
	le.PutUint32(b, xattrMagic)
	le.PutUint32(b[4:], 1) // references
	le.PutUint32(b[8:], 1) // blocks
	putXattrs(b[blockXattrHead:], list, blockXattrHead)
	return b
}
