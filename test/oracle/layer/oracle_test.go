// SPDX-License-Identifier: Apache-2.0

// Package layer_test compares package layer with hcsshim's tar2ext4, byte for byte.
package layer_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"sync"
	"testing"

	"github.com/Microsoft/hcsshim/ext4/dmverity"
	"github.com/Microsoft/hcsshim/ext4/tar2ext4"

	"github.com/coffer-dev/coffer/layer"
)

// maxImage is how large an image may become in memory.
const maxImage = 1 << 30

var errTooLarge = errors.New("too large for this test")

// memory is a file.
type memory struct {
	mu   sync.Mutex
	b    []byte
	at   int64
	most int64
}

func (m *memory) WriteAt(p []byte, at int64) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	end := at + int64(len(p))
	if end > m.most {
		return 0, errTooLarge
	}
	m.extend(end)
	return copy(m.b[at:], p), nil
}

func (m *memory) extend(size int64) {
	if size > int64(cap(m.b)) {
		b := make([]byte, len(m.b), max(size, int64(2*cap(m.b))))
		copy(b, m.b)
		m.b = b
	}
	m.b = m.b[:max(size, int64(len(m.b)))]
}

func (m *memory) Truncate(size int64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if size > m.most {
		return errTooLarge
	}
	clear(m.b[min(size, int64(len(m.b))):])
	m.b = m.b[:min(size, int64(len(m.b)))]
	m.extend(size)
	return nil
}

func (m *memory) ReadAt(p []byte, at int64) (int, error) { return bytes.NewReader(m.b).ReadAt(p, at) }

func (m *memory) Write(p []byte) (int, error) {
	n, err := m.WriteAt(p, m.at)
	m.at += int64(n)
	return n, err
}

func (m *memory) Read(p []byte) (int, error) {
	n, err := m.ReadAt(p, m.at)
	m.at += int64(n)
	return n, err
}

func (m *memory) Seek(offset int64, whence int) (int64, error) {
	switch whence {
	case io.SeekCurrent:
		offset += m.at
	case io.SeekEnd:
		offset += int64(len(m.b))
	}
	m.at = offset
	return offset, nil
}

// reference converts with hcsshim. Where it panics, that is the error.
func reference(r io.Reader, w io.ReadWriteSeeker) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v", p)
		}
	}()
	return tar2ext4.Convert(r, w, tar2ext4.ConvertWhiteout, tar2ext4.MaximumDiskSize(dmverity.RecommendedVHDSizeGB), tar2ext4.AppendDMVerity)
}

// verdict says how a comparison ended.
type verdict int

const (
	differ verdict = iota
	bothRefuse
	same
	skipped
)

// compare converts a tar with both, and reports what differs. want is the reference's image, if it made one.
func compare(t testing.TB, name string, tar []byte) verdict {
	t.Helper()
	want := &memory{most: maxImage}
	wantErr := reference(bytes.NewReader(tar), want)
	got := &memory{most: maxImage}
	img, err := layer.Convert(context.Background(), bytes.NewReader(tar), got)
	switch {
	case errors.Is(err, errTooLarge) || errors.Is(wantErr, errTooLarge):
		return skipped
	case (err == nil) != (wantErr == nil):
		t.Errorf("%s: Convert = %v; hcsshim says %v", name, err, wantErr)
		return differ
	case err != nil:
		if len(got.b) != 0 || img != (layer.Image{}) {
			t.Errorf("%s: Convert left %d bytes and %+v with error %v", name, len(got.b), img, err)
		}
		return bothRefuse
	}
	if !equalImages(t, name, got.b, want.b, img) {
		return differ
	}
	root, err := layer.RootOf(context.Background(), bytes.NewReader(tar))
	if err != nil || root != img.Root {
		t.Errorf("%s: RootOf = %s, %v; want %s", name, root, err, img.Root)
		return differ
	}
	return same
}

// equalImages compares whole images, but for the random UUID in the dm-verity superblock.
func equalImages(t testing.TB, name string, got, want []byte, img layer.Image) bool {
	t.Helper()
	if len(got) != len(want) || int64(len(got)) != img.Size {
		t.Errorf("%s: image of %d bytes (said %d); hcsshim makes %d", name, len(got), img.Size, len(want))
		return false
	}
	uuid := img.DataBlocks*layer.BlockSize + 16
	copy(want[uuid:uuid+16], make([]byte, 16))
	if !bytes.Equal(got, want) {
		for i := range got {
			if got[i] != want[i] {
				t.Errorf("%s: images differ from byte %#x (block %d, byte %d) of %#x", name, i, i/4096, i%4096, len(got))
				break
			}
		}
		return false
	}
	top := sha256.Sum256(append(make([]byte, 32), want[(img.DataBlocks+1)*layer.BlockSize:][:layer.BlockSize]...))
	if hex.EncodeToString(top[:]) != img.Root.String() {
		t.Errorf("%s: root = %s; hcsshim's is %x", name, img.Root, top)
		return false
	}
	return true
}
