// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
	"context"
	"crypto/sha256"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/coffer-dev/coffer/host/state"
)

// TestStreamsAreWhole sends much through a container, while it also writes to stderr.
func TestStreamsAreWhole(t *testing.T) {
	t.Parallel()
	u := newUser(t)
	in := make([]byte, 20<<20) // more than a log file holds
	r := rand.NewChaCha8([32]byte{1})
	if _, err := r.Read(in); err != nil {
		t.Fatal(err)
	}
	got := u.runWith(bytes.NewReader(in), "run", "-i", "--name", "whole", "--network", "none", "oci:"+image(t, "busybox"),
		"sh", "-c", "cat; i=0; while [ $i -lt 2000 ]; do echo line $i >&2; i=$((i+1)); done")
	if got.code != 0 || sha256.Sum256([]byte(got.stdout)) != sha256.Sum256(in) {
		t.Errorf("status %d; %d of %d bytes came back, or other ones", got.code, len(got.stdout), len(in))
	}
	if n := strings.Count(got.stderr, "\n"); n != 2000 || !strings.HasSuffix(got.stderr, "line 1999\n") {
		t.Errorf("stderr has %d lines; want 2000", n)
	}
	if log := u.run("logs", "--tail", "3", "whole"); log.stdout+log.stderr != "line 1997\nline 1998\nline 1999\n" {
		t.Errorf("logs --tail 3 = %.200q, %.200q", log.stdout, log.stderr)
	}
}

// TestSignalsReachTheContainer has a `coffer run` in the foreground told to end.
func TestSignalsReachTheContainer(t *testing.T) {
	t.Parallel()
	u := newUser(t)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	out := &syncBuffer{}
	cmd := u.command(ctx, "run", "--rm", "oci:"+image(t, "busybox"), "sh", "-c", `trap 'echo got it; exit 9' TERM; echo ready; while :; do sleep 1; done`)
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "waiting for the container", func() bool { return strings.Contains(out.String(), "ready\n") })
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // its status is looked at below
	if code := cmd.ProcessState.ExitCode(); code != 9 || !strings.HasSuffix(out.String(), "got it\n") {
		t.Errorf("status %d; want 9: %s", code, out)
	}
}

// TestKilledWhileStarting ends each process of a start at its worst moment.
func TestKilledWhileStarting(t *testing.T) {
	t.Parallel()
	u := newUser(t)
	busybox := "oci:" + image(t, "busybox")
	u.must("image", "pull", busybox)
	for name, victim := range map[string]func(client, qemu int) int{
		"client":     func(client, _ int) int { return client },
		"VM":         func(_, qemu int) int { return qemu },
		"supervisor": func(_, qemu int) int { return parent(t, qemu) },
	} {
		t.Run(name, func(t *testing.T) {
			u := u.as(t)
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			said := &syncBuffer{}
			cmd := u.command(ctx, "run", "--rm", "--name", "victim", busybox, "sleep", "1000")
			cmd.Stderr = said
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			qemu := 0
			eventually(t, "waiting for the VM's process", func() bool { qemu = u.vm(); return qemu != 0 })
			if err := syscall.Kill(victim(cmd.Process.Pid, qemu), syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
			_ = cmd.Wait() // its status is looked at below
			if code := cmd.ProcessState.ExitCode(); name != "client" && (code != 125 || !strings.Contains(said.String(), "coffer: error: ")) {
				t.Errorf("status %d; want 125 and an error: %s", code, said)
			}
			u.readable(withoutNotes(said.String()))
			t.Logf("what a user sees: %s", said)
			u.noProcesses()
			if list := u.groups("-a"); len(list) != 0 {
				t.Errorf("ps -a = %+v; want nothing", list)
			}
			if left, err := os.ReadDir(filepath.Join(u.root, "groups")); err != nil || len(left) > 1 {
				t.Errorf("left: %v, %v", left, err)
			}
		})
	}
	if got := u.must("run", "--rm", "--network", "none", busybox, "echo", "works"); got != "works\n" {
		t.Errorf("then run says %q", got)
	}
}

// parent is the number of a process's parent.
func parent(t *testing.T, pid int) int {
	t.Helper()
	f := stat(pid)
	if len(f) < 2 {
		t.Fatalf("process %d has gone", pid)
	}
	n, err := strconv.Atoi(f[1])
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// TestGuestThatCannotBoot has a kernel without its init.
func TestGuestThatCannotBoot(t *testing.T) {
	t.Parallel()
	u := newUser(t)
	good := guestReference(t)
	u.guest = filepath.Join(t.TempDir(), "guest")
	if err := os.CopyFS(u.guest, os.DirFS(guestDir(t))); err != nil {
		t.Fatal(err)
	}
	replaceIn(t, filepath.Join(u.guest, "guest.json"), good.Append, good.Append+" rdinit=/none")
	r := u.refused(125, []string{"the guest's kernel panicked", "root fs"}, "run", "--name", "bad", "oci:"+image(t, "busybox"), "true")
	t.Logf("what a user sees: %s", r.stderr)
	if g := u.group("bad"); g.Status != state.Exited || g.ExitCode != 125 || !strings.Contains(g.Error, "panicked") {
		t.Errorf("the record says %+v", g)
	}
}
