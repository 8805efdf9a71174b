// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// layerWith finds the layer image in the store that holds text, and where.
func (u *user) layerWith(text string) (diffID, file string, at int) {
	u.t.Helper()
	files, err := filepath.Glob(filepath.Join(u.root, "layers", "*", "image"))
	if err != nil {
		u.t.Fatal(err)
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			u.t.Fatal(err)
		}
		if at := bytes.Index(b, []byte(text)); at >= 0 {
			return filepath.Base(filepath.Dir(f)), f, at
		}
	}
	u.t.Fatalf("no layer holds %q", text)
	return "", "", 0
}

func TestFlippedBitNamesTheLayer(t *testing.T) {
	t.Parallel()
	u := newUser(t)
	nginx := "oci:" + image(t, "nginx")
	u.must("image", "pull", nginx)
	page, err := os.ReadFile(filepath.Join(repository(), "test", "images", "nginx", "index.html"))
	if err != nil {
		t.Fatal(err)
	}
	diffID, file, at := u.layerWith(string(page))
	if err := os.Chmod(file, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(file, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte{page[0] ^ 1}, int64(at)); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	for name, flags := range map[string][]string{"foreground": nil, "detached": {"-d", "--scratch-size", "64m"}} {
		t.Run(name, func(t *testing.T) {
			u := u.as(t)
			args := append(append([]string{"run", "--name", name}, flags...), nginx, "cat", "/var/www/html/index.html")
			if flags != nil {
				u.run(args...) // with a disk more; whether it starts depends on what is read first
				u.run("wait", name)
			} else if r := u.refused(125, []string{diffID, "corrupted"}, args...); strings.Count(r.stderr, "\n") != 1 || strings.Contains(r.stdout, string(page[1:])) {
				t.Errorf("want one line, and not the page:\n%s%s", r.stdout, r.stderr)
			}
			if g := u.group(name); g.ExitCode != 125 || !strings.Contains(g.Error, diffID) {
				t.Errorf("the record says %d, %q", g.ExitCode, g.Error)
			}
		})
	}
}

func TestChangedGuestIsNoticed(t *testing.T) {
	t.Parallel()
	u := newUser(t)
	good := guestReference(t)
	nonce := strings.Repeat("5a", 32)
	for _, c := range []struct {
		name   string
		change func(t *testing.T, dir string)
	}{
		{"kernel", func(t *testing.T, dir string) { extend(t, filepath.Join(dir, good.Kernel.Name)) }},
		{"initrd", func(t *testing.T, dir string) { extend(t, filepath.Join(dir, good.Initrd.Name)) }},
		{"append", func(t *testing.T, dir string) {
			replaceIn(t, filepath.Join(dir, "guest.json"), good.Append, good.Append+" altered")
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			u := u.as(t)
			u.guest = filepath.Join(t.TempDir(), "guest")
			if err := os.CopyFS(u.guest, os.DirFS(guestDir(t))); err != nil {
				t.Fatal(err)
			}
			c.change(t, u.guest)
			u.must("run", "-d", "--name", c.name, "--network", "none", "oci:"+image(t, "busybox"), "sleep", "600")
			evidence := filepath.Join(t.TempDir(), "evidence")
			u.must("attest", c.name, "--nonce", nonce, "-o", evidence)
			r := u.run("verify", evidence, "--nonce", nonce, "--insecure-skip-policy", "--insecure-accept-emulated",
				"--reference", filepath.Join(guestDir(t), "guest.json"))
			if r.code != 1 || !strings.Contains(r.stdout, "REFUSED") || !failedCheck(r.stdout, "measurement") || strings.Count(r.stdout, "FAIL") != 1 {
				t.Errorf("verify: status %d\n%s%s", r.code, r.stdout, r.stderr)
			}
			if !strings.Contains(r.stdout, good.Kernel.Name+" with 1 vCPU") {
				t.Errorf("verify does not say which reference was missed:\n%s", r.stdout)
			}
			u.must("rm", "-f", c.name)
		})
	}
}

// extend adds zeros, which change a file's digest and not what it does.
func extend(t *testing.T, file string) {
	t.Helper()
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Write(make([]byte, 512)); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

func replaceIn(t *testing.T, file, old, with string) {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Contains(b, []byte(old)) {
		t.Fatalf("%s does not hold %q", file, old)
	}
	if err := os.WriteFile(file, bytes.Replace(b, []byte(old), []byte(with), 1), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestOtherPolicies(t *testing.T) {
	t.Parallel()
	u := newUser(t)
	busybox := "oci:" + image(t, "busybox")
	dir := t.TempDir()
	policyOf := func(name string, args ...string) string {
		file := filepath.Join(dir, name)
		u.must(append([]string{"policy", "generate", "-o", file}, args...)...)
		return file
	}
	shell := policyOf("shell", busybox, "sleep", "600")
	for _, c := range []struct {
		name, policy string
		args, words  []string
	}{
		{"image", policyOf("odd", "oci:"+image(t, "odd")), []string{busybox, "true"}, []string{"denied by policy", "layer"}},
		{"command", shell, []string{busybox, "sleep", "601"}, []string{"denied by policy", "command", "601"}},
		{"user", shell, []string{"-u", "7", busybox, "sleep", "600"}, []string{"denied by policy", "user", "7"}},
		{"mount", shell, []string{"-v", "data:/data", busybox, "sleep", "600"}, []string{"denied by policy", "mount", "/data"}},
		{"privileged", shell, []string{"--privileged", busybox, "sleep", "600"}, []string{"denied by policy", "privilege"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			u := u.as(t)
			r := u.refused(125, c.words, append([]string{"run", "--rm", "--network", "none", "--policy", c.policy}, c.args...)...)
			t.Logf("what a user sees:\n%s", r.stderr)
		})
	}
	t.Run("one byte", func(t *testing.T) {
		u := u.as(t)
		text, err := os.ReadFile(shell)
		if err != nil {
			t.Fatal(err)
		}
		altered := filepath.Join(dir, "altered")
		if err := os.WriteFile(altered, append(text, '\n'), 0o600); err != nil {
			t.Fatal(err)
		}
		nonce := strings.Repeat("17", 16)
		u.must("run", "-d", "--name", "altered", "--network", "none", "--policy", altered, busybox, "sleep", "600")
		u.must("attest", "altered", "--nonce", nonce, "-o", filepath.Join(dir, "evidence"))
		verify := []string{"verify", filepath.Join(dir, "evidence"), "--nonce", nonce, "--insecure-accept-emulated",
			"--reference", filepath.Join(guestDir(t), "guest.json"), "--policy"}
		u.must(append(verify, altered)...)
		if r := u.refused(1, nil, append(verify, shell)...); !failedCheck(r.stdout, "host-data") {
			t.Errorf("verify against the original:\n%s", r.stdout)
		}
	})
	t.Run("none at all", func(t *testing.T) {
		u := u.as(t)
		empty := filepath.Join(dir, "empty")
		if err := os.WriteFile(empty, []byte("package policy\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		r := u.refused(125, nil, "run", "--rm", "--network", "none", "--policy", empty, busybox, "true")
		t.Logf("what a user sees:\n%s", r.stderr)
	})
}

// layerInfo is what the store knows of its layers.
func (u *user) layerInfo() map[string]string {
	u.t.Helper()
	files, err := filepath.Glob(filepath.Join(u.root, "layers", "*", "info.json"))
	if err != nil {
		u.t.Fatal(err)
	}
	out := map[string]string{}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil || !json.Valid(b) {
			u.t.Errorf("%s: %v, %q", f, err, b)
		}
		out[filepath.Base(filepath.Dir(f))] = string(b)
	}
	return out
}

func TestKilledPull(t *testing.T) {
	t.Parallel()
	whole, u := newUser(t), newUser(t)
	nginx := "oci:" + image(t, "nginx")
	whole.must("image", "pull", nginx)
	want := whole.layerInfo()
	for range 3 {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		cmd := u.command(ctx, "image", "pull", nginx)
		before := u.storeSize()
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		eventually(t, "waiting for the pull to write", func() bool { return u.storeSize() != before || len(u.layerInfo()) == len(want) })
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait() // it was killed
		cancel()
	}
	u.must("image", "pull", nginx)
	got := u.layerInfo()
	if len(got) != len(want) {
		t.Errorf("after killed pulls there are %d layers; want %d", len(got), len(want))
	}
	for id, info := range want {
		a, err := os.ReadFile(filepath.Join(u.root, "layers", id, "image"))
		if err != nil {
			t.Error(err)
			continue
		}
		b, err := os.ReadFile(filepath.Join(whole.root, "layers", id, "image"))
		if err != nil || !bytes.Equal(a, b) || got[id] != info {
			t.Errorf("layer %s is another one than of a whole pull (%v)", id, err)
		}
	}
	if diff := int64(u.storeSize()) - int64(whole.storeSize()); diff < -4096 || diff > 4096 {
		t.Errorf("the store is %d bytes larger than of a whole pull", diff)
	}
}

// storeSize is the size of all files of the root.
func (u *user) storeSize() int {
	n := 0
	_ = filepath.Walk(u.root, func(_ string, info os.FileInfo, err error) error {
		if err == nil && info.Mode().IsRegular() {
			n += int(info.Size())
		}
		return nil // files come and go
	})
	return n
}
