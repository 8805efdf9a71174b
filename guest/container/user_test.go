// SPDX-License-Identifier: Apache-2.0

package container

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func rootWith(t testing.TB, files map[string]string) string {
	t.Helper()
	root := t.TempDir()
	for name, content := range files {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

const passwd = "root:x:0:0:root:/root:/bin/sh\n# comment:x:1:1\nbroken\nweb:x:33:33:web:/srv:/bin/false\nnumber:x:no:1:::\n"
const groups = "root:x:0:\nweb:x:33:\nlogs:x:40:root,web\ntape:x:26:web\n"

func TestLookupUser(t *testing.T) {
	root := rootWith(t, map[string]string{"etc/passwd": passwd, "etc/group": groups})
	for _, c := range []struct {
		user string
		want User
		err  string
	}{
		{user: "", want: User{Name: "root", Group: "root", Groups: []uint32{40}, GroupNames: []string{"logs"}}},
		{user: "root", want: User{Name: "root", Group: "root", Groups: []uint32{40}, GroupNames: []string{"logs"}}},
		{user: "web", want: User{UID: 33, GID: 33, Name: "web", Group: "web", Groups: []uint32{40, 26}, GroupNames: []string{"logs", "tape"}}},
		{user: "33", want: User{UID: 33, GID: 33, Name: "web", Group: "web", Groups: []uint32{40, 26}, GroupNames: []string{"logs", "tape"}}},
		{user: "web:logs", want: User{UID: 33, GID: 40, Name: "web", Group: "logs"}},
		{user: "1234:5678", want: User{UID: 1234, GID: 5678}},
		{user: "1234", want: User{UID: 1234, Group: "root"}},
		{user: ":40", want: User{GID: 40, Name: "root", Group: "logs"}},
		{user: "nobody", err: "no such user"},
		{user: "web:none", err: "no such group"},
		{user: "-1", err: "no such user"},
		{user: "4294967296", err: "no such user"},
	} {
		got, err := LookupUser(root, c.user)
		if c.err != "" {
			if err == nil || !strings.Contains(err.Error(), c.err) {
				t.Errorf("LookupUser(%q) = %v; want an error with %q", c.user, err, c.err)
			}
			continue
		}
		if diff := cmp.Diff(c.want, got); err != nil || diff != "" {
			t.Errorf("LookupUser(%q): %v (-want +got)\n%s", c.user, err, diff)
		}
	}
}

func TestLookupUserStaysInTheRoot(t *testing.T) {
	outside := rootWith(t, map[string]string{"passwd": "evil:x:5:5:::\n"})
	root := rootWith(t, map[string]string{"etc/group": groups})
	if err := os.Symlink(filepath.Join(outside, "passwd"), filepath.Join(root, "etc/passwd")); err != nil {
		t.Fatal(err)
	}
	if u, err := LookupUser(root, "evil"); err == nil {
		t.Errorf("LookupUser followed a link out of the root: %+v", u)
	}
	if u, err := LookupUser(t.TempDir(), ""); err != nil || u.UID != 0 {
		t.Errorf("LookupUser in an empty root = %+v, %v; want root", u, err)
	}
}

func FuzzLookupUser(f *testing.F) {
	f.Add(passwd, groups, "web:logs")
	f.Add("::::", ":::", ":")
	f.Fuzz(func(t *testing.T, passwd, groups, user string) {
		_, _ = LookupUser(rootWith(t, map[string]string{"etc/passwd": passwd, "etc/group": groups}), user)
	})
}
