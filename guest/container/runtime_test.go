// SPDX-License-Identifier: Apache-2.0

package container

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/coffer-dev/coffer/guest/reap"
)

func TestRuncErrorKeepsItsKind(t *testing.T) {
	for _, c := range []struct {
		log  string
		kind error
		text string
	}{
		{`{"level":"error","msg":"runc run failed: unable to start container process: error during container init: exec: \"foo\": executable file not found in $PATH"}`,
			ErrCommandNotFound, `exec: "foo": executable file not found in $PATH`},
		{`{"level":"error","msg":"runc run failed: unable to start container process: error during container init: exec: \"/x\": stat /x: no such file or directory"}`,
			ErrCommandNotFound, "stat /x"},
		{`{"level":"error","msg":"exec failed: unable to start container process: exec: \"/etc\": is a directory"}`, ErrCommandNotStarted, "is a directory"},
		{`{"level":"error","msg":"runc run failed: unable to start container process: exec /x: exec format error"}`, ErrCommandNotStarted, "format"},
		{`{"level":"error","msg":"runc run failed: unable to start container process: error mounting \"proc\": device busy"}`, nil, "device busy"},
		{`{"level":"info","msg":"nothing"}` + "\n" + `junk`, nil, "status 5"},
	} {
		path := filepath.Join(t.TempDir(), "log")
		if err := os.WriteFile(path, []byte(c.log+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		err := runcError(path, reap.Status{Code: 5})
		if !strings.Contains(err.Error(), c.text) {
			t.Errorf("runcError(%s) = %v; want %q", c.log, err, c.text)
		}
		for _, kind := range []error{ErrCommandNotFound, ErrCommandNotStarted} {
			if errors.Is(err, kind) != errors.Is(c.kind, kind) {
				t.Errorf("runcError(%s) = %v; want the kind %v", c.log, err, c.kind)
			}
		}
	}
}

// fakeRuntime has a shell script for its runc.
func fakeRuntime(t *testing.T, script string) *Runtime {
	t.Helper()
	if _, err := os.Stat("/bin/sh"); err != nil {
		t.Skip("no /bin/sh on this machine")
	}
	dir := t.TempDir()
	runc := filepath.Join(dir, "runc")
	if err := os.WriteFile(runc, []byte("#!/bin/sh\n"+script+"\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	return &Runtime{Runc: runc, State: dir, Temp: filepath.Join(dir, "tmp"), Reaper: reaper}
}

// reaper is the test process's one Reaper; it is a subreaper, as PID 1 is.
var reaper *reap.Reaper

func TestMain(m *testing.M) {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		panic(err)
	}
	reaper = reap.New()
	os.Exit(m.Run())
}

func TestStarts(t *testing.T) {
	t.Run("a start that hangs is given up", func(t *testing.T) {
		r := fakeRuntime(t, "exec sleep 1000")
		r.patience = time.Millisecond
		if p, err := r.Exec(context.Background(), "c", &Process{Args: []string{"x"}}, Stdio{}); p != nil || !errors.Is(err, ErrStuck) {
			t.Errorf("Exec = %v, %v; want nil and %v", p, err, ErrStuck)
		}
	})
	t.Run("a process that has ended holds no descriptor", func(t *testing.T) {
		r := fakeRuntime(t, `while [ "$1" != --pid-file ]; do shift; done; exec sleep 1000 & echo $! > "$2"`)
		p, err := r.Exec(context.Background(), "c", &Process{Args: []string{"x"}}, Stdio{})
		if err != nil {
			t.Fatal(err)
		}
		if p.fd < 0 {
			t.Error("there is no pidfd of a process that lives")
		}
		if err := p.Signal(unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		<-p.Done()
		if p.fd != -1 {
			t.Errorf("pidfd = %d; want it closed", p.fd)
		}
		if err := p.Signal(unix.SIGTERM); err != nil {
			t.Errorf("Signal = %v; want nil", err)
		}
	})
}
