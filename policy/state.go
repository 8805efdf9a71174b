// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"fmt"
	"strings"
)

// State is what the guest has done so far under a policy: disks and overlays mounted, and for each container which
// containers of the policy it can still be. A State is a value and never changes; keep the one that Decide returned
// once the action has succeeded, and drop it if the action failed. The zero State denies everything.
type State struct {
	policy   *Policy
	devices  table[string] // target -> root hash
	rw       table[bool]   // target -> encrypted
	scratch  table[bool]   // target -> encrypted
	overlays table[bool]   // target -> true
	plan9    table[string] // target -> container ID
	matches  table[[]*container]
	started  table[bool] // container ID -> privileged; an ID stays for ever, so that none is started twice
	stdio    table[bool] // container ID -> may its stdio be seen
	mounts   []Mount
}

// Start is the state of a guest that has done nothing yet.
func (p *Policy) Start() State { return State{policy: p} }

// WithDefaultMounts returns a state in which every container may have the mounts ms too. They are the guest's own:
// hostname, hosts and resolv.conf of the group.
func (s State) WithDefaultMounts(ms []Mount) State {
	s.mounts = append(s.mounts[:len(s.mounts):len(s.mounts)], ms...)
	return s
}

// StdioAllowed says whether the policy lets the host see the stdio of a container that was created.
func (s State) StdioAllowed(containerID string) bool {
	ok, _ := s.stdio.get(containerID)
	return ok
}

// String lists the state, one fact per line, in a fixed order. It holds nothing secret.
func (s State) String() string {
	var b strings.Builder
	s.devices.all(func(target, hash string) bool {
		fmt.Fprintf(&b, "device %s = %s\n", target, hash)
		return true
	})
	s.rw.all(func(target string, encrypted bool) bool {
		fmt.Fprintf(&b, "rw device %s encrypted=%t\n", target, encrypted)
		return true
	})
	s.scratch.all(func(target string, encrypted bool) bool {
		fmt.Fprintf(&b, "scratch %s encrypted=%t\n", target, encrypted)
		return true
	})
	s.overlays.all(func(target string, _ bool) bool {
		fmt.Fprintf(&b, "overlay %s\n", target)
		return true
	})
	s.plan9.all(func(target, id string) bool {
		fmt.Fprintf(&b, "plan9 %s of %s\n", target, id)
		return true
	})
	s.matches.all(func(id string, cs []*container) bool {
		labels := make([]string, len(cs))
		for i, c := range cs {
			labels[i] = c.label()
		}
		fmt.Fprintf(&b, "container %s is one of: %s\n", id, strings.Join(labels, ", "))
		return true
	})
	s.started.all(func(id string, privileged bool) bool {
		fmt.Fprintf(&b, "started %s privileged=%t stdio=%t\n", id, privileged, s.StdioAllowed(id))
		return true
	})
	return b.String()
}
