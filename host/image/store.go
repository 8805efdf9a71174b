// SPDX-License-Identifier: Apache-2.0

package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sys/unix"
)

// Store is a directory of images and converted layers. Several processes may
// use it at once; its methods may be called concurrently.
//
//	images.json            names, digests and layers of each image
//	images.lock            held while images.json changes
//	blobs/sha256/HEX       manifests and configurations
//	layers/HEX/image       the disk; a shared lock on it means: in use
//	layers/HEX/info.json   its root hash and sizes
//	layers/NAME.partial    a conversion at work holds a lock on it
type Store struct{ root string }

// index is the content of images.json.
type index struct {
	Version int     `json:"version"`
	Images  []Image `json:"images"`
}

const (
	indexVersion = 1
	maxIndex     = 64 << 20 // bytes of images.json
	partial      = ".partial"
)

// Open opens or makes the store in root and clears what a crash left.
func Open(root string) (*Store, error) {
	s := &Store{root: root}
	for _, d := range []string{s.layersDir(), s.blobsDir()} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return nil, fmt.Errorf("opening image store: %w", err)
		}
	}
	if err := s.clearPartial(); err != nil {
		return nil, fmt.Errorf("opening image store: %w", err)
	}
	return s, nil
}

func (s *Store) layersDir() string { return filepath.Join(s.root, "layers") }
func (s *Store) blobsDir() string  { return filepath.Join(s.root, "blobs", "sha256") }

func hexOf(digest string) string { return strings.TrimPrefix(digest, "sha256:") }

// List returns all images, the newest first.
func (s *Store) List() ([]Image, error) {
	idx, err := s.readIndex()
	if err != nil {
		return nil, err
	}
	slices.SortStableFunc(idx.Images, func(a, b Image) int { return b.Pulled.Compare(a.Pulled) })
	return idx.Images, nil
}

// Lookup finds an image by name, by ID or by the beginning of an ID of at
// least 4 digits. The error is ErrNotFound's or ErrAmbiguous's kind if there
// is none or more than one.
func (s *Store) Lookup(name string) (*Image, error) {
	idx, err := s.readIndex()
	if err != nil {
		return nil, err
	}
	i, err := idx.find(name)
	if err != nil {
		return nil, err
	}
	return &idx.Images[i], nil
}

func (x *index) find(name string) (int, error) {
	full := name
	if ref, err := ParseReference(name); err == nil {
		full = ref.Name()
	}
	for i := range x.Images {
		if slices.Contains(x.Images[i].Names, full) {
			return i, nil
		}
	}
	found := -1
	if id := hexOf(name); len(id) >= 4 && strings.Trim(id, "0123456789abcdef") == "" {
		for i := range x.Images {
			if !strings.HasPrefix(hexOf(x.Images[i].ID), id) && hexOf(x.Images[i].Digest) != id {
				continue
			}
			if found >= 0 {
				return -1, fmt.Errorf("%w: %s", ErrAmbiguous, name)
			}
			found = i
		}
	}
	if found < 0 {
		return -1, fmt.Errorf("%w: %s", ErrNotFound, name)
	}
	return found, nil
}

// Config returns an image's configuration as its author wrote it, and parsed.
func (s *Store) Config(img *Image) ([]byte, *v1.ConfigFile, error) {
	raw, err := s.blob(img.ID)
	if err != nil {
		return nil, nil, fmt.Errorf("reading image config: %w", err)
	}
	var c v1.ConfigFile
	if err := json.Unmarshal(raw, &c); err != nil {
		return nil, nil, fmt.Errorf("parsing image config: %w", err)
	}
	return raw, &c, nil
}

// Manifest returns the manifest, or nil for an image that has none.
func (s *Store) Manifest(img *Image) ([]byte, error) {
	if img.Digest == "" {
		return nil, nil
	}
	return s.blob(img.Digest)
}

// OpenLayer opens a layer's disk and holds it as in use until the file is closed.
func (s *Store) OpenLayer(diffID string) (*os.File, error) {
	name := s.LayerPath(diffID)
	f, err := os.Open(name)
	if err != nil {
		return nil, fmt.Errorf("opening layer: %w", err)
	}
	if err := tryLock(f, unix.LOCK_SH); err != nil || !same(f, name) {
		f.Close()
		return nil, fmt.Errorf("opening layer %s: it is being removed", diffID)
	}
	return f, nil
}

// LayerPath is where the disk of a layer is, if the store has it.
func (s *Store) LayerPath(diffID string) string {
	return filepath.Join(s.layersDir(), hexOf(diffID), "image")
}

func (s *Store) readIndex() (*index, error) {
	var idx index
	raw, err := os.ReadFile(filepath.Join(s.root, "images.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return &idx, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading image index: %w", err)
	}
	if len(raw) > maxIndex {
		return nil, fmt.Errorf("reading image index: more than %d bytes", maxIndex)
	}
	if err := json.Unmarshal(raw, &idx); err != nil {
		return nil, fmt.Errorf("parsing image index: %w", err)
	}
	if idx.Version != indexVersion {
		return nil, fmt.Errorf("reading image index: version %d, want %d", idx.Version, indexVersion)
	}
	return &idx, nil
}

// change runs f on the index while nobody else changes it.
func (s *Store) change(ctx context.Context, f func(*index) error) error {
	l, err := os.OpenFile(filepath.Join(s.root, "images.lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return fmt.Errorf("locking image index: %w", err)
	}
	defer l.Close()
	if err := lock(ctx, l, unix.LOCK_EX); err != nil {
		return fmt.Errorf("locking image index: %w", err)
	}
	idx, err := s.readIndex()
	if err != nil {
		return err
	}
	if err := f(idx); err != nil {
		return err
	}
	idx.Version = indexVersion
	raw, err := json.MarshalIndent(idx, "", " ")
	if err != nil {
		return fmt.Errorf("encoding image index: %w", err)
	}
	return writeFile(filepath.Join(s.root, "images.json"), raw)
}

// put records img under name and takes the name from any other image.
func (x *index) put(img *Image, name string) {
	names := []string{name}
	x.Images = slices.DeleteFunc(x.Images, func(o Image) bool {
		if o.ID == img.ID && o.Digest == img.Digest {
			for _, n := range o.Names {
				if n != name {
					names = append(names, n)
				}
			}
			return true
		}
		return false
	})
	for i := range x.Images {
		o := &x.Images[i]
		o.Names = slices.DeleteFunc(o.Names, func(n string) bool { return n == name })
	}
	slices.Sort(names)
	img.Names = names
	x.Images = append(x.Images, *img)
}

func (s *Store) blob(digest string) ([]byte, error) {
	return os.ReadFile(filepath.Join(s.blobsDir(), hexOf(digest)))
}

func (s *Store) putBlob(digest string, b []byte) error {
	name := filepath.Join(s.blobsDir(), hexOf(digest))
	if _, err := os.Stat(name); err == nil {
		return nil
	}
	return writeFile(name, b)
}

// writeFile replaces name as a whole: after a crash there is the old content
// or the new.
func writeFile(name string, b []byte) error {
	f, err := os.CreateTemp(filepath.Dir(name), "."+filepath.Base(name)+"-")
	if err != nil {
		return fmt.Errorf("writing %s: %w", name, err)
	}
	_, err = f.Write(b)
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), name)
	}
	if err != nil {
		os.Remove(f.Name())
		return fmt.Errorf("writing %s: %w", name, err)
	}
	return syncDir(filepath.Dir(name))
}

func syncDir(name string) error {
	d, err := os.Open(name)
	if err != nil {
		return err
	}
	defer d.Close()
	if err := d.Sync(); err != nil {
		return fmt.Errorf("syncing %s: %w", name, err)
	}
	return nil
}
