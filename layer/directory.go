// SPDX-License-Identifier: Apache-2.0

package layer

import (
	"cmp"
	"encoding/binary"
	"slices"
)

const (
	dirEntry = 8 // an entry without its name
	// dirSpare is kept free at the end of each block of a directory, for an unused entry.
	dirSpare = 12
)

// dirChild is an entry of a directory.
type dirChild struct {
	name string
	node *node
}

// writeDirs writes all directories: each, then those below it.
func (fs *builder) writeDirs() error {
	type job struct{ dir, parent *node }
	var sorted []dirChild
	for todo := []job{{fs.root, fs.root}}; len(todo) > 0; {
		j := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		sorted = sortChildren(sorted[:0], j.dir)
		if err := fs.writeDir(j.dir, j.parent, sorted); err != nil {
			return err
		}
		for _, c := range slices.Backward(sorted) {
			if c.node.isDir() {
				todo = append(todo, job{c.node, j.dir})
			}
		}
		j.dir.children = nil
	}
	return nil
}

// sortChildren appends the entries of dir by inode number, then by name.
func sortChildren(dst []dirChild, dir *node) []dirChild {
	for name, n := range dir.children {
		dst = append(dst, dirChild{name, n})
	}
	slices.SortFunc(dst, func(a, b dirChild) int {
		if c := cmp.Compare(a.node.number, b.node.number); c != 0 {
			return c
		}
		return cmp.Compare(a.name, b.name)
	})
	return dst
}

func (fs *builder) writeDir(dir, parent *node, children []dirChild) error {
	var block [BlockSize]byte
	used := 0
	end := func() error {
		binary.LittleEndian.PutUint16(block[used+4:], uint16(BlockSize-used))
		dir.size += BlockSize
		err := fs.s.add(block[:])
		clear(block[:])
		used = 0
		return err
	}
	put := func(name string, n *node) error {
		length := (dirEntry + len(name) + 3) &^ 3
		if BlockSize-used < length+dirSpare {
			if err := end(); err != nil {
				return err
			}
		}
		e := block[used:]
		binary.LittleEndian.PutUint32(e, n.number)
		binary.LittleEndian.PutUint16(e[4:], uint16(length))
		e[6] = byte(len(name))
		e[7] = dirType(n.mode)
		copy(e[dirEntry:], name)
		used += length
		return nil
	}
	dir.size = 0
	if err := put(".", dir); err != nil {
		return err
	}
	if err := put("..", parent); err != nil {
		return err
	}
	for _, c := range children {
		if err := put(c.name, c.node); err != nil {
			return err
		}
	}
	if err := end(); err != nil {
		return err
	}
	return fs.endData(dir)
}

// dirType is the type of a file as a directory entry has it.
func dirType(mode uint16) byte {
	switch mode & typeMask {
	case typeReg:
		return 1
	case typeDir:
		return 2
	case typeChar:
		return 3
	case typeBlk:
		return 4
	case typeFIFO:
		return 5
	case typeLink:
		return 7
	default:
		return 0
	}
}
