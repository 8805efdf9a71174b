// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"strings"
	"syscall"
	"testing"

	"github.com/coffer-dev/coffer/host/state"
)

// TestSeveralGroups starts three groups at once in one root, looks at them, and
// takes away one's supervisor and another's VM.
func TestSeveralGroups(t *testing.T) {
	t.Parallel()
	u := newUser(t)
	busybox := "oci:" + image(t, "busybox")
	names, ports := []string{"one", "two", "three"}, []string{}
	done := make(chan result)
	for _, name := range names {
		port := freePort(t, "tcp")
		ports = append(ports, port)
		go func() {
			done <- u.run("run", "-d", "--name", name, "-p", "127.0.0.1:"+port+":80", busybox, "sh", "-c",
				"echo I am "+name+" >/index.html; exec httpd -f -p 80 -h /")
		}()
	}
	ids := map[string]bool{}
	for range names {
		r := <-done
		if r.code != 0 {
			t.Fatalf("run: status %d: %s", r.code, r.stderr)
		}
		ids[strings.TrimSpace(r.stdout)] = true
	}
	if list := u.groups(); len(list) != 3 || len(ids) != 3 {
		t.Errorf("ps = %+v; IDs %v; want three", list, ids)
	}
	page := func(i int) string { return get(t, "http://127.0.0.1:"+ports[i]+"/") }
	for i, name := range names {
		if got := page(i); got != "I am "+name+"\n" {
			t.Errorf("%s serves %q", name, got)
		}
	}
	u.refused(125, []string{"taken", "one"}, "run", "--name", "one", busybox, "true")
	r := u.refused(125, []string{ports[0]}, "run", "--rm", "-p", "127.0.0.1:"+ports[0]+":80", busybox, "true")
	t.Logf("a port that is taken: %s", r.stderr)

	t.Run("supervisor killed", func(t *testing.T) {
		u := u.as(t)
		g := u.group("one")
		if err := syscall.Kill(g.Supervisor, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		// A process is a zombie before the last of its threads has let go of its locks.
		eventually(t, "waiting for the VM to end with its supervisor", func() bool {
			return !alive(g.QEMU) && !alive(g.Supervisor) && u.group("one").Status != state.Running
		})
		if g := u.group("one"); g.Status != state.Exited || g.ExitCode != state.CrashStatus || g.Error == "" {
			t.Errorf("after its supervisor's end: %+v", g)
		}
		if list := u.groups(); len(list) != 2 {
			t.Errorf("ps shows %+v; want two", list)
		}
		u.refused(125, []string{"not running"}, "exec", "one", "true")
		u.must("rm", "one")
	})
	t.Run("VM killed", func(t *testing.T) {
		u := u.as(t)
		g := u.group("two")
		if err := syscall.Kill(g.QEMU, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		if got := u.must("wait", "two"); got != "125\n" {
			t.Errorf("wait = %q; want 125", got)
		}
		eventually(t, "waiting for the supervisor to end with its VM", func() bool { return !alive(g.Supervisor) })
		after := u.group("two")
		if after.Status != state.Exited || after.Error == "" {
			t.Errorf("after its VM's end: %+v", after)
		}
		t.Logf("what the record says: %s", after.Error)
		u.readable(after.Error)
		u.must("rm", "two")
	})
	t.Run("nothing else is lost", func(t *testing.T) {
		u := u.as(t)
		if got := page(2); got != "I am three\n" {
			t.Errorf("three serves %q", got)
		}
		if got := u.must("run", "--rm", "--network", "none", busybox, "echo", "again"); got != "again\n" {
			t.Errorf("another run says %q", got)
		}
		if got := u.must("image", "ls"); !strings.Contains(got, "busybox") {
			t.Errorf("image ls = %s", got)
		}
		u.must("rm", "-f", "three")
		if list := u.groups("-a"); len(list) != 0 {
			t.Errorf("ps -a = %s", fmt.Sprint(list))
		}
	})
}

// TestClientKilled kills the `coffer run` that is in the foreground of a group.
func TestClientKilled(t *testing.T) {
	t.Parallel()
	u := newUser(t)
	w := u.at(80, 24, "run", "-it", "--name", "left", "oci:"+image(t, "busybox"), "sh", "-c", "echo sta''rted; read x; echo got $x; exit 4")
	w.sees("started")
	if err := w.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	w.ends()
	if g := u.group("left"); g.Status != state.Running {
		t.Errorf("after its client's end: %+v; docker's goes on", g)
	}
	a := u.at(80, 24, "attach", "left")
	a.types("hello\n")
	a.sees("got hello")
	if code := a.ends(); code != 4 {
		t.Errorf("attach: status %d; want 4", code)
	}
}
