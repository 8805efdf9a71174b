// SPDX-License-Identifier: Apache-2.0

package image

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/compression"
	"github.com/google/go-containerregistry/pkg/name"
	memregistry "github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// fixture is an image of three layers, one of them compressed with zstd.
func fixture(t *testing.T) v1.Image {
	t.Helper()
	img, err := random.Image(100_000, 2)
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	if err := w.WriteHeader(&tar.Header{Name: "etc/motd", Mode: 0o644, Size: 5, Typeflag: tar.TypeReg}); err != nil {
		t.Fatal(err)
	}
	w.Write([]byte("hello"))
	w.Close()
	l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b.Bytes())), nil },
		tarball.WithCompression(compression.ZStd), tarball.WithMediaType(types.OCILayerZStd))
	if err != nil {
		t.Fatal(err)
	}
	if img, err = mutate.AppendLayers(img, l); err != nil {
		t.Fatal(err)
	}
	cf, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	cf.OS, cf.Architecture = "linux", "amd64"
	if img, err = mutate.ConfigFile(img, cf); err != nil {
		t.Fatal(err)
	}
	return img
}

func serve(t *testing.T, wrap func(http.Handler) http.Handler) string {
	t.Helper()
	h := http.Handler(memregistry.New(memregistry.Logger(log.New(io.Discard, "", 0))))
	if wrap != nil {
		h = wrap(h)
	}
	srv := httptest.NewServer(h)
	t.Cleanup(srv.Close)
	return strings.TrimPrefix(srv.URL, "http://")
}

func push(t *testing.T, to string, img v1.Image) {
	t.Helper()
	ref, err := name.ParseReference(to)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(ref, img); err != nil {
		t.Fatal(err)
	}
}

func open(t *testing.T, root string) *Store {
	t.Helper()
	s, err := Open(root)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func parse(t *testing.T, s string) Reference {
	t.Helper()
	ref, err := ParseReference(s)
	if err != nil {
		t.Fatal(err)
	}
	return ref
}

// stages counts the last stage of each layer.
type stages struct {
	mu   sync.Mutex
	last map[string]Stage
}

func (s *stages) report(p Progress) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.last == nil {
		s.last = map[string]Stage{}
	}
	s.last[p.Layer] = p.Stage
}

func (s *stages) count() map[Stage]int {
	out := map[Stage]int{}
	for _, v := range s.last {
		out[v]++
	}
	return out
}

func TestPullFromRegistry(t *testing.T) {
	img := fixture(t)
	host := serve(t, nil)
	push(t, host+"/a/b:v1", img)
	s := open(t, t.TempDir())
	var first, second stages
	got, err := s.Pull(t.Context(), parse(t, host+"/a/b:v1"), Options{Progress: first.report})
	if err != nil {
		t.Fatal(err)
	}
	want, _ := img.ConfigName()
	if got.ID != want.String() || len(got.Layers) != 3 {
		t.Errorf("Pull = %s with %d layers; want %s with 3", got.ID, len(got.Layers), want)
	}
	if diff := cmp.Diff(map[Stage]int{Done: 3}, first.count()); diff != "" {
		t.Errorf("first pull's stages (-want +got):\n%s", diff)
	}
	for _, l := range got.Layers {
		st, err := os.Stat(s.LayerPath(l.DiffID))
		if err != nil || st.Size() != l.Size {
			t.Errorf("layer %s: %v; want a file of %d bytes", l.DiffID, err, l.Size)
		}
	}
	again, err := s.Pull(t.Context(), parse(t, "docker://"+host+"/a/b:v1"), Options{Progress: second.report})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(got, again); diff != "" {
		t.Errorf("second Pull (-first +second):\n%s", diff)
	}
	if diff := cmp.Diff(map[Stage]int{Exists: 3}, second.count()); diff != "" {
		t.Errorf("second pull's stages (-want +got):\n%s", diff)
	}
	if _, cf, err := s.Config(got); err != nil || cf.Architecture != "amd64" {
		t.Errorf("Config = %+v, %v; want amd64", cf, err)
	}
	for _, n := range []string{host + "/a/b:v1", got.ID, hexOf(got.ID)[:12]} {
		if l, err := s.Lookup(n); err != nil || l.ID != got.ID {
			t.Errorf("Lookup(%s) = %v, %v; want it", n, l, err)
		}
	}
}

func TestPullIndex(t *testing.T) {
	img := fixture(t)
	other := mutate.MediaType(empty.Image, types.OCIManifestSchema1)
	idx := mutate.AppendManifests(empty.Index,
		mutate.IndexAddendum{Add: other, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: "arm64"}}},
		mutate.IndexAddendum{Add: img, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: "amd64"}}})
	host := serve(t, nil)
	ref, err := name.ParseReference(host + "/multi")
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.WriteIndex(ref, idx); err != nil {
		t.Fatal(err)
	}
	s := open(t, t.TempDir())
	got, err := s.Pull(t.Context(), parse(t, host+"/multi"), Options{})
	if err != nil {
		t.Fatal(err)
	}
	if want, _ := img.Digest(); got.Digest != want.String() {
		t.Errorf("Pull of an index = %s; want %s", got.Digest, want)
	}
	_, err = s.Pull(t.Context(), parse(t, host+"/multi"), Options{Platform: &v1.Platform{OS: "linux", Architecture: "s390x"}})
	if err == nil || !strings.Contains(err.Error(), "no image for linux/s390x") {
		t.Errorf("Pull for s390x: %v; want a message that names the platform", err)
	}
}

func TestPullLocal(t *testing.T) {
	img := fixture(t)
	dir := t.TempDir()
	l, err := layout.Write(filepath.Join(dir, "oci"), empty.Index)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.AppendImage(img, layout.WithAnnotations(map[string]string{refName: "v1"})); err != nil {
		t.Fatal(err)
	}
	tag, _ := name.NewTag("example.com/x:v1")
	if err := tarball.WriteToFile(filepath.Join(dir, "docker.tar"), tag, img); err != nil {
		t.Fatal(err)
	}
	pack(t, filepath.Join(dir, "oci"), filepath.Join(dir, "oci.tar"))
	id, _ := img.ConfigName()
	for _, tt := range []struct{ ref, err string }{
		{"oci:" + dir + "/oci", ""},
		{"oci:" + dir + "/oci:v1", ""},
		{"oci:" + dir + "/oci:v2", `no tag "v2"; it has: v1`},
		{"oci:" + dir + "/none", "no such file"},
		{"oci-archive:" + dir + "/oci.tar", ""},
		{"oci-archive:" + dir + "/oci.tar:v1", ""},
		{"oci-archive:" + dir + "/docker.tar", "index.json"},
		{"docker-archive:" + dir + "/docker.tar", ""},
		{"docker-archive:" + dir + "/docker.tar:example.com/x:v1", ""},
		{"docker-archive:" + dir + "/docker.tar:example.com/x:v2", "no tag"},
		{"docker-archive:" + dir + "/oci.tar", "no manifest.json"},
	} {
		s := open(t, t.TempDir())
		got, err := s.Pull(t.Context(), parse(t, tt.ref), Options{})
		if tt.err != "" {
			if err == nil || !strings.Contains(err.Error(), tt.err) {
				t.Errorf("Pull(%s): %v; want %q", tt.ref, err, tt.err)
			}
			continue
		}
		if err != nil {
			t.Errorf("Pull(%s): %v", tt.ref, err)
			continue
		}
		if got.ID != id.String() || len(got.Layers) != 3 {
			t.Errorf("Pull(%s) = %s with %d layers; want %s with 3", tt.ref, got.ID, len(got.Layers), id)
		}
	}
}

func pack(t *testing.T, dir, to string) {
	t.Helper()
	f, err := os.Create(to)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	if err := writeTar(context.Background(), f, root); err != nil {
		t.Fatal(err)
	}
}

func TestPullRefusesWrongContent(t *testing.T) {
	img := fixture(t)
	var hit sync.Map
	host := serve(t, func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			ls, _ := img.Layers()
			d, _ := ls[0].Digest()
			if r.Method == http.MethodGet && strings.HasSuffix(r.URL.Path, d.String()) {
				hit.Store("hit", true)
				rc, _ := ls[0].Compressed()
				b, _ := io.ReadAll(rc)
				b[len(b)/2] ^= 1
				w.Write(b)
				return
			}
			h.ServeHTTP(w, r)
		})
	})
	push(t, host+"/x", img)
	root := t.TempDir()
	s := open(t, root)
	if _, err := s.Pull(t.Context(), parse(t, host+"/x"), Options{}); err == nil {
		t.Fatal("Pull of a blob with a flipped bit succeeded")
	}
	if _, ok := hit.Load("hit"); !ok {
		t.Fatal("the altered blob was not fetched")
	}
	if _, err := s.Lookup(host + "/x"); !errors.Is(err, ErrNotFound) {
		t.Errorf("Lookup after a refused pull: %v; want ErrNotFound", err)
	}
	left, _ := filepath.Glob(filepath.Join(root, "layers", "*"+partial))
	if len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
}

// TestWrongDiffID has a right blob under a config that names another tar.
func TestWrongDiffID(t *testing.T) {
	img := fixture(t)
	cf, _ := img.ConfigFile()
	cf = cf.DeepCopy()
	cf.RootFS.DiffIDs[0].Hex = strings.Repeat("ab", 32)
	s := open(t, t.TempDir())
	ls, _ := img.Layers()
	_, err := s.ensure(t.Context(), blob{diffID: cf.RootFS.DiffIDs[0],
		open: func(context.Context) (io.ReadCloser, error) { return ls[0].Compressed() }}, &Options{})
	if !errors.Is(err, ErrDigest) {
		t.Errorf("ensure with a wrong diff ID: %v; want ErrDigest", err)
	}
}

func TestPlainHTTP(t *testing.T) {
	for _, tt := range []struct {
		host  string
		allow bool
		want  bool
	}{
		{"127.0.0.1:5000", false, true},
		{"localhost", false, true},
		{"[::1]:80", false, true},
		{"10.0.0.1:5000", false, false},
		{"registry.local", false, false},
		{"10.0.0.1:5000", true, true},
	} {
		sent := false
		tr := &httpsOnly{allow: tt.allow, next: roundTrip(func(*http.Request) (*http.Response, error) {
			sent = true
			return nil, io.EOF
		})}
		req, _ := http.NewRequest(http.MethodGet, "http://"+tt.host+"/v2/", nil)
		_, err := tr.RoundTrip(req)
		if err == nil || sent != tt.want {
			t.Errorf("plain HTTP to %s, allowed %v: sent %v; want %v", tt.host, tt.allow, sent, tt.want)
		}
	}
}

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// TestConcurrentPulls has several stores, as processes would, pull one image at once.
func TestConcurrentPulls(t *testing.T) {
	img := fixture(t)
	host := serve(t, nil)
	push(t, host+"/x", img)
	root := t.TempDir()
	counts := make([]stages, 4)
	var wg sync.WaitGroup
	for i := range counts {
		wg.Go(func() {
			s, err := Open(root)
			if err != nil {
				t.Error(err)
				return
			}
			if _, err := s.Pull(context.Background(), parse(t, fmt.Sprintf("%s/x", host)), Options{Progress: counts[i].report}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	done := 0
	for i := range counts {
		done += counts[i].count()[Done]
	}
	if done != 3 {
		t.Errorf("%d layers were converted; want 3, each once", done)
	}
}

func TestCrashIsCleared(t *testing.T) {
	root := t.TempDir()
	s := open(t, root)
	dead := filepath.Join(s.layersDir(), strings.Repeat("1", 64)+partial)
	if err := os.MkdirAll(dead, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dead, "image"), []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	w, err := s.begin(t.Context(), strings.Repeat("2", 64))
	if err != nil {
		t.Fatal(err)
	}
	open(t, root)
	if _, err := os.Stat(dead); !os.IsNotExist(err) {
		t.Errorf("a dead conversion is still there: %v", err)
	}
	if _, err := os.Stat(w.dir); err != nil {
		t.Errorf("a conversion at work was removed: %v", err)
	}
	w.abandon()
	if _, err := os.Stat(w.dir); !os.IsNotExist(err) {
		t.Errorf("an abandoned conversion is still there: %v", err)
	}
}

func TestRemove(t *testing.T) {
	img := fixture(t)
	host := serve(t, nil)
	push(t, host+"/x:1", img)
	push(t, host+"/x:2", img)
	s := open(t, t.TempDir())
	var got *Image
	for _, n := range []string{"/x:1", "/x:2"} {
		var err error
		if got, err = s.Pull(t.Context(), parse(t, host+n), Options{}); err != nil {
			t.Fatal(err)
		}
	}
	if r, err := s.Remove(t.Context(), host+"/x:1", false); err != nil || r.Deleted != "" || len(r.Untagged) != 1 {
		t.Fatalf("Remove of one of two names = %+v, %v; want one untagged", r, err)
	}
	inUse, err := s.OpenLayer(got.Layers[0].DiffID)
	if err != nil {
		t.Fatal(err)
	}
	r, err := s.Remove(t.Context(), got.ID, false)
	if err != nil || r.Deleted != got.ID {
		t.Fatalf("Remove of the last name = %+v, %v; want it deleted", r, err)
	}
	if _, err := os.Stat(s.LayerPath(got.Layers[0].DiffID)); err != nil {
		t.Errorf("a layer in use was removed: %v", err)
	}
	if _, err := os.Stat(s.LayerPath(got.Layers[1].DiffID)); !os.IsNotExist(err) {
		t.Errorf("an unused layer is still there: %v", err)
	}
	inUse.Close()
	if err := s.Collect(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{s.layersDir(), s.blobsDir()} {
		if left, _ := os.ReadDir(dir); len(left) != 0 {
			t.Errorf("%s still holds %v", dir, left)
		}
	}
	if _, err := s.Remove(t.Context(), host+"/x:1", false); !errors.Is(err, ErrNotFound) {
		t.Errorf("Remove again: %v; want ErrNotFound", err)
	}
}

func TestRetag(t *testing.T) {
	host := serve(t, nil)
	a, b := fixture(t), fixture(t)
	s := open(t, t.TempDir())
	push(t, host+"/x", a)
	old, err := s.Pull(t.Context(), parse(t, host+"/x"), Options{})
	if err != nil {
		t.Fatal(err)
	}
	push(t, host+"/x", b)
	if _, err := s.Pull(t.Context(), parse(t, host+"/x"), Options{}); err != nil {
		t.Fatal(err)
	}
	got, err := s.Lookup(old.ID)
	if err != nil || len(got.Names) != 0 {
		t.Errorf("Lookup of the image that lost its name = %+v, %v; want it without names", got, err)
	}
}

func TestAddDir(t *testing.T) {
	dir := t.TempDir()
	for n, c := range map[string]string{"b": "2", "a": "1", "sub/c": "3"} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, n)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, n), []byte(c), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	os.Symlink("../outside", filepath.Join(dir, "link"))
	os.Link(filepath.Join(dir, "a"), filepath.Join(dir, "hard"))
	s := open(t, t.TempDir())
	one, f, err := s.AddDir(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	two, g, err := s.AddDir(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(one, two); diff != "" {
		t.Errorf("the same directory twice (-first +second):\n%s", diff)
	}
	os.WriteFile(filepath.Join(dir, "a"), []byte("X"), 0o644)
	three, h, err := s.AddDir(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	if three.RootHash == one.RootHash {
		t.Error("a changed file has the same root hash")
	}
	for _, c := range []*os.File{f, g, h} {
		c.Close()
	}
	if err := s.Collect(t.Context()); err != nil {
		t.Fatal(err)
	}
	if left, _ := os.ReadDir(s.layersDir()); len(left) != 0 {
		t.Errorf("after Collect there are still %v", left)
	}
}
