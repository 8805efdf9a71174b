// SPDX-License-Identifier: Apache-2.0

package image

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Removed says what Remove did.
type Removed struct {
	Untagged []string `json:"untagged,omitempty"` // full names
	Deleted  string   `json:"deleted,omitempty"`  // the image's ID, if it has no other name
}

// Remove takes a name from an image, or, given an ID, all names; an image
// without a name is deleted, and with it the layers that no other image and no
// running group use. force removes an ID with several names.
func (s *Store) Remove(ctx context.Context, name string, force bool) (Removed, error) {
	var out Removed
	err := s.change(ctx, func(x *index) error {
		i, err := x.find(name)
		if err != nil {
			return err
		}
		img := &x.Images[i]
		full := name
		if ref, err := ParseReference(name); err == nil {
			full = ref.Name()
		}
		if slices.Contains(img.Names, full) {
			out.Untagged = []string{full}
		} else {
			if len(img.Names) > 1 && !force {
				return fmt.Errorf("%w: it has several names: %s", ErrInUse, strings.Join(img.Names, " "))
			}
			out.Untagged = slices.Clone(img.Names)
		}
		img.Names = slices.DeleteFunc(img.Names, func(n string) bool { return slices.Contains(out.Untagged, n) })
		if len(img.Names) == 0 {
			out.Deleted = img.ID
			x.Images = slices.Delete(x.Images, i, i+1)
		}
		return nil
	})
	if err != nil {
		return Removed{}, fmt.Errorf("removing image: %w", err)
	}
	if out.Deleted != "" {
		return out, s.Collect(ctx)
	}
	return out, nil
}

// Collect deletes blobs and layers that no image names and no group has open.
func (s *Store) Collect(ctx context.Context) error {
	return s.change(ctx, func(x *index) error {
		blobs, layers := map[string]bool{}, map[string]bool{}
		for _, img := range x.Images {
			blobs[hexOf(img.ID)], blobs[hexOf(img.Digest)] = true, true
			for _, l := range img.Layers {
				layers[hexOf(l.DiffID)] = true
			}
		}
		return errors.Join(s.collectBlobs(blobs), s.collectLayers(layers))
	})
}

func (s *Store) collectBlobs(keep map[string]bool) error {
	entries, err := os.ReadDir(s.blobsDir())
	if err != nil {
		return fmt.Errorf("collecting blobs: %w", err)
	}
	for _, e := range entries {
		if !keep[e.Name()] && !strings.HasPrefix(e.Name(), ".") {
			err = errors.Join(err, os.Remove(filepath.Join(s.blobsDir(), e.Name())))
		}
	}
	return err
}

func (s *Store) collectLayers(keep map[string]bool) error {
	entries, err := os.ReadDir(s.layersDir())
	if err != nil {
		return fmt.Errorf("collecting layers: %w", err)
	}
	for _, e := range entries {
		if keep[e.Name()] || strings.HasSuffix(e.Name(), partial) {
			continue
		}
		err = errors.Join(err, s.collectLayer(filepath.Join(s.layersDir(), e.Name())))
	}
	return err
}

// collectLayer removes a layer unless a group holds its lock.
func (s *Store) collectLayer(dir string) error {
	f, err := os.Open(filepath.Join(dir, "image"))
	if err == nil {
		defer f.Close()
		if err := tryLock(f, unix.LOCK_EX); errors.Is(err, errBusy) {
			return nil
		} else if err != nil {
			return err
		}
	}
	// Renamed first, so that a crash halfway leaves a work directory, not half a layer.
	gone := dir + "-gone" + partial
	if err := os.Rename(dir, gone); err != nil {
		return fmt.Errorf("removing layer: %w", err)
	}
	return os.RemoveAll(gone)
}
