// SPDX-License-Identifier: Apache-2.0

package image

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"runtime"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sync/errgroup"
)

// Pull reads the image that ref names, converts the layers that the store
// does not have, and records it under ref's name. A nil error means that the
// image and all its layers are on disk, verified against their digests.
func (s *Store) Pull(ctx context.Context, ref Reference, o Options) (*Image, error) {
	src, err := s.openSource(ctx, ref, o)
	if err != nil {
		return nil, err
	}
	defer src.close()
	img := Image{ID: digestOf(src.config), Created: src.file.Created.UTC(), Pulled: time.Now().UTC()}
	if src.manifest != nil {
		img.Digest = digestOf(src.manifest)
	}
	layers, err := s.ensureAll(ctx, src.layers, &o)
	defer release(layers)
	if err != nil {
		return nil, err
	}
	for _, l := range layers {
		img.Layers = append(img.Layers, l.Layer)
	}
	if err := s.putBlob(img.ID, src.config); err != nil {
		return nil, err
	}
	if src.manifest != nil {
		if err := s.putBlob(img.Digest, src.manifest); err != nil {
			return nil, err
		}
	}
	if err := s.record(ctx, &img, ref.Name()); err != nil {
		return nil, err
	}
	return &img, nil
}

// record writes the index, unless it says the same already.
func (s *Store) record(ctx context.Context, img *Image, name string) error {
	if old, err := s.Lookup(name); err == nil && old.ID == img.ID && old.Digest == img.Digest {
		*img = *old
		return nil
	}
	return s.change(ctx, func(x *index) error {
		x.put(img, name)
		return nil
	})
}

func (s *Store) openSource(ctx context.Context, ref Reference, o Options) (*source, error) {
	switch ref.Transport {
	case Docker:
		return openRegistry(ctx, ref.remote, o)
	case OCI:
		root, err := os.OpenRoot(ref.Path)
		if err != nil {
			return nil, fmt.Errorf("opening OCI layout: %w", err)
		}
		return openOCI(ctx, dirFiles{root}, ref.Tag, o.platform())
	case OCIArchive, DockerArchive:
		t, err := openTar(ref.Path, s.root)
		if err != nil {
			return nil, err
		}
		if ref.Transport == DockerArchive {
			return openDockerArchive(t, ref.Tag, o.platform())
		}
		return openOCI(ctx, t, ref.Tag, o.platform())
	}
	return nil, fmt.Errorf("opening image: unknown transport %q", ref.Transport)
}

// ensureAll converts layers in parallel. The same layer may appear twice. The
// caller releases what is returned, also when there is an error.
func (s *Store) ensureAll(ctx context.Context, blobs []blob, o *Options) ([]held, error) {
	n := o.Parallel
	if n <= 0 {
		n = runtime.NumCPU()
	}
	first := map[v1.Hash]int{}
	out := make([]held, len(blobs))
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(n)
	for i, b := range blobs {
		if _, again := first[b.diffID]; again {
			continue
		}
		first[b.diffID] = i
		g.Go(func() error {
			l, err := s.ensure(ctx, b, o)
			if err != nil {
				return fmt.Errorf("layer %d (%s): %w", i, b.diffID, err)
			}
			out[i] = l
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return out, err
	}
	for i, b := range blobs {
		out[i].Layer = out[first[b.diffID]].Layer
	}
	return out, nil
}

func release(layers []held) {
	for _, l := range layers {
		if l.file != nil {
			l.file.Close()
		}
	}
}

func digestOf(b []byte) string {
	sum := sha256.Sum256(b)
	return "sha256:" + hex.EncodeToString(sum[:])
}
