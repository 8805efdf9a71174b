// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"regexp"
	"regexp/syntax"
	"strings"
	"sync"
	"unicode/utf8"
)

// matcher tells whether a string is what a rule names. The zero matcher matches nothing.
type matcher struct {
	kind matchKind
	lit  string
	re   *regexp.Regexp
	id   int // of re, within the policy: equal patterns are compiled once
}

type matchKind uint8

const (
	matchNever matchKind = iota // unknown strategy, missing pattern or broken regular expression
	matchAny
	matchLiteral
	matchRegexp
)

// printable says whether a string of the host can be matched at all: strings that are not UTF-8, or that the kernel
// would cut at a NUL, match nothing.
func printable(s string) bool { return utf8.ValidString(s) && strings.IndexByte(s, 0) < 0 }

func (m *matcher) match(s string) bool {
	switch m.kind {
	case matchAny:
		return true
	case matchLiteral:
		return m.lit == s
	case matchRegexp:
		return m.re.MatchString(s)
	}
	return false
}

// patterns compiles each regular expression of a policy once.
type patterns struct {
	byText map[string]matcher
	n      int
}

// literal is the strategy "string".
func literal(s string) matcher { return matcher{kind: matchLiteral, lit: s} }

// regexp is the strategy "re2". The pattern always matches the whole string, whatever alternatives or flags it has;
// framework.rego only puts ^ and $ around it, which "a|b" escapes.
func (ps *patterns) regexp(pattern string) matcher {
	if m, ok := ps.byText[pattern]; ok {
		return m
	}
	m := matcher{lit: pattern}
	if re := anchored(pattern); re != nil {
		m = matcher{kind: matchRegexp, lit: pattern, re: re, id: ps.n}
		ps.n++
	}
	if ps.byText == nil {
		ps.byText = make(map[string]matcher)
	}
	ps.byText[pattern] = m
	return m
}

// below is what follows the directory that a scheme stands for. "hugepages://2M/x" means the same as
// "hugepages:///2M/x"; framework.rego would look for it beside the directory.
func (ps *patterns) below(rest string) matcher {
	if rest == "" || rest[0] == '/' {
		return ps.regexp(rest)
	}
	if _, err := syntax.Parse(rest, syntax.Perl); err != nil {
		return matcher{lit: rest}
	}
	return ps.regexp("/(?:" + rest + ")")
}

// anchored compiles a pattern so that it matches whole strings only; nil if it is not a regular expression. The
// pattern is parsed alone first, so that "a)|(b" cannot close the group it is put in.
func anchored(pattern string) *regexp.Regexp {
	if strings.ContainsAny(pattern, `()\`) {
		if _, err := syntax.Parse(pattern, syntax.Perl); err != nil {
			return nil
		}
	}
	re, err := regexp.Compile(`\A(?:` + pattern + `)\z`)
	if err != nil {
		return nil
	}
	return re
}

// envRule is one element of env_rules, in the form {pattern, strategy} or {name, name_strategy, value, value_strategy}
// or both.
type envRule struct {
	required    bool
	whole       matcher
	name, value matcher
}

func (r *envRule) match(env string, eq int) bool {
	if r.whole.match(env) {
		return true
	}
	return r.name.kind != matchNever && eq >= 0 && r.name.match(env[:eq]) && r.value.match(env[eq+1:])
}

// idRule is a user or group rule: strategy any, id, name or re2 (over the name).
type idRule struct {
	strategy string
	pattern  matcher
}

func (r *idRule) match(v IDName) bool {
	switch r.strategy {
	case "any":
		return true
	case "id":
		return r.pattern.match(v.ID)
	case "name":
		return r.pattern.match(v.Name)
	case "re2":
		return printable(v.Name) && r.pattern.match(v.Name)
	}
	return false
}

// pathPatterns keeps the few patterns that the guest gives with its requests, compiled.
type pathPatterns struct {
	mu sync.Mutex
	// byText is guarded by mu.
	byText map[string]*regexp.Regexp
}

const maxPathPatterns = 16

// match says whether pattern is a regular expression that matches all of path.
func (pp *pathPatterns) match(pattern, path string) bool {
	if !printable(path) {
		return false
	}
	pp.mu.Lock()
	defer pp.mu.Unlock()
	re, ok := pp.byText[pattern]
	if !ok {
		re = anchored(pattern)
		if pp.byText == nil || len(pp.byText) >= maxPathPatterns {
			pp.byText = make(map[string]*regexp.Regexp)
		}
		pp.byText[pattern] = re
	}
	return re != nil && re.MatchString(path)
}
