// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"github.com/coffer-dev/coffer/guest/container"
	"github.com/coffer-dev/coffer/policy"
	"github.com/coffer-dev/coffer/wire"
)

// umask of every process, as a policy writes it and as a number.
const (
	umaskText = "0022"
	umask     = 0o022
)

// volumeDir is below sandboxMounts; policies name it sandbox:///tmp/coffer/volumes/NAME.
const volumeDir = "tmp/coffer/volumes"

// createContainer turns the host's intent into a configuration, asks the
// policy about exactly that, and keeps it for start_container.
func (a *Agent) createContainer(ctx context.Context, in wire.CreateContainer) error {
	if err := a.checkCreate(in); err != nil {
		return err
	}
	user, err := container.LookupUser(a.rootfs(in.Container), in.User)
	if err != nil {
		return refuse(wire.CodeInvalid, "%v", err)
	}
	mounts := a.mounts(in)
	req := a.createRequest(in, user, mounts)
	d, commit, err := a.decide(req)
	if err != nil {
		return err
	}
	if in.Stdio.Terminal != 0 && !d.AllowStdio {
		return refuse(wire.CodeDenied, "a terminal needs allow_stdio_access, which the policy does not give this container")
	}
	if err := a.makeVolumes(in); err != nil {
		return err
	}
	stdio, err := a.claim(ctx, in.Stdio, d.AllowStdio)
	if err != nil {
		return err
	}
	commit()
	a.mu.Lock()
	defer a.mu.Unlock()
	a.containers[in.Container] = &instance{
		config: a.configure(in, req, d, user),
		stdio:  stdio, allowStdio: d.AllowStdio,
		processes: make(map[string]*proc),
	}
	return nil
}

func (a *Agent) checkCreate(in wire.CreateContainer) error {
	if err := checkID("container", in.Container); err != nil {
		return err
	}
	if a.roots[in.Container] == nil {
		return refuse(wire.CodeState, "no overlay is mounted for this container")
	}
	if a.instance(in.Container) != nil {
		return refuse(wire.CodeState, "the container exists already")
	}
	if in.Resources.MemoryBytes < 0 || in.Resources.MilliCPUs < 0 || in.Resources.Pids < 0 || in.Resources.MilliCPUs > 1<<20 {
		return refuse(wire.CodeInvalid, "a resource limit is out of bounds")
	}
	for _, m := range in.Mounts {
		if m.Device != nil && a.devices[*m.Device] == nil {
			return refuse(wire.CodeState, "device %d is not mounted", *m.Device)
		}
	}
	return errors.Join(checkProgram(in.Args, in.Env, in.Cwd, in.User), checkStdio(in.Stdio), checkMounts(in.Mounts))
}

func (a *Agent) createRequest(in wire.CreateContainer, user container.User, mounts []policy.Mount) policy.CreateContainer {
	return policy.CreateContainer{
		ContainerID: in.Container, ArgList: in.Args, EnvList: orEmpty(in.Env), WorkingDir: orRoot(in.Cwd),
		SandboxDir: a.sandboxMounts(), HugePagesDir: a.hugePages(), Mounts: mounts,
		Privileged: in.Privileged, NoNewPrivileges: in.NoNewPrivileges,
		User: idName(user.UID, user.Name), Groups: groupsOf(user), Umask: umaskText,
		Capabilities: capabilities(in.Capabilities, in.Privileged),
	}
}

// mounts are all mounts of the container in the order in which they are made.
func (a *Agent) mounts(in wire.CreateContainer) []policy.Mount {
	var ms []policy.Mount
	for _, m := range policy.DefaultMounts() {
		// docker has no tmpfs at /run, and images keep things there; and one of
		// the two spellings of the cgroup mount is enough.
		if m.Destination != "/run" && m.Type != "cgroup2" {
			ms = append(ms, m)
		}
	}
	if in.Privileged {
		for _, m := range policy.DefaultPrivilegedMounts() {
			i := slices.IndexFunc(ms, func(o policy.Mount) bool { return o.Destination == m.Destination && o.Type == m.Type })
			if i >= 0 {
				ms[i] = m
			}
		}
	}
	if a.network {
		ms = append(ms, a.networkMounts(in.ReadOnlyRoot)...)
	}
	for _, m := range in.Mounts {
		ms = append(ms, a.volumeMount(m))
	}
	return ms
}

// volumeMount is a volume or read-only device as the policy sees it.
func (a *Agent) volumeMount(m wire.Mount) policy.Mount {
	out := policy.Mount{Destination: m.Destination, Type: "bind"}
	if m.Device != nil {
		out.Source = filepath.Join(a.sandboxMounts(), "tmp/coffer/ro", a.devices[*m.Device].hash)
		out.Options = []string{"rbind", "ro"}
		return out
	}
	out.Source = filepath.Join(a.sandboxMounts(), volumeDir, m.Volume)
	out.Options = []string{"rbind", "rshared", "rw"}
	if m.ReadOnly {
		out.Options[2] = "ro"
	}
	return out
}

// makeVolumes makes what the mounts' sources name; the policy has allowed them.
func (a *Agent) makeVolumes(in wire.CreateContainer) error {
	for _, m := range in.Mounts {
		if m.Device != nil {
			if _, err := a.readOnlyVolume(*m.Device); err != nil {
				return err
			}
			continue
		}
		dir := filepath.Join(a.sandboxMounts(), volumeDir, m.Volume)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return fmt.Errorf("making volume %s: %w", m.Volume, err)
		}
		// Whoever has the volume could put symbolic links in the copy's way.
		if m.Seed && !a.inUse(dir) {
			if err := container.Seed(a.rootfs(in.Container), m.Destination, dir); err != nil {
				return fmt.Errorf("making volume %s: %w", m.Volume, err)
			}
		}
	}
	return nil
}

// inUse reports whether a container has a directory mounted.
func (a *Agent) inUse(source string) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, c := range a.containers {
		if slices.ContainsFunc(c.config.Mounts, func(m container.Mount) bool { return m.Source == source }) {
			return true
		}
	}
	return false
}

func (a *Agent) configure(in wire.CreateContainer, req policy.CreateContainer, d policy.Decision, user container.User) *container.Config {
	cfg := &container.Config{
		ID: in.Container, Root: a.rootfs(in.Container), Hostname: a.hostname,
		ReadOnlyRoot: in.ReadOnlyRoot, Privileged: in.Privileged, Devices: a.cfg.Devices,
		Resources: container.Resources{MilliCPUs: in.Resources.MilliCPUs, MemoryBytes: in.Resources.MemoryBytes, Pids: in.Resources.Pids},
		Process: container.Process{Args: req.ArgList, Env: d.Env, Cwd: req.WorkingDir, User: user, Umask: umask,
			Terminal: in.Stdio.Terminal != 0, NoNewPrivileges: in.NoNewPrivileges, Capabilities: asSets(d.Capabilities)},
	}
	for _, m := range req.Mounts {
		cfg.Mounts = append(cfg.Mounts, container.Mount{Destination: m.Destination, Type: m.Type, Source: m.Source, Options: m.Options})
	}
	return cfg
}

// claim takes the host's streams over, or closes them where the policy does
// not allow the host to see them.
func (a *Agent) claim(ctx context.Context, in wire.Stdio, allowed bool) (container.Stdio, error) {
	out := container.Stdio{Cols: in.Cols, Rows: in.Rows}
	ctx, cancel := context.WithTimeout(ctx, claimTime)
	defer cancel()
	for _, f := range []struct {
		id  uint32
		set func(wire.Stream)
	}{
		{in.Stdin, func(s wire.Stream) { out.Stdin = s }},
		{in.Stdout, func(s wire.Stream) { out.Stdout = s }},
		{in.Stderr, func(s wire.Stream) { out.Stderr = s }},
		{in.Terminal, func(s wire.Stream) { out.Terminal = s }},
	} {
		if f.id == 0 {
			continue
		}
		s, err := a.host.Claim(ctx, f.id)
		if err != nil {
			out.Close()
			return container.Stdio{}, refuse(wire.CodeInvalid, "%v", err)
		}
		f.set(s)
	}
	if !allowed {
		out.Close()
		return container.Stdio{}, nil
	}
	return out, nil
}

func orEmpty(list []string) []string {
	if list == nil {
		return []string{}
	}
	return list
}

func orRoot(cwd string) string {
	if cwd == "" {
		return "/"
	}
	return cwd
}

func idName(id uint32, name string) policy.IDName {
	return policy.IDName{ID: strconv.FormatUint(uint64(id), 10), Name: name}
}

func groupsOf(u container.User) []policy.IDName {
	groups := []policy.IDName{idName(u.GID, u.Group)}
	for i, g := range u.Groups {
		groups = append(groups, idName(g, u.GroupNames[i]))
	}
	return groups
}

func capabilities(c *wire.Capabilities, privileged bool) *policy.Capabilities {
	switch {
	case c != nil:
		return &policy.Capabilities{Bounding: orEmpty(c.Bounding), Effective: orEmpty(c.Effective),
			Inheritable: orEmpty(c.Inheritable), Permitted: orEmpty(c.Permitted), Ambient: orEmpty(c.Ambient)}
	case privileged:
		return policy.PrivilegedCapabilities()
	}
	return policy.DefaultCapabilities()
}

func asSets(c *policy.Capabilities) container.Capabilities {
	if c == nil {
		return container.Capabilities{}
	}
	return container.Capabilities{Bounding: c.Bounding, Effective: c.Effective, Inheritable: c.Inheritable,
		Permitted: c.Permitted, Ambient: c.Ambient}
}
