// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"testing"

	"github.com/coffer-dev/coffer/host/emulator"
)

// repository is the root of the source tree.
func repository() string {
	_, file, _, _ := runtime.Caller(0)
	return filepath.Dir(filepath.Dir(filepath.Dir(file)))
}

// need skips a test for something that the machine lacks. In CI, where
// everything that the demo needs must be there, it fails.
func need(t testing.TB, path, how string) string {
	t.Helper()
	if _, err := os.Stat(path); err != nil {
		if os.Getenv("COFFER_NO_SKIP") != "" {
			t.Fatalf("%s is missing: %s", path, how)
		}
		t.Skipf("%s is missing: %s", path, how)
	}
	return path
}

func guestDir(t testing.TB) string {
	t.Helper()
	dir := filepath.Join(repository(), "build", "guest")
	need(t, filepath.Join(dir, "guest.json"), "run `make guest`")
	return dir
}

// image is the OCI layout of a test image.
func image(t testing.TB, name string) string {
	t.Helper()
	return need(t, filepath.Join(repository(), "build", "images", name), "run `make images`")
}

// Making an emulated root takes seconds, so that all tests share one.
var (
	rootOnce sync.Once
	rootDir  string
	root     *emulator.Root
	rootErr  error
)

func TestMain(m *testing.M) {
	code := m.Run()
	if rootDir != "" {
		os.RemoveAll(rootDir)
	}
	os.Exit(code)
}

func emulatedRoot(t testing.TB) *emulator.Root {
	t.Helper()
	rootOnce.Do(func() {
		if rootDir, rootErr = os.MkdirTemp("", "coffer-e2e"); rootErr == nil {
			root, rootErr = emulator.LoadOrCreate(rootDir, func(string) {})
		}
	})
	if rootErr != nil {
		t.Fatal(rootErr)
	}
	return root
}
