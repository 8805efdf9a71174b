// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// archive is one of a test image's archives.
func archive(t *testing.T, name string) string {
	t.Helper()
	return need(t, filepath.Join(repository(), "build", "images", name), "run `make images`")
}

// write makes a file below a new directory and returns the directory.
func write(t *testing.T, name, content string) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
	return dir
}

// facts are "name: value" lines.
func facts(text string) map[string]string {
	out := map[string]string{}
	for line := range strings.Lines(text) {
		if name, value, ok := strings.Cut(strings.TrimSuffix(line, "\n"), ": "); ok {
			out[name] = value
		}
	}
	return out
}

// expect compares some facts.
func expect(t *testing.T, got, want map[string]string) {
	t.Helper()
	for name, w := range want {
		if g, ok := got[name]; !ok || g != w {
			t.Errorf("%s = %q (%t); want %q", name, g, ok, w)
		}
	}
}

func TestRunHonoursItsFlags(t *testing.T) {
	t.Parallel()
	u := newUser(t)
	dir := write(t, "file", "of the host\n")
	envDir := write(t, "env", "# a comment\nFROM_FILE=one two\nBOTH=file\n")
	script := `echo "env: $A|$FROM_FILE|$BOTH|$TERM"; echo "cwd: $(pwd)"; echo "id: $(id -u):$(id -g)"
echo "host: $(hostname) $(cat /etc/hostname)"; echo "hosts: $(grep -c odd-name /etc/hosts) $(grep -c '^127.0.0.1.*localhost' /etc/hosts)"
echo "resolv: $(grep -c '^nameserver' /etc/resolv.conf)"
echo "args: $0 $*"; echo "root: $(touch /x 2>&1)"; echo "ro: $(cat /ro/file) $(touch /ro/y 2>&1)"
echo v >/named/file && echo "named: $(cat /named/file)"; echo "tmp: $(touch /tmp/x 2>&1)"
echo "dev: $(test -c /dev/null -a -d /dev/shm && echo yes)"; echo "pid1: $$"
echo "in: $(cat)"; echo to-stderr >&2; exit 7`
	r := u.runWith(strings.NewReader("typed"), "run", "-i", "--rm", "-e", "A=a b", "-e", "BOTH=flag",
		"--env-file", filepath.Join(envDir, "env"), "-w", "/named/sub", "--hostname", "odd-name", "--entrypoint", "sh", "--read-only",
		"-v", "data:/named", "-v", dir+":/ro:ro", "oci:"+image(t, "busybox"), "-c", script, "zero", "one", "two")
	if r.code != 7 || r.stderr != "to-stderr\n" {
		t.Fatalf("run: status %d; want 7\n%s\nstderr: %s", r.code, r.stdout, r.stderr)
	}
	expect(t, facts(r.stdout), map[string]string{
		"env": "a b|one two|flag|", "cwd": "/named/sub", "id": "0:0", "host": "odd-name odd-name", "hosts": "1 1", "resolv": "1",
		"args": "zero one two", "root": "touch: /x: Read-only file system",
		"ro": "of the host touch: /ro/y: Read-only file system", "named": "v", "dev": "yes", "pid1": "1", "in": "typed"})
	if list := u.groups("-a"); len(list) != 0 {
		t.Errorf("--rm left %v", list)
	}
	if left, err := os.ReadDir(filepath.Join(u.root, "groups")); err != nil || len(left) > 1 {
		t.Errorf("--rm left %v, %v", left, err)
	}
	u.noProcesses()
	t.Run("directory in policy", func(t *testing.T) {
		u := u.as(t)
		text := u.must("policy", "generate", "-v", dir+":/ro:ro", "oci:"+image(t, "busybox"))
		without := u.must("policy", "generate", "oci:"+image(t, "busybox"))
		if strings.Count(text, `"/ro"`) != 1 || len(text) <= len(without) {
			t.Errorf("the policy does not name the directory:\n%s", text)
		}
	})
}

func TestRunEndsAsTheContainer(t *testing.T) {
	t.Parallel()
	u := newUser(t)
	busybox := "oci:" + image(t, "busybox")
	t.Run("own failures", func(t *testing.T) {
		u := u.as(t)
		u.refused(125, []string{"host directory cannot be writable", ":ro"}, "run", "--rm", "-v", t.TempDir()+":/data", busybox, "true")
		u.refused(125, []string{"no-such-layout"}, "run", "--rm", "oci:/no-such-layout", "true")
		u.refused(2, []string{"--network"}, "run", "--rm", "--network", "host", busybox, "true")
		u.refused(125, []string{"--memory"}, "run", "--rm", "-m", "1k", busybox, "true")
	})
	t.Run("not found", func(t *testing.T) {
		u := u.as(t)
		u.refused(127, []string{"/no/such/program"}, "run", "--rm", "--network", "none", busybox, "/no/such/program")
	})
	t.Run("not executable", func(t *testing.T) {
		u := u.as(t)
		u.refused(126, []string{"/etc/passwd"}, "run", "--rm", "--network", "none", "docker-archive:"+archive(t, "busybox.docker.tar"), "/etc/passwd")
	})
	t.Run("no network, oci-archive, user", func(t *testing.T) {
		u := u.as(t)
		got := u.must("run", "--rm", "--network", "none", "-u", "12:34", "oci-archive:"+archive(t, "busybox.oci.tar"),
			"sh", "-c", `id -u; id -g; ls /sys/class/net; cat /etc/resolv.conf | grep -c nameserver; wc -l </proc/net/route; wget -T 5 -q -O - http://10.0.2.2/ && echo reached || echo unreached`)
		if want := "12\n34\nlo\n0\n1\nunreached\n"; got != want {
			t.Errorf("got %q; want %q", got, want)
		}
	})
	t.Run("out of memory", func(t *testing.T) {
		u := u.as(t)
		r := u.run("run", "--name", "hog", "-m", "64m", "--cpus", "0.5", busybox, "sh", "-c",
			`cat /sys/fs/cgroup/cpu.max; cat /sys/fs/cgroup/memory.max; exec dd if=/dev/zero of=/dev/null bs=200M count=1`)
		if r.code != 137 || !strings.Contains(r.stderr, "memory limit") {
			t.Errorf("status %d; want 137 and a word about memory: %s", r.code, r.stderr)
		}
		if want := "50000 100000\n67108864\n"; r.stdout != want {
			t.Errorf("limits = %q; want %q", r.stdout, want)
		}
		var list []struct {
			OOM  bool `json:"oom_killed"`
			Exit int  `json:"exit_code"`
		}
		if err := json.Unmarshal([]byte(u.must("inspect", "hog")), &list); err != nil || len(list) != 1 || !list[0].OOM || list[0].Exit != 137 {
			t.Errorf("inspect = %+v, %v; want oom_killed and 137", list, err)
		}
		u.must("rm", "hog")
	})
	t.Run("detached", func(t *testing.T) {
		u := u.as(t)
		id := strings.TrimSpace(u.must("run", "-d", "--name", "back", busybox, "sh", "-c", "echo out; echo err >&2; exit 3"))
		if g := u.group("back"); g.ID != id {
			t.Errorf("run -d printed %q; the ID is %s", id, g.ID)
		}
		if got := u.must("wait", "back"); got != "3\n" {
			t.Errorf("wait = %q; want 3", got)
		}
		if r := u.run("logs", "back"); r.stdout != "out\n" || r.stderr != "err\n" {
			t.Errorf("logs = %q, %q", r.stdout, r.stderr)
		}
		if got := u.must("wait", "back"); got != "3\n" {
			t.Errorf("wait for what has ended = %q; want 3", got)
		}
		u.must("rm", id[:12])
		u.refused(1, []string{"no such container"}, "logs", "back")
	})
}
