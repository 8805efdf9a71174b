// SPDX-License-Identifier: Apache-2.0

package reap

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// TestMain makes the test process a subreaper with one Reaper, as PID 1 is.
var reaper *Reaper

func TestMain(m *testing.M) {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		panic(err)
	}
	reaper = New()
	os.Exit(m.Run())
}

func shell(t *testing.T) string {
	t.Helper()
	sh, err := exec.LookPath("sh")
	if err != nil {
		t.Skip("no sh on this machine")
	}
	return sh
}

func TestRunGivesOutputAndStatus(t *testing.T) {
	sh := shell(t)
	out, err := reaper.Run(context.Background(), sh, []string{"-c", "cat; echo more >&2"}, []byte("input\n"))
	if err != nil || string(out) != "input\nmore\n" {
		t.Errorf("Run = %q, %v; want both lines and nil", out, err)
	}
	_, err = reaper.Run(context.Background(), sh, []string{"-c", "echo why; exit 3"}, nil)
	var exit *ExitError
	if !errors.As(err, &exit) || exit.Status.Code != 3 || exit.Output != "why" {
		t.Errorf("Run(exit 3) = %v; want status 3 with its output", err)
	}
	_, err = reaper.Run(context.Background(), sh, []string{"-c", "kill -TERM $$"}, nil)
	if !errors.As(err, &exit) || exit.Status.Code != 143 || exit.Status.Signal != syscall.SIGTERM {
		t.Errorf("Run(killed) = %v; want 143 by SIGTERM", err)
	}
}

func TestRunEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	_, err := reaper.Run(ctx, shell(t), []string{"-c", "exec cat /dev/zero > /dev/null"}, nil)
	var exit *ExitError
	if !errors.As(err, &exit) || exit.Status.Signal != syscall.SIGKILL {
		t.Errorf("Run(cancelled) = %v; want an end by SIGKILL", err)
	}
}

func TestQuickEndsAreNotLost(t *testing.T) {
	sh := shell(t)
	for i := range 50 {
		_, done, err := reaper.Start(Command{Path: sh, Args: []string{"sh", "-c", "exit " + strconv.Itoa(i)}, Files: []*os.File{nil, nil, nil}})
		if err != nil {
			t.Fatal(err)
		}
		if s := <-done; s.Code != i {
			t.Errorf("process %d ended with %d", i, s.Code)
		}
	}
}

func TestAdoptFindsAnOrphanThatHasEnded(t *testing.T) {
	// The shell starts a child, prints its number and leaves: an orphan.
	out, err := reaper.Run(context.Background(), shell(t), []string{"-c", "sh -c 'exit 7' >/dev/null 2>&1 & echo $!"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(out)))
	if err != nil {
		t.Fatal(err)
	}
	if s := <-reaper.Adopt(pid); s.Code != 7 {
		t.Errorf("orphan's status = %d; want 7", s.Code)
	}
}

func TestUnclaimedStatusesAreBounded(t *testing.T) {
	r := &Reaper{waiting: make(map[int]chan Status), unclaimed: make(map[int]Status)}
	for pid := range maxUnclaimed + 100 {
		r.ended(pid+1, Status{Code: 1})
	}
	if len(r.unclaimed) != maxUnclaimed || len(r.order) != maxUnclaimed {
		t.Errorf("kept %d statuses in order of %d; want %d", len(r.unclaimed), len(r.order), maxUnclaimed)
	}
}
