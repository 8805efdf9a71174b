// SPDX-License-Identifier: Apache-2.0

package image

import (
	"archive/tar"
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

func TestParseReference(t *testing.T) {
	for _, tt := range []struct {
		in, name, familiar string
		transport          Transport
	}{
		{"busybox", "index.docker.io/library/busybox:latest", "busybox:latest", Docker},
		{"docker://me/app:v1", "index.docker.io/me/app:v1", "me/app:v1", Docker},
		{"ghcr.io/a/b:c", "ghcr.io/a/b:c", "ghcr.io/a/b:c", Docker},
		{"oci:/d/x", "oci:/d/x", "oci:/d/x", OCI},
		{"oci:/d/x:v1", "oci:/d/x:v1", "oci:/d/x:v1", OCI},
		{"oci:/d:2/x", "oci:/d:2/x", "oci:/d:2/x", OCI},
		{"oci-archive:/f.tar:v1", "oci-archive:/f.tar:v1", "oci-archive:/f.tar:v1", OCIArchive},
		{"docker-archive:/f.tar", "docker-archive:/f.tar", "docker-archive:/f.tar", DockerArchive},
		{"docker-archive:/f.tar:a.b/c:v1", "docker-archive:/f.tar:a.b/c:v1", "docker-archive:/f.tar:a.b/c:v1", DockerArchive},
		{"docker-archive:/f.tar:a.b/c", "docker-archive:/f.tar:a.b/c", "docker-archive:/f.tar:a.b/c", DockerArchive},
	} {
		got, err := ParseReference(tt.in)
		if err != nil {
			t.Errorf("ParseReference(%q): %v", tt.in, err)
			continue
		}
		if got.Name() != tt.name || got.Familiar() != tt.familiar || got.Transport != tt.transport {
			t.Errorf("ParseReference(%q) = %s, %s, %s; want %s, %s, %s", tt.in,
				got.Name(), got.Familiar(), got.Transport, tt.name, tt.familiar, tt.transport)
		}
	}
	for _, in := range []string{"", "UPPER", "a b", "oci:", "oci:/x:", "docker://", strings.Repeat("a", maxReference+1)} {
		if got, err := ParseReference(in); err == nil {
			t.Errorf("ParseReference(%.20q) = %v; want an error", in, got)
		}
	}
}

const digest = `"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"`

func TestParseManifest(t *testing.T) {
	d := `{"digest":` + digest + `,"size":1}`
	for _, tt := range []struct{ name, in, err string }{
		{"image", `{"schemaVersion":2,"config":` + d + `,"layers":[` + d + `]}`, ""},
		{"index", `{"schemaVersion":2,"manifests":[` + d + `]}`, ""},
		{"schema 1", `{"schemaVersion":1,"fsLayers":[]}`, "schema 1"},
		{"no version", `{"config":` + d + `}`, "schemaVersion 0"},
		{"both", `{"schemaVersion":2,"config":` + d + `,"manifests":[` + d + `]}`, "both"},
		{"neither", `{"schemaVersion":2}`, "neither"},
		{"no layers", `{"schemaVersion":2,"config":` + d + `,"layers":[]}`, "0 layers"},
		{"many layers", `{"schemaVersion":2,"config":` + d + `,"layers":[` + strings.Repeat(d+",", MaxLayers) + d + `]}`, "128 layers"},
		{"no digest", `{"schemaVersion":2,"config":` + d + `,"layers":[{"size":1}]}`, "not a sha256"},
		{"other digest", `{"schemaVersion":2,"config":` + d + `,"layers":[{"digest":"md5:aa","size":1}]}`, "unsupported hash"},
		{"empty index", `{"schemaVersion":2,"manifests":[]}`, "empty"},
		{"not JSON", `<html>`, "parsing manifest"},
	} {
		m, idx, err := parseManifest([]byte(tt.in))
		if tt.err == "" && (err != nil || (m == nil) == (idx == nil)) {
			t.Errorf("%s: %v, %v, %v; want one of them", tt.name, m, idx, err)
		}
		if tt.err != "" && (err == nil || !strings.Contains(err.Error(), tt.err)) {
			t.Errorf("%s: %v; want %q", tt.name, err, tt.err)
		}
	}
}

func TestParseConfig(t *testing.T) {
	p := v1.Platform{OS: "linux", Architecture: "amd64"}
	for _, tt := range []struct{ name, in, err string }{
		{"right", `{"os":"linux","architecture":"amd64","rootfs":{"diff_ids":[` + digest + `]}}`, ""},
		{"says nothing", `{"rootfs":{"diff_ids":[` + digest + `]}}`, ""},
		{"other machine", `{"os":"linux","architecture":"arm64","rootfs":{"diff_ids":[` + digest + `]}}`, "linux/arm64"},
		{"no layers", `{"os":"linux","architecture":"amd64","rootfs":{"diff_ids":[]}}`, "0 diff_ids"},
		{"null", `null`, "null"},
		{"empty hash", `{"rootfs":{"diff_ids":[""]}}`, "cannot parse hash"},
	} {
		c, err := parseConfig([]byte(tt.in), p)
		if tt.err == "" && (err != nil || c == nil) {
			t.Errorf("%s: %v", tt.name, err)
		}
		if tt.err != "" && (err == nil || !strings.Contains(err.Error(), tt.err)) {
			t.Errorf("%s: %v; want %q", tt.name, err, tt.err)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(`{"schemaVersion":2,"config":{"digest":` + digest + `,"size":1},"layers":[{"digest":` + digest + `,"size":1}]}`))
	f.Add([]byte(`{"schemaVersion":2,"manifests":[{"digest":` + digest + `,"platform":{"os":"linux"}}]}`))
	f.Add([]byte(`{"rootfs":{"diff_ids":[` + digest + `]}}`))
	f.Add([]byte(`[{"Config":"a","RepoTags":["x"],"Layers":["b"]}]`))
	f.Fuzz(func(t *testing.T, b []byte) {
		p := v1.Platform{OS: "linux", Architecture: "amd64"}
		m, idx, err := parseManifest(b)
		if err == nil {
			if (m == nil) == (idx == nil) {
				t.Fatal("neither or both without an error")
			}
			if idx != nil {
				choose(idx, p)
			}
		}
		if c, err := parseConfig(b, p); err == nil && len(c.RootFS.DiffIDs) == 0 {
			t.Fatal("a config without layers was accepted")
		}
		chooseSaved(b, "x")
	})
}

func FuzzArchive(f *testing.F) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	w.WriteHeader(&tar.Header{Name: "manifest.json", Size: 2, Typeflag: tar.TypeReg})
	w.Write([]byte("[]"))
	w.WriteHeader(&tar.Header{Name: "a/layer.tar", Linkname: "../b", Typeflag: tar.TypeSymlink})
	w.WriteHeader(&tar.Header{Name: "b", Linkname: "a/layer.tar", Typeflag: tar.TypeLink})
	w.Close()
	f.Add(b.Bytes())
	f.Add([]byte{0x1f, 0x8b})
	f.Fuzz(func(t *testing.T, b []byte) {
		dir := t.TempDir()
		name := filepath.Join(dir, "f")
		if err := os.WriteFile(name, b, 0o600); err != nil {
			t.Fatal(err)
		}
		a, err := openTar(name, dir)
		if err != nil {
			return
		}
		p := v1.Platform{OS: "linux", Architecture: "amd64"}
		loadDockerArchive(a, "", p)
		if s, err := openOCI(t.Context(), a, "", p); err == nil {
			s.close()
		}
	})
}
