// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"slices"
	"strings"
)

// envMatcher matches the environment of one request against the rules of several candidates. A regular expression
// that candidates share is tried once per variable.
type envMatcher struct {
	envs  []string // each once, in the order of the request
	eq    []int    // where the first '=' is, -1 if there is none
	clean []bool
	memo  []int8 // of regular expression id for variable i, at i*ids+id: 0 not tried, 1 yes, -1 no
	ids   int
}

// maxMemo bounds the memory for matches that are kept.
const maxMemo = 1 << 20

func newEnvMatcher(asked []string, ids, candidates int) *envMatcher {
	m := &envMatcher{envs: asked, ids: ids}
	if hasDuplicates(asked) {
		m.envs = nil
		seen := make(map[string]bool, len(asked))
		for _, env := range asked {
			if !seen[env] {
				seen[env] = true
				m.envs = append(m.envs, env)
			}
		}
	}
	m.eq, m.clean = make([]int, len(m.envs)), make([]bool, len(m.envs))
	for i, env := range m.envs {
		m.eq[i], m.clean[i] = strings.IndexByte(env, '='), printable(env)
	}
	if n := len(m.envs) * ids; candidates > 1 && n <= maxMemo {
		m.memo = make([]int8, n)
	}
	return m
}

func hasDuplicates(list []string) bool {
	if len(list) > 64 {
		return true // the map finds out
	}
	for i := range list {
		if slices.Contains(list[:i], list[i]) {
			return true
		}
	}
	return false
}

// match says whether rule accepts variable i.
func (m *envMatcher) match(rule *envRule, i int) bool {
	if !m.clean[i] {
		return false
	}
	if m.memo != nil && rule.whole.kind == matchRegexp && rule.name.kind == matchNever {
		got := &m.memo[i*m.ids+rule.whole.id]
		if *got == 0 {
			if *got = -1; rule.whole.match(m.envs[i]) {
				*got = 1
			}
		}
		return *got > 0
	}
	return rule.match(m.envs[i], m.eq[i])
}

func (m *envMatcher) accepted(p *process, i int) bool {
	for j := range p.env {
		if m.match(&p.env[j], i) {
			return true
		}
	}
	return false
}

// required says whether each required rule of p has a variable among those that kept marks.
func (m *envMatcher) required(p *process, kept []bool) bool {
rules:
	for j := range p.env {
		if !p.env[j].required {
			continue
		}
		for i := range m.envs {
			if kept[i] && m.match(&p.env[j], i) {
				continue rules
			}
		}
		return false
	}
	return true
}

// narrowEnv decides which variables are kept and which of the processes accept them. If the policy permits dropping,
// the largest set that some process accepts is kept; unique is false if several different sets are largest.
func (m *envMatcher) narrow(ps []*process, drop bool) (ok []bool, kept []bool, unique bool) {
	sets := make([][]bool, len(ps))
	most := -1
	unique = true
	for k, p := range ps {
		set, n := make([]bool, len(m.envs)), 0
		for i := range m.envs {
			if m.accepted(p, i) {
				set[i] = true
				n++
			}
		}
		sets[k] = set
		switch {
		case n > most:
			kept, most, unique = set, n, true
		case n == most && !slices.Equal(set, kept):
			unique = false
		}
	}
	if !drop {
		unique = true
		kept = make([]bool, len(m.envs))
		for i := range kept {
			kept[i] = true
		}
	}
	if !unique {
		return nil, nil, false
	}
	ok = make([]bool, len(ps))
	for k, p := range ps {
		ok[k] = covers(sets[k], kept) && m.required(p, kept)
	}
	return ok, kept, true
}

func covers(set, of []bool) bool {
	for i := range of {
		if of[i] && !set[i] {
			return false
		}
	}
	return true
}

// list returns the variables that kept marks.
func (m *envMatcher) list(kept []bool) []string {
	out := make([]string, 0, len(kept))
	for i, env := range m.envs {
		if kept[i] {
			out = append(out, env)
		}
	}
	return out
}

// envName is the part before the first '='.
func envName(env string) string {
	name, _, _ := strings.Cut(env, "=")
	return name
}

// names lists the names of the variables that none of the processes accepts.
func (m *envMatcher) refused(ps []*process) (names []string) {
variables:
	for i, env := range m.envs {
		for _, p := range ps {
			if m.accepted(p, i) {
				continue variables
			}
		}
		names = append(names, envName(env))
	}
	return names
}
