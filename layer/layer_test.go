// SPDX-License-Identifier: Apache-2.0

package layer

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// writeTar is Python's tarfile in PAX format with empty names of owners, as the vectors were made.
func writeTar(t testing.TB, entries []tarEntry) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, e := range entries {
		h := e.Header
		if h.Mode == 0 {
			h.Mode = 0o644
		}
		h.ModTime = time.Unix(1700000000, 0)
		h.Size = int64(len(e.data))
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, e.data); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if rest := buf.Len() % 10240; rest != 0 { // records of 20 blocks
		buf.Write(make([]byte, 10240-rest))
	}
	return buf.Bytes()
}

type tarEntry struct {
	tar.Header
	data string
}

func reg(name, data string) tarEntry {
	return tarEntry{tar.Header{Typeflag: tar.TypeReg, Name: name}, data}
}

// goldens are published vectors: tars that anybody can make, and the roots that Azure's tools compute for them.
var goldens = []struct {
	name, tarHash, root string
	entries             []tarEntry
	size                int64
}{
	{
		name:    "empty",
		tarHash: "84ff92691f909a05b224e1c56abb4864f01b4f8e3c854e4bb4c7baf1d3f6d652",
		root:    "8b4842f06982817534a75bcf71865213b09dfa8313229c384e5201dadbd75e25",
	},
	{
		name:    "one",
		tarHash: "acc32a257e9288d55a6ac6354bc1d4a340832d47ef455b794fe43ebfc2a9beb2",
		root:    "0b18b9ee244a22539b7208072359d109da85447af31f5a85a5e2ef966a89486e",
		entries: []tarEntry{reg("hello.txt", "hello\n")},
	},
	{
		name:    "mix",
		tarHash: "dab3fd50cf7f1e3c43f91d0d04148dc502d61f296ce9be9c99725fb673351e32",
		root:    "804cf326a1603bf4b3f4c28e5d09fc7ecb520d0ce60fd3000779880c72ca9bc7",
		entries: []tarEntry{
			{tar.Header{Typeflag: tar.TypeDir, Name: "etc/", Mode: 0o755}, ""},
			reg("etc/passwd", "root:x:0:0:root:/root:/bin/sh\n"),
			{tar.Header{Typeflag: tar.TypeReg, Name: "bin/sh", Mode: 0o755}, "\x7fELF" + string(bytes.Repeat([]byte("A"), 10000))},
			{tar.Header{Typeflag: tar.TypeSymlink, Name: "bin/ash", Linkname: "sh"}, ""},
			{tar.Header{Typeflag: tar.TypeLink, Name: "bin/hard", Linkname: "bin/sh"}, ""},
			reg("usr/.wh.gone", ""),
			reg("opt/.wh..wh..opq", ""),
			{tar.Header{
				Typeflag: tar.TypeReg, Name: "x",
				PAXRecords: map[string]string{"SCHILY.xattr.security.capability": "\x01\x02"},
			}, "abc"},
		},
		size: 98304 + 4096 + 4096,
	},
}

func TestGolden(t *testing.T) {
	for _, g := range goldens {
		t.Run(g.name, func(t *testing.T) {
			layer := writeTar(t, g.entries)
			if got := sha256.Sum256(layer); hex.EncodeToString(got[:]) != g.tarHash {
				t.Errorf("tar = %x; want %s", got, g.tarHash)
				os.WriteFile("/tmp/x-"+g.name+".tar", layer, 0o600)
			}
			f, err := os.Create(filepath.Join(t.TempDir(), "image"))
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			img, err := Convert(context.Background(), bytes.NewReader(layer), f)
			if err != nil || img.Root.String() != g.root {
				t.Fatalf("Convert = %s, %v; want %s, nil", img.Root, err, g.root)
			}
		})
	}
}
