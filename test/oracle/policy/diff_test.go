// SPDX-License-Identifier: Apache-2.0

//go:build rego

package oracle

import (
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/coffer-dev/coffer/policy"
)

// runs is how many random policies a test tries. COFFER_ORACLE_RUNS sets another number, COFFER_ORACLE_SEED the
// first seed.
func runs(t *testing.T, usual int) (from, to uint64) {
	number := func(name string, v uint64) uint64 {
		if text := os.Getenv(name); text != "" {
			n, err := strconv.ParseUint(text, 10, 32)
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			return n
		}
		return v
	}
	from = number("COFFER_ORACLE_SEED", 1)
	return from, from + number("COFFER_ORACLE_RUNS", uint64(usual))
}

func TestAgainstOriginal(t *testing.T) {
	compare(t, 40, false, func(text []byte) (engine, error) { return newOriginal(text) }, originalDiffers)
}

func TestAgainstNewest(t *testing.T) {
	needHead(t)
	compare(t, 40, true, func(text []byte) (engine, error) { return newHead(text) }, headDiffers)
}

// tally counts what a comparison has met, so that one that meets nothing is noticed.
type tally struct {
	requests, allowed, created, execed int
	known                              map[string]int
}

func compare(t *testing.T, usual int, newest bool, open func([]byte) (engine, error), known func(*gen, policy.Request, answer, answer) string) {
	from, to := runs(t, usual)
	sum := tally{known: map[string]int{}}
	for seed := from; seed < to; seed++ {
		g := &gen{Rand: rand.New(rand.NewPCG(seed, 77)), head: newest}
		text := g.policyText()
		ours, err := newNative(text)
		if err != nil {
			t.Fatalf("seed %d: Parse: %v\n%s", seed, err, text)
		}
		theirs, err := open(text)
		if err != nil {
			t.Fatalf("seed %d: original: %v\n%s", seed, err, text)
		}
		var log strings.Builder
		for _, req := range g.sequence() {
			got, want := ours.decide(req), theirs.decide(req)
			fmt.Fprintf(&log, "%s %+v\n   -> %t %q\n", req.Point(), req, got.Allowed, got.Errors)
			sum.requests++
			if got.Allowed {
				sum.allowed++
				switch req.(type) {
				case policy.CreateContainer:
					sum.created++
				case policy.ExecInContainer:
					sum.execed++
				}
			}
			diff := cmp.Diff(want, got)
			if diff == "" {
				continue
			}
			why := known(g, req, got, want)
			if why == "" {
				t.Fatalf("seed %d: %s: -original +ours\n%s\npolicy:\n%s\nrequests:\n%s", seed, req.Point(), diff, text, log.String())
			}
			sum.known[why]++
			if got.Allowed != want.Allowed {
				break // the states are not the same any more
			}
		}
	}
	t.Logf("%d policies: %+v", to-from, sum)
	if n := int(to - from); sum.allowed < n || sum.created < n/10 || sum.execed < n/50 {
		t.Errorf("the requests hardly test anything: %+v", sum)
	}
}

// without removes error texts.
func without(errs []string, texts ...string) []string {
	return slices.DeleteFunc(slices.Clone(errs), func(e string) bool { return slices.Contains(texts, e) })
}

// originalDiffers names the line of docs/policy.md that explains a difference to v0.14.1, "" if none does.
func originalDiffers(g *gen, req policy.Request, got, want answer) string {
	if s, ok := req.(policy.SignalContainerProcess); ok && (s.Signal == 9 || s.Signal == 15) && s.IsInitProcess && got.Allowed && !want.Allowed {
		return "old policies get signals 9 and 15, as in the newest framework"
	}
	_, create := req.(policy.CreateContainer)
	_, exec := req.(policy.ExecInContainer)
	_, external := req.(policy.ExecExternal)
	if got.Allowed && !want.Allowed && (create || exec || external) && len(got.Env) == 0 {
		return "an empty environment fits rules that require nothing, as in the newest framework"
	}
	if _, ok := req.(policy.SignalContainerProcess); ok && !got.Allowed && !want.Allowed && !want.PolicyError {
		return "signal errors say what counts for this kind of process"
	}
	return headDiffers(g, req, got, want)
}

func headDiffers(g *gen, req policy.Request, got, want answer) string {
	if got.Allowed || want.Allowed {
		return ""
	}
	if g.constants[req.Point()] {
		return "a constant denial has no errors"
	}
	if _, ok := req.(policy.ExecInContainer); ok {
		a := without(got.Errors, "invalid noNewPrivileges", "invalid user")
		if slices.Equal(a, without(want.Errors, "invalid noNewPrivileges", "invalid user")) {
			return "exec errors compare the container's fields"
		}
	}
	if slices.Equal(distinctNames(without(got.Errors, "invalid env list")), distinctNames(without(want.Errors, "invalid env list"))) {
		return "invalid env list is said when it is the reason, and names each variable once"
	}
	return ""
}

// distinctNames drops names that an "invalid env list: " has twice because the same variable was asked for twice.
func distinctNames(errs []string) []string {
	out := slices.Clone(errs)
	for i, e := range out {
		if names, ok := strings.CutPrefix(e, "invalid env list: "); ok {
			list := strings.Split(names, ",")
			slices.Sort(list)
			out[i] = "invalid env list: " + strings.Join(slices.Compact(list), ",")
		}
	}
	return out
}
