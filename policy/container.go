// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"fmt"
	"strings"
)

// container is one element of containers, with the values that its framework_version implies filled in.
type container struct {
	index    int // in containers
	id, name string
	layers   []string // root hashes, bottom to top
	process
	mounts   []mountRule
	exec     []execRule
	signals  []int
	user     userRule
	caps     *Capabilities // nil: the default set
	seccomp  string
	elevated bool
	nnp      bool
	never    string // why no such container can be created, "" if one can
	lacks    misfit // fields that are missing: nothing fits them
}

// process is what containers and external_processes have in common.
type process struct {
	command    []string
	hasCommand bool // false if null: no command line can equal it
	env        []envRule
	workingDir string
	stdio      bool
}

type execRule struct {
	command []string
	signals []int
}

type userRule struct {
	umask  string
	user   idRule
	groups []idRule
}

type mountRule struct {
	destination, typ, source string
	options                  []string
	scheme                   string  // "sandbox://", "hugepages://", "plan9://" or ""
	rest                     matcher // of what follows the directory that the scheme stands for
	broken                   bool    // a field is missing: matches nothing
}

// label names a container for people.
func (c *container) label() string {
	switch {
	case c.name != "":
		return c.name
	case c.id != "":
		return c.id
	}
	return c.path()
}

func (c *container) path() string { return fmt.Sprintf("containers[%d]", c.index) }

// Versions of the framework that introduced fields of a container; older policies get a default.
var (
	sinceNoNewPrivileges = version{0, 2, 0}
	sinceUser            = version{0, 2, 1}
	sinceCapabilities    = version{0, 2, 2}
	sinceSeccomp         = version{0, 2, 3}
	sinceSignals         = version{0, 4, 1}
	sincePlatformRules   = version{0, 5, 0}
)

// container reads one element of containers. usable is false if the framework would not consider it at all.
func (r *reader) container(n *node, at *where, fw version) (c *container, usable bool) {
	f := r.object(n, at)
	c = &container{index: at.index, id: f.optional("id"), name: f.optional("name")}
	c.layers = f.strings("layers")
	noLayers := len(f.missing) > 0
	c.process = f.process()
	f.each("mounts", func(n *node, at *where) { c.mounts = append(c.mounts, r.mount(n, at)) })
	c.elevated = f.bool("allow_elevated")
	if fw.compare(sinceNoNewPrivileges) >= 0 {
		c.nnp = f.bool("no_new_privileges")
	}
	c.user = userRule{umask: "0022", user: idRule{strategy: "any"}, groups: []idRule{{strategy: "any"}}}
	if fw.compare(sinceUser) >= 0 {
		c.user = f.user("user")
	}
	if fw.compare(sinceCapabilities) >= 0 {
		c.caps = f.capabilities("capabilities")
	}
	if fw.compare(sinceSeccomp) >= 0 {
		c.seccomp = f.string("seccomp_profile_sha256")
	}
	needed := len(f.missing)
	f.each("exec_processes", func(n *node, at *where) {
		g := r.object(n, at)
		e := execRule{command: g.strings("command"), signals: g.ints("signals")}
		if g.has("command") && len(e.command) > 0 {
			c.exec = append(c.exec, e)
		}
	})
	if c.signals = f.ints("signals"); fw.compare(sinceSignals) < 0 {
		c.signals = append(c.signals, 9, 15)
	}
	if fw.compare(engineFramework()) == 0 {
		f.missing = f.missing[:needed] // a policy of the newest framework is used as it stands, without defaults
		usable = !noLayers
	} else {
		usable = len(f.missing) == 0
	}
	c.setNever(append(f.missing, f.inner...))
	return c, usable
}

func (c *container) setNever(missing []string) {
	switch {
	case len(missing) > 0:
		c.never = "it has no " + strings.Join(missing, ", ")
	case !c.hasCommand:
		c.never = "its command is null"
	case len(c.command) == 0:
		c.never = "its command is empty"
	case len(c.layers) == 0:
		c.never = "it has no layers"
	}
	if c.never != "" {
		c.lacks = badNever
	}
	for _, name := range missing {
		field, _, _ := strings.Cut(name, ".")
		switch field {
		case "user":
			c.lacks |= badUser
		case "allow_elevated":
			c.lacks |= badPrivileged
		case "no_new_privileges":
			c.lacks |= badNNP
		case "seccomp_profile_sha256":
			c.lacks |= badSeccomp
		case "working_dir":
			c.lacks |= badDir
		}
	}
}

// process reads the fields that containers and external processes share.
func (f *fields) process() (p process) {
	if n, at := f.member("command"); n != nil && n.kind != kindNull {
		p.command, p.hasCommand = f.r.strings(n, at), true
	}
	f.each("env_rules", func(n *node, at *where) { p.env = append(p.env, f.r.envRule(n, at)) })
	p.workingDir = f.string("working_dir")
	p.stdio = f.bool("allow_stdio_access")
	return p
}

// strategy makes a matcher of a pattern and its strategy "string" or "re2". Anything else matches nothing.
func (r *reader) strategy(pattern, strategy string) matcher {
	switch strategy {
	case "string":
		return literal(pattern)
	case "re2":
		return r.ps.regexp(pattern)
	}
	return matcher{lit: pattern}
}

func (r *reader) envRule(n *node, at *where) (rule envRule) {
	f := r.object(n, at)
	if f.has("required") {
		rule.required = f.bool("required")
	}
	if f.has("pattern") && f.has("strategy") {
		rule.whole = r.strategy(f.string("pattern"), f.string("strategy"))
	}
	if f.has("name") && f.has("name_strategy") && f.has("value") && f.has("value_strategy") {
		rule.name = r.strategy(f.string("name"), f.string("name_strategy"))
		rule.value = r.strategy(f.string("value"), f.string("value_strategy"))
	}
	return rule
}

func (r *reader) mount(n *node, at *where) mountRule {
	f := r.object(n, at)
	m := mountRule{
		destination: f.string("destination"), typ: f.string("type"),
		source: f.string("source"), options: f.strings("options"),
	}
	m.broken = len(f.missing) > 0
	for _, scheme := range []string{schemeSandbox, schemeHugePages, schemePlan9} {
		if rest, ok := strings.CutPrefix(m.source, scheme); ok {
			m.scheme, m.rest = scheme, r.ps.below(rest)
		}
	}
	return m
}

// user reads a user rule. Without umask or user_idname no user matches.
func (f *fields) user(key string) (u userRule) {
	n, at := f.member(key)
	if n == nil {
		return u
	}
	g := f.r.object(n, at)
	u.umask = g.string("umask")
	if n, at := g.member("user_idname"); n != nil {
		u.user = f.r.idRule(n, at)
	}
	for _, m := range g.missing {
		f.inner = append(f.inner, key+"."+m)
	}
	g.each("group_idnames", func(n *node, at *where) { u.groups = append(u.groups, f.r.idRule(n, at)) })
	return u
}

func (r *reader) idRule(n *node, at *where) (rule idRule) {
	f := r.object(n, at)
	rule.strategy = f.string("strategy")
	pattern := f.string("pattern")
	switch {
	case len(f.missing) > 0:
		rule.strategy = ""
	case rule.strategy == "re2":
		rule.pattern = r.ps.regexp(pattern)
	default:
		rule.pattern = literal(pattern)
	}
	return rule
}

// capabilities reads null or an object of five lists.
func (f *fields) capabilities(key string) *Capabilities {
	n, at := f.member(key)
	if n == nil || n.kind == kindNull {
		return nil
	}
	g := f.r.object(n, at)
	c := &Capabilities{
		Bounding: g.strings("bounding"), Effective: g.strings("effective"), Inheritable: g.strings("inheritable"),
		Permitted: g.strings("permitted"), Ambient: g.strings("ambient"),
	}
	for _, m := range g.missing {
		f.inner = append(f.inner, key+"."+m)
	}
	return c
}
