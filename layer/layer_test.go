// SPDX-License-Identifier: Apache-2.0

package layer

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/google/go-cmp/cmp"
)

// goldens are tars in testdata, made by Python's tarfile, and the roots that Azure's tools compute for them.
var goldens = []struct {
	name, tarHash, root string
	size                int64
}{
	{
		name:    "empty",
		tarHash: "84ff92691f909a05b224e1c56abb4864f01b4f8e3c854e4bb4c7baf1d3f6d652",
		root:    "8b4842f06982817534a75bcf71865213b09dfa8313229c384e5201dadbd75e25",
		size:    57344 + 2*BlockSize,
	},
	{
		name:    "one",
		tarHash: "acc32a257e9288d55a6ac6354bc1d4a340832d47ef455b794fe43ebfc2a9beb2",
		root:    "0b18b9ee244a22539b7208072359d109da85447af31f5a85a5e2ef966a89486e",
		size:    61440 + 2*BlockSize,
	},
	{
		name:    "mix",
		tarHash: "dab3fd50cf7f1e3c43f91d0d04148dc502d61f296ce9be9c99725fb673351e32",
		root:    "804cf326a1603bf4b3f4c28e5d09fc7ecb520d0ce60fd3000779880c72ca9bc7",
		size:    98304 + 2*BlockSize,
	},
}

func golden(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", name+".tar"))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func create(t testing.TB) *os.File {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "image"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func TestGolden(t *testing.T) {
	for _, g := range goldens {
		t.Run(g.name, func(t *testing.T) {
			layer := golden(t, g.name)
			if got := sha256.Sum256(layer); hex.EncodeToString(got[:]) != g.tarHash {
				t.Fatalf("tar = %x; want %s", got, g.tarHash)
			}
			f := create(t)
			if _, err := f.WriteString("something else"); err != nil {
				t.Fatal(err)
			}
			img, err := Convert(t.Context(), bytes.NewReader(layer), f)
			if err != nil || img.Root.String() != g.root || img.Size != g.size {
				t.Fatalf("Convert = %+v, %v; want %s, %d bytes", img, err, g.root, g.size)
			}
			if info, err := f.Stat(); err != nil || info.Size() != g.size {
				t.Errorf("file of %d bytes, %v; want %d", info.Size(), err, g.size)
			}
			if root, err := RootOf(t.Context(), bytes.NewReader(layer)); err != nil || root != img.Root {
				t.Errorf("RootOf = %s, %v; want %s, nil", root, err, img.Root)
			}
			if read, err := ReadImage(f); err != nil || read != img {
				t.Errorf("ReadImage = %+v, %v; want %+v, nil", read, err, img)
			}
			if err := Verify(t.Context(), f, img); err != nil {
				t.Errorf("Verify = %v; want nil", err)
			}
		})
	}
}

// TestVerifyNotices changes one byte at a time, in each block of an image.
func TestVerifyNotices(t *testing.T) {
	f := create(t)
	img, err := Convert(t.Context(), bytes.NewReader(golden(t, "mix")), f)
	if err != nil {
		t.Fatal(err)
	}
	for at := int64(1); at < img.Size; at += BlockSize / 2 {
		if at/BlockSize == img.DataBlocks && at%BlockSize < BlockSize/2 {
			at += 7 // into the dm-verity superblock's version
		}
		var old [1]byte
		if _, err := f.ReadAt(old[:], at); err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteAt([]byte{old[0] ^ 1}, at); err != nil {
			t.Fatal(err)
		}
		if err := Verify(t.Context(), f, img); !errors.Is(err, ErrMismatch) && !errors.Is(err, ErrNotImage) {
			t.Errorf("Verify with byte %d changed = %v; want ErrMismatch or ErrNotImage", at, err)
		}
		if _, err := f.WriteAt(old[:], at); err != nil {
			t.Fatal(err)
		}
	}
	other := img
	other.Root[31] ^= 1
	if err := Verify(t.Context(), f, other); !errors.Is(err, ErrMismatch) {
		t.Errorf("Verify(another root) = %v; want ErrMismatch", err)
	}
	other = img
	other.DataBlocks--
	if err := Verify(t.Context(), f, other); !errors.Is(err, ErrNotImage) {
		t.Errorf("Verify(another size) = %v; want ErrNotImage", err)
	}
	if err := Verify(t.Context(), f, img); err != nil {
		t.Errorf("Verify(restored) = %v; want nil", err)
	}
}

func TestReadImageRefuses(t *testing.T) {
	f := create(t)
	img, err := Convert(t.Context(), bytes.NewReader(golden(t, "one")), f)
	if err != nil {
		t.Fatal(err)
	}
	whole, err := os.ReadFile(f.Name())
	if err != nil {
		t.Fatal(err)
	}
	verity := int(img.DataBlocks) * BlockSize
	edit := func(at int, b ...byte) []byte {
		return append(append(bytes.Clone(whole[:at]), b...), whole[at+len(b):]...)
	}
	for _, tt := range []struct {
		name string
		data []byte
		want error
	}{
		{"whole", whole, nil},
		{"footer", append(bytes.Clone(whole), make([]byte, 512)...), nil},
		{"another UUID", edit(verity+16, 1, 2, 3), nil},
		{"nothing", nil, ErrNotImage},
		{"no first block", edit(0, make([]byte, BlockSize)...), ErrNotImage},
		{"cut off", whole[:len(whole)-1], ErrNotImage},
		{"no tree", whole[:verity+BlockSize], ErrNotImage},
		{"no blocks", edit(superOffset+4, 0, 0, 0, 0), ErrNotImage},
		{"too many blocks", edit(superOffset+4, 1, 0, 0, 2), ErrNotImage},
		{"one block less", edit(superOffset+4, byte(img.DataBlocks-1)), ErrNotImage},
		{"hash type", edit(verity+12, 0), ErrNotImage},
		{"hash name", edit(verity+32, []byte("sha1\x00\x00")...), ErrNotImage},
		{"data blocks", edit(verity+72, byte(img.DataBlocks+1)), ErrNotImage},
		{"salt", edit(verity+88, 1), ErrNotImage},
		{"salt size", edit(verity+80, 16), ErrNotImage},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := ReadImage(bytes.NewReader(tt.data))
			if !errors.Is(err, tt.want) || (err == nil) != (got == img) || (err != nil) != (got == Image{}) {
				t.Errorf("ReadImage = %+v, %v; want %v", got, err, tt.want)
			}
		})
	}
}

func TestRootHash(t *testing.T) {
	const text = "804cf326a1603bf4b3f4c28e5d09fc7ecb520d0ce60fd3000779880c72ca9bc7"
	h, err := ParseRootHash(text)
	if err != nil || h.String() != text {
		t.Errorf("ParseRootHash(%s) = %s, %v", text, h, err)
	}
	for _, s := range []string{"", text[1:], text + "0", strings.ToUpper(text), "x" + text[1:], "0x" + text[2:]} {
		if h, err := ParseRootHash(s); err == nil || h != (RootHash{}) {
			t.Errorf("ParseRootHash(%q) = %s, %v; want an error", s, h, err)
		}
	}
}

// entries writes a tar.
func entries(t testing.TB, hs ...tar.Header) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, h := range hs {
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.CopyN(w, zeros{}, h.Size); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// TestRefuses has what cannot be represented; that this agrees with the reference is tested elsewhere.
func TestRefuses(t *testing.T) {
	file := tar.Header{Typeflag: tar.TypeReg, Name: "f", Size: 3}
	dir := tar.Header{Typeflag: tar.TypeDir, Name: "d/"}
	for _, tt := range []struct {
		name    string
		entries []tar.Header
		want    string
	}{
		{"file twice", []tar.Header{file, file}, `adding entry "f": replacing a file that has data`},
		{"file for directory", []tar.Header{dir, {Name: "d", Typeflag: tar.TypeReg}}, `adding entry "d": replacing a directory by a file`},
		{"directory for file", []tar.Header{file, {Name: "f/", Typeflag: tar.TypeDir}}, `adding entry "f/": replacing a file by a directory`},
		{"below a file", []tar.Header{file, {Name: "f/x"}}, `adding entry "f/x": its parent is not a directory`},
		{"below a file's child", []tar.Header{file, {Name: "f/x/y"}}, `adding entry "f/x/y": its parent is not a directory`},
		{"link to nothing", []tar.Header{{Typeflag: tar.TypeLink, Name: "l", Linkname: "f"}, file}, `adding entry "l": finding its target "f": no such entry before this one`},
		{"link to a directory", []tar.Header{dir, {Typeflag: tar.TypeLink, Name: "l", Linkname: "d"}}, `adding entry "l": linking to "d": it is a directory`},
		{"link for a file", []tar.Header{file, {Name: "g"}, {Typeflag: tar.TypeLink, Name: "g", Linkname: "f"}}, `adding entry "g": replacing the only name of a file or directory by a hard link`},
		{"whiteout of data", []tar.Header{file, {Name: ".wh.f"}}, `adding entry ".wh.f": replacing a file that has data`},
		{"long name", []tar.Header{{Name: strings.Repeat("n", 256)}}, `adding entry "` + strings.Repeat("n", 256) + `": ` + ErrLimit.Error() + `: name of 256 bytes`},
		{"attributes", []tar.Header{{Name: "f", PAXRecords: map[string]string{"SCHILY.xattr.user.a": strings.Repeat("v", 4096)}}}, `adding entry "f": ` + ErrLimit.Error() + `: no room for extended attribute "user.a"`},
		{"very long name", []tar.Header{{Name: strings.Repeat("n/", 300), Typeflag: tar.TypeDir}, {Name: strings.Repeat("n/", 300) + "..", Typeflag: tar.TypeReg}}, `adding entry "` + strings.Repeat("n/", 128) + `"...: replacing a directory by a file`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := create(t)
			img, err := Convert(t.Context(), bytes.NewReader(entries(t, tt.entries...)), f)
			if err == nil {
				t.Fatalf("Convert = %+v, nil; want %s", img, tt.want)
			}
			if diff := cmp.Diff("converting layer: "+tt.want, err.Error()); diff != "" {
				t.Errorf("Convert (-want +got):\n%s", diff)
			}
			if info, err := f.Stat(); err != nil || info.Size() != 0 || img != (Image{}) {
				t.Errorf("Convert left %d bytes (%v) and %+v", info.Size(), err, img)
			}
		})
	}
}

// TestCutOff reads a tar that ends everywhere: either at an entry's end, or with an error that names one.
func TestCutOff(t *testing.T) {
	layer := golden(t, "mix")
	for n := 0; n < len(layer); n += 100 {
		_, err := RootOf(t.Context(), bytes.NewReader(layer[:n]))
		if n%512 == 0 || err == nil {
			continue
		}
		if !errors.Is(err, io.ErrUnexpectedEOF) || !strings.Contains(err.Error(), "entry") {
			t.Errorf("RootOf(%d bytes) = %v; want an unexpected end, after an entry", n, err)
		}
	}
	_, err := RootOf(t.Context(), bytes.NewReader(layer[:4000]))
	if want := `hashing layer: adding entry "bin/sh": unexpected EOF`; err == nil || err.Error() != want {
		t.Errorf("RootOf(4000 bytes) = %v; want %s", err, want)
	}
}

func TestReaders(t *testing.T) {
	layer := golden(t, "mix")
	want, err := RootOf(t.Context(), bytes.NewReader(layer))
	if err != nil {
		t.Fatal(err)
	}
	broken := errors.New("broken")
	for _, tt := range []struct {
		name string
		r    io.Reader
		want error
	}{
		{"byte by byte", iotest.OneByteReader(bytes.NewReader(layer)), nil},
		{"data with the end", iotest.DataErrReader(bytes.NewReader(layer)), nil},
		{"broken", io.MultiReader(bytes.NewReader(layer[:5000]), iotest.ErrReader(broken)), broken},
		{"stuck", io.MultiReader(bytes.NewReader(layer[:5000]), stuck{}), io.ErrNoProgress},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := RootOf(t.Context(), tt.r)
			if !errors.Is(err, tt.want) || (err == nil) != (got == want) {
				t.Errorf("RootOf = %s, %v; want %s, %v", got, err, want, tt.want)
			}
		})
	}
}

type stuck struct{}

func (stuck) Read([]byte) (int, error) { return 0, nil }

// TestCancel cancels in the middle of a file that would not end soon.
func TestCancel(t *testing.T) {
	var head bytes.Buffer
	w := tar.NewWriter(&head)
	if err := w.WriteHeader(&tar.Header{Name: "f", Size: 40 << 30}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	r := io.MultiReader(&head, io.LimitReader(zeros{}, 64<<20), cancels{cancel}, zeros{})
	if _, err := Convert(ctx, r, create(t)); !errors.Is(err, context.Canceled) {
		t.Errorf("Convert = %v; want context.Canceled", err)
	}
	if _, err := RootOf(ctx, bytes.NewReader(golden(t, "mix"))); !errors.Is(err, context.Canceled) {
		t.Errorf("RootOf = %v; want context.Canceled", err)
	}
}

type cancels struct{ cancel context.CancelFunc }

func (c cancels) Read([]byte) (int, error) { c.cancel(); return 0, io.EOF }

// full is an output that fails after so many bytes.
type full struct {
	*os.File
	size int64
}

var errFull = errors.New("full")

func (f full) WriteAt(p []byte, at int64) (int, error) {
	if at+int64(len(p)) > f.size {
		return 0, errFull
	}
	return f.File.WriteAt(p, at)
}

func (f full) Truncate(size int64) error {
	if size > f.size {
		return errFull
	}
	return f.File.Truncate(size)
}

func TestFullDisk(t *testing.T) {
	layer := append(entries(t)[:0], golden(t, "mix")[:20*512]...)
	layer = append(layer, entries(t, tar.Header{Name: "zero", Size: 5 << 20})...)
	whole := create(t)
	img, err := Convert(t.Context(), bytes.NewReader(layer), whole)
	if err != nil {
		t.Fatal(err)
	}
	for _, size := range []int64{0, 50000, img.DataBlocks*BlockSize - 1, img.DataBlocks*BlockSize + 100, img.Size - 1} {
		f := create(t)
		if got, err := Convert(t.Context(), bytes.NewReader(layer), full{f, size}); !errors.Is(err, errFull) || got != (Image{}) {
			t.Errorf("Convert to %d bytes = %+v, %v; want an error", size, got, err)
		}
		if _, err := ReadImage(f); !errors.Is(err, ErrNotImage) {
			t.Errorf("ReadImage after an error with %d bytes = %v; want ErrNotImage", size, err)
		}
	}
	if got, err := Convert(t.Context(), bytes.NewReader(layer), full{create(t), img.Size}); err != nil || got != img {
		t.Errorf("Convert to %d bytes = %+v, %v; want %+v", img.Size, got, err, img)
	}
}

// TestLimits converts with smaller limits, to meet them.
func TestLimits(t *testing.T) {
	disk := func(limit int64, layer []byte) error {
		_, err := convert(t.Context(), bytes.NewReader(layer), nil, limit)
		return err
	}
	layer := entries(t, tar.Header{Name: "f", Size: 3 << 20}, tar.Header{Name: "g"})
	s := int64(3<<20 + 14*BlockSize)
	if err := disk(s, layer); err != nil {
		t.Errorf("disk of %d bytes: %v", s, err)
	}
	for _, limit := range []int64{0, BlockSize, 2 << 20, 3 << 20, 3<<20 + 10*BlockSize, s - BlockSize} {
		if err := disk(limit, layer); !errors.Is(err, ErrLimit) {
			t.Errorf("disk of %d bytes: %v; want ErrLimit", limit, err)
		}
	}
	st := newStream(t.Context(), nil, 1<<30)
	defer st.stop()
	fs, err := newBuilder(st)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := fs.create("f", &attrs{mode: typeReg, size: maxFileSize + 1}); !errors.Is(err, ErrLimit) {
		t.Errorf("file of %d bytes: %v; want ErrLimit", maxFileSize+1, err)
	}
	fs.nodes = make([]*node, maxInodes)
	if _, err := fs.create("g", &attrs{}); !errors.Is(err, ErrLimit) {
		t.Errorf("inode %d: %v; want ErrLimit", maxInodes+1, err)
	}
	fs.metadata = maxMetadata - 10
	if err := fs.makeParents("a/b/c"); !errors.Is(err, ErrLimit) {
		t.Errorf("metadata: %v; want ErrLimit", err)
	}
}

// TestGroups has the numbers at the limits: everything fits, and nothing wraps around.
func TestGroups(t *testing.T) {
	for _, blocks := range []uint32{13, 32765, 32766, 1 << 20, 33 << 20} {
		for _, inodes := range []uint32{11, 16, 17, 32768, 32769, 1 << 20, maxInodes} {
			groups, per := bestGroups(blocks, inodes)
			if int64(groups)*int64(per) < int64(inodes) || int64(groups)*int64(groupSize-per/inodesPerBlock-2) < int64(blocks) || groups > 1100 {
				t.Errorf("bestGroups(%d, %d) = %d groups of %d inodes", blocks, inodes, groups, per)
			}
		}
	}
}

func TestTimes(t *testing.T) {
	for _, tt := range []struct {
		seconds, nanoseconds int64
		disk, again          uint64
	}{
		{0, 0, 0, 0},
		{0, 1, 1 << 34, 1 << 34},
		{1700000000, 5, 1700000000 | 5<<34, 1700000000 | 5<<34},
		{-1, 0, 1<<64 - 1, maxSeconds},
		{-1 << 40, 0, 1 << 31, 1<<64 - 1<<31},
		{1 << 31, 0, 1 << 31, 1<<64 - 1<<31},
		{1<<32 - 1, 0, 1<<32 - 1, 1<<64 - 1},
		{1 << 32, 7, 1<<32 | 7<<34, 1<<32 | 7<<34},
		{1 << 40, 7, maxSeconds, maxSeconds},
	} {
		disk := diskTime(time.Unix(tt.seconds, tt.nanoseconds))
		if again := reencode(disk); disk != tt.disk || again != tt.again {
			t.Errorf("%d.%09d = %#x, then %#x; want %#x, %#x", tt.seconds, tt.nanoseconds, disk, again, tt.disk, tt.again)
		}
	}
	if got := diskTime(time.Time{}); got != 0 {
		t.Errorf("diskTime(zero) = %#x; want 0", got)
	}
}

// TestTree compares the tree with one computed the simple way, over data with zeros in all places.
func TestTree(t *testing.T) {
	for _, blocks := range []int{1, 2, 127, 128, 129, 256, 300, 128*128 - 1, 128 * 128, 128*128 + 1, 2*128*128 + 5} {
		marks := [][]int{nil, {0}, {blocks - 1}, {blocks / 2}, {5, 200, 128 * 100, 128 * 200}}
		if blocks > 128*128+1 {
			marks = marks[4:]
		}
		for _, mark := range marks {
			data := make([]byte, blocks*BlockSize)
			for _, m := range mark {
				data[min(m, blocks-1)*BlockSize+99] = 1
			}
			s := newStream(t.Context(), nil, 1<<40)
			add := s.add
			if len(mark) == 0 {
				add = func(p []byte) error { return s.zero(int64(len(p))) }
			}
			if err := add(data); err != nil {
				t.Fatal(err)
			}
			patch := make([]byte, BlockSize)
			patch[1] = 2
			tree, err := s.tree(map[int64][]byte{int64(blocks / 3): patch})
			if err != nil {
				t.Fatal(err)
			}
			var got []byte
			if err := tree.each(t.Context(), func(p []byte, at int64) error {
				got = append(got, p...)
				return nil
			}); err != nil {
				t.Fatal(err)
			}
			copy(data[blocks/3*BlockSize:], patch)
			want := simpleTree(data)
			if !bytes.Equal(got, want) {
				t.Errorf("tree of %d blocks, not zero at %v, differs", blocks, mark)
			}
			if size := imageSize(int64(blocks)); size != int64(len(data)+BlockSize+len(want)) {
				t.Errorf("imageSize(%d) = %d; want %d", blocks, size, len(data)+BlockSize+len(want))
			}
			if got, want := tree.root(), sha256.Sum256(append(make([]byte, 32), want[:BlockSize]...)); got != want {
				t.Errorf("root of %d blocks = %s; want %x", blocks, got, want)
			}
		}
	}
}

// TestHasher compares with crypto/sha256, with and without pairs.
func TestHasher(t *testing.T) {
	h := newHasher()
	t.Logf("pairs: %v", h.pairs)
	rng := rand.NewChaCha8([32]byte{1})
	for range 200 {
		var p, q [BlockSize]byte
		_, _ = rng.Read(p[:])
		_, _ = rng.Read(q[:])
		want := [2][32]byte{sha256.Sum256(append(make([]byte, 32), p[:]...)), sha256.Sum256(append(make([]byte, 32), q[:]...))}
		for _, h.pairs = range []bool{false, canPair()} {
			var got [2][32]byte
			h.sumPair(got[0][:], got[1][:], p[:], q[:])
			if got != want {
				t.Fatalf("sumPair, pairs %v = %x; want %x", h.pairs, got, want)
			}
		}
	}
}

func BenchmarkHasher(b *testing.B) {
	h := newHasher()
	var p, q [BlockSize]byte
	var hashes [2][hashSize]byte
	for _, h.pairs = range []bool{false, canPair()} {
		b.Run(fmt.Sprintf("pairs=%v", h.pairs), func(b *testing.B) {
			b.SetBytes(2 * BlockSize)
			for b.Loop() {
				h.sumPair(hashes[0][:], hashes[1][:], p[:], q[:])
			}
		})
	}
}

func simpleTree(data []byte) []byte {
	var level []byte
	for ; len(data) > 0; data = data[BlockSize:] {
		h := sha256.Sum256(append(make([]byte, 32), data[:BlockSize]...))
		level = append(level, h[:]...)
	}
	level = append(level, make([]byte, (BlockSize-len(level)%BlockSize)%BlockSize)...)
	if len(level) == BlockSize {
		return level
	}
	return append(simpleTree(level), level...)
}

// TestHoles sees that zeros take no space on disk.
func TestHoles(t *testing.T) {
	f := create(t)
	img, err := Convert(t.Context(), bytes.NewReader(entries(t, tar.Header{Name: "zero", Size: 64 << 20})), f)
	if err != nil {
		t.Fatal(err)
	}
	if used := diskUsage(t, f); used > 4<<20 {
		t.Errorf("image of %d bytes uses %d", img.Size, used)
	}
	if err := Verify(t.Context(), f, img); err != nil {
		t.Error(err)
	}
}

func FuzzConvert(f *testing.F) {
	for _, g := range goldens {
		f.Add(golden(f, g.name))
	}
	f.Add(entries(f, tar.Header{Name: "a/b/c", Typeflag: tar.TypeDir}, tar.Header{Name: "a/.wh..wh..opq"}))
	f.Fuzz(func(t *testing.T, layer []byte) {
		if len(layer) > 1<<16 {
			return
		}
		for at := 0; at+512 <= len(layer); at += 512 { // so that changed headers are read
			if block := layer[at : at+512]; string(block[257:262]) == "ustar" {
				copy(block[148:], "        ")
				sum := 0
				for _, c := range block {
					sum += int(c)
				}
				copy(block[148:], fmt.Sprintf("%06o\x00 ", sum))
			}
		}
		img, err := convert(t.Context(), bytes.NewReader(layer), nil, 64<<20)
		if (err != nil) != (img == Image{}) || img.Size > 70<<20 {
			t.Errorf("convert = %+v, %v", img, err)
		}
	})
}

func FuzzReadImage(f *testing.F) {
	image := create(f)
	if _, err := Convert(f.Context(), bytes.NewReader(golden(f, "one")), image); err != nil {
		f.Fatal(err)
	}
	whole, err := os.ReadFile(image.Name())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(whole)
	f.Fuzz(func(t *testing.T, b []byte) {
		img, err := ReadImage(bytes.NewReader(b))
		if (err != nil) != (img == Image{}) || img.Size > int64(len(b)) {
			t.Errorf("ReadImage of %d bytes = %+v, %v", len(b), img, err)
		}
	})
}

// BenchmarkConvert has a tar of files of all sizes that do not compress.
func BenchmarkConvert(b *testing.B) {
	var layer bytes.Buffer
	w := tar.NewWriter(&layer)
	content := make([]byte, 1<<20)
	for i := range content {
		content[i] = byte(i*i>>7 + i)
	}
	for i := range 4000 {
		n := (i * i * 7919) % (1 << (8 + i%13))
		if err := w.WriteHeader(&tar.Header{Name: fmt.Sprintf("d%d/f%d", i%40, i), Size: int64(n)}); err != nil {
			b.Fatal(err)
		}
		if _, err := w.Write(content[:n]); err != nil {
			b.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		b.Fatal(err)
	}
	b.Run("image", func(b *testing.B) {
		f := create(b)
		b.SetBytes(int64(layer.Len()))
		for b.Loop() {
			if _, err := Convert(b.Context(), bytes.NewReader(layer.Bytes()), f); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("root", func(b *testing.B) {
		b.SetBytes(int64(layer.Len()))
		for b.Loop() {
			if _, err := RootOf(b.Context(), bytes.NewReader(layer.Bytes())); err != nil {
				b.Fatal(err)
			}
		}
	})
}
