// SPDX-License-Identifier: Apache-2.0

package policy

import "slices"

// DefaultCapabilities is the set of a container whose policy names none: containerd's default.
func DefaultCapabilities() *Capabilities {
	return &Capabilities{
		Bounding: defaultCaps(), Effective: defaultCaps(), Inheritable: []string{}, Permitted: defaultCaps(), Ambient: []string{},
	}
}

// PrivilegedCapabilities is the set of a privileged container whose policy names none.
func PrivilegedCapabilities() *Capabilities {
	return &Capabilities{
		Bounding: allCaps(), Effective: allCaps(), Inheritable: allCaps(), Permitted: allCaps(), Ambient: []string{},
	}
}

func defaultCaps() []string {
	return []string{
		"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_MKNOD", "CAP_NET_RAW", "CAP_SETGID",
		"CAP_SETUID", "CAP_SETFCAP", "CAP_SETPCAP", "CAP_NET_BIND_SERVICE", "CAP_SYS_CHROOT", "CAP_KILL",
		"CAP_AUDIT_WRITE",
	}
}

func allCaps() []string {
	return []string{
		"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_SETGID",
		"CAP_SETUID", "CAP_SETPCAP", "CAP_LINUX_IMMUTABLE", "CAP_NET_BIND_SERVICE", "CAP_NET_BROADCAST",
		"CAP_NET_ADMIN", "CAP_NET_RAW", "CAP_IPC_LOCK", "CAP_IPC_OWNER", "CAP_SYS_MODULE", "CAP_SYS_RAWIO",
		"CAP_SYS_CHROOT", "CAP_SYS_PTRACE", "CAP_SYS_PACCT", "CAP_SYS_ADMIN", "CAP_SYS_BOOT", "CAP_SYS_NICE",
		"CAP_SYS_RESOURCE", "CAP_SYS_TIME", "CAP_SYS_TTY_CONFIG", "CAP_MKNOD", "CAP_LEASE", "CAP_AUDIT_WRITE",
		"CAP_AUDIT_CONTROL", "CAP_SETFCAP", "CAP_MAC_OVERRIDE", "CAP_MAC_ADMIN", "CAP_SYSLOG", "CAP_WAKE_ALARM",
		"CAP_BLOCK_SUSPEND", "CAP_AUDIT_READ", "CAP_PERFMON", "CAP_BPF", "CAP_CHECKPOINT_RESTORE",
	}
}

// sets returns the five sets in a fixed order.
func (c *Capabilities) sets() [5]*[]string {
	return [5]*[]string{&c.Bounding, &c.Effective, &c.Inheritable, &c.Permitted, &c.Ambient}
}

func capNames() [5]string {
	return [5]string{"bounding", "effective", "inheritable", "permitted", "ambient"}
}

// equal is sameSet over all five.
func (c *Capabilities) equal(o *Capabilities) bool {
	a, b := c.sets(), o.sets()
	for i := range a {
		if !sameSet(*a[i], *b[i]) {
			return false
		}
	}
	return true
}

// keep returns what of c is in allowed too, each once, in the order of c; and how many those are.
func (c *Capabilities) keep(allowed *Capabilities) (*Capabilities, int) {
	out, n := &Capabilities{}, 0
	from, by, to := c.sets(), allowed.sets(), out.sets()
	for i := range from {
		*to[i] = intersect(*from[i], *by[i])
		n += len(*to[i])
	}
	return out, n
}

// intersect returns what of list is in allowed, each once, in the order of list.
func intersect(list, allowed []string) []string {
	out := make([]string, 0, min(len(list), len(allowed)))
	if len(list)*len(allowed) <= maxPairs {
		for _, s := range list {
			if slices.Contains(allowed, s) && !slices.Contains(out, s) {
				out = append(out, s)
			}
		}
		return out
	}
	in := make(map[string]bool, len(allowed))
	for _, s := range allowed {
		in[s] = true
	}
	for _, s := range list {
		if in[s] {
			out = append(out, s)
			in[s] = false
		}
	}
	return out
}

// capsOf is the set that a container must have: its own, or the default for what it is.
func capsOf(c *container, privileged bool) *Capabilities {
	switch {
	case c.caps != nil:
		return c.caps
	case privileged && c.elevated:
		return PrivilegedCapabilities()
	}
	return DefaultCapabilities()
}

// narrowCaps drops what no candidate allows, if the policy permits dropping, and returns the candidates whose set is
// exactly what remains. With dropping, the largest remaining set wins; unique is false if several are largest.
func narrowCaps(cs []*container, asked *Capabilities, privileged, drop bool) (left []*container, kept *Capabilities, unique bool) {
	kept, unique = asked, true
	if drop {
		most := -1
		for _, c := range cs {
			k, n := asked.keep(capsOf(c, privileged))
			switch {
			case n > most:
				kept, most, unique = k, n, true
			case n == most && !k.equal(kept):
				unique = false
			}
		}
	}
	if !unique {
		return nil, nil, false
	}
	for _, c := range cs {
		if kept.equal(capsOf(c, privileged)) {
			left = append(left, c)
		}
	}
	return left, kept, true
}
