// SPDX-License-Identifier: Apache-2.0

package image

import (
	"archive/tar"
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// AddDir converts a directory of the host into a layer. Names, modes, numeric
// owners, times and links are kept as they are; sockets and extended
// attributes are left out. The layer belongs to no image: it may be collected
// once the returned file, its disk, is closed.
func (s *Store) AddDir(ctx context.Context, dir string) (Layer, *os.File, error) {
	for range maxRaces {
		l, err := s.addDir(ctx, dir)
		if err != nil {
			return Layer{}, nil, err
		}
		if h, ok := s.hold(l.DiffID); ok {
			return h.Layer, h.file, nil
		}
	}
	return Layer{}, nil, fmt.Errorf("converting directory %s: other processes keep removing it", dir)
}

func (s *Store) addDir(ctx context.Context, dir string) (Layer, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return Layer{}, fmt.Errorf("opening volume directory: %w", err)
	}
	defer root.Close()
	w, err := s.begin(ctx, "dir-"+rand.Text())
	if err != nil {
		return Layer{}, err
	}
	defer w.abandon()
	pr, pw := io.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		pw.CloseWithError(writeTar(ctx, pw, root))
	}()
	l, err := s.convert(ctx, w, &counted{r: pr, max: MaxLayerBytes}, pr, blob{})
	pr.Close()
	<-done
	if err != nil {
		return Layer{}, fmt.Errorf("converting directory %s: %w", dir, err)
	}
	return l, nil
}

// inode identifies a file with several names.
type inode struct{ dev, ino uint64 }

// writeTar writes everything below root, in lexical order.
func writeTar(ctx context.Context, w io.Writer, root *os.Root) error {
	t := &tarWriter{w: tar.NewWriter(w), root: root, seen: map[inode]string{}}
	err := fs.WalkDir(root.FS(), ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		if strings.HasPrefix(path.Base(name), ".wh.") {
			return fmt.Errorf("file %s has a name that means a deleted file in a layer", name)
		}
		return t.add(name)
	})
	if err != nil {
		return err
	}
	return t.w.Close()
}

type tarWriter struct {
	w    *tar.Writer
	root *os.Root
	seen map[inode]string
}

func (t *tarWriter) add(name string) error {
	st, err := t.root.Lstat(name)
	if err != nil {
		return err
	}
	if st.Mode()&fs.ModeSocket != 0 {
		return nil
	}
	link := ""
	if st.Mode()&fs.ModeSymlink != 0 {
		if link, err = t.root.Readlink(name); err != nil {
			return err
		}
	}
	h, err := tar.FileInfoHeader(st, link)
	if err != nil {
		return err
	}
	h.Name, h.Uname, h.Gname = name, "", ""
	h.AccessTime, h.ChangeTime = time.Time{}, time.Time{}
	h.Format = tar.FormatPAX
	if st.IsDir() {
		h.Name += "/"
	}
	if st.Mode().IsRegular() {
		return t.addFile(name, h)
	}
	return t.w.WriteHeader(h)
}

// addFile opens before it looks, so that content and header are of one file.
func (t *tarWriter) addFile(name string, h *tar.Header) error {
	f, err := t.root.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	var u unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &u); err != nil {
		return fmt.Errorf("reading %s: %w", name, err)
	}
	if u.Mode&unix.S_IFMT != unix.S_IFREG {
		return fmt.Errorf("reading %s: it changed while it was read", name)
	}
	key := inode{u.Dev, u.Ino}
	if first, ok := t.seen[key]; ok && u.Nlink > 1 {
		h.Typeflag, h.Linkname, h.Size = tar.TypeLink, first, 0
		return t.w.WriteHeader(h)
	}
	if u.Nlink > 1 {
		t.seen[key] = filepath.ToSlash(name)
	}
	h.Size = u.Size
	if err := t.w.WriteHeader(h); err != nil {
		return err
	}
	n, err := io.Copy(t.w, io.LimitReader(f, u.Size))
	if err != nil {
		return fmt.Errorf("reading %s: %w", name, err)
	}
	if n != u.Size {
		return fmt.Errorf("reading %s: it became shorter while it was read", name)
	}
	return nil
}
