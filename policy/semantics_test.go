// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// with copies a container and sets members; a nil function deletes.
func with(c object, change object) object {
	c = maps.Clone(c)
	for k, v := range change {
		if v == "delete" {
			delete(c, k)
		} else {
			c[k] = v
		}
	}
	return c
}

func rules(patterns ...string) []object {
	out := []object{}
	for _, p := range patterns {
		out = append(out, object{"pattern": p, "strategy": "string", "required": false})
	}
	return out
}

func createWith(env ...string) Request {
	return change(func(r *CreateContainer) { r.EnvList = env })
}

const (
	dropEnv  = "allow_environment_variable_dropping"
	dropCaps = "allow_capability_dropping"
)

func TestEnvironmentDropping(t *testing.T) {
	a, b := with(web(), object{"name": "a", "env_rules": rules("A=1", "C=1")}), with(web(), object{"name": "b", "env_rules": rules("A=1", "B=1")})
	for _, row := range []struct {
		name  string
		flags []string
		env   []string
		want  []string // nil: denied
		err   string
	}{
		{"kept in order", []string{dropEnv}, []string{"X=1", "C=1", "A=1"}, []string{"C=1", "A=1"}, ""},
		{"no dropping", nil, []string{"X=1", "C=1", "A=1"}, nil, "invalid env list: X"},
		{"no dropping needed", nil, []string{"C=1", "A=1"}, []string{"C=1", "A=1"}, ""},
		{"each once", []string{dropEnv}, []string{"A=1", "C=1", "A=1"}, []string{"A=1", "C=1"}, ""},
		{"tie of different sets", []string{dropEnv}, []string{"B=1", "C=1"}, nil, "invalid env list"},
		{"tie of equal sets", []string{dropEnv}, []string{"A=1", "X=1"}, []string{"A=1"}, ""},
		{"largest wins", []string{dropEnv}, []string{"A=1", "B=1", "X=1"}, []string{"A=1", "B=1"}, ""},
		{"nothing left", []string{dropEnv}, []string{"X=1"}, []string{}, ""},
		{"together but nowhere", nil, []string{"B=1", "C=1"}, nil, "invalid env list"},
		{"not UTF-8", nil, []string{"A=1\xff"}, nil, "invalid env list: A"},
	} {
		t.Run(row.name, func(t *testing.T) {
			d, _ := upTo(t, parse(t, text([]object{a, b}, row.flags...)), createWith(row.env...))
			if d.Allowed != (row.want != nil) {
				t.Fatalf("allowed = %t: %v", d.Allowed, d.Denial)
			}
			if diff := cmp.Diff(row.want, d.Env); d.Allowed && diff != "" {
				t.Errorf("Env: -want +got\n%s", diff)
			}
			if !d.Allowed && !slices.Contains(d.Denial.Errors, row.err) {
				t.Errorf("errors %q; want %q", d.Denial.Errors, row.err)
			}
		})
	}
}

func caps(bounding ...string) *Capabilities {
	return &Capabilities{Bounding: bounding, Effective: []string{}, Inheritable: []string{}, Permitted: []string{}, Ambient: []string{}}
}

func TestCapabilityDropping(t *testing.T) {
	one, two := with(web(), object{"name": "1", "capabilities": caps("CAP_CHOWN", "CAP_KILL")}), with(web(), object{"name": "2", "capabilities": caps("CAP_CHOWN", "CAP_MKNOD")})
	for _, row := range []struct {
		name  string
		flags []string
		asked *Capabilities
		want  []string
		err   string
	}{
		{"exact", nil, caps("CAP_KILL", "CAP_CHOWN"), []string{"CAP_KILL", "CAP_CHOWN"}, ""},
		{"more", nil, caps("CAP_KILL", "CAP_CHOWN", "CAP_SYS_ADMIN"), nil, errCaps},
		{"more, dropped", []string{dropCaps}, caps("CAP_SYS_ADMIN", "CAP_KILL", "CAP_CHOWN"), []string{"CAP_KILL", "CAP_CHOWN"}, ""},
		{"less", []string{dropCaps}, caps("CAP_KILL"), nil, errCaps},
		{"tie", []string{dropCaps}, caps("CAP_KILL", "CAP_CHOWN", "CAP_MKNOD"), nil, errCapsTie},
		{"twice", nil, caps("CAP_KILL", "CAP_CHOWN", "CAP_CHOWN"), nil, errCaps},
		{"twice, dropped", []string{dropCaps}, caps("CAP_KILL", "CAP_CHOWN", "CAP_CHOWN"), []string{"CAP_KILL", "CAP_CHOWN"}, ""},
	} {
		t.Run(row.name, func(t *testing.T) {
			req := change(func(r *CreateContainer) { r.Capabilities = row.asked })
			d, _ := upTo(t, parse(t, text([]object{one, two}, row.flags...)), req)
			if d.Allowed != (row.want != nil) {
				t.Fatalf("allowed = %t: %v", d.Allowed, d.Denial)
			}
			if d.Allowed && !slices.Equal(d.Capabilities.Bounding, row.want) {
				t.Errorf("bounding = %q; want %q", d.Capabilities.Bounding, row.want)
			}
			if !d.Allowed && !slices.Contains(d.Denial.Errors, row.err) {
				t.Errorf("errors %q; want %q", d.Denial.Errors, row.err)
			}
		})
	}
}

func TestDefaultCapabilitySets(t *testing.T) {
	for _, row := range []struct {
		name                 string
		elevated, privileged bool
		asked                *Capabilities
		want                 bool
	}{
		{"plain", false, false, DefaultCapabilities(), true},
		{"plain wants all", false, false, PrivilegedCapabilities(), false},
		{"elevated, not asked", true, false, DefaultCapabilities(), true},
		{"elevated, not asked, wants all", true, false, PrivilegedCapabilities(), false},
		{"privileged", true, true, PrivilegedCapabilities(), true},
		{"privileged with few", true, true, DefaultCapabilities(), false},
		{"privileged, not allowed", false, true, DefaultCapabilities(), false},
	} {
		req := change(func(r *CreateContainer) { r.Capabilities, r.Privileged = row.asked, row.privileged })
		d, _ := upTo(t, parse(t, text([]object{with(web(), object{"capabilities": nil, "allow_elevated": row.elevated})})), req)
		if d.Allowed != row.want {
			t.Errorf("%s: allowed = %t; want %t (%v)", row.name, d.Allowed, row.want, d.Denial)
		}
	}
}

func TestStdioMustBeCertain(t *testing.T) {
	quiet := with(web(), object{"name": "quiet", "allow_stdio_access": false})
	d, _ := upTo(t, parse(t, text([]object{web(), quiet})), createWith("PATH=/bin"))
	if d.Allowed || !slices.Contains(d.Denial.Errors, errStdioTie) {
		t.Errorf("two values of allow_stdio_access: %+v, %v", d, d.Denial)
	}
	d, _ = upTo(t, parse(t, text([]object{quiet})), createWith("PATH=/bin"))
	if !d.Allowed || d.AllowStdio {
		t.Errorf("no stdio: %+v", d)
	}
}

// TestOlderFrameworks: what a policy of an older framework_version does not say has a default, and only that.
func TestOlderFrameworks(t *testing.T) {
	later := []struct{ since, field string }{
		{"0.2.0", "no_new_privileges"}, {"0.2.1", "user"}, {"0.2.2", "capabilities"}, {"0.2.3", "seccomp_profile_sha256"},
	}
	for i, row := range later {
		before := "0.1.0"
		if i > 0 {
			before = later[i-1].since
		}
		for _, v := range []struct {
			version string
			want    bool
		}{{before, true}, {row.since, false}} {
			c := web()
			for _, l := range later[i:] {
				delete(c, l.field)
			}
			if v.version == row.since {
				for _, l := range later[i+1:] {
					c[l.field] = web()[l.field]
				}
			}
			p := strings.Replace(string(text([]object{c})), "0.5.0", v.version, 1)
			s := parse(t, []byte(p)).Start()
			got := false
			for _, req := range webRequests() {
				d, next := s.Decide(req)
				s = next
				if _, ok := req.(CreateContainer); ok {
					got = d.Allowed
				}
			}
			if got != v.want {
				t.Errorf("framework %s without %s: create allowed = %t; want %t", v.version, row.field, got, v.want)
			}
		}
	}
}

func TestSignalDefaults(t *testing.T) {
	for version, want := range map[string]bool{"0.2.3": true, "0.4.0": true, "0.4.1": false, "0.5.0": false} {
		p := strings.Replace(string(text([]object{web()})), "0.5.0", version, 1)
		d, _ := upTo(t, parse(t, []byte(p)), change(func(r *SignalContainerProcess) { r.Signal = 9 }))
		if d.Allowed != want {
			t.Errorf("framework %s: signal 9 allowed = %t; want %t", version, d.Allowed, want)
		}
	}
}

// TestNewestFrameworkUsesRawObjects: without defaults a missing field makes a container useless, except the lists of
// what may be executed or sent.
func TestNewestFrameworkUsesRawObjects(t *testing.T) {
	for field := range web() {
		want := field == "exec_processes" || field == "signals" || field == "name"
		c := with(web(), object{field: "delete"})
		s := parse(t, text([]object{c})).Start()
		got := false
		for _, req := range webRequests() {
			d, next := s.Decide(req)
			s = next
			if _, ok := req.(CreateContainer); ok {
				got = d.Allowed
			}
		}
		if field == "env_rules" { // then PATH cannot be given either
			want = false
		}
		if got != want && field != "mounts" || field == "mounts" && got {
			t.Errorf("without %s: create allowed = %t; want %t", field, got, want)
		}
	}
}

func TestVersionsDeny(t *testing.T) {
	for _, row := range []struct{ name, from, to, err, policyError string }{
		{"no framework", `framework_version := "0.5.0"`, "", "framework_version is missing. Current version: 0.5.0", ""},
		{"newer framework", `"0.5.0"`, `"0.5.1"`, "framework_version is ahead of the current version: 0.5.1 is greater than 0.5.0", ""},
		{"no api", `api_version := "0.12.0"`, "", "", errNoAPIVersion},
	} {
		p := parse(t, []byte(strings.Replace(string(text([]object{web()}, "allow_dump_stacks")), row.from, row.to, 1)))
		s := p.Start()
		for _, req := range append(webRequests(), DumpStacks{}) {
			d, _ := s.Decide(req)
			if d.Allowed || d.Denial.PolicyError != row.policyError || row.err != "" && !slices.Contains(d.Denial.Errors, row.err) {
				t.Errorf("%s: %s: %+v", row.name, req.Point(), d.Denial)
			}
		}
	}
}

// TestOlderAPI: points that a policy is too old to know are answered by default.
func TestOlderAPI(t *testing.T) {
	for _, row := range []struct {
		api     string
		req     Request
		allowed bool
		text    string
	}{
		{"0.1.0", MountDevice{}, false, "rule for mount_device is missing"},
		{"0.1.0", UnmountDevice{}, true, ""},
		{"0.2.0", UnmountDevice{}, false, "rule for unmount_device is missing"},
		{"0.9.0", ScratchMount{}, true, ""},
		{"0.10.0", ScratchMount{}, false, "rule for scratch_mount is missing"},
		{"0.6.0", GetProperties{}, true, ""},
		{"0.7.0", GetProperties{}, false, "rule for get_properties is missing"},
		{"0.1.0", ExecInContainer{Capabilities: caps(), EnvList: []string{"A=1"}}, true, ""},
		{"0.1.0", ExecInContainer{}, false, errNoCaps},
		{"0.11.0", HostNetwork{}, false, "api_version"},
		{"0.12.0", HostNetwork{}, false, "rule for host_network is missing"},
		{"0.11.0", RWMountDevice{Target: "/x", Encrypted: true, EnsureFilesystem: true, Filesystem: "xfs"}, false, "rule for rw_mount_device"},
		{"0.10.0", RWMountDevice{Target: "/x", Encrypted: true, EnsureFilesystem: true, Filesystem: "xfs"}, true, ""},
		{"0.10.0", RWMountDevice{Target: "/x", EnsureFilesystem: true, Filesystem: "xfs"}, false, "encrypted"},
	} {
		p := parse(t, fmt.Appendf(nil, "package policy\napi_version := %q\n", row.api))
		d, _ := p.Start().Decide(row.req)
		if d.Allowed != row.allowed || !d.Allowed && !strings.Contains(d.Denial.Error(), row.text) {
			t.Errorf("api %s: %s: allowed = %t; want %t (%v)", row.api, row.req.Point(), d.Allowed, row.allowed, d.Denial)
		}
	}
}

func TestConstants(t *testing.T) {
	p := parse(t, []byte(head+`create_container := {"allowed": true, "env_list": ["A=1"], "caps_list": {"bounding": ["CAP_KILL"], "effective": [], "inheritable": [], "permitted": [], "ambient": []}}
dump_stacks := {"allowed": false}
`))
	req := CreateContainer{ContainerID: "c", EnvList: []string{"B=1", "A=1"}, Capabilities: caps("CAP_CHOWN", "CAP_KILL")}
	d, s := p.Start().Decide(req)
	if !d.Allowed || !slices.Equal(d.Env, []string{"A=1"}) || !slices.Equal(d.Capabilities.Bounding, []string{"CAP_KILL"}) || d.AllowStdio {
		t.Errorf("constant create_container: %+v", d)
	}
	if s.StdioAllowed("c") {
		t.Error("stdio allowed without a word of it")
	}
	if d, _ := s.Decide(DumpStacks{}); d.Allowed {
		t.Error("constant false allows")
	}
}

func TestPlatformRules(t *testing.T) {
	policy := string(text([]object{web()})) + `platform_rules := [
  {"env_rules": [{"pattern": "X=1", "strategy": "string", "required": true}], "mounts": []},
  {"env_rules": [{"pattern": "Y=1", "strategy": "string", "required": false}],
   "mounts": [{"destination": "/y", "type": "bind", "source": "/y", "options": []}]},
]
`
	y := Mount{Destination: "/y", Type: "bind", Source: "/y"}
	for _, row := range []struct {
		env   []string
		mount bool
		want  bool
	}{
		{[]string{"PATH=/bin", "X=1"}, false, true},
		{[]string{"PATH=/bin", "Y=1"}, true, true},
		{[]string{"PATH=/bin", "X=1"}, true, false},
		{[]string{"PATH=/bin", "X=1", "Y=1"}, false, false},
	} {
		req := change(func(r *CreateContainer) {
			if r.EnvList = row.env; row.mount {
				r.Mounts = append(r.Mounts, y)
			}
		})
		if d, _ := upTo(t, parse(t, []byte(policy)), req); d.Allowed != row.want {
			t.Errorf("%q, mount %t: allowed = %t; want %t (%v)", row.env, row.mount, d.Allowed, row.want, d.Denial)
		}
		if old, _ := upTo(t, parse(t, []byte(strings.Replace(policy, `"0.5.0"`, `"0.4.1"`, 1))), req); old.Allowed {
			t.Errorf("%q: platform_rules count before framework 0.5.0", row.env)
		}
	}
}

func TestExtraDefaultMounts(t *testing.T) {
	hosts := Mount{Destination: "/etc/hosts", Type: "bind", Source: "/run/hosts", Options: []string{"bind"}}
	req := change(func(r *CreateContainer) { r.Mounts = append(r.Mounts, hosts) })
	d, s := upTo(t, parse(t, text([]object{web()})), req)
	if d.Allowed {
		t.Error("mount allowed that nobody named")
	}
	if d, _ := s.WithDefaultMounts([]Mount{hosts}).Decide(req); !d.Allowed {
		t.Errorf("default mount of the group: %v", d.Denial)
	}
	if d, _ := s.Decide(req); d.Allowed {
		t.Error("WithDefaultMounts changed the state it was called on")
	}
}

func TestPauseSysfs(t *testing.T) {
	for _, pause := range []bool{true, false} {
		req := change(func(r *CreateContainer) {
			r.IsSandboxContainer = pause
			r.Mounts[5].Options = []string{"nosuid", "noexec", "nodev", "rw"}
		})
		if d, _ := upTo(t, parse(t, text([]object{web()})), req); d.Allowed != pause {
			t.Errorf("writable sysfs, sandbox container %t: allowed = %t", pause, d.Allowed)
		}
	}
}

func TestPlan9Source(t *testing.T) {
	c := with(web(), object{"mounts": []object{{"destination": "/data", "type": "bind", "source": "plan9://", "options": []string{"rw"}}}})
	for _, row := range []struct {
		source string
		want   bool
	}{{"/run/c/mounts/m1", true}, {"/run/c/mounts/m2", false}, {"plan9://", false}} {
		req := change(func(r *CreateContainer) {
			r.Mounts = []Mount{{Destination: "/data", Type: "bind", Source: row.source, Options: []string{"rw"}}}
		})
		if d, _ := upTo(t, parse(t, text([]object{c})), req); d.Allowed != row.want {
			t.Errorf("plan9 source %s: allowed = %t; want %t", row.source, d.Allowed, row.want)
		}
	}
}

func TestExternal(t *testing.T) {
	policy := string(text([]object{})) + `external_processes := [
  {"command": ["tool"], "env_rules": [{"pattern": "A=1", "strategy": "string", "required": true}], "working_dir": "/", "allow_stdio_access": true},
  {"command": ["both"], "env_rules": [], "working_dir": "/", "allow_stdio_access": true},
  {"command": ["both"], "env_rules": [], "working_dir": "/", "allow_stdio_access": false},
  {"command": ["half"], "working_dir": "/", "allow_stdio_access": false},
]
`
	ok := ExecExternal{ArgList: []string{"tool"}, EnvList: []string{"A=1"}, WorkingDir: "/"}
	for _, row := range []struct {
		name string
		f    func(*ExecExternal)
		err  string
	}{
		{"allowed", func(*ExecExternal) {}, ""},
		{"command", func(r *ExecExternal) { r.ArgList = []string{"x"} }, errCommand},
		{"directory", func(r *ExecExternal) { r.WorkingDir = "/x" }, errDir},
		{"variable", func(r *ExecExternal) { r.EnvList = []string{"A=1", "B=1"} }, errEnv + ": B"},
		{"required", func(r *ExecExternal) { r.EnvList = nil }, errMissingEnv},
		{"tie", func(r *ExecExternal) { r.ArgList, r.EnvList = []string{"both"}, nil }, errExternalTie},
		{"incomplete", func(r *ExecExternal) { r.ArgList, r.EnvList = []string{"half"}, nil }, errCommand},
	} {
		req := ok
		row.f(&req)
		d, _ := parse(t, []byte(policy)).Start().Decide(req)
		if d.Allowed != (row.err == "") || !d.Allowed && !slices.Contains(d.Denial.Errors, row.err) {
			t.Errorf("%s: %+v, %v", row.name, d, d.Denial)
		}
	}
}

// TestDenialsHoldNoSecret: values of variables are in no form of a denial.
func TestDenialsHoldNoSecret(t *testing.T) {
	const secret = "hunter2-very-secret"
	reqs := []Request{
		change(func(r *CreateContainer) { r.EnvList = []string{"TOKEN=" + secret, "PATH=/" + secret} }),
		change(func(r *ExecInContainer) { r.EnvList = []string{"TOKEN=a=" + secret} }),
		ExecExternal{EnvList: []string{"TOKEN=" + secret}},
	}
	c := with(web(), object{"env_rules": []object{{"pattern": "KEY=" + secret, "strategy": "string", "required": true}}})
	for _, containers := range [][]object{{web()}, {c}} {
		s := parse(t, text(containers)).Start()
		for _, r := range webRequests()[:5] {
			_, s = s.Decide(r)
		}
		for _, req := range reqs {
			d, _ := s.Decide(req)
			if d.Allowed {
				t.Fatalf("%s is allowed", req.Point())
			}
			for _, said := range []string{d.Denial.Error(), d.Denial.Explain(), unwrap(t, d.Denial.PolicyDecision(req)), fmt.Sprintf("%+v", *d.Denial)} {
				if strings.Contains(said, secret) {
					t.Errorf("%s: the denial shows a value: %s", req.Point(), said)
				}
			}
			if !strings.Contains(d.Denial.Explain()+unwrap(t, d.Denial.PolicyDecision(req)), "TOKEN") {
				t.Errorf("%s: the denial does not name TOKEN", req.Point())
			}
		}
	}
}

func TestDecisionsAreShort(t *testing.T) {
	long := strings.Repeat("x", 10000)
	req := change(func(r *CreateContainer) { r.ArgList = []string{long}; r.WorkingDir = "/\n\x00" + long })
	d, _ := upTo(t, parse(t, text([]object{web()})), req)
	wire := d.Denial.PolicyDecision(req)
	if got := unwrap(t, wire); len(wire) > MaxDecision || !strings.Contains(got, `"truncated":["input"]`) {
		t.Errorf("long input: %d bytes: %s", len(wire), got)
	}
	if said := d.Denial.Error(); len(said) > 8*maxShown || strings.ContainsAny(said, "\n\x00") {
		t.Errorf("Error has %d bytes, or control characters", len(said))
	}
	full := parse(t, []byte(strings.Replace(string(text([]object{web()})), `{"errors": data.framework.errors}`, "data.framework.reason", 1)))
	d, _ = upTo(t, full, createWith("A=1"))
	if got := unwrap(t, d.Denial.PolicyDecision(createWith("A=1"))); !strings.Contains(got, `"truncated":["reason.error_objects"]`) {
		t.Errorf("full reason: %s", got)
	}
	none := parse(t, []byte(strings.Replace(string(text([]object{})), `reason :=`, "no_reason := 1 #", 1)))
	d, _ = none.Start().Decide(DumpStacks{})
	if got := unwrap(t, d.Denial.PolicyDecision(DumpStacks{})); !strings.Contains(got, reasonMissing) {
		t.Errorf("no reason: %s", got)
	}
}

func TestTable(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	var tab table[int]
	model := map[string]int{}
	for i := range 5000 {
		key := fmt.Sprint(r.IntN(300))
		before, n := tab, len(model)
		if r.IntN(3) == 0 {
			tab = tab.without(key)
			delete(model, key)
		} else {
			tab = tab.with(key, i)
			model[key] = i
		}
		count := 0
		before.all(func(string, int) bool { count++; return true })
		if count != n {
			t.Fatalf("step %d changed the table before it", i)
		}
	}
	var keys []string
	tab.all(func(key string, v int) bool {
		keys = append(keys, key)
		if model[key] != v {
			t.Errorf("table[%s] = %d; want %d", key, v, model[key])
		}
		if got, ok := tab.get(key); !ok || got != v {
			t.Errorf("get(%s) = %d, %t", key, got, ok)
		}
		return true
	})
	if !slices.IsSorted(keys) || len(keys) != len(model) || tab.has("absent") {
		t.Errorf("%d keys, sorted %t; want %d", len(keys), slices.IsSorted(keys), len(model))
	}
}
