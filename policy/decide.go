// SPDX-License-Identifier: Apache-2.0

package policy

import "slices"

// Decision is the answer to one request. If Allowed is false, Denial says why and the other fields are empty.
//
// For create_container, exec_in_container and exec_external, Env is what may be passed of the environment that was
// asked for, in that order, and Capabilities (not for exec_external) what may be had of the capabilities: the guest
// must use these, not the request's. AllowStdio says whether the host may see the process's stdio.
type Decision struct {
	Allowed      bool
	Env          []string
	Capabilities *Capabilities
	AllowStdio   bool
	Denial       *Denial
}

const (
	errNoPolicy     = "no policy has been set"
	errUnknown      = "request is not known"
	errNoAPIVersion = "policy does not define api_version"
	errNoCaps       = "capabilities object provided by the UVM to the policy engine is nil"
)

// Decide answers a request in the state s. If it is denied the returned state is s itself.
func (s State) Decide(req Request) (Decision, State) {
	next := s
	name, rule := next.rule(req)
	var d Decision
	if denial := next.decide(req, name, rule, &d); denial != nil {
		denial.Point = name
		if s.policy != nil {
			denial.reason = s.policy.reason
		}
		return Decision{Denial: denial}, s
	}
	d.Allowed = true
	return d, next
}

// rule finds the framework's rule for a request. It is nil for a type that is not known. The rule changes s.
func (s *State) rule(req Request) (string, func(*Decision) *Denial) {
	var rule func(*Decision) *Denial
	switch r := req.(type) {
	case MountDevice:
		rule = func(*Decision) *Denial { return s.mountDevice(&r) }
	case UnmountDevice:
		rule = func(*Decision) *Denial { return s.unmountDevice(&r) }
	case RWMountDevice:
		rule = func(*Decision) *Denial { return s.rwMountDevice(&r) }
	case RWUnmountDevice:
		rule = func(*Decision) *Denial { return s.rwUnmountDevice(&r) }
	case MountOverlay:
		rule = func(*Decision) *Denial { return s.mountOverlay(&r) }
	case UnmountOverlay:
		rule = func(*Decision) *Denial { return s.unmountOverlay(&r) }
	case ScratchMount:
		rule = func(*Decision) *Denial { return s.scratchMount(&r) }
	case ScratchUnmount:
		rule = func(*Decision) *Denial { return s.scratchUnmount(&r) }
	case CreateContainer:
		rule = func(d *Decision) *Denial { return s.createContainer(&r, d) }
	case ExecInContainer:
		rule = func(d *Decision) *Denial { return s.execInContainer(&r, d) }
	case ExecExternal:
		rule = func(d *Decision) *Denial { return s.execExternal(&r, d) }
	case SignalContainerProcess:
		rule = func(*Decision) *Denial { return s.signal(&r) }
	case ShutdownContainer:
		rule = func(*Decision) *Denial { return s.shutdown(&r) }
	case Plan9Mount:
		rule = func(*Decision) *Denial { return s.plan9Mount(&r) }
	case Plan9Unmount:
		rule = func(*Decision) *Denial { return s.plan9Unmount(&r) }
	case GetProperties:
		rule = func(*Decision) *Denial { return s.flag(flagProperties) }
	case DumpStacks:
		rule = func(*Decision) *Denial { return s.flag(flagStacks) }
	case RuntimeLogging:
		rule = func(*Decision) *Denial { return s.flag(flagLogging) }
	case HostNetwork:
		rule = func(*Decision) *Denial { return s.flag(flagHostNetwork) }
	default:
		return "", nil
	}
	return req.Point(), rule
}

// decide finds out who answers: a constant of the policy, the framework, or the default for a policy that is older
// than the enforcement point.
func (s *State) decide(req Request, name string, rule func(*Decision) *Denial, d *Decision) *Denial {
	info, known := pointInfo(name)
	switch {
	case s.policy == nil:
		return &Denial{PolicyError: errNoPolicy}
	case rule == nil || !known:
		return &Denial{PolicyError: errUnknown}
	case lacksCaps(req):
		return &Denial{PolicyError: errNoCaps}
	case s.policy.api == nil:
		return &Denial{PolicyError: errNoAPIVersion}
	}
	binding := s.policy.bindings[name]
	switch {
	case binding == nil && s.policy.api.compare(info.since) >= 0:
		return &Denial{PolicyError: "rule for " + name + " is missing from policy"}
	case binding == nil && !info.framework && !info.allowed:
		return &Denial{
			Fields: []FieldDiff{{"api_version", s.policy.api.String(), info.since.String() + " or newer"}},
			Edit:   `set api_version to "` + APIVersion + `" and bind ` + name + " to data.framework." + name,
		}
	case binding == nil && !info.framework:
		return s.constant(req, &constant{allowed: info.allowed}, d)
	case binding != nil && binding.constant != nil:
		return s.constant(req, binding.constant, d)
	}
	// The original decides rw_mount_device by the framework even for a policy that does not name any version of it.
	if !s.policy.frameworkUsable() && (binding != nil || s.policy.framework != nil) {
		return s.wrongFramework()
	}
	return rule(d)
}

func lacksCaps(req Request) bool {
	switch r := req.(type) {
	case CreateContainer:
		return r.Capabilities == nil
	case ExecInContainer:
		return r.Capabilities == nil
	}
	return false
}

func (s *State) wrongFramework() *Denial {
	v := s.policy.framework
	if v == nil {
		return &Denial{
			Errors: []string{"framework_version is missing. Current version: " + FrameworkVersion},
			Fields: []FieldDiff{{Field: "framework_version", Asked: "none", Allowed: FrameworkVersion + " or older"}},
			Edit:   `add framework_version := "` + FrameworkVersion + `"`,
		}
	}
	return &Denial{
		Errors: []string{"framework_version is ahead of the current version: " + v.String() + " is greater than " + FrameworkVersion},
		Fields: []FieldDiff{{Field: "framework_version", Asked: v.String(), Allowed: FrameworkVersion + " or older"}},
	}
}

// constant answers without looking at the request, apart from handing back its environment and capabilities.
func (s *State) constant(req Request, c *constant, d *Decision) *Denial {
	if !c.allowed {
		return &Denial{Fields: []FieldDiff{{Field: "allowed", Asked: "true", Allowed: "false"}},
			Edit: "bind " + req.Point() + " to data.framework." + req.Point()}
	}
	switch r := req.(type) {
	case CreateContainer:
		d.Env, d.Capabilities, d.AllowStdio = c.keepEnv(r.EnvList), c.keepCaps(r.Capabilities), c.stdio
		s.stdio = s.stdio.with(r.ContainerID, c.stdio)
	case ExecInContainer:
		d.Env, d.Capabilities, d.AllowStdio = c.keepEnv(r.EnvList), c.keepCaps(r.Capabilities), s.StdioAllowed(r.ContainerID)
	case ExecExternal:
		d.Env, d.AllowStdio = c.keepEnv(r.EnvList), c.stdio
	}
	return nil
}

func (c *constant) keepEnv(asked []string) []string {
	if !c.hasEnv {
		return slices.Clone(asked)
	}
	var kept []string
	for _, env := range asked {
		if slices.Contains(c.env, env) {
			kept = append(kept, env)
		}
	}
	return kept
}

func (c *constant) keepCaps(asked *Capabilities) *Capabilities {
	allowed := asked
	if c.caps != nil {
		allowed = c.caps
	}
	kept, _ := asked.keep(allowed)
	return kept
}

// flag is the framework's rule for points that only a flag decides.
func (s *State) flag(name string) *Denial {
	if s.policy.flags[name] {
		return nil
	}
	return &Denial{
		Fields: []FieldDiff{{Field: name, Asked: "true", Allowed: "false"}},
		Edit:   "set " + name + " to true",
	}
}

// dropsCaps says whether capabilities may be dropped. Older frameworks do not know of it.
func (p *Policy) dropsCaps() bool {
	return p.flags[flagCapDropping] && p.framework != nil && p.framework.compare(sinceCapabilities) >= 0
}
