// SPDX-License-Identifier: Apache-2.0

package image

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

const (
	chunk   = 1 << 20 // bytes decompressed at once
	chunks  = 6       // at most this many wait between decompressor, hash and reader
	maxZstd = 1 << 27 // largest zstd window in bytes; the OCI's own tools use 8 MiB
)

// counted verifies and counts compressed bytes as they are read.
type counted struct {
	r      io.Reader
	h      hash.Hash // nil: not verified
	n      int64
	max    int64
	report func(int64)
	said   int64
}

func (c *counted) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	if c.h != nil {
		c.h.Write(p[:n])
	}
	if c.n > c.max {
		return n, fmt.Errorf("reading layer blob: more than %d bytes", c.max)
	}
	if c.report != nil && (c.n-c.said >= chunk/4 || err != nil) {
		c.said = c.n
		c.report(c.n)
	}
	return n, err
}

// check compares what was read with its digest. The zero Hash fits anything.
func (c *counted) check(want v1.Hash) error {
	if c.h == nil {
		return nil
	}
	if got := hex.EncodeToString(c.h.Sum(nil)); got != want.Hex {
		return fmt.Errorf("reading layer blob: %w: got sha256:%s, want %s", ErrDigest, got, want)
	}
	return nil
}

// decompress looks at the first bytes, not at the media type, which is often wrong.
func decompress(r io.Reader) (io.ReadCloser, error) {
	b := bufio.NewReaderSize(r, 256<<10)
	magic, err := b.Peek(4)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	switch {
	case bytes.HasPrefix(magic, []byte{0x1f, 0x8b}):
		z, err := gzip.NewReader(b)
		if err != nil {
			return nil, fmt.Errorf("opening gzip layer: %w", err)
		}
		return z, nil
	case bytes.Equal(magic, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		z, err := zstd.NewReader(b, zstd.WithDecoderMaxWindow(maxZstd), zstd.WithDecoderConcurrency(1))
		if err != nil {
			return nil, fmt.Errorf("opening zstd layer: %w", err)
		}
		return z.IOReadCloser(), nil
	}
	return io.NopCloser(b), nil
}

// pipe decompresses, hashes and hands on at the same time: one goroutine
// reads r, one hashes, and the caller is the third.
type pipe struct {
	ready  chan []byte   // chunks for the caller
	toHash chan []byte   // the same chunks for the hash
	free   chan []byte   // chunks that caller and hash are both done with
	hashed chan struct{} // one per chunk that has been hashed
	stop   chan struct{} // closed by Close
	ended  chan struct{} // closed when both goroutines have ended
	err    error         // valid once ready is closed
	sum    []byte        // valid once ended is closed
	cur    []byte
	rest   []byte
}

func newPipe(r io.Reader) *pipe {
	p := &pipe{ready: make(chan []byte, chunks), toHash: make(chan []byte, chunks), free: make(chan []byte, chunks),
		hashed: make(chan struct{}, chunks), stop: make(chan struct{}), ended: make(chan struct{})}
	for range chunks {
		p.free <- nil
	}
	go func() {
		defer close(p.ended)
		done := make(chan struct{})
		go func() {
			defer close(done)
			h := sha256.New()
			for b := range p.toHash {
				h.Write(b)
				p.hashed <- struct{}{}
			}
			p.sum = h.Sum(nil)
		}()
		p.err = p.fill(io.LimitReader(r, MaxLayerBytes))
		close(p.toHash)
		close(p.ready)
		<-done
	}()
	return p
}

// fill runs until r ends or Close.
func (p *pipe) fill(r io.Reader) error {
	for {
		var b []byte
		select {
		case b = <-p.free:
		case <-p.stop:
			return io.ErrClosedPipe
		}
		if b == nil {
			b = make([]byte, chunk)
		}
		n, err := io.ReadFull(r, b[:chunk])
		if n > 0 {
			p.toHash <- b[:n] // never blocks: there are only as many chunks as places
			p.ready <- b[:n]
		}
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return io.EOF
		}
		if err != nil {
			return err
		}
	}
}

func (p *pipe) Read(b []byte) (int, error) {
	if len(p.rest) == 0 {
		if p.cur != nil {
			<-p.hashed
			p.free <- p.cur
			p.cur = nil
		}
		next, ok := <-p.ready
		if !ok {
			return 0, p.err
		}
		p.cur, p.rest = next, next
	}
	n := copy(b, p.rest)
	p.rest = p.rest[n:]
	return n, nil
}

// Sum returns the SHA-256 of everything; it is right only after Read has returned io.EOF.
func (p *pipe) Sum() []byte {
	<-p.ended
	return p.sum
}

// Close ends the goroutines and waits for them, except for a read of the source that hangs:
// the caller closes the source first.
func (p *pipe) Close() {
	close(p.stop)
	<-p.ended
}
