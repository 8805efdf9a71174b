// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"fmt"
	"strconv"
	"strings"
)

// where is the path of a value within a policy, built only when a message needs it.
type where struct {
	up    *where
	key   string
	index int // if key is ""
}

func (w *where) String() string {
	switch {
	case w.up == nil:
		return w.key
	case w.key == "":
		return fmt.Sprintf("%s[%d]", w.up, w.index)
	}
	return w.up.String() + "." + w.key
}

// fields reads the members of one object. The first wrong type sticks in the reader's err; a missing member is noted
// and yields the zero value.
type fields struct {
	r       *reader
	n       *node
	at      *where
	missing []string
	inner   []string // missing in members of members
}

// reader turns nodes into typed values.
type reader struct {
	p   *parser
	ps  patterns
	err error
}

func (r *reader) fail(n *node, at *where, want string) {
	if r.err == nil {
		r.err = r.p.errorAt(n.off, "%s: want %s, have %s", at, want, n.kind)
	}
}

func (r *reader) is(n *node, at *where, k kind) bool {
	if n.kind != k {
		r.fail(n, at, k.String())
	}
	return n.kind == k
}

func (r *reader) object(n *node, at *where) *fields {
	r.is(n, at, kindObject)
	return &fields{r: r, n: n, at: at}
}

func (r *reader) string(n *node, at *where) string {
	if !r.is(n, at, kindString) {
		return ""
	}
	return n.str
}

func (r *reader) strings(n *node, at *where) []string {
	if !r.is(n, at, kindArray) {
		return nil
	}
	out := make([]string, len(n.list))
	for i := range n.list {
		if e := &n.list[i]; e.kind == kindString {
			out[i] = e.str
		} else {
			r.fail(e, &where{up: at, index: i}, "a string")
		}
	}
	return out
}

// each calls f with the elements of an array.
func (r *reader) each(n *node, at *where, f func(*node, *where)) {
	if !r.is(n, at, kindArray) {
		return
	}
	for i := range n.list {
		f(&n.list[i], &where{up: at, index: i})
	}
}

// member returns a member, noting if it is missing.
func (f *fields) member(key string) (*node, *where) {
	if n := f.n.get(key); n != nil {
		return n, &where{up: f.at, key: key}
	}
	f.missing = append(f.missing, key)
	return nil, nil
}

func (f *fields) has(key string) bool { return f.n.get(key) != nil }

func (f *fields) string(key string) string {
	if n, at := f.member(key); n != nil {
		return f.r.string(n, at)
	}
	return ""
}

// optional is a string that may be missing.
func (f *fields) optional(key string) string {
	if !f.has(key) {
		return ""
	}
	return f.string(key)
}

func (f *fields) bool(key string) bool {
	n, at := f.member(key)
	return n != nil && f.r.is(n, at, kindBool) && n.b
}

func (f *fields) strings(key string) []string {
	if n, at := f.member(key); n != nil {
		return f.r.strings(n, at)
	}
	return nil
}

func (f *fields) each(key string, g func(*node, *where)) {
	if n, at := f.member(key); n != nil {
		f.r.each(n, at, g)
	}
}

// ints reads an array of whole numbers.
func (f *fields) ints(key string) []int {
	var out []int
	f.each(key, func(n *node, at *where) {
		v, err := strconv.ParseInt(n.str, 10, 32)
		if n.kind != kindNumber || err != nil {
			f.r.fail(n, at, "a whole number")
		}
		out = append(out, int(v))
	})
	return out
}

// version is MAJOR.MINOR.PATCH.
type version [3]int

func parseVersion(s string) (v version, ok bool) {
	parts := strings.Split(s, ".")
	if len(parts) != len(v) {
		return v, false
	}
	for i, part := range parts {
		n, err := strconv.ParseUint(part, 10, 16)
		if err != nil || part != strconv.FormatUint(n, 10) {
			return v, false
		}
		v[i] = int(n)
	}
	return v, true
}

func (v version) compare(w version) int {
	for i := range v {
		if v[i] != w[i] {
			return v[i] - w[i]
		}
	}
	return 0
}

func (v version) String() string { return fmt.Sprintf("%d.%d.%d", v[0], v[1], v[2]) }
