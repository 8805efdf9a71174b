// SPDX-License-Identifier: Apache-2.0

package image

import (
	"bytes"
	"encoding/json"
	"fmt"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// parseManifest reads an image manifest or an index, whichever raw is; the
// media type that a server claims is not believed. Exactly one of the results
// is not nil when the error is nil.
func parseManifest(raw []byte) (*v1.Manifest, *v1.IndexManifest, error) {
	if len(raw) > MaxManifest {
		return nil, nil, fmt.Errorf("parsing manifest: more than %d bytes", MaxManifest)
	}
	var kind struct {
		SchemaVersion int             `json:"schemaVersion"`
		Config        json.RawMessage `json:"config"`
		Manifests     json.RawMessage `json:"manifests"`
	}
	if err := json.Unmarshal(raw, &kind); err != nil {
		return nil, nil, fmt.Errorf("parsing manifest: %w", err)
	}
	switch {
	case kind.SchemaVersion == 1:
		return nil, nil, fmt.Errorf("parsing manifest: docker schema 1 is not supported; push the image again with a current tool")
	case kind.SchemaVersion != 2:
		return nil, nil, fmt.Errorf("parsing manifest: schemaVersion %d, want 2", kind.SchemaVersion)
	case kind.Config != nil && kind.Manifests != nil:
		return nil, nil, fmt.Errorf("parsing manifest: it is both an image and an index")
	case kind.Manifests != nil:
		idx, err := v1.ParseIndexManifest(bytes.NewReader(raw))
		if err != nil {
			return nil, nil, fmt.Errorf("parsing index: %w", err)
		}
		if len(idx.Manifests) == 0 {
			return nil, nil, fmt.Errorf("parsing index: it is empty")
		}
		return nil, idx, checkHashes(idx.Manifests)
	case kind.Config != nil:
		m, err := v1.ParseManifest(bytes.NewReader(raw))
		if err != nil {
			return nil, nil, fmt.Errorf("parsing manifest: %w", err)
		}
		if len(m.Layers) == 0 || len(m.Layers) > MaxLayers {
			return nil, nil, fmt.Errorf("parsing manifest: %d layers, want 1 to %d", len(m.Layers), MaxLayers)
		}
		return m, nil, checkHashes(append([]v1.Descriptor{m.Config}, m.Layers...))
	}
	return nil, nil, fmt.Errorf("parsing manifest: neither an image nor an index")
}

// checkHashes refuses descriptors without a sha256 digest; v1.Hash checks the form.
func checkHashes(ds []v1.Descriptor) error {
	for i, d := range ds {
		if d.Digest.Algorithm != "sha256" || len(d.Digest.Hex) != 64 {
			return fmt.Errorf("parsing manifest: descriptor %d: digest %q is not a sha256", i, d.Digest)
		}
	}
	return nil
}

// parseConfig reads an image configuration and checks that it is for p.
func parseConfig(raw []byte, p v1.Platform) (*v1.ConfigFile, error) {
	if len(raw) > MaxConfig {
		return nil, fmt.Errorf("parsing image config: more than %d bytes", MaxConfig)
	}
	var c *v1.ConfigFile
	if err := json.Unmarshal(raw, &c); err != nil {
		return nil, fmt.Errorf("parsing image config: %w", err)
	}
	if c == nil {
		return nil, fmt.Errorf("parsing image config: null")
	}
	// Docker reads absent values as those of the machine; so do we.
	if (c.OS != "" && c.OS != p.OS) || (c.Architecture != "" && c.Architecture != p.Architecture) {
		return nil, fmt.Errorf("reading image: it is for %s/%s, not %s/%s", c.OS, c.Architecture, p.OS, p.Architecture)
	}
	if n := len(c.RootFS.DiffIDs); n == 0 || n > MaxLayers {
		return nil, fmt.Errorf("parsing image config: %d diff_ids, want 1 to %d", n, MaxLayers)
	}
	for i, h := range c.RootFS.DiffIDs {
		if h.Algorithm != "sha256" || len(h.Hex) != 64 {
			return nil, fmt.Errorf("parsing image config: diff_id %d: %q is not a sha256", i, h)
		}
	}
	return c, nil
}
