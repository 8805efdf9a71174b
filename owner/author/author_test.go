// SPDX-License-Identifier: Apache-2.0

package author

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/coffer-dev/coffer/policy"
)

var update = flag.Bool("update", false, "write testdata anew")

func hash(n int) string { return fmt.Sprintf("%064x", n) }

// group is two containers with about everything.
func group() Spec {
	return Spec{Containers: []Container{
		{
			Name: "web", ID: "docker.io/library/web:1", Layers: []string{hash(1), hash(2)},
			Image: Image{
				Entrypoint: []string{"/entry.sh"}, Cmd: []string{"serve", "--all"}, Env: []string{"A=1", "PATH=/opt/bin:/bin", "B=é <b>\"\\"},
				User: "web:1000", WorkingDir: "/srv", Volumes: []string{"/var/lib/web", "/cache/"}, StopSignal: "SIGQUIT",
				Healthcheck: []string{"CMD-SHELL", "curl -f http://localhost || exit 1"},
			},
			Env: []string{"A=2", "C=x=y"}, EnvPatterns: []string{"TRACE_[A-Z]+=.*"},
			Volumes: []Volume{{Destination: "/cache", Name: "my.cache"}, {Destination: "/conf", RootHash: hash(9)},
				{Destination: "/shared", Name: "shared", ReadOnly: true}},
			Exec: []Exec{{Command: []string{"sh"}}}, Signals: []int{10}, Terminal: true, AllowStdio: true,
		},
		{
			Name: "worker", Layers: []string{hash(1), hash(3)}, Image: Image{Cmd: []string{"/work"}, Healthcheck: []string{"NONE"}},
			Volumes: []Volume{{Destination: "/conf", RootHash: hash(9)}}, Privileged: true, NoNewPrivileges: true,
		},
	}}
}

func generate(t *testing.T, spec Spec) []byte {
	t.Helper()
	text, err := Generate(spec)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func parse(t *testing.T, text []byte) *policy.Policy {
	t.Helper()
	p, err := policy.Parse(text)
	if err != nil {
		t.Fatalf("Parse: %v\n%s", err, text)
	}
	return p
}

func TestGolden(t *testing.T) {
	got := generate(t, group())
	if *update {
		if err := os.WriteFile("testdata/group.rego", got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile("testdata/group.rego")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Errorf("-testdata/group.rego +generated\n%s", diff)
	}
	for range 20 {
		if again := generate(t, group()); !bytes.Equal(again, got) {
			t.Fatal("the same input gives other bytes")
		}
	}
}

const box = "/run/group/sandboxMounts"

// asks are the requests of the guest for one container, from its disks to its end.
func asks(t *testing.T, c *Container, id string, user policy.IDName, groups ...policy.IDName) []policy.Request {
	t.Helper()
	p, err := c.Resolve()
	if err != nil {
		t.Fatal(err)
	}
	var reqs []policy.Request
	var paths []string
	for _, layer := range c.Layers {
		path := "/run/layers/" + id + "/" + layer
		paths = append([]string{path}, paths...)
		reqs = append(reqs, policy.MountDevice{Target: path, DeviceHash: layer})
	}
	caps := policy.DefaultCapabilities()
	if c.Privileged {
		caps = policy.PrivilegedCapabilities()
	}
	create := policy.CreateContainer{
		ContainerID: id, ArgList: p.Args, EnvList: append(slices.Clone(p.Env), "HOSTNAME=box"), WorkingDir: p.WorkingDir,
		SandboxDir: box, HugePagesDir: "/run/group/hugepages", Mounts: policy.DefaultMounts(), Privileged: c.Privileged,
		NoNewPrivileges: c.NoNewPrivileges, User: user, Groups: groups, Umask: "0022", Capabilities: caps,
	}
	for _, v := range p.Volumes {
		m := policy.Mount{Destination: v.Destination, Type: "bind", Source: box + "/tmp/coffer/volumes/" + v.Name, Options: []string{"rbind", "rshared", "rw"}}
		if v.ReadOnly {
			m.Options[2] = "ro"
		}
		if v.RootHash != "" {
			reqs = append(reqs, policy.MountDevice{Target: "/run/volumes/" + id + v.Destination, DeviceHash: v.RootHash})
			m.Source, m.Options = box+"/tmp/coffer/ro/"+v.RootHash, []string{"rbind", "ro"}
		}
		create.Mounts = append(create.Mounts, m)
	}
	reqs = append(reqs, policy.ScratchMount{Target: "/run/scratch/" + id, Encrypted: true},
		policy.MountOverlay{ContainerID: id, LayerPaths: paths, Target: "/run/c/" + id + "/rootfs"}, create)
	for _, e := range p.Exec {
		reqs = append(reqs, policy.ExecInContainer{
			ContainerID: id, ArgList: e.Command, EnvList: create.EnvList, WorkingDir: p.WorkingDir, NoNewPrivileges: c.NoNewPrivileges,
			User: user, Groups: groups, Umask: "0022", Capabilities: caps,
		})
		for _, n := range e.Signals {
			reqs = append(reqs, policy.SignalContainerProcess{ContainerID: id, Signal: n, ArgList: e.Command})
		}
	}
	for _, n := range p.Signals {
		reqs = append(reqs, policy.SignalContainerProcess{ContainerID: id, Signal: n, IsInitProcess: true, ArgList: p.Args})
	}
	return append(reqs, policy.ShutdownContainer{ContainerID: id}, policy.UnmountOverlay{UnmountTarget: "/run/c/" + id + "/rootfs"},
		policy.UnmountDevice{UnmountTarget: paths[0]})
}

func groupAsks(t *testing.T, spec Spec) []policy.Request {
	web, users := policy.IDName{ID: "33", Name: "web"}, policy.IDName{ID: "1000", Name: "users"}
	root := policy.IDName{ID: "0", Name: "root"}
	return append(asks(t, &spec.Containers[0], "c1", web, users), asks(t, &spec.Containers[1], "c2", root, root)...)
}

// TestGeneratedAllowsTheRun: the guest's whole sequence is allowed, in order, with nothing dropped.
func TestGeneratedAllowsTheRun(t *testing.T) {
	spec := group()
	s := parse(t, generate(t, spec)).Start()
	for _, req := range append(groupAsks(t, spec), policy.GetProperties{}) {
		d, next := s.Decide(req)
		if !d.Allowed {
			t.Fatalf("%s %+v\n%s", req.Point(), req, d.Denial.Explain())
		}
		s = next
		if c, ok := req.(policy.CreateContainer); ok {
			if diff := cmp.Diff(c.EnvList, d.Env); diff != "" {
				t.Errorf("environment: -asked +kept\n%s", diff)
			}
			if want := c.ContainerID == "c1"; d.AllowStdio != want {
				t.Errorf("%s: AllowStdio = %t; want %t", c.ContainerID, d.AllowStdio, want)
			}
		}
	}
}

// TestGeneratedAllowsNothingElse: one thing changed in the container's create, and it is denied.
func TestGeneratedAllowsNothingElse(t *testing.T) {
	spec := group()
	p := parse(t, generate(t, spec))
	for name, change := range map[string]func(*policy.CreateContainer){
		"command":      func(r *policy.CreateContainer) { r.ArgList = []string{"/entry.sh"} },
		"entrypoint":   func(r *policy.CreateContainer) { r.ArgList[0] = "/bin/sh" },
		"directory":    func(r *policy.CreateContainer) { r.WorkingDir = "/" },
		"user":         func(r *policy.CreateContainer) { r.User = policy.IDName{ID: "0", Name: "root"} },
		"group":        func(r *policy.CreateContainer) { r.Groups = append(r.Groups, policy.IDName{ID: "0", Name: "root"}) },
		"privileged":   func(r *policy.CreateContainer) { r.Privileged = true },
		"capabilities": func(r *policy.CreateContainer) { r.Capabilities.Bounding = r.Capabilities.Bounding[1:] },
		"other volume": func(r *policy.CreateContainer) {
			r.Mounts[len(r.Mounts)-4].Source = box + "/tmp/coffer/volumes/myxcache"
		},
		"other disk":     func(r *policy.CreateContainer) { r.Mounts[len(r.Mounts)-3].Source = box + "/tmp/coffer/ro/" + hash(8) },
		"writable disk":  func(r *policy.CreateContainer) { r.Mounts[len(r.Mounts)-3].Options = []string{"rbind", "rw"} },
		"writable share": func(r *policy.CreateContainer) { r.Mounts[len(r.Mounts)-2].Options[2] = "rw" },
		"more": func(r *policy.CreateContainer) {
			r.Mounts = append(r.Mounts, policy.Mount{Destination: "/etc", Type: "bind", Source: "/etc"})
		},
	} {
		s := p.Start()
		for _, req := range groupAsks(t, spec) {
			c, ok := req.(policy.CreateContainer)
			if !ok {
				d, next := s.Decide(req)
				if s = next; !d.Allowed {
					t.Fatalf("%s: %v", req.Point(), d.Denial)
				}
				continue
			}
			change(&c)
			if d, _ := s.Decide(c); d.Allowed {
				t.Errorf("%s: allowed", name)
			}
			break
		}
	}
	for _, env := range []string{"A=1", "D=1", "PATH=/bin", "LD_PRELOAD=/x", "TERM=dumb", "XTRACE_A=1"} {
		s := p.Start()
		for _, req := range groupAsks(t, spec) {
			if c, ok := req.(policy.CreateContainer); ok {
				c.EnvList = append(slices.Clone(c.EnvList), env)
				if d, _ := s.Decide(c); !d.Allowed || slices.Contains(d.Env, env) {
					t.Errorf("variable %s: %v, %v; want it dropped", env, d, d.Denial)
				}
				break
			}
			_, s = s.Decide(req)
		}
	}
	for _, req := range []policy.Request{policy.DumpStacks{}, policy.RuntimeLogging{}, policy.HostNetwork{},
		policy.ExecExternal{ArgList: []string{"sh"}, WorkingDir: "/"}, policy.ScratchMount{Target: "/x"},
		policy.RWMountDevice{Target: "/x", EnsureFilesystem: true, Filesystem: "xfs"}, policy.MountDevice{Target: "/x", DeviceHash: hash(7)}} {
		if d, _ := p.Start().Decide(req); d.Allowed {
			t.Errorf("%s is allowed", req.Point())
		}
	}
}

// TestVolumesNeverStart: the container object that lets a read-only disk be mounted cannot be created, with any command.
func TestVolumesNeverStart(t *testing.T) {
	spec := group()
	s := parse(t, generate(t, spec)).Start()
	for _, req := range []policy.Request{policy.MountDevice{Target: "/v", DeviceHash: hash(9)},
		policy.MountOverlay{ContainerID: "v", LayerPaths: []string{"/v"}, Target: "/r"}} {
		d, next := s.Decide(req)
		if s = next; !d.Allowed {
			t.Fatal(d.Denial)
		}
	}
	empty := &policy.Capabilities{}
	for _, args := range [][]string{nil, {}, {""}, {"/bin/sh"}, {"null"}} {
		for _, caps := range []*policy.Capabilities{empty, policy.DefaultCapabilities()} {
			req := policy.CreateContainer{ContainerID: "v", ArgList: args, WorkingDir: "/", NoNewPrivileges: true, Umask: "0022", Capabilities: caps, SandboxDir: box}
			if d, _ := s.Decide(req); d.Allowed {
				t.Errorf("volume started with %q", args)
			}
			if d, _ := s.Decide(policy.ExecInContainer{ContainerID: "v", ArgList: args, WorkingDir: "/", NoNewPrivileges: true, Umask: "0022", Capabilities: caps}); d.Allowed {
				t.Errorf("executed in a volume: %q", args)
			}
		}
	}
}

func TestCommand(t *testing.T) {
	image := Image{Entrypoint: []string{"e"}, Cmd: []string{"c"}}
	for _, row := range []struct {
		name                string
		image               Image
		entrypoint, command []string
		want                []string
	}{
		{"image", image, nil, nil, []string{"e", "c"}},
		{"only cmd", Image{Cmd: []string{"c"}}, nil, nil, []string{"c"}},
		{"command", image, nil, []string{"x", "y"}, []string{"e", "x", "y"}},
		{"no command", image, nil, []string{}, []string{"e"}},
		{"entrypoint drops cmd", image, []string{"n"}, nil, []string{"n"}},
		{"both", image, []string{"n"}, []string{"x"}, []string{"n", "x"}},
		{"reset entrypoint", image, []string{}, []string{"x"}, []string{"x"}},
		{"shell form", Image{Cmd: []string{"/bin/sh", "-c", "echo $A"}}, nil, nil, []string{"/bin/sh", "-c", "echo $A"}},
	} {
		p, err := (&Container{Image: row.image, Entrypoint: row.entrypoint, Command: row.command}).Resolve()
		if err != nil {
			t.Errorf("%s: %v", row.name, err)
			continue
		}
		if !slices.Equal(p.Args, row.want) {
			t.Errorf("%s: args = %q; want %q", row.name, p.Args, row.want)
		}
	}
}

func TestEnvironment(t *testing.T) {
	p, err := (&Container{Image: Image{Cmd: []string{"c"}, Env: []string{"A=1", "B=1"}}, Env: []string{"A=2", "C=3"}, Terminal: true}).Resolve()
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"A=2", "B=1", "C=3", defaultPath, "TERM=xterm"}, p.Env); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
	p, err = (&Container{Image: Image{Cmd: []string{"c"}, Env: []string{"PATH=/x", "TERM=vt100"}}, Terminal: true}).Resolve()
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"PATH=/x", "TERM=vt100"}, p.Env); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
}

// TestUsers: which of the guest's findings a user in an image or of the command line allows.
func TestUsers(t *testing.T) {
	id := func(id, name string) policy.IDName { return policy.IDName{ID: id, Name: name} }
	for _, row := range []struct {
		user   string
		found  policy.IDName
		groups []policy.IDName
		want   bool
	}{
		{"", id("0", "root"), []policy.IDName{id("0", "root")}, true},
		{"", id("0", "root"), nil, true},
		{"", id("1000", ""), nil, false},
		{"1000", id("1000", "web"), []policy.IDName{id("5", "x"), id("6", "")}, true},
		{"1000", id("1001", "1000"), nil, false},
		{"01000", id("1000", ""), nil, true},
		{"web", id("33", "web"), []policy.IDName{id("33", "web")}, true},
		{"web", id("33", "web2"), nil, false},
		{"web:27", id("33", "web"), []policy.IDName{id("27", "sudo")}, true},
		{"web:27", id("33", "web"), []policy.IDName{id("33", "web")}, false},
		{"web:27", id("33", "web"), []policy.IDName{id("27", "sudo"), id("0", "root")}, false},
		{"web:sudo", id("33", "web"), []policy.IDName{id("27", "sudo")}, true},
		{"web:", id("33", "web"), []policy.IDName{id("1", "x")}, true},
		{":27", id("0", "root"), []policy.IDName{id("27", "sudo")}, true},
		{":27", id("1", "x"), []policy.IDName{id("27", "sudo")}, false},
	} {
		c := Container{Name: "c", Layers: []string{hash(1)}, Image: Image{Cmd: []string{"c"}, User: row.user}}
		s := parse(t, generate(t, Spec{Containers: []Container{c}})).Start()
		got := true
		for _, req := range asks(t, &c, "c", row.found, row.groups...) {
			d, next := s.Decide(req)
			s, got = next, got && d.Allowed
		}
		if got != row.want {
			t.Errorf("user %q, found %v %v: allowed = %t; want %t", row.user, row.found, row.groups, got, row.want)
		}
	}
}

func TestRefuses(t *testing.T) {
	for name, change := range map[string]func(*Container){
		"no name":            func(c *Container) { c.Name = "" },
		"no layers":          func(c *Container) { c.Layers = nil },
		"short hash":         func(c *Container) { c.Layers = []string{"ab"} },
		"upper hash":         func(c *Container) { c.Layers = []string{strings.ToUpper(hash(10))} },
		"no command":         func(c *Container) { c.Image = Image{} },
		"empty command":      func(c *Container) { c.Command = []string{""}; c.Entrypoint = []string{} },
		"relative directory": func(c *Container) { c.WorkingDir = "x" },
		"variable":           func(c *Container) { c.Env = []string{"A"} },
		"nameless variable":  func(c *Container) { c.Env = []string{"=1"} },
		"variable bytes":     func(c *Container) { c.Env = []string{"A=\xff"} },
		"argument NUL":       func(c *Container) { c.Command = []string{"a\x00"} },
		"pattern":            func(c *Container) { c.EnvPatterns = []string{"("} },
		"stop signal":        func(c *Container) { c.Image.StopSignal = "SIGNOPE" },
		"signal":             func(c *Container) { c.Signals = []int{65} },
		"health check":       func(c *Container) { c.Image.Healthcheck = []string{"SHELL", "x"} },
		"exec":               func(c *Container) { c.Exec = []Exec{{}} },
		"relative volume":    func(c *Container) { c.Volumes = []Volume{{Destination: "x", Name: "a"}} },
		"root volume":        func(c *Container) { c.Volumes = []Volume{{Destination: "/", Name: "a"}} },
		"volume climbs":      func(c *Container) { c.Volumes = []Volume{{Destination: "/a/../etc", Name: "a"}} },
		"volume name":        func(c *Container) { c.Volumes = []Volume{{Destination: "/x", Name: "../a"}} },
		"volume hash":        func(c *Container) { c.Volumes = []Volume{{Destination: "/x", RootHash: ".+"}} },
		"volume both":        func(c *Container) { c.Volumes = []Volume{{Destination: "/x", Name: "a", RootHash: hash(1)}} },
		"volume neither":     func(c *Container) { c.Volumes = []Volume{{Destination: "/x"}} },
		"volumes at one": func(c *Container) {
			c.Volumes = []Volume{{Destination: "/x", Name: "a"}, {Destination: "/x", Name: "b"}}
		},
		"user": func(c *Container) { c.User = "a:b:c" },
	} {
		spec := group()
		change(&spec.Containers[0])
		if text, err := Generate(spec); err == nil || text != nil {
			t.Errorf("%s: no error", name)
		}
	}
	if _, err := Generate(Spec{}); err == nil {
		t.Error("no containers: no error")
	}
	spec := group()
	spec.Containers[1].Name = "web"
	if _, err := Generate(spec); err == nil {
		t.Error("one name twice: no error")
	}
}

func TestSignals(t *testing.T) {
	for text, want := range map[string]int{"": 15, "SIGQUIT": 3, "quit": 3, "9": 9, "SIGRTMIN+3": 37, "RTMAX-1": 63, "SIGRTMIN": 34, "SIGUSR1": 10} {
		p, err := (&Container{Image: Image{Cmd: []string{"c"}, StopSignal: text}}).Resolve()
		if err != nil || p.StopSignal != want || !slices.Contains(p.Signals, want) {
			t.Errorf("stop signal %q: %+v, %v; want %d", text, p, err, want)
		}
	}
	for _, text := range []string{"0", "65", "-1", "SIG", "SIGRTMIN+99", "SIGRTMIN-1", "SIGRTMINX", "1.5"} {
		if n, err := parseSignal(text); err == nil {
			t.Errorf("parseSignal(%q) = %d; want an error", text, n)
		}
	}
}

func TestVolumeName(t *testing.T) {
	if got, want := VolumeName("web", "/var/lib/my_data.d"), "web.var.lib.my_5fdata_2ed"; got != want {
		t.Errorf("VolumeName = %q; want %q", got, want)
	}
	seen := map[string]string{}
	for _, c := range []string{"web", "web.var", "_", "", "-", "é", strings.Repeat("x", 200), strings.Repeat("x", 201), "web-1"} {
		for _, p := range []string{"/", "/a", "/a/b", "/a.b", "/a_b", "/a-b", "/a_2eb", "/é", "/" + strings.Repeat("y", 300)} {
			name, from := VolumeName(c, p), c+" "+p
			if !volumeName.MatchString(name) {
				t.Errorf("VolumeName(%q, %q) = %q is no volume name", c, p, name)
			}
			if other, ok := seen[name]; ok {
				t.Errorf("%q and %q are both %q", from, other, name)
			}
			seen[name] = from
		}
	}
}
