// SPDX-License-Identifier: Apache-2.0

package policy

import "slices"

// ask is what create_container and exec_in_container have in common.
type ask struct {
	id         string
	args, env  []string
	dir        string
	nnp        bool
	user       IDName
	groups     []IDName
	umask      string
	caps       *Capabilities
	privileged bool
	create     *CreateContainer // nil for exec
	mounts     *mountCheck      // nil for exec
}

// misfit is a set of fields in which a request differs from a container.
type misfit uint16

const (
	badPrivileged misfit = 1 << iota
	badNNP
	badUser
	badDir
	badCommand
	badMounts
	badSeccomp
	badNever // no container can be made of it at all
)

func (a *ask) misfit(c *container) misfit {
	bad := c.lacks
	if a.create == nil {
		bad &^= badPrivileged | badSeccomp
	}
	if c.nnp && !a.nnp {
		bad |= badNNP
	}
	if !c.user.ok(a) {
		bad |= badUser
	}
	if a.dir != c.workingDir {
		bad |= badDir
	}
	if a.create == nil {
		if !slices.ContainsFunc(c.exec, func(e execRule) bool { return slices.Equal(e.command, a.args) }) {
			bad |= badCommand
		}
		return bad
	}
	if len(c.command) == 0 || !slices.Equal(c.command, a.args) {
		bad |= badCommand
	}
	if a.privileged && !c.elevated {
		bad |= badPrivileged
	}
	if !a.mounts.allOK(c) {
		bad |= badMounts
	}
	if a.create.SeccompProfileSHA256 != c.seccomp {
		bad |= badSeccomp
	}
	return bad
}

// ok says whether user, every group and umask are what the rule names.
func (u *userRule) ok(a *ask) bool {
	return u.umask == a.umask && u.user.match(a.user) && !slices.ContainsFunc(a.groups, func(g IDName) bool {
		return !slices.ContainsFunc(u.groups, func(r idRule) bool { return r.match(g) })
	})
}

// narrowing is how the candidates of a container shrink under one request.
type narrowing struct {
	candidates  []*container // what the container could be
	misfits     []misfit     // of each candidate
	fit         []*container // candidates without misfit
	env         *envMatcher
	keptEnv     []bool
	envUnique   bool
	fitEnv      []*container // of fit, whose rules accept the kept environment
	keptCaps    *Capabilities
	capsUnique  bool
	fitCaps     []*container // of fitEnv, whose capabilities are the kept ones
	stdioUnique bool
}

// done says whether a candidate is left and everything about it is certain.
func (n *narrowing) done() bool { return len(n.fitCaps) > 0 && n.stdioUnique }

func (s *State) narrow(a *ask) *narrowing {
	n := &narrowing{envUnique: true, capsUnique: true, stdioUnique: true}
	n.candidates, _ = s.matches.get(a.id)
	n.misfits = make([]misfit, len(n.candidates))
	for i, c := range n.candidates {
		if n.misfits[i] = a.misfit(c); n.misfits[i] == 0 {
			n.fit = append(n.fit, c)
		}
	}
	n.env = newEnvMatcher(a.env, s.policy.regexps, len(n.candidates))
	if len(n.fit) == 0 {
		return n
	}
	var ok []bool
	if ok, n.keptEnv, n.envUnique = n.env.narrow(processes(n.fit), s.policy.flags[flagEnvDropping]); !n.envUnique {
		return n
	}
	for i, c := range n.fit {
		if ok[i] {
			n.fitEnv = append(n.fitEnv, c)
		}
	}
	if len(n.fitEnv) == 0 {
		return n
	}
	n.fitCaps, n.keptCaps, n.capsUnique = narrowCaps(n.fitEnv, a.caps, a.privileged, s.policy.dropsCaps())
	if a.create != nil { // an exec has the stdio of its container
		n.stdioUnique = !slices.ContainsFunc(n.fitCaps, func(c *container) bool { return c.stdio != n.fitCaps[0].stdio })
	}
	return n
}

func processes(cs []*container) []*process {
	ps := make([]*process, len(cs))
	for i, c := range cs {
		ps[i] = &c.process
	}
	return ps
}

func (s *State) createContainer(r *CreateContainer, d *Decision) *Denial {
	a := &ask{
		id: r.ContainerID, args: r.ArgList, env: r.EnvList, dir: r.WorkingDir, nnp: r.NoNewPrivileges, user: r.User,
		groups: r.Groups, umask: r.Umask, caps: r.Capabilities, privileged: r.Privileged, create: r, mounts: s.mountCheck(r),
	}
	n := s.narrow(a)
	started := s.started.has(r.ContainerID)
	if started || !n.done() || len(r.Devices) > 0 {
		return s.explainProcess(a, n, started)
	}
	d.Env, d.Capabilities, d.AllowStdio = n.env.list(n.keptEnv), n.keptCaps, n.fitCaps[0].stdio
	s.matches = s.matches.with(r.ContainerID, n.fitCaps)
	s.started = s.started.with(r.ContainerID, r.Privileged)
	s.stdio = s.stdio.with(r.ContainerID, d.AllowStdio)
	return nil
}

func (s *State) execInContainer(r *ExecInContainer, d *Decision) *Denial {
	privileged, started := s.started.get(r.ContainerID)
	a := &ask{
		id: r.ContainerID, args: r.ArgList, env: r.EnvList, dir: r.WorkingDir, nnp: r.NoNewPrivileges, user: r.User,
		groups: r.Groups, umask: r.Umask, caps: r.Capabilities, privileged: privileged,
	}
	n := s.narrow(a)
	if !started || !n.done() {
		return s.explainProcess(a, n, started)
	}
	d.Env, d.Capabilities, d.AllowStdio = n.env.list(n.keptEnv), n.keptCaps, s.StdioAllowed(r.ContainerID)
	s.matches = s.matches.with(r.ContainerID, n.fitCaps)
	return nil
}

func (s *State) execExternal(r *ExecExternal, d *Decision) *Denial {
	var fit []*process
	for _, p := range s.policy.external {
		if p.workingDir == r.WorkingDir && p.hasCommand && len(p.command) > 0 && slices.Equal(p.command, r.ArgList) {
			fit = append(fit, p)
		}
	}
	m := newEnvMatcher(r.EnvList, s.policy.regexps, len(s.policy.external))
	ok, kept, unique := m.narrow(fit, s.policy.flags[flagEnvDropping])
	var left []*process
	for i, p := range fit {
		if unique && ok[i] {
			left = append(left, p)
		}
	}
	if len(left) == 0 || slices.ContainsFunc(left, func(p *process) bool { return p.stdio != left[0].stdio }) {
		return s.explainExternal(r, m, fit, left)
	}
	d.Env, d.AllowStdio = m.list(kept), left[0].stdio
	return nil
}

const errSignal = "target isn't allowed to receive the signal"

// signal narrows to the candidates that allow the signal.
func (s *State) signal(r *SignalContainerProcess) *Denial {
	candidates, _ := s.matches.get(r.ContainerID)
	var left []*container
	for _, c := range candidates {
		if c.allowsSignal(r) {
			left = append(left, c)
		}
	}
	if started := s.started.has(r.ContainerID); !started || len(left) == 0 {
		return s.explainSignal(r, candidates, started, len(left) > 0)
	}
	s.matches = s.matches.with(r.ContainerID, left)
	return nil
}

func (c *container) allowsSignal(r *SignalContainerProcess) bool {
	if r.IsInitProcess {
		return slices.Contains(c.signals, r.Signal)
	}
	return slices.ContainsFunc(c.exec, func(e execRule) bool {
		return slices.Equal(e.command, r.ArgList) && slices.Contains(e.signals, r.Signal)
	})
}

// shutdown forgets what the container can be; its ID stays used.
func (s *State) shutdown(r *ShutdownContainer) *Denial {
	var c denials
	c.whenText(!s.started.has(r.ContainerID), errNotStarted, FieldDiff{"containerID", r.ContainerID, "the ID of a started container"}, "")
	s.matches = s.matches.without(r.ContainerID)
	return c.denial()
}
