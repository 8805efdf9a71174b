// SPDX-License-Identifier: Apache-2.0

package image

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/coffer-dev/coffer/layer"
)

// held is a layer that nobody can remove while file is open.
type held struct {
	Layer
	file *os.File
}

// hold finds a converted layer and holds it. ok is false if it must be converted (again).
func (s *Store) hold(diffID string) (held, bool) {
	l, err := s.layerInfo(diffID)
	if err != nil {
		return held{}, false
	}
	f, err := s.OpenLayer(diffID)
	if err != nil {
		return held{}, false
	}
	return held{l, f}, true
}

// maxRaces bounds how often a layer may be removed by others under our hands.
const maxRaces = 5

// ensure returns the converted layer, and converts it if nobody has yet.
func (s *Store) ensure(ctx context.Context, b blob, o *Options) (held, error) {
	diffID := b.diffID.String()
	p := Progress{Layer: diffID, Stage: Exists, Total: b.size, Current: b.size}
	if b.digest.Hex != "" {
		p.Layer = b.digest.String()
	}
	for range maxRaces {
		if h, ok := s.hold(diffID); ok {
			o.report(p)
			return h, nil
		}
		did, err := s.convertBlob(ctx, b, p, o)
		if err != nil {
			return held{}, err
		}
		if did {
			p.Stage = Done
		}
	}
	return held{}, fmt.Errorf("converting layer: other processes keep removing it")
}

// convertBlob converts a layer unless another process has while this one waited.
func (s *Store) convertBlob(ctx context.Context, b blob, p Progress, o *Options) (bool, error) {
	w, err := s.begin(ctx, b.diffID.Hex)
	if err != nil {
		return false, err
	}
	defer w.abandon()
	if _, err := s.layerInfo(b.diffID.String()); err == nil {
		return false, nil
	}
	rc, err := b.open(ctx)
	if err != nil {
		return false, fmt.Errorf("opening layer blob: %w", err)
	}
	p.Stage = Converting
	c := &counted{r: rc, max: MaxLayerBytes, report: func(n int64) {
		p.Current = n
		o.report(p)
	}}
	if b.size > 0 {
		c.max = b.size
	}
	if b.digest.Hex != "" {
		c.h = sha256.New()
	}
	_, err = s.convert(ctx, w, c, rc, b)
	return err == nil, err
}

// convert does one pass: verify, decompress, verify, convert, keep. It closes rc.
func (s *Store) convert(ctx context.Context, w *work, c *counted, rc io.ReadCloser, b blob) (Layer, error) {
	z, err := decompress(c)
	if err != nil {
		rc.Close()
		return Layer{}, err
	}
	defer z.Close()
	p := newPipe(z)
	defer p.Close()
	defer rc.Close() // before p.Close: it ends a read that hangs
	f, err := os.OpenFile(filepath.Join(w.dir, "image"), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return Layer{}, fmt.Errorf("creating layer: %w", err)
	}
	defer f.Close()
	img, err := layer.Convert(ctx, p, f)
	if err != nil {
		return Layer{}, errors.Join(err, ctx.Err())
	}
	// Padding after the tar's end counts for both digests.
	if _, err := io.Copy(io.Discard, p); err != nil {
		return Layer{}, fmt.Errorf("reading layer: %w", err)
	}
	if _, err := io.Copy(io.Discard, c); err != nil {
		return Layer{}, fmt.Errorf("reading layer: %w", err)
	}
	if err := c.check(b.digest); err != nil {
		return Layer{}, err
	}
	got := v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(p.Sum())}
	if b.diffID.Hex != "" && got != b.diffID {
		return Layer{}, fmt.Errorf("reading layer: %w: uncompressed it is %s, the config says %s", ErrDigest, got, b.diffID)
	}
	l := Layer{DiffID: got.String(), RootHash: img.Root.String(), DataBlocks: img.DataBlocks, Size: img.Size}
	return l, s.commit(w, f, l)
}
