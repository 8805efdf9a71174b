// SPDX-License-Identifier: Apache-2.0

// Package network configures the guest's one network interface and writes the
// files by which programs learn of it: hostname, hosts and resolv.conf.
//
// The host chooses every value and carries every packet: the network is not
// trusted, and nothing here makes it so. What this package promises is that a
// value can only be what it claims to be, an address or a name, and that
// nothing is changed before all values have been checked. The guest trusts it
// with that.
package network

import (
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/coffer-dev/coffer/wire"
)

// Configure sets the host name, brings up the loopback interface and, if n has
// addresses, the one other interface there is, and writes hostname, hosts and
// resolv.conf into dir, which it makes. Invalid values change nothing. After
// another error some of it is done.
//
// Without addresses the other interface, if any, is left down.
func Configure(n wire.Network, dir string) error {
	p, err := check(n)
	if err != nil {
		return fmt.Errorf("configuring the network: %w", err)
	}
	if err := unix.Sethostname([]byte(p.hostname)); err != nil {
		return fmt.Errorf("setting the host name: %w", err)
	}
	if err := p.configureLinks(); err != nil {
		return fmt.Errorf("configuring the network: %w", err)
	}
	for _, s := range sysctls() {
		if err := os.WriteFile(s.path, []byte(s.value), 0); err != nil {
			return fmt.Errorf("configuring the network: %w", err)
		}
	}
	return p.writeFiles(dir)
}

type sysctl struct{ path, value string }

// sysctls are what docker gives its containers: any user may listen on any
// port and ping, since the group has this network to itself.
func sysctls() []sysctl {
	return []sysctl{
		{"/proc/sys/net/ipv4/ip_unprivileged_port_start", "0"},
		{"/proc/sys/net/ipv4/ping_group_range", "0 2147483647"},
	}
}

func (p *plan) writeFiles(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("writing network files: %w", err)
	}
	for _, f := range []struct{ name, text string }{
		{"hostname", p.hostname + "\n"},
		{"hosts", p.hostsText()},
		{"resolv.conf", p.resolvText()},
	} {
		if err := os.WriteFile(filepath.Join(dir, f.name), []byte(f.text), 0o644); err != nil {
			return fmt.Errorf("writing network files: %w", err)
		}
	}
	return nil
}
