// SPDX-License-Identifier: Apache-2.0

package layer

import (
	"archive/tar"
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"strconv"
	"strings"
)

const (
	// inputBuffer is how much is read from the input at once, outside of large files.
	inputBuffer = 256 << 10
	// maxEmptyReads is how often in a row a reader may return nothing.
	maxEmptyReads = 100
	// maxQuoted is how much of a name goes into an error.
	maxQuoted = 256

	whiteoutPrefix = ".wh."
	whiteoutOpaque = ".wh..wh..opq"
	opaqueXattr    = "trusted.overlay.opaque"
	paxXattr       = "SCHILY.xattr."
)

// source is the input: it ends with ctx, and it does not let the tar reader seek, which could miss the end.
type source struct {
	ctx   context.Context
	r     io.Reader
	empty int
}

func (s *source) Read(p []byte) (int, error) {
	if err := s.ctx.Err(); err != nil {
		return 0, err
	}
	n, err := s.r.Read(p)
	if n > 0 || err != nil {
		s.empty = 0
		return n, err
	}
	if s.empty++; s.empty > maxEmptyReads {
		return 0, io.ErrNoProgress
	}
	return 0, nil
}

// readTar puts the entries of a tar into fs.
func readTar(ctx context.Context, r io.Reader, fs *builder) error {
	t := tar.NewReader(bufio.NewReaderSize(&source{ctx: ctx, r: r}, inputBuffer))
	last := ""
	for {
		h, err := t.Next()
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case errors.Is(err, tar.ErrInsecurePath):
			// Only with GODEBUG=tarinsecurepath=0. Names are not paths of this machine.
		case err != nil && last == "":
			return fmt.Errorf("reading the first entry: %w", err)
		case err != nil:
			return fmt.Errorf("reading what follows entry %s: %w", quote(last), err)
		}
		if err := addEntry(fs, t, h); err != nil {
			return fmt.Errorf("adding entry %s: %w", quote(h.Name), err)
		}
		last = h.Name
	}
}

func addEntry(fs *builder, t *tar.Reader, h *tar.Header) error {
	if err := fs.makeParents(h.Name); err != nil {
		return err
	}
	dir, base := path.Split(h.Name)
	if hidden, ok := strings.CutPrefix(base, whiteoutPrefix); ok {
		if base == whiteoutOpaque {
			return addOpaque(fs, dir)
		}
		// overlayfs takes a character device 0/0 as "not here".
		_, err := fs.create(path.Join(dir, hidden), &attrs{mode: typeChar})
		return err
	}
	if h.Typeflag == tar.TypeLink {
		return fs.link(h.Linkname, h.Name)
	}
	n, err := fs.create(h.Name, entryAttrs(h))
	if err != nil {
		return err
	}
	if n.mode&typeMask != typeReg {
		return nil
	}
	return fs.fillFile(n, t)
}

// addOpaque hides what lower layers have in dir.
func addOpaque(fs *builder, dir string) error {
	a, err := fs.stat(dir)
	if err != nil {
		return err
	}
	a.xattrs[opaqueXattr] = []byte("y")
	_, err = fs.create(dir, a)
	return err
}

func entryAttrs(h *tar.Header) *attrs {
	a := &attrs{
		mode:   uint16(h.Mode)&^typeMask | entryType(h.Typeflag),
		uid:    uint32(h.Uid),
		gid:    uint32(h.Gid),
		major:  uint32(h.Devmajor),
		minor:  uint32(h.Devminor),
		atime:  diskTime(h.AccessTime),
		ctime:  diskTime(h.ChangeTime),
		mtime:  diskTime(h.ModTime),
		size:   h.Size,
		link:   h.Linkname,
		xattrs: nil,
	}
	a.crtime = a.mtime
	for key, value := range h.PAXRecords {
		if name, ok := strings.CutPrefix(key, paxXattr); ok {
			if a.xattrs == nil {
				a.xattrs = make(map[string][]byte)
			}
			a.xattrs[name] = []byte(value)
		}
	}
	return a
}

// entryType is the type of file of an entry; 0, which becomes a regular file, for what has no type in ext4: a global
// PAX header, too, becomes a file.
func entryType(flag byte) uint16 {
	switch flag {
	case tar.TypeReg:
		return typeReg
	case tar.TypeSymlink:
		return typeLink
	case tar.TypeChar:
		return typeChar
	case tar.TypeBlock:
		return typeBlk
	case tar.TypeDir:
		return typeDir
	case tar.TypeFifo:
		return typeFIFO
	default:
		return 0
	}
}

// quote makes a name from the tar fit for a message.
func quote(name string) string {
	if len(name) > maxQuoted {
		return strconv.Quote(name[:maxQuoted]) + "..."
	}
	return strconv.Quote(name)
}
