// SPDX-License-Identifier: Apache-2.0

package layer

import (
	"encoding/binary"
	"errors"
	"fmt"
	"path"
	"strings"
)

// Types of files, as in an inode's mode.
const (
	typeMask = 0xf000
	typeFIFO = 0x1000
	typeChar = 0x2000
	typeDir  = 0x4000
	typeBlk  = 0x6000
	typeReg  = 0x8000
	typeLink = 0xa000
)

const (
	rootInode      = 2
	lostFoundInode = 11
	maxName        = 255
	maxLinks       = 65000
	// shortLink is the longest symbolic link that is kept in the inode.
	shortLink = 59

	// maxInodes is where the reference converter's search for the number of groups wraps around:
	// ceil((n)/16) * 32765 + 32764 must stay below 1<<32.
	maxInodes = 2097344

	// maxMetadata bounds the memory, in bytes, for what describes files, by these estimates.
	maxMetadata = 1 << 30
	nodeCost    = 256
	nameCost    = 96 // of an entry in a directory, and its name's bytes come on top
	dirCost     = 400
)

// node is a file: what its inode will hold.
type node struct {
	size                        int64
	atime, ctime, mtime, crtime uint64 // on disk
	number                      uint32
	uid, gid                    uint32
	major, minor                uint32
	links                       uint32
	xattrBlock                  uint32 // 0: none
	blocks                      uint32
	mode                        uint16
	extents                     bool     // has data, in extents
	data                        [60]byte // extents, or a short link's target
	xattrs                      *[inodeExtra]byte
	children                    map[string]*node // of directories only
}

func (n *node) isDir() bool { return n.mode&typeMask == typeDir }

// attrs is what a file is to become.
type attrs struct {
	mode                        uint16
	uid, gid                    uint32
	major, minor                uint32
	atime, ctime, mtime, crtime uint64 // on disk
	size                        int64
	link                        string
	xattrs                      map[string][]byte
}

// builder lays out a file system: file data goes to the stream as it comes, everything else at the end.
type builder struct {
	s     *stream
	nodes []*node // by inode number less 1; nil for reserved ones
	root  *node
	// metadata is the estimate of memory in use.
	metadata int64
	// xattrBlocks holds the content of attribute blocks of files that may still be changed.
	xattrBlocks map[uint32][]byte
	// rewritten holds blocks of the file system that differ from what the stream has seen.
	rewritten map[int64][]byte
	// parent and parentNode are the last result of makeParents.
	parent     string
	parentNode *node
}

func newBuilder(s *stream) (*builder, error) {
	fs := &builder{
		s:           s,
		nodes:       make([]*node, 1, 64), // inode 1 is reserved for defective blocks
		xattrBlocks: make(map[uint32][]byte),
		rewritten:   make(map[int64][]byte),
	}
	root, err := fs.makeNode(&attrs{mode: typeDir | 0o755}, nil)
	if err != nil {
		return nil, err
	}
	root.links++ // its parent is itself
	fs.root = root
	for len(fs.nodes) < lostFoundInode-1 {
		fs.nodes = append(fs.nodes, nil)
	}
	if err := s.zero((1 + descriptorBlocks) * BlockSize); err != nil {
		return nil, err
	}
	// e2fsck wants it to exist.
	if _, err := fs.create("lost+found", &attrs{mode: typeDir | 0o700}); err != nil {
		return nil, err
	}
	return fs, nil
}

// charge accounts for memory.
func (fs *builder) charge(n int) error {
	fs.metadata += int64(n)
	if fs.metadata > maxMetadata {
		return fmt.Errorf("%w: more than %d MiB of metadata", ErrLimit, maxMetadata>>20)
	}
	return nil
}

// clean returns the path below the root, without slashes at the ends; "" is the root.
// Names that lead upwards stop at the root.
func clean(name string) string { return path.Clean("/" + name)[1:] }

// walk finds a file by its cleaned path; nil if it does not exist.
func (fs *builder) walk(p string) *node {
	n := fs.root
	for n != nil && p != "" {
		var first string
		first, p, _ = strings.Cut(p, "/")
		n = n.children[first]
	}
	return n
}

// place is where a name is or will be in the tree.
type place struct {
	dir  *node
	name string // "" for the root, which is its own dir
	node *node  // nil if there is none
}

// find looks a name up. Its directory must exist.
func (fs *builder) find(name string) (place, error) {
	p := clean(name)
	if p == "" {
		return place{dir: fs.root, node: fs.root}, nil
	}
	dirname, base := path.Split(p)
	if len(base) > maxName {
		return place{}, fmt.Errorf("%w: name of %d bytes", ErrLimit, len(base))
	}
	var dir *node
	if dirname = strings.TrimSuffix(dirname, "/"); dirname == fs.parent && fs.parentNode != nil {
		dir = fs.parentNode
	} else {
		dir = fs.walk(dirname)
	}
	if dir == nil || !dir.isDir() {
		return place{}, errors.New("its parent is not a directory")
	}
	return place{dir: dir, name: base, node: dir.children[base]}, nil
}

// makeParents creates the directories above name that do not exist, each with the attributes of the one above it.
func (fs *builder) makeParents(name string) error {
	dirname, _ := path.Split(clean(name))
	dirname = strings.TrimSuffix(dirname, "/")
	if dirname == fs.parent && fs.parentNode != nil {
		return nil
	}
	n := fs.root
	for rest := dirname; rest != ""; {
		var first string
		first, rest, _ = strings.Cut(rest, "/")
		child := n.children[first]
		if child == nil {
			if !n.isDir() {
				return errors.New("its parent is not a directory")
			}
			if len(first) > maxName {
				return fmt.Errorf("%w: name of %d bytes", ErrLimit, len(first))
			}
			var err error
			if child, err = fs.put(place{dir: n, name: first}, fs.inherit(n)); err != nil {
				return fmt.Errorf("creating its parents: %w", err)
			}
		}
		n = child
	}
	if n.isDir() { // and so stays at its place
		fs.parent, fs.parentNode = strings.Clone(dirname), n
	}
	return nil
}

// inherit returns the attributes of a directory that has no entry of its own, below n. Extended ones are not inherited.
func (fs *builder) inherit(n *node) *attrs {
	return &attrs{
		mode: n.mode, uid: n.uid, gid: n.gid, major: n.major, minor: n.minor,
		atime: reencode(n.atime), ctime: reencode(n.ctime), mtime: reencode(n.mtime), crtime: reencode(n.crtime),
	}
}

// create makes or replaces a file. For a regular file, its data must follow: see fillFile.
func (fs *builder) create(name string, a *attrs) (*node, error) {
	p, err := fs.find(name)
	if err != nil {
		return nil, err
	}
	return fs.put(p, a)
}

func (fs *builder) put(p place, a *attrs) (*node, error) {
	isDir := a.mode&typeMask == typeDir
	var reuse *node
	switch {
	case p.node == nil:
		if isDir && p.dir.links >= maxLinks {
			return nil, fmt.Errorf("%w: more than %d subdirectories", ErrLimit, maxLinks-2)
		}
		if err := fs.charge(nameCost + len(p.name)); err != nil {
			return nil, err
		}
	case p.node.isDir() && !isDir:
		return nil, errors.New("replacing a directory by a file")
	case !p.node.isDir() && isDir:
		return nil, errors.New("replacing a file by a directory")
	case isDir || p.node.links < 2:
		reuse = p.node
	}
	n, err := fs.makeNode(a, reuse)
	if err != nil {
		return nil, err
	}
	if n == p.node {
		return n, nil
	}
	if p.node != nil {
		p.node.links--
	}
	p.dir.children[strings.Clone(p.name)] = n
	n.links++
	if isDir {
		p.dir.links++
	}
	return n, nil
}

// makeNode makes an inode, or changes one that has no data: blocks cannot be taken back.
func (fs *builder) makeNode(a *attrs, n *node) (*node, error) {
	mode := a.mode
	if mode&typeMask == 0 {
		mode |= typeReg
	}
	if n == nil {
		var err error
		if n, err = fs.newNode(mode); err != nil {
			return nil, err
		}
	} else if n.extents {
		return nil, errors.New("replacing a file that has data")
	}
	n.mode = mode
	n.uid, n.gid, n.major, n.minor = a.uid, a.gid, a.major, a.minor
	n.atime, n.ctime, n.mtime, n.crtime = a.atime, a.ctime, a.mtime, a.crtime
	clear(n.data[:])
	n.size = 0
	if err := fs.setXattrs(n, a); err != nil {
		return nil, err
	}
	switch mode & typeMask {
	case typeReg:
		n.size = a.size
		if a.size > maxFileSize {
			return nil, fmt.Errorf("%w: file of %d bytes", ErrLimit, a.size)
		}
	case typeLink:
		n.mode |= 0o777
		n.size = int64(len(a.link))
		if n.size <= shortLink {
			copy(n.data[:], a.link)
			break
		}
		if err := fs.s.add([]byte(a.link)); err != nil {
			return nil, err
		}
		if err := fs.endData(n); err != nil {
			return nil, err
		}
	}
	// Reserved numbers come first, so a number is one more than an index.
	if int(n.number) > len(fs.nodes) {
		fs.nodes = append(fs.nodes, n)
	}
	return n, nil
}

func (fs *builder) newNode(mode uint16) (*node, error) {
	if len(fs.nodes) >= maxInodes {
		return nil, fmt.Errorf("%w: more than %d files", ErrLimit, maxInodes)
	}
	n := &node{number: uint32(len(fs.nodes) + 1)}
	cost := nodeCost
	if mode&typeMask == typeDir {
		cost += dirCost
		n.children = make(map[string]*node)
		n.links = 1 // "."
	}
	return n, fs.charge(cost)
}

// setXattrs gives n the attributes a names. Those that are in its inode already are kept, those in its block are not.
func (fs *builder) setXattrs(n *node, a *attrs) error {
	all := a.xattrs
	if n.xattrs != nil {
		all = make(map[string][]byte)
		if err := getXattrs(all, n.xattrs[inodeXattrHead:], 0); err != nil {
			return err
		}
		for name, value := range a.xattrs {
			all[name] = value
		}
		n.xattrs = nil
	}
	inode, block, err := placeXattrs(all)
	if err != nil {
		return err
	}
	if len(inode) > 0 {
		if err := fs.charge(inodeExtra); err != nil {
			return err
		}
		n.xattrs = inodeXattrs(inode)
	}
	if len(block) == 0 && n.xattrBlock == 0 {
		return nil
	}
	b := blockXattrs(block)
	if n.xattrBlock != 0 {
		// The block is used again, even if nothing is left in it.
		fs.xattrBlocks[n.xattrBlock] = b
		fs.rewritten[int64(n.xattrBlock)] = b
		return fs.charge(BlockSize)
	}
	n.xattrBlock = uint32(fs.s.blocks())
	n.blocks++
	typ := n.mode & typeMask
	if hasData := typ == typeReg && a.size > 0 || typ == typeLink && len(a.link) > shortLink; !hasData {
		fs.xattrBlocks[n.xattrBlock] = b
		if err := fs.charge(BlockSize + nameCost); err != nil {
			return err
		}
	}
	return fs.s.add(b)
}

// link adds a name for an existing file, which is not a directory. A symbolic link is not followed.
func (fs *builder) link(target, name string) error {
	p, err := fs.find(name)
	if err != nil {
		return err
	}
	if p.node != nil && (p.node.isDir() || p.node.links < 2) {
		return errors.New("replacing the only name of a file or directory by a hard link")
	}
	old, err := fs.find(target)
	if err != nil {
		return fmt.Errorf("finding its target %s: %w", quote(target), err)
	}
	switch {
	case old.node == nil:
		return fmt.Errorf("finding its target %s: no such entry before this one", quote(target))
	case old.node.isDir():
		return fmt.Errorf("linking to %s: it is a directory", quote(target))
	case p.node != old.node && old.node.links >= maxLinks:
		return fmt.Errorf("%w: more than %d links to %s", ErrLimit, maxLinks, quote(target))
	}
	if p.node == nil {
		if err := fs.charge(nameCost + len(p.name)); err != nil {
			return err
		}
	} else {
		p.node.links--
	}
	old.node.links++
	p.dir.children[strings.Clone(p.name)] = old.node
	return nil
}

// stat returns the attributes of a file as they would be written again, in which times can change.
func (fs *builder) stat(name string) (*attrs, error) {
	p, err := fs.find(name)
	if err != nil {
		return nil, err
	}
	n := p.node
	if n == nil {
		return nil, errors.New("no such entry")
	}
	if n.extents {
		return nil, errors.New("replacing a file that has data")
	}
	a := fs.inherit(n)
	a.size = n.size
	a.xattrs = make(map[string][]byte)
	if n.xattrBlock != 0 {
		if err := getXattrs(a.xattrs, fs.xattrBlocks[n.xattrBlock][blockXattrHead:], blockXattrHead); err != nil {
			return nil, err
		}
	}
	if n.xattrs != nil {
		if err := getXattrs(a.xattrs, n.xattrs[inodeXattrHead:], 0); err != nil {
			return nil, err
		}
		delete(a.xattrs, "system.data") // means something else to ext4
	}
	if n.mode&typeMask == typeLink {
		a.link = string(n.data[:n.size])
	}
	return a, nil
}

// putDevice encodes a device number, new style.
func putDevice(dst []byte, major, minor uint32) {
	binary.LittleEndian.PutUint32(dst, minor&0xff|major<<8|minor&^0xff<<12)
}
