// SPDX-License-Identifier: Apache-2.0

package image

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// source is an image that can be read: small parts in memory, layers on demand.
type source struct {
	manifest []byte // nil for a docker archive
	config   []byte
	file     *v1.ConfigFile // config, parsed
	layers   []blob         // lowest first
	close    func() error   // never nil
}

// blob is one layer of a source, compressed or not.
type blob struct {
	diffID v1.Hash
	// digest is of the bytes that open gives; zero where nobody says.
	digest v1.Hash
	size   int64 // of the same bytes; 0 if unknown
	open   func(ctx context.Context) (io.ReadCloser, error)
}

// fetcher reads content by descriptor. What it returns is not yet verified.
type fetcher interface {
	manifest(ctx context.Context, d v1.Descriptor) ([]byte, error)
	blob(ctx context.Context, d v1.Descriptor) (io.ReadCloser, error)
}

// maxIndexDepth bounds indexes within indexes.
const maxIndexDepth = 3

// load follows a manifest or index to the image for p and reads its config.
func load(ctx context.Context, f fetcher, d v1.Descriptor, p v1.Platform) (*source, error) {
	raw, m, err := resolve(ctx, f, d, p, 0)
	if err != nil {
		return nil, err
	}
	if m.Config.Size > MaxConfig || m.Config.Size < 0 {
		return nil, fmt.Errorf("reading image config: %d bytes, more than %d", m.Config.Size, MaxConfig)
	}
	rc, err := f.blob(ctx, m.Config)
	if err != nil {
		return nil, fmt.Errorf("reading image config: %w", err)
	}
	config, err := readAll(rc, MaxConfig)
	rc.Close()
	if err != nil {
		return nil, fmt.Errorf("reading image config: %w", err)
	}
	if err := checkDigest(config, m.Config.Digest); err != nil {
		return nil, fmt.Errorf("reading image config: %w", err)
	}
	file, err := parseConfig(config, p)
	if err != nil {
		return nil, err
	}
	if len(file.RootFS.DiffIDs) != len(m.Layers) {
		return nil, fmt.Errorf("reading image: manifest has %d layers, config has %d",
			len(m.Layers), len(file.RootFS.DiffIDs))
	}
	s := &source{manifest: raw, config: config, file: file, close: func() error { return nil }}
	for i, l := range m.Layers {
		if err := checkLayerType(l); err != nil {
			return nil, fmt.Errorf("reading layer %d: %w", i, err)
		}
		s.layers = append(s.layers, blob{
			diffID: file.RootFS.DiffIDs[i], digest: l.Digest, size: l.Size,
			open: func(ctx context.Context) (io.ReadCloser, error) { return f.blob(ctx, l) },
		})
	}
	return s, nil
}

// resolve reads the manifest that d names, or the one for p in the index that it names.
func resolve(ctx context.Context, f fetcher, d v1.Descriptor, p v1.Platform, depth int) ([]byte, *v1.Manifest, error) {
	if d.Size > MaxManifest {
		return nil, nil, fmt.Errorf("reading manifest: %d bytes, more than %d", d.Size, MaxManifest)
	}
	raw, err := f.manifest(ctx, d)
	if err != nil {
		return nil, nil, fmt.Errorf("reading manifest: %w", err)
	}
	if d.Digest.Hex != "" {
		if err := checkDigest(raw, d.Digest); err != nil {
			return nil, nil, fmt.Errorf("reading manifest: %w", err)
		}
	}
	m, idx, err := parseManifest(raw)
	if err != nil {
		return nil, nil, err
	}
	if m != nil {
		return raw, m, nil
	}
	if depth >= maxIndexDepth {
		return nil, nil, fmt.Errorf("reading index: more than %d indexes within indexes", maxIndexDepth)
	}
	next, err := choose(idx, p)
	if err != nil {
		return nil, nil, err
	}
	return resolve(ctx, f, next, p, depth+1)
}

// choose finds the manifest for p in an index. An entry without a platform
// counts only if it is the only one.
func choose(idx *v1.IndexManifest, p v1.Platform) (v1.Descriptor, error) {
	var have []string
	for _, d := range idx.Manifests {
		if d.Platform == nil {
			if len(idx.Manifests) == 1 {
				return d, nil
			}
			continue
		}
		if d.Platform.OS == p.OS && d.Platform.Architecture == p.Architecture {
			return d, nil
		}
		have = append(have, d.Platform.String())
	}
	if len(have) > 8 {
		have = append(have[:8], "...")
	}
	return v1.Descriptor{}, fmt.Errorf("reading index: no image for %s/%s; it has: %s",
		p.OS, p.Architecture, strings.Join(have, ", "))
}

func checkLayerType(l v1.Descriptor) error {
	mt := string(l.MediaType)
	switch {
	case strings.HasSuffix(mt, "+encrypted"):
		return fmt.Errorf("it is encrypted (%s), which is not supported", mt)
	case strings.Contains(mt, "foreign"):
		return fmt.Errorf("it is kept elsewhere (%s), which is not supported", mt)
	case l.Size < 0 || l.Size > MaxLayerBytes:
		return fmt.Errorf("%d bytes, more than %d", l.Size, int64(MaxLayerBytes))
	}
	return nil
}

func checkDigest(b []byte, want v1.Hash) error {
	sum := sha256.Sum256(b)
	if got := hex.EncodeToString(sum[:]); want.Algorithm != "sha256" || got != want.Hex {
		return fmt.Errorf("%w: got sha256:%s, want %s", ErrDigest, got, want)
	}
	return nil
}

// readAll reads at most max bytes; more is an error.
func readAll(r io.Reader, max int64) ([]byte, error) {
	var b bytes.Buffer
	n, err := io.Copy(&b, io.LimitReader(r, max+1))
	if err != nil {
		return nil, err
	}
	if n > max {
		return nil, fmt.Errorf("more than %d bytes", max)
	}
	return b.Bytes(), nil
}
