// SPDX-License-Identifier: Apache-2.0

package guestimage

import (
	"bytes"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"path"
	"path/filepath"
	"slices"
	"time"

	"github.com/cavaliergopher/cpio"
	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
)

// Compression says how the initrd is packed.
type Compression string

// The compressions. LZ4 is the zero value's meaning: see docs/guest-image.md.
const (
	LZ4  Compression = "lz4"
	Zstd Compression = "zstd"
	None Compression = "none"
)

// tree is the content of the initrd by path, without a leading slash. A nil
// content is a directory.
type tree map[string]entry

type entry struct {
	mode    cpio.FileMode // permission bits
	content []byte        // nil: a directory
}

func (t tree) dir(name string, mode cpio.FileMode) {
	if _, ok := t[name]; !ok {
		t[name] = entry{mode: mode}
	}
}

// file adds a file and the directories above it.
func (t tree) file(name string, mode cpio.FileMode, content []byte) {
	if content == nil {
		content = []byte{}
	}
	t[name] = entry{mode: mode, content: content}
	for d := path.Dir(name); d != "."; d = path.Dir(d) {
		t.dir(d, 0o755)
	}
}

// copyTree adds all regular files below dir, but hidden ones and those that
// skip names.
func (t tree) copyTree(dir string, skip ...string) error {
	return filepath.WalkDir(dir, func(name string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		rel, err := filepath.Rel(dir, name)
		if err != nil {
			return err
		}
		rel = filepath.ToSlash(rel)
		if slices.Contains(skip, rel) || e.Name()[0] == '.' {
			return nil
		}
		if !e.Type().IsRegular() {
			return fmt.Errorf("%s is neither file nor directory", name)
		}
		content, err := readBounded(name, maxProgram)
		if err != nil {
			return err
		}
		t.file(rel, 0o755, content)
		return nil
	})
}

// cpio writes the tree as one newc archive: sorted, owned by root, times zero.
func (t tree) cpio(w io.Writer) error {
	out := cpio.NewWriter(w)
	for i, name := range slices.Sorted(maps.Keys(t)) {
		e := t[name]
		h := &cpio.Header{Name: name, Mode: cpio.TypeReg | e.mode, Size: int64(len(e.content)),
			ModTime: time.Unix(0, 0), Inode: int64(i + 1), Links: 1}
		if e.content == nil {
			h.Mode, h.Links = cpio.TypeDir|e.mode, 2
		}
		if err := out.WriteHeader(h); err != nil {
			return err
		}
		if _, err := out.Write(e.content); err != nil {
			return err
		}
	}
	return out.Close()
}

// pack returns the archive, compressed for the kernel to unpack.
func (t tree) pack(c Compression) ([]byte, error) {
	var plain, packed bytes.Buffer
	if err := t.cpio(&plain); err != nil {
		return nil, fmt.Errorf("writing the initrd: %w", err)
	}
	var w io.WriteCloser
	var err error
	switch c {
	case LZ4, "":
		z := lz4.NewWriter(&packed)
		// The kernel knows the legacy format only: blocks of 8 MiB, no checksums.
		err = z.Apply(lz4.LegacyOption(true), lz4.CompressionLevelOption(lz4.Level9), lz4.ConcurrencyOption(1))
		w = z
	case Zstd:
		w, err = zstd.NewWriter(&packed, zstd.WithEncoderLevel(zstd.SpeedBestCompression),
			zstd.WithEncoderConcurrency(1), zstd.WithEncoderCRC(false))
	case None:
		return plain.Bytes(), nil
	default:
		return nil, fmt.Errorf("unknown compression %q", string(c))
	}
	if err != nil {
		return nil, fmt.Errorf("compressing the initrd: %w", err)
	}
	if _, err := w.Write(plain.Bytes()); err != nil {
		return nil, fmt.Errorf("compressing the initrd: %w", err)
	}
	if err := w.Close(); err != nil {
		return nil, fmt.Errorf("compressing the initrd: %w", err)
	}
	return packed.Bytes(), nil
}
