// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
	"math/rand/v2"
	"strings"
	"testing"
)

func TestExec(t *testing.T) {
	t.Parallel()
	u := newUser(t)
	u.must("run", "-d", "--rm", "--name", "x", "--network", "none", "-w", "/tmp", "-e", "TWO=first\nsecond",
		"--allow-exec", "sh", "--allow-exec", "cat", "--allow-exec", "/no/such", "--allow-exec", "/etc/passwd", "--allow-exec", "sh -c 'id -u; pwd; env'",
		"oci:"+image(t, "busybox"), "sleep", "1000")
	show := []string{"x", "sh", "-c", "id -u; pwd; env"}
	t.Run("streams and status", func(t *testing.T) {
		u := u.as(t)
		if r := u.runWith(strings.NewReader("echo out; echo err >&2; exit 9\n"), "exec", "-i", "x", "sh"); r.code != 9 || r.stdout != "out\n" || r.stderr != "err\n" {
			t.Errorf("exec -i: %+v; want out, err, 9", r)
		}
		in := make([]byte, 3<<20)
		if _, err := rand.NewChaCha8([32]byte{2}).Read(in); err != nil {
			t.Fatal(err)
		}
		if r := u.runWith(bytes.NewReader(in), "exec", "-i", "x", "cat"); r.code != 0 || r.stdout != string(in) {
			t.Errorf("exec -i cat: status %d, %d of %d bytes: %s", r.code, len(r.stdout), len(in), r.stderr)
		}
		if r := u.runWith(strings.NewReader("not passed on"), "exec", "x", "cat"); r.code != 0 || r.stdout != "" {
			t.Errorf("exec without -i: %+v; want nothing", r)
		}
		if r := u.runWith(strings.NewReader("kill -9 $$\n"), "exec", "-i", "x", "sh"); r.code != 137 {
			t.Errorf("a killed process: %+v; want 137", r)
		}
		u.refused(127, []string{"/no/such", "not found"}, "exec", "x", "/no/such")
		u.refused(126, []string{"/etc/passwd", "cannot be executed"}, "exec", "x", "/etc/passwd")
	})
	t.Run("environment", func(t *testing.T) {
		u := u.as(t)
		got := u.must(append([]string{"exec"}, show...)...)
		if !strings.HasPrefix(got, "0\n/tmp\n") || !strings.Contains(got, "\nTWO=first\nsecond\n") || strings.Contains(got, "TERM=") {
			t.Errorf("exec sees %q", got)
		}
		if got := u.must(append([]string{"exec", "-t"}, show...)...); strings.Count(got, "TERM=xterm") != 1 {
			t.Errorf("exec -t sees %q", got)
		}
		// The policy has no rule for it, and says to drop what has none.
		if got := u.must(append([]string{"exec", "-e", "LD_PRELOAD=/evil.so"}, show...)...); strings.Contains(got, "LD_PRELOAD") {
			t.Errorf("a variable that the policy does not name got in: %q", got)
		}
	})
	t.Run("denials", func(t *testing.T) {
		u := u.as(t)
		for _, c := range []struct{ flags, words []string }{
			{[]string{"-u", "5"}, []string{"exec_in_container denied by policy", "user", `asked   "5"`}},
			{[]string{"-w", "/etc"}, []string{"exec_in_container denied by policy", "working_dir", `asked   "/etc"`, `allowed "/tmp"`}},
		} {
			u.refused(125, c.words, append(append([]string{"exec"}, c.flags...), show...)...)
		}
		u.refused(125, []string{"exec_in_container denied by policy", "id; reboot"}, "exec", "x", "sh", "-c", "id; reboot")
		u.refused(2, nil, "exec", "x")
		u.refused(1, []string{"no such container", "coffer ps"}, "exec", "y", "true")
	})
	t.Run("kill takes it away", func(t *testing.T) {
		u := u.as(t)
		u.must("kill", "x") // SIGKILL is always allowed by what run writes
		u.noProcesses()
		if list := u.groups("-a"); len(list) != 0 {
			t.Errorf("ps -a = %+v; --rm was asked for", list)
		}
	})
}
