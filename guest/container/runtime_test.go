// SPDX-License-Identifier: Apache-2.0

package container

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

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
