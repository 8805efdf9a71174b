// SPDX-License-Identifier: Apache-2.0

//go:build rego

package oracle

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"strings"

	"github.com/coffer-dev/coffer/policy"
)

// gen makes random policies and requests.
type gen struct {
	*rand.Rand
	head       bool // use what only the newest framework has
	containers []object
	external   []object
	framework  string
	constants  map[string]bool // points bound to a constant that denies
	wrong      float64         // share of requests with a field changed
}

type object = map[string]any

func (g *gen) one(p float64) bool { return g.Float64() < p }

func pick[T any](g *gen, list []T) T { return list[g.IntN(len(list))] }

// some picks up to n elements, in their order.
func some[T any](g *gen, list []T, n int) []T {
	out := []T{}
	for _, v := range list {
		if len(out) < n && g.one(0.4) {
			out = append(out, v)
		}
	}
	return out
}

const defaultPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

func layersPool() []string { return []string{"aa11", "bb22", "cc33", "dd44", "ee55"} }

func commandsPool() [][]string {
	return [][]string{{"/pause"}, {"/bin/sh", "-c", "echo hi"}, {"nginx", "-g", "daemon off;"}, {"redis-server"}, {"a", ""}}
}

// envPool is a rule and a variable that it accepts.
func envPool() []struct {
	rule object
	env  string
} {
	str := func(s string) object { return object{"pattern": s, "strategy": "string"} }
	re := func(s string) object { return object{"pattern": s, "strategy": "re2"} }
	return []struct {
		rule object
		env  string
	}{
		{str(defaultPath), defaultPath},
		{str("TERM=xterm"), "TERM=xterm"},
		{re("HOSTNAME=.+"), "HOSTNAME=c1"},
		{re("(?i)(FABRIC)_.+=.+"), "fabric_x=1"},
		{re("T(E)?MP=.+"), "TMP=/tmp"},
		{str("EMPTY="), "EMPTY="},
		{str("A=1"), "A=1"},
		{str("A=2"), "A=2"},
		{re("^A=[0-9]$"), "A=7"},
		{str("NOEQUALS"), "NOEQUALS"},
		{re("UNI=é+"), "UNI=éé"},
	}
}

func mountsPool() []object {
	m := func(dst, src, mode string) object {
		return object{"destination": dst, "source": src, "type": "bind", "options": []string{"rbind", "rshared", mode}}
	}
	return []object{
		m("/etc/resolv.conf", "sandbox:///tmp/atlas/resolvconf/.+", "rw"),
		m("/data", "sandbox:///tmp/atlas/emptydir/.+", "rw"),
		m("/data", "sandbox:///tmp/atlas/azureFileVolume/.+", "ro"),
		m("/huge", "hugepages:///2M/x[0-9]", "rw"),
		m("/p9", "plan9://", "rw"),
		m("/exact", "/some/where", "ro"),
	}
}

func mountSources() map[string]string {
	const box, huge = "/run/gcs/c/cafe/sandboxMounts", "/run/gcs/c/cafe/hugepages"
	return map[string]string{
		"sandbox:///tmp/atlas/resolvconf/.+":      box + "/tmp/atlas/resolvconf/abc",
		"sandbox:///tmp/atlas/emptydir/.+":        box + "/tmp/atlas/emptydir/vol1",
		"sandbox:///tmp/atlas/azureFileVolume/.+": box + "/tmp/atlas/azureFileVolume/vol2",
		"hugepages:///2M/x[0-9]":                  huge + "/2M/x1",
		"plan9://":                                "/run/gcs/c/c0/mounts/m0",
		"/some/where":                             "/some/where",
	}
}

func usersPool() []object {
	id := func(pattern, strategy string) object { return object{"pattern": pattern, "strategy": strategy} }
	u := func(umask string, user object, groups ...object) object {
		if groups == nil {
			groups = []object{}
		}
		return object{"umask": umask, "user_idname": user, "group_idnames": groups}
	}
	return []object{
		u("0022", id("", "any"), id("", "any")),
		u("0022", id("1000", "id"), id("1000", "id"), id("27", "id")),
		u("0027", id("web", "name"), id("", "any")),
		u("0022", id("^web$", "re2"), id("^w.*$", "re2")),
		u("0022", id("", "any")),
	}
}

func capsPool() []any {
	full, privileged := policy.DefaultCapabilities(), policy.PrivilegedCapabilities()
	small := &policy.Capabilities{Bounding: []string{"CAP_CHOWN", "CAP_KILL"}, Effective: []string{"CAP_CHOWN"},
		Inheritable: []string{}, Permitted: []string{"CAP_CHOWN"}, Ambient: []string{}}
	other := &policy.Capabilities{Bounding: []string{"CAP_CHOWN", "CAP_MKNOD"}, Effective: []string{"CAP_CHOWN"},
		Inheritable: []string{}, Permitted: []string{"CAP_CHOWN"}, Ambient: []string{}}
	return []any{full, full, privileged, small, other, nil}
}

func (g *gen) envRules() []object {
	rules := []object{}
	for _, e := range some(g, envPool(), 8) {
		rule := object{"required": g.one(0.15)}
		for k, v := range e.rule {
			rule[k] = v
		}
		if name, value, ok := strings.Cut(e.env, "="); g.head && ok && g.one(0.2) {
			rule = object{"required": g.one(0.2), "name": name, "name_strategy": "string", "value": value, "value_strategy": "string"}
		}
		rules = append(rules, rule)
	}
	if g.one(0.05) {
		rules = append(rules, object{"pattern": "(", "strategy": "re2", "required": false})
	}
	if g.one(0.05) {
		rules = append(rules, object{"pattern": "X=1", "strategy": "glob", "required": false})
	}
	return rules
}

func (g *gen) container() object {
	exec := []object{}
	for _, c := range some(g, commandsPool(), 2) {
		exec = append(exec, object{"command": c, "signals": some(g, []int{2, 9, 10, 15}, 3)})
	}
	layers := some(g, layersPool(), 3)
	if len(layers) == 0 {
		layers = []string{pick(g, layersPool())}
	}
	if g.one(0.5) {
		g.Shuffle(len(layers), func(i, j int) { layers[i], layers[j] = layers[j], layers[i] })
	}
	return object{
		"command": pick(g, commandsPool()), "env_rules": g.envRules(), "layers": layers, "mounts": some(g, mountsPool(), 3),
		"exec_processes": exec, "signals": some(g, []int{2, 9, 15}, 3), "user": pick(g, usersPool()),
		"capabilities": pick(g, capsPool()), "seccomp_profile_sha256": pick(g, []string{"", "", "abcd"}),
		"allow_elevated": g.one(0.25), "no_new_privileges": g.one(0.25), "allow_stdio_access": g.one(0.7),
		"working_dir": pick(g, []string{"/", "/", "/app"}), "name": fmt.Sprintf("c%d", g.IntN(1000)),
	}
}

// alike copies a container and changes at most two fields, so that several have the same layers.
func (g *gen) alike(c object) object {
	d, other := object{}, g.container()
	for k, v := range c {
		d[k] = v
	}
	for range g.IntN(3) {
		key := pick(g, []string{"command", "env_rules", "mounts", "exec_processes", "signals", "user", "capabilities",
			"seccomp_profile_sha256", "allow_elevated", "no_new_privileges", "allow_stdio_access", "working_dir"})
		d[key] = other[key]
	}
	return d
}

// odd breaks a container in a way that the original survives.
func (g *gen) odd(c object) {
	switch n := g.IntN(4); {
	case n == 0:
		c["command"] = nil
	case n == 1 && (g.head || g.framework != "0.3.0"): // the version of the original itself: no defaults there
		delete(c, pick(g, []string{"command", "env_rules", "mounts", "exec_processes", "signals", "user", "capabilities",
			"seccomp_profile_sha256", "allow_elevated", "no_new_privileges", "working_dir", "layers"}))
	case n == 2:
		c["unknown_field"] = object{"a": 1}
	default:
		c["user"] = object{"umask": "0022", "group_idnames": []object{}}
	}
}

// policyText makes a policy.
func (g *gen) policyText() []byte {
	g.framework = pick(g, []string{"0.2.3", "0.2.3", "0.2.3", "0.3.0", "0.1.0", "0.2.0", "0.2.1", "0.2.2"})
	api := pick(g, []string{"0.10.0", "0.10.0", "0.10.0", "0.9.0", "0.5.0", "0.1.0"})
	if g.head {
		g.framework = pick(g, []string{g.framework, "0.5.0", "0.5.0", "0.4.1"})
		api = pick(g, []string{api, "0.11.0", "0.12.0"})
	}
	g.containers = nil
	for range 1 + g.IntN(3) {
		c := g.container()
		g.containers = append(g.containers, c)
		for range g.IntN(3) {
			g.containers = append(g.containers, g.alike(c))
		}
	}
	for _, c := range g.containers {
		if g.one(0.08) {
			g.odd(c)
		}
	}
	g.external, g.constants = nil, map[string]bool{}
	for range g.IntN(3) {
		g.external = append(g.external, object{"command": pick(g, commandsPool()), "env_rules": g.envRules(),
			"working_dir": pick(g, []string{"/", "/app"}), "allow_stdio_access": g.one(0.5)})
	}
	return g.write(api)
}

func (g *gen) write(api string) []byte {
	var b strings.Builder
	b.WriteString("package policy\n\nimport future.keywords.every\nimport future.keywords.in\n\n")
	define := func(name string, v any) {
		text, err := json.Marshal(v)
		if g.one(0.2) {
			text, err = json.MarshalIndent(v, "", "  ")
		}
		if err != nil {
			panic(err)
		}
		fmt.Fprintf(&b, "%s := %s\n", name, text)
	}
	if !g.one(0.02) {
		define(pick(g, []string{"api_version", "api_version", "api_svn"}), api)
	}
	define("framework_version", g.framework)
	define("containers", g.containers)
	if g.external != nil {
		define("external_processes", g.external)
	}
	flags := []string{"allow_properties_access", "allow_dump_stacks", "allow_runtime_logging", "allow_environment_variable_dropping",
		"allow_unencrypted_scratch", "allow_capability_dropping"}
	points := []string{"mount_device", "unmount_device", "mount_overlay", "unmount_overlay", "create_container",
		"exec_in_container", "exec_external", "shutdown_container", "signal_container_process", "plan9_mount",
		"plan9_unmount", "get_properties", "dump_stacks", "runtime_logging", "scratch_mount", "scratch_unmount"}
	if g.head {
		flags = append(flags, "allow_host_network")
		points = append(points, "rw_mount_device", "rw_unmount_device", "host_network")
		if g.one(0.2) {
			define("platform_rules", []object{{"env_rules": g.envRules(), "mounts": some(g, mountsPool(), 1)}})
		}
	}
	for _, flag := range flags {
		if !g.one(0.1) {
			define(flag, g.one(0.6))
		}
	}
	for _, point := range points {
		switch {
		case g.one(0.03):
		case g.one(0.02):
			allowed := g.one(0.8)
			g.constants[point] = !allowed
			define(point, object{"allowed": allowed, "env_list": nil, "allow_stdio_access": g.one(0.5)})
		default:
			fmt.Fprintf(&b, "%s := data.framework.%s\n", point, point)
		}
	}
	b.WriteString(pick(g, []string{"reason := {\"errors\": data.framework.errors}\n", "reason := data.framework.reason\n"}))
	return []byte(b.String())
}
