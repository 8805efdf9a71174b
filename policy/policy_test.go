// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"os"
	"testing"
)

func readPolicy(tb testing.TB, name string) *Policy {
	tb.Helper()
	text, err := os.ReadFile("testdata/" + name)
	if err != nil {
		tb.Fatal(err)
	}
	p, err := Parse(text)
	if err != nil {
		tb.Fatalf("Parse(%s): %v", name, err)
	}
	return p
}

func TestZeroDenies(t *testing.T) {
	for _, s := range []State{{}, (*Policy)(nil).Start(), readPolicy(t, "confcom.rego").Start()} {
		for _, req := range []Request{nil, &MountDevice{}, (*MountDevice)(nil)} {
			if d, _ := s.Decide(req); d.Allowed || d.Denial == nil || d.Denial.PolicyError == "" {
				t.Errorf("Decide(%T) = %+v; want a denial", req, d)
			}
		}
	}
	if d, _ := (State{}).Decide(UnmountDevice{}); d.Allowed || d.Denial.PolicyError != errNoPolicy {
		t.Errorf("zero State: Decide = %+v; want %q", d, errNoPolicy)
	}
}
