// SPDX-License-Identifier: Apache-2.0

//go:build rego

package oracle

import (
	"fmt"
	"slices"

	"github.com/coffer-dev/coffer/policy"
)

// strs reads a list of a generated object, nil if it is missing or null.
func strs(v any) []string {
	list, _ := v.([]string)
	return list
}

func str(v any) string {
	s, _ := v.(string)
	return s
}

// sequence makes the requests of a run that mostly follows what the policy allows: layers, overlay, create, then execs,
// signals and the end; with one field changed here and there, and with requests that come out of order.
func (g *gen) sequence() []policy.Request {
	var out []policy.Request
	add := func(reqs ...policy.Request) {
		for _, r := range reqs {
			if g.one(g.wrong) {
				r = g.mutate(r)
			}
			if !g.one(0.03) {
				out = append(out, r)
			}
			if g.one(0.05) {
				out = append(out, g.stray())
			}
		}
	}
	g.wrong = pick(g, []float64{0.02, 0.1, 0.3})
	mounted := map[string]string{}
	for i := range 1 + g.IntN(3) {
		c := pick(g, g.containers)
		id := fmt.Sprintf("c%d", i)
		paths := []string{}
		for _, hash := range strs(c["layers"]) {
			if mounted[hash] == "" {
				mounted[hash] = fmt.Sprintf("/run/mounts/scsi/m%d", len(mounted))
				add(policy.MountDevice{Target: mounted[hash], DeviceHash: hash})
			}
			paths = append(paths, mounted[hash])
		}
		slices.Reverse(paths)
		add(policy.ScratchMount{Target: "/run/gcs/c/s/scratch/" + id, Encrypted: g.one(0.8)})
		add(policy.MountOverlay{ContainerID: id, LayerPaths: paths, Target: "/run/gcs/c/" + id + "/rootfs"})
		if g.one(0.3) {
			add(policy.Plan9Mount{RootPrefix: "/run/gcs/c", MountPathPrefix: "/mounts/m[0-9]+", Target: "/run/gcs/c/" + id + "/mounts/m0"})
		}
		create := g.create(c, id)
		for range 1 + g.IntN(3) { // the first may be denied, the next may have nothing changed
			add(create)
		}
		for range g.IntN(4) {
			add(g.exec(pick(g, g.containers), create))
		}
		for range g.IntN(3) {
			add(g.signal(pick(g, g.containers), id))
		}
		if g.one(0.3) {
			add(policy.ShutdownContainer{ContainerID: id})
		}
	}
	return out
}

func (g *gen) env(rules any) []string {
	env := []string{}
	list, _ := rules.([]object)
	for _, rule := range list {
		for _, e := range envPool() {
			if e.rule["pattern"] == rule["pattern"] && (rule["required"] == true || g.one(0.7)) {
				env = append(env, e.env)
			}
		}
		if name := str(rule["name"]); name != "" && g.one(0.9) {
			env = append(env, name+"="+str(rule["value"]))
		}
	}
	if len(env) == 0 { // the two originals differ in this case
		env = append(env, defaultPath)
	}
	return env
}

func (g *gen) caps(c object, privileged bool) *policy.Capabilities {
	if caps, ok := c["capabilities"].(*policy.Capabilities); ok && caps != nil && !g.one(0.1) {
		return caps
	}
	if privileged {
		return policy.PrivilegedCapabilities()
	}
	return policy.DefaultCapabilities()
}

func (g *gen) user() (policy.IDName, []policy.IDName) {
	id := func(id, name string) policy.IDName { return policy.IDName{ID: id, Name: name} }
	user := pick(g, []policy.IDName{id("0", "root"), id("1000", "web"), id("1000", "web"), id("1000", "web")})
	groups := pick(g, [][]policy.IDName{{id("0", "root")}, {id("1000", "web")}, {id("1000", "web"), id("27", "www")}, {}})
	return user, groups
}

func (g *gen) create(c object, id string) policy.CreateContainer {
	r := policy.CreateContainer{
		ContainerID: id, ArgList: strs(c["command"]), EnvList: g.env(c["env_rules"]), WorkingDir: str(c["working_dir"]),
		SandboxDir: "/run/gcs/c/cafe/sandboxMounts", HugePagesDir: "/run/gcs/c/cafe/hugepages",
		NoNewPrivileges: c["no_new_privileges"] == true || g.one(0.2), Umask: "0022",
		SeccompProfileSHA256: str(c["seccomp_profile_sha256"]),
	}
	r.Privileged = c["allow_elevated"] == true && g.one(0.5)
	r.Capabilities = g.caps(c, r.Privileged)
	r.User, r.Groups = g.user()
	if u, ok := c["user"].(object); ok && str(u["umask"]) != "" {
		r.Umask = str(u["umask"])
	}
	r.Mounts = some(g, policy.DefaultMounts(), 9)
	rules, _ := c["mounts"].([]object)
	for _, m := range rules {
		r.Mounts = append(r.Mounts, policy.Mount{Destination: str(m["destination"]), Source: mountSources()[str(m["source"])],
			Type: str(m["type"]), Options: strs(m["options"])})
	}
	return r
}

func (g *gen) exec(c object, from policy.CreateContainer) policy.ExecInContainer {
	r := policy.ExecInContainer{
		ContainerID: from.ContainerID, ArgList: pick(g, commandsPool()), EnvList: from.EnvList, WorkingDir: from.WorkingDir,
		NoNewPrivileges: from.NoNewPrivileges, User: from.User, Groups: from.Groups, Umask: from.Umask, Capabilities: from.Capabilities,
	}
	if list, _ := c["exec_processes"].([]object); len(list) > 0 {
		r.ArgList = strs(pick(g, list)["command"])
	}
	return r
}

func (g *gen) signal(c object, id string) policy.SignalContainerProcess {
	r := policy.SignalContainerProcess{ContainerID: id, Signal: pick(g, []int{2, 9, 10, 15}), IsInitProcess: g.one(0.5), ArgList: strs(c["command"])}
	if list, _ := c["exec_processes"].([]object); len(list) > 0 && !r.IsInitProcess {
		r.ArgList = strs(pick(g, list)["command"])
	}
	return r
}

// stray is a request out of order.
func (g *gen) stray() policy.Request {
	id := pick(g, []string{"c0", "c1", "zz"})
	reqs := []policy.Request{
		policy.GetProperties{}, policy.DumpStacks{}, policy.RuntimeLogging{},
		policy.UnmountDevice{UnmountTarget: pick(g, []string{"/run/mounts/scsi/m0", "/x"})},
		policy.UnmountOverlay{UnmountTarget: "/run/gcs/c/" + id + "/rootfs"},
		policy.ScratchUnmount{UnmountTarget: "/run/gcs/c/s/scratch/" + id},
		policy.Plan9Unmount{UnmountTarget: "/run/gcs/c/c0/mounts/m0"},
		policy.MountDevice{Target: "/run/mounts/scsi/m0", DeviceHash: pick(g, layersPool())},
		policy.ShutdownContainer{ContainerID: id},
		g.create(pick(g, g.containers), id),
		g.exec(pick(g, g.containers), g.create(pick(g, g.containers), id)),
		policy.ExecExternal{ArgList: pick(g, commandsPool()), EnvList: []string{defaultPath}, WorkingDir: "/"},
	}
	if len(g.external) > 0 {
		e := pick(g, g.external)
		reqs = append(reqs, policy.ExecExternal{ArgList: strs(e["command"]), EnvList: g.env(e["env_rules"]), WorkingDir: str(e["working_dir"])})
	}
	if g.head {
		reqs = append(reqs, policy.HostNetwork{}, policy.RWUnmountDevice{UnmountTarget: "/rw"},
			policy.RWMountDevice{Target: "/rw", Encrypted: g.one(0.7), EnsureFilesystem: g.one(0.8), Filesystem: pick(g, []string{"xfs", "ext4", "vfat"})})
	}
	return pick(g, reqs)
}

// mutate changes one field.
func (g *gen) mutate(req policy.Request) policy.Request {
	word := pick(g, []string{"/x", "c0", "c1", "aa11", "bb22", ""})
	switch r := req.(type) {
	case policy.MountDevice:
		if g.one(0.5) {
			r.DeviceHash = word
		} else {
			r.Target = pick(g, []string{"/run/mounts/scsi/m0", "/x"})
		}
		return r
	case policy.MountOverlay:
		r.LayerPaths = slices.Clone(r.LayerPaths)
		switch g.IntN(4) {
		case 0:
			slices.Reverse(r.LayerPaths)
		case 1:
			r.LayerPaths = append(r.LayerPaths, "/run/mounts/scsi/m0")
		case 2:
			r.LayerPaths = r.LayerPaths[:max(0, len(r.LayerPaths)-1)]
			if len(r.LayerPaths) == 0 {
				r.LayerPaths = []string{"/x"}
			}
		default:
			r.ContainerID = pick(g, []string{"c0", "c1", "zz"})
		}
		return r
	case policy.CreateContainer:
		return g.mutateCreate(r)
	case policy.ExecInContainer:
		c := g.mutateCreate(policy.CreateContainer{ContainerID: r.ContainerID, ArgList: r.ArgList, EnvList: r.EnvList, WorkingDir: r.WorkingDir,
			NoNewPrivileges: r.NoNewPrivileges, User: r.User, Groups: r.Groups, Umask: r.Umask, Capabilities: r.Capabilities})
		return policy.ExecInContainer{ContainerID: c.ContainerID, ArgList: c.ArgList, EnvList: c.EnvList, WorkingDir: c.WorkingDir,
			NoNewPrivileges: c.NoNewPrivileges, User: c.User, Groups: c.Groups, Umask: c.Umask, Capabilities: c.Capabilities}
	case policy.SignalContainerProcess:
		switch g.IntN(3) {
		case 0:
			r.Signal = pick(g, []int{1, 2, 9, 15})
		case 1:
			r.IsInitProcess = !r.IsInitProcess
		default:
			r.ContainerID = word
		}
		return r
	case policy.ScratchMount:
		r.Encrypted = !r.Encrypted
		return r
	case policy.ShutdownContainer:
		r.ContainerID = word
		return r
	}
	return req
}

func (g *gen) mutateCreate(r policy.CreateContainer) policy.CreateContainer {
	r.EnvList, r.Mounts = slices.Clone(r.EnvList), slices.Clone(r.Mounts)
	switch g.IntN(13) {
	case 0:
		r.ArgList = pick(g, commandsPool())
	case 1:
		r.ArgList = append(slices.Clone(r.ArgList), "x")
	case 2:
		r.EnvList = append(r.EnvList, pick(g, []string{"SECRET=1", "A=1", "A=2", "A=77", "HOSTNAME=", "TERM=dumb", "=", "XHOSTNAME=a", "HOSTNAME=a\nB=c"}))
	case 3:
		i := g.IntN(len(r.EnvList))
		if r.EnvList = slices.Delete(r.EnvList, i, i+1); len(r.EnvList) == 0 {
			r.EnvList = []string{"TERM=xterm"}
		}
	case 4:
		r.WorkingDir = pick(g, []string{"/", "/app", "", "/x"})
	case 5:
		r.Mounts = append(r.Mounts, policy.Mount{Destination: pick(g, []string{"/data", "/etc/passwd", "/sys", ""}),
			Source: "/run/gcs/c/cafe/sandboxMounts/tmp/atlas/emptydir/v", Type: "bind", Options: []string{"rbind", "rshared", pick(g, []string{"rw", "ro"})}})
	case 6:
		r.Mounts = append(r.Mounts, pick(g, policy.DefaultPrivilegedMounts()))
	case 7:
		if len(r.Mounts) > 0 {
			i := g.IntN(len(r.Mounts))
			r.Mounts[i].Options = append(slices.Clone(r.Mounts[i].Options), "dev")
		}
	case 8:
		r.Privileged = !r.Privileged
	case 9:
		r.NoNewPrivileges = !r.NoNewPrivileges
	case 10:
		r.User, r.Groups = g.user()
		r.Umask = pick(g, []string{"0022", "0027"})
	case 11:
		caps, _ := pick(g, capsPool()).(*policy.Capabilities)
		if caps != nil {
			r.Capabilities = caps
		}
		if g.one(0.3) {
			c := *r.Capabilities
			c.Ambient = append(slices.Clone(c.Ambient), "CAP_SYS_ADMIN")
			r.Capabilities = &c
		}
	default:
		r.SeccompProfileSHA256 = pick(g, []string{"", "abcd", "x"})
	}
	return r
}
