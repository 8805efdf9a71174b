// SPDX-License-Identifier: Apache-2.0

package policy

import "strings"

// Prefixes of mount sources that stand for directories of the guest.
const (
	schemeSandbox   = "sandbox://"
	schemeHugePages = "hugepages://"
	schemePlan9     = "plan9://"
)

// DefaultMounts are the mounts that every container may have besides those of its policy. The guest adds its own
// hostname, hosts and resolv.conf with State.WithDefaultMounts.
func DefaultMounts() []Mount {
	return []Mount{
		{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
		{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
		{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: []string{"nosuid", "noexec", "nodev", "mode=1777", "size=65536k"}},
		{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", "ro"}},
		{Destination: "/run", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
		{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: []string{"nosuid", "noexec", "nodev", "relatime", "ro"}},
		{Destination: "/sys/fs/cgroup", Type: "cgroup2", Source: "cgroup2", Options: []string{"nosuid", "noexec", "nodev", "relatime", "ro"}},
	}
}

// DefaultPrivilegedMounts are the mounts that a container with allow_elevated may have in addition.
func DefaultPrivilegedMounts() []Mount {
	return []Mount{
		{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: []string{"nosuid", "noexec", "nodev", "relatime", "rw"}},
		{Destination: "/sys/fs/cgroup", Type: "cgroup2", Source: "cgroup2", Options: []string{"nosuid", "noexec", "nodev", "relatime", "rw"}},
		{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", "rw"}},
	}
}

// pauseSysfs is the mount that containerd 2 gives to the pause container of a privileged pod.
func pauseSysfs() Mount { return DefaultPrivilegedMounts()[2] }

func (m *Mount) equal(o *Mount) bool {
	return m.Destination == o.Destination && m.Destination != "" && m.Type == o.Type && m.Source == o.Source &&
		sameSet(m.Options, o.Options)
}

// sameSet compares lists as the framework does: equal length, and each element of one is in the other.
func sameSet(a, b []string) bool {
	return len(a) == len(b) && subset(a, b) && subset(b, a)
}

// maxPairs is how many pairs of two lists are compared one by one. The host may send long lists.
const maxPairs = 4096

func subset(a, b []string) bool {
	if len(a)*len(b) > maxPairs {
		in := make(map[string]bool, len(b))
		for _, s := range b {
			in[s] = true
		}
		for _, s := range a {
			if !in[s] {
				return false
			}
		}
		return true
	}
outer:
	for _, x := range a {
		for _, y := range b {
			if x == y {
				continue outer
			}
		}
		return false
	}
	return true
}

// mountCheck decides the mounts of one create_container.
type mountCheck struct {
	st  *State
	req *CreateContainer
	// plain and elevated say for each mount whether it needs no rule of the container's own.
	plain, elevated []bool
}

func (s *State) mountCheck(r *CreateContainer) *mountCheck {
	k := &mountCheck{st: s, req: r, plain: make([]bool, len(r.Mounts)), elevated: make([]bool, len(r.Mounts))}
	defaults, privileged, sysfs := DefaultMounts(), DefaultPrivilegedMounts(), pauseSysfs()
	for i := range r.Mounts {
		m := &r.Mounts[i]
		k.plain[i] = m.isOneOf(defaults) || m.isOneOf(s.mounts) || r.IsSandboxContainer && m.equal(&sysfs)
		k.elevated[i] = k.plain[i] || m.isOneOf(privileged)
	}
	return k
}

func (m *Mount) isOneOf(list []Mount) bool {
	for i := range list {
		if m.equal(&list[i]) {
			return true
		}
	}
	return false
}

// ok says whether c may have the mount number i of the request.
func (k *mountCheck) ok(c *container, i int) bool {
	if k.plain[i] || c.elevated && k.elevated[i] {
		return true
	}
	m := &k.req.Mounts[i]
	for j := range c.mounts {
		rule := &c.mounts[j]
		if !rule.broken && m.Destination != "" && rule.destination == m.Destination && rule.typ == m.Type &&
			sameSet(rule.options, m.Options) && k.sourceOK(rule, m.Source) {
			return true
		}
	}
	return false
}

func (k *mountCheck) allOK(c *container) bool {
	for i := range k.req.Mounts {
		if !k.ok(c, i) {
			return false
		}
	}
	return true
}

func (k *mountCheck) sourceOK(rule *mountRule, source string) bool {
	switch rule.scheme {
	case schemeSandbox:
		return under(k.req.SandboxDir, source, &rule.rest)
	case schemeHugePages:
		return under(k.req.HugePagesDir, source, &rule.rest)
	case schemePlan9:
		id, ok := k.st.plan9.get(source)
		return ok && id == k.req.ContainerID
	}
	return rule.source == source
}

// under says whether source is dir followed by what rest matches. The directory is literal text, and what follows
// may not lead out of it: framework.rego takes both as one pattern, so that ".+" there also matches "/../..".
func under(dir, source string, rest *matcher) bool {
	tail, ok := strings.CutPrefix(source, dir)
	if !ok || dir == "" || tail != "" && tail[0] != '/' || !printable(tail) {
		return false
	}
	return !climbs(tail) && rest.match(tail)
}

// climbs says whether a path has an element "." or "..".
func climbs(path string) bool {
	for len(path) > 0 {
		var name string
		if name, path, _ = strings.Cut(path, "/"); name == "." || name == ".." {
			return true
		}
	}
	return false
}
