// SPDX-License-Identifier: Apache-2.0

package layer

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"runtime"
	"sync"
)

const (
	// hashesPerBlock is the number of SHA-256 hashes in a block of the tree.
	hashesPerBlock = BlockSize / hashSize
	// batchHashBlocks is the size of a batch in blocks of the tree's lowest level.
	batchHashBlocks = 2
	batchBlocks     = batchHashBlocks * hashesPerBlock
	batchSize       = batchBlocks * BlockSize
	// minHole is the number of zero blocks that are worth leaving out of a write.
	minHole = 16
)

// batch is a run of blocks on its way through the stream. It belongs to whoever received it last.
type batch struct {
	index int64 // batches before this one
	n     int   // bytes filled
	buf   [batchSize]byte
	holes [batchBlocks]bool
}

func (b *batch) block(i int) []byte { return b.buf[i*BlockSize:][:BlockSize] }

// stream is the file system being written, from block 0 to its end. What is written to it is gathered into batches;
// they are hashed by as many goroutines as there are processors and written by one more, since the kernel admits one
// writer to a file at a time.
type stream struct {
	ctx   context.Context
	out   io.WriterAt // nil: only hash
	limit int64
	pos   int64
	cur   *batch // nil when pos is at the start of a batch that has not been begun

	free   chan *batch
	jobs   chan *batch
	writes chan *batch
	hash   sync.WaitGroup
	write  sync.WaitGroup
	closed bool

	failed chan struct{} // closed when err has been set
	mu     sync.Mutex    // guards err and leaves
	err    error
	leaves []*hashBlock // lowest level of the tree; nil for 128 zero blocks
}

func newStream(ctx context.Context, out io.WriterAt, limit int64) *stream {
	workers := runtime.GOMAXPROCS(0)
	buffers := 2*workers + 2
	s := &stream{
		ctx:    ctx,
		out:    out,
		limit:  limit,
		free:   make(chan *batch, buffers),
		jobs:   make(chan *batch, buffers),
		writes: make(chan *batch, buffers),
		failed: make(chan struct{}),
	}
	for range buffers {
		s.free <- nil // made when first used
	}
	for range workers {
		s.hash.Go(s.hashBatches)
	}
	s.write.Go(s.writeBatches)
	return s
}

// stop ends the goroutines; what has not been handed over is dropped. It may be called twice.
func (s *stream) stop() {
	if s.closed {
		return
	}
	s.closed = true
	close(s.jobs)
	s.hash.Wait()
	close(s.writes)
	s.write.Wait()
}

func (s *stream) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err == nil {
		s.err = err
		close(s.failed)
	}
}

func (s *stream) hashBatches() {
	h := newHasher()
	for b := range s.jobs {
		leaves := h.hashBatch(b)
		s.mu.Lock()
		at := int(b.index) * batchHashBlocks
		for len(s.leaves) < at+len(leaves) {
			s.leaves = append(s.leaves, nil)
		}
		copy(s.leaves[at:], leaves)
		s.mu.Unlock()
		if s.out == nil {
			s.free <- b
			continue
		}
		s.writes <- b
	}
}

func (s *stream) writeBatches() {
	for b := range s.writes {
		if err := s.writeBatch(b); err != nil {
			s.fail(fmt.Errorf("writing layer image: %w", err))
		}
		s.free <- b
	}
}

// writeBatch writes what is not a hole. Short runs of zeros are written too: a hole costs more than it saves.
func (s *stream) writeBatch(b *batch) error {
	blocks := b.n / BlockSize
	base := b.index * batchSize
	for i := 0; i < blocks; {
		if b.holes[i] {
			i++
			continue
		}
		end := i + 1 // behind the last block to be written
		for j, zeros := i+1, 0; j < blocks && zeros < minHole; j++ {
			if b.holes[j] {
				zeros++
				continue
			}
			zeros, end = 0, j+1
		}
		if _, err := s.out.WriteAt(b.buf[i*BlockSize:end*BlockSize], base+int64(i)*BlockSize); err != nil {
			return err
		}
		i = end
	}
	return nil
}

// room returns space at the stream's end, never empty; what is put there counts after advance.
func (s *stream) room() ([]byte, error) {
	if s.cur != nil && s.cur.n == batchSize {
		s.flush()
	}
	if s.cur == nil {
		if err := s.begin(); err != nil {
			return nil, err
		}
	}
	if s.pos >= s.limit {
		return nil, errDisk(s.limit)
	}
	free := s.cur.buf[s.cur.n:]
	return free[:min(int64(len(free)), s.limit-s.pos)], nil
}

func (s *stream) begin() error {
	if err := s.ctx.Err(); err != nil {
		return err
	}
	var b *batch
	select {
	case b = <-s.free:
	case <-s.ctx.Done():
		return s.ctx.Err()
	case <-s.failed:
		return s.err
	}
	select {
	case <-s.failed:
		return s.err
	default:
	}
	if b == nil {
		b = new(batch)
	}
	b.index, b.n = s.pos/batchSize, 0
	s.cur = b
	return nil
}

func (s *stream) flush() {
	s.jobs <- s.cur
	s.cur = nil
}

func (s *stream) advance(n int) {
	s.cur.n += n
	s.pos += int64(n)
}

// add appends p.
func (s *stream) add(p []byte) error {
	for len(p) > 0 {
		free, err := s.room()
		if err != nil {
			return err
		}
		n := copy(free, p)
		s.advance(n)
		p = p[n:]
	}
	return nil
}

// zero appends n zero bytes. Long runs cost nothing.
func (s *stream) zero(n int64) error {
	if n > s.limit-s.pos {
		return errDisk(s.limit)
	}
	for n > 0 {
		if s.pos%batchSize == 0 && n >= batchSize {
			if s.cur != nil {
				s.flush()
			}
			s.pos += batchSize
			n -= batchSize
			continue
		}
		free, err := s.room()
		if err != nil {
			return err
		}
		free = free[:min(n, int64(len(free)))]
		clear(free)
		s.advance(len(free))
		n -= int64(len(free))
	}
	return nil
}

// align appends zeros up to the next block.
func (s *stream) align() error {
	if rest := s.pos % BlockSize; rest != 0 {
		return s.zero(BlockSize - rest)
	}
	return nil
}

// blocks is the number of blocks so far.
func (s *stream) blocks() int64 { return s.pos / BlockSize }

// tree waits for everything to be hashed and written, replaces the given blocks, and returns the hash tree.
// The stream must be aligned, and is at its end.
func (s *stream) tree(patches map[int64][]byte) (*tree, error) {
	if s.cur != nil {
		s.flush()
	}
	s.stop()
	if s.err != nil {
		return nil, s.err
	}
	if err := s.ctx.Err(); err != nil {
		return nil, err
	}
	t := newTree(s.leaves, s.blocks())
	for block, data := range patches {
		t.patch(block, data)
		if s.out == nil {
			continue
		}
		if _, err := s.out.WriteAt(data, block*BlockSize); err != nil {
			return nil, fmt.Errorf("writing layer image: %w", err)
		}
	}
	return t, nil
}

// isZero reports whether a block is all zero.
func isZero(block []byte, zero *[BlockSize]byte) bool {
	return block[0] == 0 && bytes.Equal(block, zero[:])
}

func errDisk(limit int64) error { return fmt.Errorf("%w: more than %d bytes of disk", ErrLimit, limit) }
