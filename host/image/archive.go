// SPDX-License-Identifier: Apache-2.0

package image

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/klauspost/compress/gzip"
)

// maxArchiveFiles bounds the entries of an image archive.
const maxArchiveFiles = 1 << 16

// tarFiles is the content of a tar, found by one pass over its headers.
type tarFiles struct {
	f     *os.File
	at    map[string]extent
	links map[string]string
}

type extent struct{ off, size int64 }

// openTar indexes an archive. A gzip-compressed one is first written out to
// a nameless file in tmp.
func openTar(name, tmp string) (*tarFiles, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, fmt.Errorf("opening image archive: %w", err)
	}
	if f, err = plainTar(f, tmp); err != nil {
		return nil, fmt.Errorf("reading image archive %s: %w", name, err)
	}
	t := &tarFiles{f: f, at: map[string]extent{}, links: map[string]string{}}
	if err := t.index(); err != nil {
		f.Close()
		return nil, fmt.Errorf("reading image archive %s: %w", name, err)
	}
	return t, nil
}

// plainTar returns f itself, or its decompressed content. It closes f on error.
func plainTar(f *os.File, tmp string) (*os.File, error) {
	var magic [2]byte
	n, err := f.ReadAt(magic[:], 0)
	if err != nil && !errors.Is(err, io.EOF) {
		f.Close()
		return nil, err
	}
	if n < 2 || !bytes.Equal(magic[:], []byte{0x1f, 0x8b}) {
		return f, nil
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		return nil, err
	}
	out, err := os.CreateTemp(tmp, "archive-")
	if err != nil {
		return nil, err
	}
	os.Remove(out.Name())
	if _, err := io.Copy(out, io.LimitReader(z, MaxLayerBytes)); err != nil {
		out.Close()
		return nil, err
	}
	return out, nil
}

func (t *tarFiles) index() error {
	if _, err := t.f.Seek(0, io.SeekStart); err != nil {
		return err
	}
	r := tar.NewReader(t.f)
	for n := 0; ; n++ {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if n >= maxArchiveFiles {
			return fmt.Errorf("more than %d entries", maxArchiveFiles)
		}
		name := path.Clean("/" + h.Name)[1:]
		switch h.Typeflag {
		case tar.TypeReg:
			// The reader does not read ahead: the file stands at the content.
			off, err := t.f.Seek(0, io.SeekCurrent)
			if err != nil {
				return err
			}
			t.at[name] = extent{off, h.Size}
		case tar.TypeSymlink:
			t.links[name] = path.Clean("/" + path.Join(path.Dir(name), h.Linkname))[1:]
		case tar.TypeLink:
			t.links[name] = path.Clean("/" + h.Linkname)[1:]
		}
	}
}

func (t *tarFiles) open(name string) (io.ReadCloser, int64, error) {
	name = path.Clean("/" + name)[1:]
	for range 8 {
		if to, ok := t.links[name]; ok {
			name = to
			continue
		}
		if e, ok := t.at[name]; ok {
			return io.NopCloser(io.NewSectionReader(t.f, e.off, e.size)), e.size, nil
		}
		break
	}
	return nil, 0, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
}

func (t *tarFiles) Close() error { return t.f.Close() }

// savedImage is an element of a docker archive's manifest.json.
type savedImage struct {
	Config   string
	RepoTags []string
	Layers   []string
}

// openDockerArchive reads what docker save wrote. The source owns t, also
// when there is an error.
func openDockerArchive(t *tarFiles, tag string, p v1.Platform) (*source, error) {
	s, err := loadDockerArchive(t, tag, p)
	if err != nil {
		t.Close()
		return nil, err
	}
	s.close = t.Close
	return s, nil
}

func loadDockerArchive(t *tarFiles, tag string, p v1.Platform) (*source, error) {
	raw, err := readFile(t, "manifest.json", MaxManifest)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("reading docker archive: it has no manifest.json (an OCI archive is oci-archive:FILE)")
	}
	if err != nil {
		return nil, fmt.Errorf("reading docker archive: %w", err)
	}
	saved, err := chooseSaved(raw, tag)
	if err != nil {
		return nil, fmt.Errorf("reading docker archive: %w", err)
	}
	config, err := readFile(t, saved.Config, MaxConfig)
	if err != nil {
		return nil, fmt.Errorf("reading docker archive: config: %w", err)
	}
	file, err := parseConfig(config, p)
	if err != nil {
		return nil, err
	}
	if len(saved.Layers) != len(file.RootFS.DiffIDs) {
		return nil, fmt.Errorf("reading docker archive: manifest has %d layers, config has %d",
			len(saved.Layers), len(file.RootFS.DiffIDs))
	}
	s := &source{config: config, file: file, close: func() error { return nil }}
	for i, name := range saved.Layers {
		rc, size, err := t.open(name)
		if err != nil {
			return nil, fmt.Errorf("reading docker archive: layer %d: %w", i, err)
		}
		rc.Close()
		s.layers = append(s.layers, blob{
			diffID: file.RootFS.DiffIDs[i], size: size,
			open: func(context.Context) (io.ReadCloser, error) { rc, _, err := t.open(name); return rc, err },
		})
	}
	return s, nil
}

// chooseSaved parses manifest.json and finds the image with the tag.
func chooseSaved(raw []byte, tag string) (savedImage, error) {
	var all []savedImage
	if err := json.Unmarshal(raw, &all); err != nil {
		return savedImage{}, fmt.Errorf("parsing manifest.json: %w", err)
	}
	var tags []string
	for _, s := range all {
		for _, t := range s.RepoTags {
			if tag != "" && (t == tag || t == tag+":latest" || strings.HasSuffix(t, "/"+tag) || strings.HasSuffix(t, ":"+tag)) {
				return s, nil
			}
			tags = append(tags, t)
		}
	}
	switch {
	case len(all) == 0:
		return savedImage{}, fmt.Errorf("it holds no image")
	case tag == "" && len(all) == 1:
		return all[0], nil
	case tag == "":
		return savedImage{}, fmt.Errorf("it holds several images, name one: %s", strings.Join(tags, " "))
	}
	return savedImage{}, fmt.Errorf("%w: no tag %q; it has: %s", ErrNotFound, tag, strings.Join(tags, " "))
}

func readFile(fs files, name string, max int64) ([]byte, error) {
	rc, _, err := fs.open(name)
	if err != nil {
		return nil, err
	}
	defer rc.Close()
	return readAll(rc, max)
}
