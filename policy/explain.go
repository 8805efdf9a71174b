// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"encoding/json"
	"math/bits"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

const (
	errAlreadyStarted = "container already started"
	errNotStarted     = "container not started"
	errMissingEnv     = "missing required environment variable"
	errEnv            = "invalid env list"
	errCaps           = "capabilities don't match"
	errCapsTie        = "containers only distinguishable by capabilties" // the original's spelling
	errStdioTie       = "containers only distinguishable by allow_stdio_access"
	errExternalTie    = "external processes only distinguishable by allow_stdio_access"
	errDevices        = "devices not supported"
	errCommand        = "invalid command"
	errDir            = "invalid working directory"
)

// explainProcess says why create_container or exec_in_container is denied.
func (s *State) explainProcess(a *ask, n *narrowing, started bool) *Denial {
	var c denials
	if a.create != nil {
		c.whenText(started, errAlreadyStarted, FieldDiff{"containerID", a.id, "an ID that was not used before"}, "")
		c.when(len(a.create.Devices) > 0, errDevices, FieldDiff{"devices", strconv.Itoa(len(a.create.Devices)), "none"}, "")
	} else {
		c.whenText(!started, errNotStarted, FieldDiff{"containerID", a.id, "the ID of a started container"}, "")
	}
	c.d.Errors = append(c.d.Errors, s.fieldErrors(a, n)...)
	c.d.Errors = append(c.d.Errors, n.processErrors(a, started)...)
	c.d.sortErrors()
	switch {
	case len(n.candidates) > 0:
		s.explainNearest(&c.d, a, n)
	case !started:
		c.d.Fields = append(c.d.Fields, FieldDiff{"containerID", quote(a.id), "an ID whose overlay is mounted"})
	}
	return &c.d
}

// fieldErrors names each field that fits no candidate.
func (s *State) fieldErrors(a *ask, n *narrowing) (errs []string) {
	everywhere := ^misfit(0)
	for _, bad := range n.misfits {
		everywhere &= bad
	}
	for _, e := range []struct {
		bad    misfit
		text   string
		create bool
	}{
		{badPrivileged, "privileged escalation not allowed", true},
		{badNNP, "invalid noNewPrivileges", false},
		{badUser, "invalid user", false},
		{badDir, errDir, false},
		{badCommand, errCommand, false},
		{badSeccomp, "invalid seccomp", true},
	} {
		if everywhere&e.bad != 0 && (a.create != nil || !e.create) {
			errs = append(errs, e.text)
		}
	}
	if names := n.env.refused(processes(n.candidates)); len(names) > 0 {
		errs = append(errs, errEnv+": "+strings.Join(names, ","))
	}
	if a.create != nil {
		var bad []string
		for i := range a.create.Mounts {
			if !slices.ContainsFunc(n.candidates, func(c *container) bool { return a.mounts.ok(c, i) }) {
				bad = append(bad, a.create.Mounts[i].Destination)
			}
		}
		if len(bad) > 0 {
			errs = append(errs, "invalid mount list: "+strings.Join(bad, ","))
		}
	}
	return errs
}

// processErrors names what stops the narrowing once the fields fit.
func (n *narrowing) processErrors(a *ask, started bool) (errs []string) {
	if started == (a.create != nil) {
		return nil
	}
	all := make([]bool, len(n.env.envs))
	for i := range all {
		all[i] = true
	}
	for i, c := range n.candidates {
		if n.misfits[i]&^badSeccomp == 0 && !n.env.required(&c.process, all) {
			errs = append(errs, errMissingEnv)
		}
	}
	switch {
	case len(n.fit) == 0:
	case !n.envUnique, len(n.fitEnv) == 0 && len(errs) == 0 && len(n.env.refused(processes(n.candidates))) == 0:
		errs = append(errs, errEnv)
	case len(n.fitEnv) == 0:
	case !n.capsUnique:
		errs = append(errs, errCapsTie)
	case len(n.fitCaps) == 0:
		errs = append(errs, errCaps)
	case !n.stdioUnique:
		errs = append(errs, errStdioTie)
	}
	return errs
}

// explainNearest lists the differences to the candidate that has the fewest.
func (s *State) explainNearest(d *Denial, a *ask, n *narrowing) {
	near, best := 0, -1
	for i, c := range n.candidates {
		differ := bits.OnesCount16(uint16(n.misfits[i])) + len(n.env.refused([]*process{&c.process}))
		if best < 0 || differ < best {
			near, best = i, differ
		}
	}
	c := n.candidates[near]
	d.Container = c.label()
	a.explainFields(d, c, n.misfits[near])
	if n.misfits[near]&badMounts != 0 {
		a.explainMounts(d, c)
	}
	s.explainEnv(d, n, c.path(), &c.process)
	kept := a.caps
	if s.policy.dropsCaps() {
		kept, _ = a.caps.keep(capsOf(c, a.privileged))
	}
	if !kept.equal(capsOf(c, a.privileged)) {
		explainCaps(d, c, kept, capsOf(c, a.privileged))
	}
	switch {
	case !n.envUnique:
		d.Fields = append(d.Fields, FieldDiff{"env_rules", "a set that is right for one container",
			"one largest set for all of " + quotes(labels(n.fit))})
	case !n.capsUnique:
		d.Fields = append(d.Fields, FieldDiff{"capabilities", "a set that is right for one container",
			"one largest set for all of " + quotes(labels(n.fitEnv))})
	case !n.stdioUnique:
		d.Fields = append(d.Fields, FieldDiff{"allow_stdio_access", "true and false", "the same for all of " + quotes(labels(n.fitCaps))})
		d.addEdit("set allow_stdio_access alike in " + quotes(labels(n.fitCaps)))
	}
}

func labels(cs []*container) []string {
	out := make([]string, len(cs))
	for i, c := range cs {
		out[i] = c.label()
	}
	return out
}

func (a *ask) explainFields(d *Denial, c *container, bad misfit) {
	set := func(field, asked, allowed, value string) {
		d.Fields = append(d.Fields, FieldDiff{field, asked, allowed})
		d.addEdit("set " + c.path() + "." + field + " to " + value)
	}
	if c.never != "" {
		d.Fields = append(d.Fields, FieldDiff{c.path(), "to be created", "never: " + c.never})
	}
	if bad&badCommand != 0 {
		a.explainCommand(d, c)
	}
	if bad&badDir != 0 {
		set("working_dir", quote(a.dir), quote(c.workingDir), quote(a.dir))
	}
	if bad&badUser != 0 {
		asked := userText{a.umask, a.user, a.groups}
		d.Fields = append(d.Fields, FieldDiff{"user", asked.String(), c.user.String()})
		d.addEdit("set " + c.path() + ".user to " + asked.rule())
	}
	if bad&badNNP != 0 {
		set("no_new_privileges", "false", "true", "false")
	}
	if bad&badPrivileged != 0 {
		set("allow_elevated", "true", "false", "true")
	}
	if bad&badSeccomp != 0 {
		set("seccomp_profile_sha256", quote(a.create.SeccompProfileSHA256), quote(c.seccomp), quote(a.create.SeccompProfileSHA256))
	}
}

func (a *ask) explainCommand(d *Denial, c *container) {
	if a.create != nil {
		allowed := "none"
		if len(c.command) > 0 {
			allowed = quotes(c.command)
		}
		d.Fields = append(d.Fields, FieldDiff{"command", quotes(a.args), allowed})
		d.addEdit("set " + c.path() + ".command to " + jsonText(notNil(a.args)))
		return
	}
	d.Fields = append(d.Fields, FieldDiff{"exec_processes", quotes(a.args), c.execCommands()})
	d.addEdit("add " + jsonText(map[string]any{"command": notNil(a.args), "signals": []int{}}) + " to " + c.path() + ".exec_processes")
}

func (c *container) execCommands() string {
	if len(c.exec) == 0 {
		return "none"
	}
	commands := make([]string, len(c.exec))
	for i := range c.exec {
		commands[i] = quotes(c.exec[i].command)
	}
	return clip(strings.Join(commands, " or "), maxShown)
}

func (a *ask) explainMounts(d *Denial, c *container) {
	for i := range a.create.Mounts {
		m := &a.create.Mounts[i]
		if a.mounts.ok(c, i) {
			continue
		}
		allowed := "no mount there"
		for j := range c.mounts {
			if r := &c.mounts[j]; r.destination == m.Destination {
				allowed = mountText(r.typ, r.source, r.options)
			}
		}
		d.Fields = append(d.Fields, FieldDiff{"mounts[" + quote(m.Destination) + "]", mountText(m.Type, m.Source, m.Options), allowed})
		source := m.Source
		if rest, ok := strings.CutPrefix(source, a.create.SandboxDir); ok && a.create.SandboxDir != "" {
			source = schemeSandbox + regexp.QuoteMeta(rest)
		}
		if climbs(m.Source) {
			continue // no edit allows this
		}
		d.addEdit("add " + jsonText(map[string]any{
			"destination": m.Destination, "options": notNil(m.Options), "source": source, "type": m.Type,
		}) + " to " + c.path() + ".mounts")
	}
}

func mountText(typ, source string, options []string) string {
	return quote(source) + " type " + quote(typ) + " options " + quotes(options)
}

// explainEnv names the variables that no rule accepts, unless they are just dropped, and those that are missing.
func (s *State) explainEnv(d *Denial, n *narrowing, path string, p *process) {
	dropping := s.policy.flags[flagEnvDropping]
	if !dropping {
		for _, name := range n.env.refused([]*process{p}) {
			d.Fields = append(d.Fields, FieldDiff{"env", quote(name), "no rule for this name and value"})
			d.addEdit(`add {"pattern":` + quote(name+"=VALUE") + `,"required":false,"strategy":"string"} to ` + path + ".env_rules")
		}
	}
	for i := range p.env {
		rule := &p.env[i]
		if !rule.required || slices.ContainsFunc(indexes(n.env.envs), func(j int) bool { return n.env.match(rule, j) }) {
			continue
		}
		asked := "no variable " + quote(rule.shown())
		if slices.ContainsFunc(n.env.envs, func(env string) bool { return envName(env) == rule.shown() }) {
			asked = quote(rule.shown()) + " with another value"
		}
		d.Fields = append(d.Fields, FieldDiff{"env", asked, "only with the value that is required"})
		d.addEdit("set " + path + ".env_rules[" + strconv.Itoa(i) + "].required to false")
	}
}

func indexes(list []string) []int {
	out := make([]int, len(list))
	for i := range out {
		out[i] = i
	}
	return out
}

// shown names a rule without the value that it stands for.
func (r *envRule) shown() string {
	if r.name.kind != matchNever {
		return r.name.lit
	}
	return envName(r.whole.lit)
}

func explainCaps(d *Denial, c *container, asked, allowed *Capabilities) {
	a, b := asked.sets(), allowed.sets()
	for i, name := range capNames() {
		if !sameSet(*a[i], *b[i]) {
			d.Fields = append(d.Fields, FieldDiff{"capabilities." + name, quotes(*a[i]), quotes(*b[i])})
			if c.caps != nil {
				d.addEdit("set " + c.path() + ".capabilities." + name + " to " + jsonText(*a[i]))
			}
		}
	}
	if c.caps == nil {
		d.addEdit("set " + c.path() + ".capabilities to " + jsonText(asked))
	}
}

func (s *State) explainExternal(r *ExecExternal, m *envMatcher, fit, left []*process) *Denial {
	var c denials
	all := s.policy.external
	command := slices.ContainsFunc(all, func(p *process) bool { return len(p.command) > 0 && slices.Equal(p.command, r.ArgList) })
	dir := slices.ContainsFunc(all, func(p *process) bool { return p.workingDir == r.WorkingDir })
	add := `add {"allow_stdio_access":false,"command":` + jsonText(r.ArgList) + `,"env_rules":[],"working_dir":` + quote(r.WorkingDir) + `} to external_processes`
	c.when(!command, errCommand, FieldDiff{"external_processes", quotes(r.ArgList), "no such command"}, add)
	c.whenText(!dir, errDir, FieldDiff{"working_dir", r.WorkingDir, "no such directory"}, "")
	if names := m.refused(all); len(names) > 0 {
		c.when(true, errEnv+": "+strings.Join(names, ","), FieldDiff{"env", quotes(names), "no rule for these names and values"}, "")
	}
	every := make([]bool, len(m.envs))
	for i := range every {
		every[i] = true
	}
	missing := slices.ContainsFunc(fit, func(p *process) bool { return !m.required(p, every) })
	c.when(missing, errMissingEnv, FieldDiff{"env", "too few variables", "with the one that is required"}, "")
	c.when(len(left) > 0, errExternalTie, FieldDiff{"allow_stdio_access", "true and false", "the same for all that match"}, "")
	if len(c.d.Errors) == 0 {
		c.when(true, errEnv, FieldDiff{"external_processes", quotes(r.ArgList), "no process with this directory and environment"}, add)
	}
	return c.denial()
}

func (s *State) explainSignal(r *SignalContainerProcess, candidates []*container, started, allowed bool) *Denial {
	var c denials
	c.whenText(!started, errNotStarted, FieldDiff{"containerID", r.ContainerID, "the ID of a started container"}, "")
	if !allowed {
		c.d.Errors = append(c.d.Errors, errSignal)
	}
	if len(candidates) > 0 && !allowed {
		near := candidates[0]
		c.d.Container = near.label()
		if r.IsInitProcess {
			c.d.Fields = append(c.d.Fields, FieldDiff{"signals", strconv.Itoa(r.Signal), jsonText(notNil(near.signals))})
			c.d.addEdit("add " + strconv.Itoa(r.Signal) + " to " + near.path() + ".signals")
		} else {
			near.explainExecSignal(&c.d, r)
		}
	}
	return c.denial()
}

func (c *container) explainExecSignal(d *Denial, r *SignalContainerProcess) {
	for i, e := range c.exec {
		if slices.Equal(e.command, r.ArgList) {
			field := "exec_processes[" + strconv.Itoa(i) + "].signals"
			d.Fields = append(d.Fields, FieldDiff{field, strconv.Itoa(r.Signal), jsonText(notNil(e.signals))})
			d.addEdit("add " + strconv.Itoa(r.Signal) + " to " + c.path() + "." + field)
			return
		}
	}
	d.Fields = append(d.Fields, FieldDiff{"exec_processes", quotes(r.ArgList), c.execCommands()})
	d.addEdit("add " + jsonText(map[string]any{"command": notNil(r.ArgList), "signals": []int{r.Signal}}) + " to " + c.path() + ".exec_processes")
}

// userText shows the user of a request.
type userText struct {
	umask  string
	user   IDName
	groups []IDName
}

func (u userText) String() string {
	return u.user.String() + " groups " + listed(u.groups, IDName.String) + " umask " + quote(u.umask)
}

// rule is the policy's user object that allows exactly this user.
func (u userText) rule() string {
	groups := make([]any, len(u.groups))
	for i, g := range u.groups {
		groups[i] = map[string]string{"pattern": g.ID, "strategy": "id"}
	}
	return jsonText(map[string]any{
		"group_idnames": groups, "umask": u.umask, "user_idname": map[string]string{"pattern": u.user.ID, "strategy": "id"},
	})
}

func (v IDName) String() string {
	if v.Name == "" {
		return quote(v.ID)
	}
	return quote(v.ID) + " named " + quote(v.Name)
}

func (u *userRule) String() string {
	return u.user.String() + " groups " + listed(u.groups, idRule.String) + " umask " + quote(u.umask)
}

func (r idRule) String() string {
	if r.strategy == "any" {
		return "any"
	}
	return clip(r.strategy+" "+strconv.Quote(r.pattern.lit), maxShown)
}

// jsonText writes a value as it stands in a policy, at most some kilobytes of it.
func jsonText(v any) string {
	text, err := json.Marshal(v)
	if err != nil {
		return "?"
	}
	return clip(string(text), 4*maxShown)
}
