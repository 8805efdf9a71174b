// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"strings"
	"testing"

	"github.com/coffer-dev/coffer/host/state"
)

func TestOdd(t *testing.T) {
	t.Parallel()
	u := newUser(t)
	odd := "oci:" + image(t, "odd")
	t.Run("facts", func(t *testing.T) {
		u := u.as(t)
		r := u.run("run", "--rm", odd)
		if r.code != 0 || r.stderr != "" {
			t.Fatalf("status %d: %s", r.code, r.stderr)
		}
		got := facts(r.stdout)
		expect(t, got, map[string]string{
			"args": "--from-entrypoint facts", "id": "1234:5678 groups 5678", "cwd": "/odd/work/not/there", "cwd-stat": "0:0 755",
			"env-SPACES": "[two words,  and  more]", "env-EQUALS": "[a=b==c]", "env-EMPTY": "[]", "env-UNICODE": "[Grüße]",
			"env-QUOTES": `["$HOME" \n 'x']`, "env-HOME": "[/]", "umask": "0022",
			"CapInh": "0000000000000000", "CapPrm": "0000000000000000", "CapEff": "0000000000000000", "CapBnd": "00000000a80425fb",
			"CapAmb": "0000000000000000", "NoNewPrivs": "0",
			"suid-runs-as": "0 sgid-runs-as: 0", "getcap": "/odd/cap-cat cap_net_raw=ep", "xattr": "kept", "same-inode": "yes",
			"gone-gone-file": "yes", "gone-gone-dir/x": "yes", "gone-gone-dir/sub": "yes", "gone-opaque/old": "yes", "gone-opaque/old-dir": "yes",
			"content-gone-dir/z": "back again", "content-opaque/new": "new", "content-dir-to-file": "now a file",
			"content-link-to-dir/file": "now a directory", "content-rewritten": "after", "content-hard/later": "one file, three names",
			"content-vol-full/file": "from the image", "content-Grüße-文件-🦆": "not ascii", "sparse-tail": "tail", "long-path": "deep",
			"long-name": "long", "newline-name": "odd name", "long-link": "251", "whiteout-names": "0",
		})
		for name, want := range map[string]string{
			"suid-id": "regular file 4755 0:0 links=1", "sgid-id": "regular file 2755 0:0 links=1", "hard/a": "regular file 644 0:0 links=4",
			"hard/later": "regular file 644 0:0 links=4", "sparse": "regular file 644 0:0 links=1 size=16777216", "fifo": "fifo 640 0:0",
			"empty": "regular empty file 644 0:0 links=1 size=0 dev=0:0 mtime=1", "dir-to-file": "regular file", "link-to-dir": "directory 755",
			"opaque": "directory 755", "vol-full": "directory 1770 1234:5678", "vol-empty": "directory 755 0:0",
		} {
			if !strings.HasPrefix(got["stat-"+name], want) {
				t.Errorf("stat-%s = %q; want %q...", name, got["stat-"+name], want)
			}
		}
	})
	t.Run("health and stop signal", func(t *testing.T) {
		u := u.as(t)
		u.must("run", "-d", "--name", "waits", "docker-archive:"+archive(t, "odd.docker.tar"), "wait")
		u.awaitLog("waits", "waiting")
		if r := u.run("exec", "waits", "/odd/entry", "--from-entrypoint", "health"); r.code != 0 {
			t.Errorf("the health check: status %d: %s", r.code, r.stderr)
		}
		u.refused(125, []string{"denied by policy"}, "exec", "waits", "/odd/entry", "--from-entrypoint", "facts")
		u.must("stop", "-t", "60", "waits")
		if g := u.group("waits"); g.Status != state.Exited || g.ExitCode != 42 {
			t.Errorf("after SIGUSR1: %+v; want status 42", g)
		}
		if log := u.must("logs", "waits"); log != "waiting\ngot SIGUSR1\n" {
			t.Errorf("log = %q", log)
		}
	})
}
