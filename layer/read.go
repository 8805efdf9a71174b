// SPDX-License-Identifier: Apache-2.0

package layer

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// ReadImage reads what is written in an image about itself: its size and, from the top block of its tree, its root.
// It reads three blocks and computes one hash; whether the data has that root is for Verify, or for dm-verity, to say.
// An image cut short and bytes that Convert cannot have written are ErrNotImage; what follows the image is ignored.
func ReadImage(r io.ReaderAt) (Image, error) {
	img, err := readImage(r)
	if err != nil {
		return Image{}, fmt.Errorf("reading layer image: %w", err)
	}
	return img, nil
}

func readImage(r io.ReaderAt) (Image, error) {
	var block [BlockSize]byte
	if err := readAt(r, block[:], 0); err != nil {
		return Image{}, err
	}
	le := binary.LittleEndian
	if super := block[superOffset:]; le.Uint16(super[56:]) != superMagic || le.Uint32(super[24:]) != 2 {
		return Image{}, fmt.Errorf("%w: no ext4 superblock", ErrNotImage)
	}
	data := int64(le.Uint32(block[superOffset+4:]))
	if data == 0 || data > maxDisk/BlockSize {
		return Image{}, fmt.Errorf("%w: file system of %d blocks", ErrNotImage, data)
	}
	if err := readAt(r, block[:], data*BlockSize); err != nil {
		return Image{}, err
	}
	want := veritySuperblock(data)
	clear(block[16:32]) // UUID
	if !bytes.Equal(block[:], want) {
		return Image{}, fmt.Errorf("%w: no dm-verity superblock, or one of another kind", ErrNotImage)
	}
	img := Image{DataBlocks: data, Size: imageSize(data)}
	if err := readAt(r, block[:1], img.Size-1); err != nil {
		return Image{}, err
	}
	if err := readAt(r, block[:], (data+1)*BlockSize); err != nil {
		return Image{}, err
	}
	newHasher().sum(img.Root[:], block[:])
	return img, nil
}

// readAt reads all of p; the end of the file is ErrNotImage.
func readAt(r io.ReaderAt, p []byte, at int64) error {
	n, err := r.ReadAt(p, at)
	switch {
	case n == len(p):
		return nil
	case errors.Is(err, io.EOF):
		return fmt.Errorf("%w: it ends before byte %d", ErrNotImage, at+int64(len(p)))
	case err == nil:
		return io.ErrNoProgress
	default:
		return err
	}
}

// Verify reads the whole image, computes its tree and compares every block of it. An error wraps ErrMismatch if data
// or tree have changed since Convert returned img, ErrNotImage if the image is not of img's kind or size, and
// otherwise is r's or ctx's. It uses all processors.
func Verify(ctx context.Context, r io.ReaderAt, img Image) error {
	if err := verify(ctx, r, img); err != nil {
		return fmt.Errorf("verifying layer image: %w", err)
	}
	return nil
}

func verify(ctx context.Context, r io.ReaderAt, img Image) error {
	found, err := readImage(r)
	if err != nil {
		return err
	}
	if found.DataBlocks != img.DataBlocks || found.Size != img.Size {
		return fmt.Errorf("%w: %d data blocks instead of %d", ErrNotImage, found.DataBlocks, img.DataBlocks)
	}
	s := newStream(ctx, nil, img.DataBlocks*BlockSize)
	defer s.stop()
	for left := s.limit; left > 0; left = s.limit - s.pos {
		buf, err := s.room()
		if err != nil {
			return err
		}
		if err := readAt(r, buf, s.pos); err != nil {
			return err
		}
		s.advance(len(buf))
	}
	t, err := s.tree(nil)
	if err != nil {
		return err
	}
	if root := t.root(); root != img.Root {
		return fmt.Errorf("%w: data has root %s, want %s", ErrMismatch, root, img.Root)
	}
	have := make([]byte, batchSize)
	return t.each(ctx, func(want []byte, at int64) error {
		have := have[:len(want)]
		if err := readAt(r, have, at); err != nil {
			return err
		}
		if !bytes.Equal(have, want) {
			return fmt.Errorf("%w: hash tree differs near byte %d", ErrMismatch, at)
		}
		return nil
	})
}
