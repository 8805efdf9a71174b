// SPDX-License-Identifier: Apache-2.0

package launch

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestExecEnv(t *testing.T) {
	base := []string{"PATH=/bin", "A=1", "AB=2"}
	for _, c := range []struct {
		name     string
		own      []string
		terminal bool
		want     []string
	}{
		{"none", nil, false, []string{"PATH=/bin", "A=1", "AB=2"}},
		{"replaced and added", []string{"A=x=y", "C=3"}, false, []string{"PATH=/bin", "A=x=y", "AB=2", "C=3"}},
		{"last wins", []string{"C=3", "C="}, false, []string{"PATH=/bin", "A=1", "AB=2", "C="}},
		{"terminal", nil, true, []string{"PATH=/bin", "A=1", "AB=2", "TERM=xterm"}},
		{"own terminal", []string{"TERM=dumb"}, true, []string{"PATH=/bin", "A=1", "AB=2", "TERM=dumb"}},
	} {
		if diff := cmp.Diff(c.want, execEnv(base, c.own, c.terminal)); diff != "" {
			t.Errorf("%s: %s", c.name, diff)
		}
	}
	if diff := cmp.Diff([]string{"PATH=/bin", "A=1", "AB=2"}, base); diff != "" {
		t.Errorf("the container's own environment changed: %s", diff)
	}
}
