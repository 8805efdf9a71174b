// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"crypto/sha256"
	"errors"
	"strconv"
	"strings"
)

// APIVersion and FrameworkVersion are the newest api_version and framework_version whose semantics this package has.
const (
	APIVersion       = "0.12.0"
	FrameworkVersion = "0.5.0"
)

func engineFramework() version { return version{0, 5, 0} }

// Policy is a parsed policy. It is immutable and may be used by several goroutines. The nil Policy denies everything.
type Policy struct {
	digest    [32]byte
	api       *version
	framework *version
	bindings  map[string]*binding
	flags     map[string]bool
	reason    reasonKind

	containers []*container            // as written, before platform_rules
	hashes     map[string]bool         // of every layer of every container
	byLayers   map[string][]*container // candidates of an overlay, by layersKey
	external   []*process
	regexps    int
	warnings   []Warning
	paths      pathPatterns
}

// Warning is something in a policy that has no effect or cannot ever match.
type Warning struct {
	Line, Col int
	Msg       string
}

// binding is what a policy says of one enforcement point: nil for data.framework's rule, else a constant.
type binding struct {
	constant *constant
}

// constant is an answer that does not depend on the request, as the allow-all policy has them.
type constant struct {
	allowed bool
	stdio   bool
	env     []string // kept of what is asked, if hasEnv
	hasEnv  bool
	caps    *Capabilities // kept of what is asked, unless nil
}

type reasonKind uint8

const (
	reasonNone   reasonKind = iota
	reasonErrors            // {"errors": data.framework.errors}
	reasonFull              // data.framework.reason
)

// Flags of a policy; a missing one is false.
const (
	flagProperties  = "allow_properties_access"
	flagStacks      = "allow_dump_stacks"
	flagLogging     = "allow_runtime_logging"
	flagEnvDropping = "allow_environment_variable_dropping"
	flagUnencrypted = "allow_unencrypted_scratch"
	flagCapDropping = "allow_capability_dropping"
	flagHostNetwork = "allow_host_network"
)

func flagName(name string) bool {
	switch name {
	case flagProperties, flagStacks, flagLogging, flagEnvDropping, flagUnencrypted, flagCapDropping, flagHostNetwork:
		return true
	}
	return false
}

// Digest is the SHA-256 of the exact bytes of a policy: what the hardware measures as HOST_DATA.
func Digest(text []byte) [32]byte { return sha256.Sum256(text) }

// Parse reads a policy. Every error is a *SyntaxError. A nil error means that the text was understood, not that it
// allows anything.
func Parse(text []byte) (*Policy, error) {
	m, parser, err := parseModule(text)
	if err != nil {
		return nil, err
	}
	if m.pkg != "policy" {
		return nil, parser.errorAt(0, "want package policy, have package %s", m.pkg)
	}
	l := &loader{
		reader: reader{p: parser},
		pol:    &Policy{digest: Digest(text), bindings: map[string]*binding{}, flags: map[string]bool{}},
	}
	for i := range m.statements {
		l.statement(&m.statements[i])
	}
	l.finish()
	if l.err != nil {
		return nil, l.err
	}
	return l.pol, nil
}

// Digest is the SHA-256 of the text that was parsed.
func (p *Policy) Digest() [32]byte {
	if p == nil {
		return [32]byte{}
	}
	return p.digest
}

// Warnings lists what in the policy has no effect.
func (p *Policy) Warnings() []Warning {
	if p == nil {
		return nil
	}
	return append([]Warning(nil), p.warnings...)
}

type loader struct {
	reader
	pol                            *Policy
	containers, external, platform *statement
}

func (l *loader) warn(off int, format string, args ...any) {
	var e *SyntaxError
	if errors.As(l.p.errorAt(off, format, args...), &e) {
		l.pol.warnings = append(l.pol.warnings, Warning(*e))
	}
}

func (l *loader) statement(st *statement) {
	at := &where{key: st.name}
	if st.name != "reason" {
		l.checkRefs(st)
	}
	switch name := st.name; {
	case name == "api_version" || name == "api_svn":
		l.version(&l.pol.api, st, at)
	case name == "framework_version" || name == "framework_svn":
		l.version(&l.pol.framework, st, at)
	case name == "containers":
		l.containers = st
	case name == "external_processes":
		l.external = st
	case name == "platform_rules":
		l.platform = st
	case name == "fragments" || name == "transparency_trust_lists":
		if l.is(&st.value, at, kindArray) && len(st.value.list) > 0 {
			l.warn(st.off, "%s are not supported: what they would add cannot run", name)
		}
	case flagName(name):
		if l.is(&st.value, at, kindBool) {
			l.pol.flags[name] = st.value.b
		}
	case name == "reason":
		l.reason(st, at)
	case isPoint(name):
		l.binding(st, at)
	case !otherPoint(name):
		l.warn(st.off, "%s has no meaning here and is ignored", name)
	}
}

// checkRefs allows a reference only as a whole value, and only to the framework's rule of the same name.
func (l *loader) checkRefs(st *statement) {
	if st.value.kind == kindRef {
		if st.value.str != st.name && l.err == nil {
			l.err = l.p.errorAt(st.value.off, "%s can only be bound to data.framework.%s", st.name, st.name)
		}
		return
	}
	if ref := findRef(&st.value); ref != nil && l.err == nil {
		l.err = l.p.errorAt(ref.off, onlyData+"a reference cannot be part of a value")
	}
}

func findRef(n *node) *node {
	if n.kind == kindRef {
		return n
	}
	for i := range n.list {
		if ref := findRef(&n.list[i]); ref != nil {
			return ref
		}
	}
	return nil
}

func (l *loader) version(to **version, st *statement, at *where) {
	v, ok := parseVersion(l.string(&st.value, at))
	switch {
	case l.err != nil:
	case !ok:
		l.err = l.p.errorAt(st.value.off, "%s: want MAJOR.MINOR.PATCH, have %q", at, clip(st.value.str, 40))
	case *to != nil && **to != v:
		l.err = l.p.errorAt(st.off, "%s contradicts the version given above", at)
	default:
		*to = &v
	}
}

// reason reads the forms that Azure's tools write.
func (l *loader) reason(st *statement, at *where) {
	v := &st.value
	switch {
	case v.kind == kindRef && v.str == "reason":
		l.pol.reason = reasonFull
	case v.kind != kindObject:
		l.fail(v, at, "data.framework.reason or an object")
	default:
		for i, key := range v.keys {
			m := &v.list[i]
			if key != "errors" && key != "error_objects" || m.kind != kindRef || m.str != key {
				l.fail(m, &where{up: at, key: key}, "only errors and error_objects bound to data.framework")
			}
		}
		if v.get("errors") != nil {
			l.pol.reason = reasonErrors
		}
		if v.get("error_objects") != nil {
			l.pol.reason = reasonFull
		}
	}
}

// binding reads what an enforcement point is bound to. A constant must say allowed: the original would take a missing
// one from the defaults for old policies, which mostly allow.
func (l *loader) binding(st *statement, at *where) {
	b := &binding{}
	l.pol.bindings[st.name] = b
	if st.value.kind == kindRef {
		return
	}
	f := l.object(&st.value, at)
	if l.err != nil {
		return
	}
	c := &constant{allowed: f.bool("allowed")}
	if len(f.missing) > 0 {
		l.fail(&st.value, at, "a member \"allowed\"")
	}
	if n, nat := f.member("metadata"); n != nil {
		l.fail(n, nat, "no metadata in a constant")
	}
	if n, nat := f.member("env_list"); n != nil && n.kind != kindNull {
		c.env, c.hasEnv = l.strings(n, nat), true
	}
	if f.has("caps_list") {
		c.caps = f.capabilities("caps_list")
		if len(f.inner) > 0 {
			l.fail(f.n.get("caps_list"), at, "five capability lists")
		}
	}
	if f.has("allow_stdio_access") {
		c.stdio = f.bool("allow_stdio_access")
	}
	b.constant = c
}

// frameworkUsable says whether the policy names a version of the framework that is known here.
func (p *Policy) frameworkUsable() bool {
	return p.framework != nil && p.framework.compare(engineFramework()) <= 0
}

// finish reads the lists whose meaning depends on framework_version.
func (l *loader) finish() {
	pol := l.pol
	pol.hashes, pol.byLayers = map[string]bool{}, map[string][]*container{}
	fw := engineFramework()
	if pol.frameworkUsable() {
		fw = *pol.framework
	}
	var rules []platformRule
	if l.platform != nil {
		l.each(&l.platform.value, &where{key: "platform_rules"}, func(n *node, at *where) {
			rules = append(rules, l.platformRule(n, at))
		})
		if fw.compare(sincePlatformRules) < 0 && len(rules) > 0 {
			l.warn(l.platform.off, "platform_rules are ignored before framework_version %s", sincePlatformRules)
			rules = nil
		}
	}
	if l.containers != nil {
		l.readContainers(fw, rules)
	}
	if l.external != nil {
		l.each(&l.external.value, &where{key: "external_processes"}, func(n *node, at *where) {
			f := l.object(n, at)
			p := f.process()
			if len(f.missing) == 0 {
				pol.external = append(pol.external, &p)
			} else {
				l.warn(n.off, "%s can never run: it has no %s", at, strings.Join(f.missing, ", "))
			}
		})
	}
	pol.regexps = l.ps.n
	if !pol.frameworkUsable() {
		pol.hashes, pol.byLayers, pol.external = nil, nil, nil
	}
}

func (l *loader) readContainers(fw version, rules []platformRule) {
	pol := l.pol
	l.each(&l.containers.value, &where{key: "containers"}, func(n *node, at *where) {
		if l.err != nil {
			return
		}
		if at.index*max(1, len(rules)) >= MaxContainers {
			l.err = l.p.errorAt(n.off, "more than %d containers", MaxContainers)
			return
		}
		c, usable := l.container(n, at, fw)
		pol.containers = append(pol.containers, c)
		for _, hash := range c.layers {
			if hash != "" {
				pol.hashes[hash] = true
			}
		}
		if c.never != "" {
			l.warn(n.off, "%s can never be created: %s", at, c.never)
		}
		if !usable || len(c.layers) == 0 {
			return
		}
		key := layersKey(c.layers)
		if len(rules) == 0 {
			pol.byLayers[key] = append(pol.byLayers[key], c)
		}
		for _, rule := range rules {
			v := *c
			v.env = append(append([]envRule(nil), c.env...), rule.env...)
			v.mounts = append(append([]mountRule(nil), c.mounts...), rule.mounts...)
			pol.byLayers[key] = append(pol.byLayers[key], &v)
		}
	})
}

// platformRule is added to every container; several give several variants of each.
type platformRule struct {
	env    []envRule
	mounts []mountRule
}

func (l *loader) platformRule(n *node, at *where) (rule platformRule) {
	f := l.object(n, at)
	f.each("env_rules", func(n *node, at *where) { rule.env = append(rule.env, l.envRule(n, at)) })
	f.each("mounts", func(n *node, at *where) { rule.mounts = append(rule.mounts, l.mount(n, at)) })
	return rule
}

// layersKey joins root hashes, bottom to top, without ambiguity.
func layersKey(layers []string) string {
	var b strings.Builder
	for _, layer := range layers {
		b.WriteString(strconv.Itoa(len(layer)))
		b.WriteByte(':')
		b.WriteString(layer)
	}
	return b.String()
}
