// SPDX-License-Identifier: Apache-2.0

package author

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/coffer-dev/coffer/policy"
)

// Prefixes of the sources of volumes, as the guest makes them.
const (
	namedVolumes    = "sandbox:///tmp/coffer/volumes/"
	readOnlyVolumes = "sandbox:///tmp/coffer/ro/"
)

// Generate writes the policy of a group. It is the text whose SHA-256 the hardware measures; policy.Parse reads it.
func Generate(spec Spec) ([]byte, error) {
	if len(spec.Containers) == 0 {
		return nil, errors.New("generating policy: no containers")
	}
	var lines, volumes []string
	names := map[string]bool{}
	for i := range spec.Containers {
		c := &spec.Containers[i]
		if err := c.check(); err != nil {
			return nil, fmt.Errorf("generating policy: %w", err)
		}
		if names[c.Name] {
			return nil, fmt.Errorf("generating policy: two containers are called %q", c.Name)
		}
		names[c.Name] = true
		p, err := c.Resolve()
		if err != nil {
			return nil, fmt.Errorf("generating policy: %w", err)
		}
		object, err := containerObject(c, p)
		if err != nil {
			return nil, fmt.Errorf("generating policy: %w", err)
		}
		lines = append(lines, object.line())
		for _, v := range p.Volumes {
			if v.RootHash != "" {
				volumes = append(volumes, volumeObject(v).line())
			}
		}
	}
	slices.Sort(volumes)
	lines = append(lines, slices.Compact(volumes)...)
	return []byte(header + "containers := [" + strings.Join(lines, ",") + "]\n" + trailer), nil
}

// containerObject is a container as the policy names it.
func containerObject(c *Container, p *Process) (object, error) {
	user, err := userObject(p.User)
	if err != nil {
		return nil, fmt.Errorf("container %q: %w", c.Name, err)
	}
	caps := policy.DefaultCapabilities()
	if c.Privileged {
		caps = policy.PrivilegedCapabilities()
	}
	o := object{
		"allow_elevated": c.Privileged, "allow_stdio_access": c.AllowStdio, "capabilities": capsObject(caps), "command": p.Args,
		"env_rules": envRules(c, p), "exec_processes": execObjects(p.Exec), "id": c.ID, "layers": c.Layers,
		"mounts": mountObjects(p.Volumes), "name": c.Name, "no_new_privileges": c.NoNewPrivileges,
		"seccomp_profile_sha256": "", "signals": p.Signals, "user": user, "working_dir": p.WorkingDir,
	}
	if !o.valid() {
		return nil, fmt.Errorf("container %q: a text is not UTF-8 or holds a NUL", c.Name)
	}
	return o, nil
}

// volumeObject allows a read-only disk to be mounted. Its command is null, so that no container can be made of it.
func volumeObject(v Volume) object {
	none := &policy.Capabilities{}
	return object{
		"allow_elevated": false, "allow_stdio_access": false, "capabilities": capsObject(none), "command": nil,
		"env_rules": []object{}, "exec_processes": []object{}, "id": "", "layers": []string{v.RootHash}, "mounts": []object{},
		"name": "volume:" + v.Destination, "no_new_privileges": true, "seccomp_profile_sha256": "", "signals": []int{},
		"user": anyUser(), "working_dir": "/",
	}
}

func capsObject(c *policy.Capabilities) object {
	sorted := func(list []string) []string { return slices.Sorted(slices.Values(list)) }
	return object{
		"ambient": sorted(c.Ambient), "bounding": sorted(c.Bounding), "effective": sorted(c.Effective),
		"inheritable": sorted(c.Inheritable), "permitted": sorted(c.Permitted),
	}
}

// envRules allow the process's variables with exactly their values, a terminal, a host name, and the user's patterns.
func envRules(c *Container, p *Process) []object {
	type rule struct{ pattern, strategy string }
	var rules []rule
	for _, env := range p.Env {
		rules = append(rules, rule{env, "string"})
	}
	if !hasName(p.Env, "TERM") {
		rules = append(rules, rule{"TERM=xterm", "string"})
	}
	if !hasName(p.Env, "HOSTNAME") {
		rules = append(rules, rule{"HOSTNAME=.+", "re2"})
	}
	for _, pattern := range c.EnvPatterns {
		rules = append(rules, rule{pattern, "re2"})
	}
	slices.SortFunc(rules, func(a, b rule) int {
		return strings.Compare(a.pattern+"\x00"+a.strategy, b.pattern+"\x00"+b.strategy)
	})
	var out []object
	for _, r := range slices.Compact(rules) {
		out = append(out, object{"pattern": r.pattern, "required": false, "strategy": r.strategy})
	}
	return out
}

func execObjects(execs []Exec) []object {
	out := []object{}
	for _, e := range execs {
		out = append(out, object{"command": e.Command, "signals": e.Signals})
	}
	return out
}

func mountObjects(volumes []Volume) []object {
	out := []object{}
	for _, v := range volumes {
		source, options := namedVolumes+regexp.QuoteMeta(v.Name), []string{"rbind", "rshared", "rw"}
		switch {
		case v.RootHash != "":
			source, options = readOnlyVolumes+v.RootHash, []string{"rbind", "ro"}
		case v.ReadOnly:
			options[2] = "ro"
		}
		out = append(out, object{"destination": v.Destination, "options": options, "source": source, "type": "bind"})
	}
	return out
}

func anyUser() object {
	anyone := object{"pattern": "", "strategy": "any"}
	return object{"group_idnames": []object{anyone}, "umask": "0022", "user_idname": anyone}
}

// userObject allows exactly the user that the guest finds for USER or USER:GROUP: a number by its ID, a name by its
// name in the image's own files. Without a group the memberships that those files give are allowed, whatever they are.
// Without a user it is root, which is what the guest then runs it as. (Azure's tools write that any user may be
// asked for; the host could then choose one.)
func userObject(user string) (object, error) {
	o := anyUser()
	name, group, hasGroup := strings.Cut(user, ":")
	rule, err := idRule(name)
	if err != nil {
		return nil, fmt.Errorf("user %q: %w", user, err)
	}
	o["user_idname"] = rule
	if hasGroup && group != "" {
		if rule, err = idRule(group); err != nil {
			return nil, fmt.Errorf("user %q: %w", user, err)
		}
		o["group_idnames"] = []object{rule}
	}
	return o, nil
}

// idRule names a user or group; the guest reads digits as a number, and no name at all as 0.
func idRule(s string) (object, error) {
	if s == "" {
		s = "0"
	}
	if strings.ContainsAny(s, ":\n\x00") {
		return nil, fmt.Errorf("%q is no name", s)
	}
	if n, err := strconv.ParseUint(s, 10, 31); err == nil {
		return object{"pattern": strconv.FormatUint(n, 10), "strategy": "id"}, nil
	}
	return object{"pattern": s, "strategy": "name"}, nil
}
