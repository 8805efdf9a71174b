// SPDX-License-Identifier: Apache-2.0

package image

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// refName is the annotation that names an image in a layout.
// OCI image spec, annotations: org.opencontainers.image.ref.name.
const refName = "org.opencontainers.image.ref.name"

// files is a read-only set of files: a directory, or a tar.
type files interface {
	// open returns the content and its size. The error is fs.ErrNotExist's
	// kind if there is no such file.
	open(name string) (io.ReadCloser, int64, error)
	io.Closer
}

// dirFiles reads below a directory and cannot be led out of it by links.
type dirFiles struct{ root *os.Root }

func (d dirFiles) open(name string) (io.ReadCloser, int64, error) {
	f, err := d.root.Open(name)
	if err != nil {
		return nil, 0, err
	}
	st, err := f.Stat()
	if err != nil || !st.Mode().IsRegular() {
		f.Close()
		return nil, 0, fmt.Errorf("opening %s: not a regular file", name)
	}
	return f, st.Size(), nil
}

func (d dirFiles) Close() error { return d.root.Close() }

// ociLayout fetches from an OCI image layout.
type ociLayout struct{ files files }

func (l ociLayout) manifest(ctx context.Context, d v1.Descriptor) ([]byte, error) {
	rc, err := l.blob(ctx, d)
	if err != nil {
		return nil, err
	}
	defer rc.Close()
	return readAll(rc, MaxManifest)
}

func (l ociLayout) blob(_ context.Context, d v1.Descriptor) (io.ReadCloser, error) {
	rc, size, err := l.files.open("blobs/" + d.Digest.Algorithm + "/" + d.Digest.Hex)
	if err != nil {
		return nil, err
	}
	if size != d.Size {
		rc.Close()
		return nil, fmt.Errorf("opening blob %s: %d bytes, want %d", d.Digest, size, d.Size)
	}
	return rc, nil
}

// openOCI reads the image with the tag of a layout. The source owns fs, also
// when there is an error.
func openOCI(ctx context.Context, fs files, tag string, p v1.Platform) (*source, error) {
	s, err := func() (*source, error) {
		d, err := findTag(fs, tag)
		if err != nil {
			return nil, err
		}
		return load(ctx, ociLayout{fs}, d, p)
	}()
	if err != nil {
		fs.Close()
		return nil, err
	}
	s.close = fs.Close
	return s, nil
}

// findTag chooses an entry of index.json.
func findTag(fs files, tag string) (v1.Descriptor, error) {
	rc, _, err := fs.open("index.json")
	if err != nil {
		return v1.Descriptor{}, fmt.Errorf("opening OCI layout: %w", err)
	}
	raw, err := readAll(rc, MaxManifest)
	rc.Close()
	if err != nil {
		return v1.Descriptor{}, fmt.Errorf("reading index.json: %w", err)
	}
	var idx v1.IndexManifest
	if err := json.Unmarshal(raw, &idx); err != nil {
		return v1.Descriptor{}, fmt.Errorf("parsing index.json: %w", err)
	}
	if err := checkHashes(idx.Manifests); err != nil {
		return v1.Descriptor{}, fmt.Errorf("parsing index.json: %w", err)
	}
	var tags []string
	for _, d := range idx.Manifests {
		if tag != "" && d.Annotations[refName] == tag {
			return d, nil
		}
		tags = append(tags, d.Annotations[refName])
	}
	switch {
	case tag == "" && len(idx.Manifests) == 1:
		return idx.Manifests[0], nil
	case len(idx.Manifests) == 0:
		return v1.Descriptor{}, fmt.Errorf("reading index.json: it holds no image")
	case tag == "":
		return v1.Descriptor{}, fmt.Errorf("reading index.json: it holds several images, name one: %s", strings.Join(tags, " "))
	}
	return v1.Descriptor{}, fmt.Errorf("reading index.json: %w: no tag %q; it has: %s", ErrNotFound, tag, strings.Join(tags, " "))
}
