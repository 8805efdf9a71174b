// SPDX-License-Identifier: Apache-2.0

package volume_test

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"
)

// scratchSize is larger than what the machine could write in this time: a
// disk is not wiped.
const scratchSize = 8 << 30

// mark begins every block of the file that the guest writes.
const mark = "coffer plain text "

// TestScratchDisk: what a program wrote it reads back, or it reads an error;
// the host sees nothing of it.
func TestScratchDisk(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.addMke2fs(t)
	path := filepath.Join(t.TempDir(), "scratch")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(scratchSize); err != nil {
		t.Fatal(err)
	}
	// What an earlier user left must not matter, least of all a superblock.
	if _, err := f.Write(bytes.Repeat([]byte("integrt\x00\x05 left over "), 1<<18)); err != nil {
		t.Fatal(err)
	}
	m := l.start(t, scenario{Name: "scratch"}, []drive{{path: path, serial: "scratch", writable: true}})
	if m.until("READY before") {
		before := snapshot(t, f)
		m.say(t, "go")
		if m.until("READY tamper") {
			m.say(t, fmt.Sprintf("changed %d", tamper(t, f, before)))
		}
	}
	m.report(t, "prepare", "write and read", "many files", "nothing was read before it was written", "key is not shown", "tampering")
}

// blocks are the blocks of a file that are not zero, by number.
type blocks map[int64][4096]byte

func snapshot(t *testing.T, f *os.File) blocks {
	t.Helper()
	found := make(blocks)
	var b [4096]byte
	for at := int64(0); ; {
		data, err := f.Seek(at, 3) // SEEK_DATA
		if err != nil {
			return found // ENXIO: only a hole follows
		}
		hole, err := f.Seek(data, 4) // SEEK_HOLE
		if err != nil {
			t.Fatal(err)
		}
		for at = data &^ 4095; at < hole; at += 4096 {
			if _, err := f.ReadAt(b[:], at); err != nil && err != io.EOF {
				t.Fatal(err)
			}
			if b != [4096]byte{} {
				found[at/4096] = b
			}
		}
	}
}

// tamper changes blocks of the guest's file as the host could, each in another
// way, and returns how many. The file is the longest run of blocks that changed.
func tamper(t *testing.T, f *os.File, before blocks) int {
	t.Helper()
	after := snapshot(t, f)
	var first, length int64
	for n, b := range after {
		if bytes.Contains(b[:], []byte(mark)) {
			t.Errorf("block %d of the disk has the guest's plain text", n)
		}
		if old, ok := before[n-1]; ok && old == after[n-1] {
			continue
		}
		run := int64(0)
		for after[n+run] != before[n+run] {
			run++
		}
		if run > length {
			first, length = n, run
		}
	}
	if length < 512 {
		t.Fatalf("the longest run of changed blocks is %d; the guest wrote 1024", length)
	}
	t.Logf("tampering with blocks %d to %d", first, first+length)
	at := func(i int64) [4096]byte { return after[first+length/2+i] }
	flipped, zero := at(0), [4096]byte{}
	flipped[4095] ^= 0x80
	for i, b := range [][4096]byte{flipped, zero, at(3), at(2)} { // the last two are exchanged
		if _, err := f.WriteAt(b[:], (first+length/2+int64(i))*4096); err != nil {
			t.Fatal(err)
		}
	}
	return 4
}
