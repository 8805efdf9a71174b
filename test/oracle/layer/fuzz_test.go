// SPDX-License-Identifier: Apache-2.0

package layer_test

import (
	"archive/tar"
	"bytes"
	"fmt"
	"math/rand/v2"
	"testing"
)

// FuzzEntries takes its input for decisions of the generator, so that every input is a tar.
func FuzzEntries(f *testing.F) {
	for seed := range 20 {
		rng := rand.New(rand.NewPCG(uint64(seed), 2))
		b := make([]byte, 400)
		for i := range b {
			b[i] = byte(rng.IntN(256))
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > 4096 {
			t.Skip("long")
		}
		c, empty := fromBytes(b)
		compare(t, "tar", generate(c, 100, empty))
	})
}

// FuzzTar takes its input for a tar, and only sets the checksums right.
func FuzzTar(f *testing.F) {
	for seed := range 200 {
		rng := rand.New(rand.NewPCG(uint64(seed), 4))
		if b := generate(rng.IntN, 3, func() bool { return false }); len(b) < 20000 {
			f.Add(b)
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > 1<<16 {
			t.Skip("long")
		}
		b = bytes.Clone(b)
		fixSums(b)
		if !small(b) {
			t.Skip("would make a large image")
		}
		compare(t, "tar", b)
	})
}

// fixSums writes the checksum into everything that looks like a header.
func fixSums(b []byte) {
	for ; len(b) >= 512; b = b[512:] {
		if string(b[257:262]) != "ustar" {
			continue
		}
		copy(b[148:156], "        ")
		sum := 0
		for _, c := range b[:512] {
			sum += int(c)
		}
		copy(b[148:156], fmt.Sprintf("%06o\x00 ", sum))
	}
}

// small reports whether the files in a tar are together small enough for a quick test.
func small(b []byte) bool {
	total := int64(0)
	for r := tar.NewReader(bytes.NewReader(b)); ; {
		h, err := r.Next()
		if err != nil {
			return true
		}
		if total += max(h.Size, 0); total > 16<<20 || h.Size > 16<<20 {
			return false
		}
	}
}
