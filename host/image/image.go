// SPDX-License-Identifier: Apache-2.0

package image

import (
	"errors"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// Limits. What exceeds them is refused before it is read.
const (
	// MaxManifest bounds a manifest or an index, in bytes.
	MaxManifest = 4 << 20
	// MaxConfig bounds an image configuration, in bytes.
	MaxConfig = 8 << 20
	// MaxLayers bounds the layers of one image; docker's own limit is 127.
	MaxLayers = 127
	// MaxLayerBytes bounds an uncompressed layer: the largest file system
	// that a layer image can be.
	MaxLayerBytes = 128 << 30
)

// Errors that callers branch on.
var (
	ErrNotFound  = errors.New("image not found")
	ErrAmbiguous = errors.New("image ID is ambiguous")
	ErrInUse     = errors.New("image is in use")
	ErrDigest    = errors.New("content does not match its digest")
)

// Layer is one converted layer.
type Layer struct {
	// DiffID is the digest of the uncompressed tar, sha256:<hex>.
	DiffID string `json:"diff_id"`
	// RootHash is the dm-verity root hash: 64 lower-case hex digits.
	RootHash string `json:"root_hash"`
	// DataBlocks is the number of 4096-byte blocks before the hash area.
	DataBlocks int64 `json:"data_blocks"`
	// Size is the size of the disk image in bytes.
	Size int64 `json:"size"`
}

// Image is one image in the store.
type Image struct {
	// ID is the digest of the configuration, sha256:<hex>.
	ID string `json:"id"`
	// Digest is that of the manifest; "" for a docker archive, which has none.
	Digest string `json:"digest,omitempty"`
	// Names are full names, of [Reference.Name]. An image without a name is
	// kept until it is removed.
	Names   []string  `json:"names"`
	Created time.Time `json:"created"`
	Pulled  time.Time `json:"pulled"`
	// Layers are the lowest first.
	Layers []Layer `json:"layers"`
}

// Size is the sum of the layers' disk images in bytes.
func (i *Image) Size() int64 {
	var n int64
	for _, l := range i.Layers {
		n += l.Size
	}
	return n
}

// Stage is what happens to a layer.
type Stage string

// The stages, in order. A layer is either Exists, or Converting and then Done.
const (
	Exists     Stage = "exists"
	Converting Stage = "converting"
	Done       Stage = "done"
)

// Progress is told about one layer. Current and Total are compressed bytes;
// Total is 0 when the source does not say.
type Progress struct {
	Layer   string // digest of the blob, or of the uncompressed tar
	Stage   Stage
	Current int64
	Total   int64
}

// Options of a pull. The zero value is strict.
type Options struct {
	// InsecurePlainHTTP allows HTTP to registries that are not this machine.
	InsecurePlainHTTP bool
	// Progress may be nil. It is called from several goroutines, one layer's
	// calls in order.
	Progress func(Progress)
	// Parallel is the number of layers at work at once; 0 is one per CPU.
	Parallel int
	// Platform is nil for linux/amd64.
	Platform *v1.Platform
}

func (o *Options) platform() v1.Platform {
	if o.Platform != nil {
		return *o.Platform
	}
	return v1.Platform{OS: "linux", Architecture: "amd64"}
}

func (o *Options) report(p Progress) {
	if o.Progress != nil {
		o.Progress(p)
	}
}
