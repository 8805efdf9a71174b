// SPDX-License-Identifier: Apache-2.0

package layer

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
)

const (
	// BlockSize is the size in bytes of a block of the file system, and of a data and a hash block of dm-verity.
	BlockSize = 4096
	// maxDisk is the largest file system in bytes. It also fixes the space reserved for group descriptors and with
	// it the place of the first data block, so every layer's root hash depends on it.
	maxDisk = 128 << 30
)

var (
	// ErrLimit is returned for a layer that exceeds one of the bounds in the package comment.
	ErrLimit = errors.New("layer exceeds a limit")
	// ErrNotImage is returned for bytes that are not an image made by Convert.
	ErrNotImage = errors.New("not a layer image")
	// ErrMismatch is returned by Verify for an image whose data does not have its hash tree.
	ErrMismatch = errors.New("layer image does not match its root hash")
)

// RootHash is the dm-verity root hash of an image: SHA-256 of 32 zero bytes and the top block of the Merkle tree.
// The zero RootHash is no image's.
type RootHash [32]byte

// String returns 64 lower-case hexadecimal digits, as policies write it.
func (h RootHash) String() string { return hex.EncodeToString(h[:]) }

// ParseRootHash reads what String writes, and nothing else: 64 lower-case hexadecimal digits.
func ParseRootHash(s string) (RootHash, error) {
	var h RootHash
	if len(s) != 2*len(h) {
		return RootHash{}, fmt.Errorf("parsing root hash: got %d characters, want %d", len(s), 2*len(h))
	}
	b, err := hex.DecodeString(s)
	if err != nil {
		return RootHash{}, fmt.Errorf("parsing root hash: %w", err)
	}
	copy(h[:], b)
	if h.String() != s {
		return RootHash{}, errors.New("parsing root hash: upper-case digits")
	}
	return h, nil
}

// Image describes a converted layer.
type Image struct {
	// Root is the dm-verity root hash.
	Root RootHash
	// DataBlocks is the size of the ext4 file system in blocks of BlockSize. The dm-verity superblock follows at
	// byte DataBlocks*BlockSize, the tree one block after that.
	DataBlocks int64
	// Size is the size of the whole image in bytes: file system, dm-verity superblock and tree.
	Size int64
}

// Output is where an image is written; *os.File is one. WriteAt must allow calls in parallel on disjoint ranges.
// Ranges that are never written are zero: Convert relies on Truncate to make it so.
type Output interface {
	io.WriterAt
	Truncate(size int64) error
}

// Convert reads one uncompressed layer tar from r and writes its image to w, whose earlier content is discarded.
// It reads r up to the tar's end mark, not further. The tar's author is not trusted.
//
// After an error there is no image: the block that makes it one is written last, and w is truncated to nothing if it
// can be. An error wraps ErrLimit if the layer is too large, ctx.Err() if ctx is done, the error of r or w if there
// is one, and otherwise says which entry of the tar is at fault.
//
// Convert does not sync w.
func Convert(ctx context.Context, r io.Reader, w Output) (Image, error) {
	if err := w.Truncate(0); err != nil {
		return Image{}, fmt.Errorf("emptying layer image: %w", err)
	}
	img, err := convert(ctx, r, w, maxDisk)
	if err != nil {
		return Image{}, errors.Join(fmt.Errorf("converting layer: %w", err), w.Truncate(0))
	}
	return img, nil
}

// RootOf returns the root hash that Convert would, without keeping the image. Errors are those of Convert.
func RootOf(ctx context.Context, r io.Reader) (RootHash, error) {
	img, err := convert(ctx, r, nil, maxDisk)
	if err != nil {
		return RootHash{}, fmt.Errorf("hashing layer: %w", err)
	}
	return img.Root, nil
}

// convert makes a file system of at most limit bytes. A nil w makes no image.
func convert(ctx context.Context, r io.Reader, w Output, limit int64) (Image, error) {
	var out io.WriterAt
	if w != nil {
		out = w
	}
	s := newStream(ctx, out, limit)
	defer s.stop()
	fs, err := newBuilder(s)
	if err != nil {
		return Image{}, err
	}
	if err := readTar(ctx, r, fs); err != nil {
		return Image{}, err
	}
	head, err := fs.finish()
	if err != nil {
		return Image{}, err
	}
	tree, err := s.tree(fs.patches())
	if err != nil {
		return Image{}, err
	}
	// The ext4 superblock comes last: without it there is no image.
	tree.patch(0, head)
	img := Image{
		Root:       tree.root(),
		DataBlocks: s.blocks(),
		Size:       imageSize(s.blocks()),
	}
	if w == nil {
		return img, nil
	}
	if err := tree.write(ctx, w); err != nil {
		return Image{}, err
	}
	if err := w.Truncate(img.Size); err != nil {
		return Image{}, fmt.Errorf("setting the size of the image: %w", err)
	}
	if _, err := w.WriteAt(head, 0); err != nil {
		return Image{}, fmt.Errorf("writing file system superblock: %w", err)
	}
	return img, nil
}
