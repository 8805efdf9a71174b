// SPDX-License-Identifier: Apache-2.0

package network

import (
	"fmt"
	"net/netip"
	"regexp"
	"strings"

	"github.com/coffer-dev/coffer/wire"
)

// Limits. Real networks are far below them.
const (
	maxAddresses = 16
	maxDNS       = 8
	maxSearch    = 32 // glibc before 2.26 reads 6
	maxHosts     = 1024
	maxNames     = 32  // of one line of hosts
	maxName      = 253 // RFC 1035, 2.3.4, as text
	maxMTU       = 65535
)

// plan is a wire.Network whose every value has been checked.
type plan struct {
	hostname  string
	addresses []netip.Prefix
	gateway   netip.Addr // not valid: none
	dns       []netip.Addr
	search    []string
	mtu       int // 0: as it is
	hosts     []hostLine
}

type hostLine struct {
	address netip.Addr
	names   []string
}

// check is the only way from the host's values to a plan.
func check(n wire.Network) (*plan, error) {
	p := &plan{hostname: n.Hostname, mtu: n.MTU}
	if !isHostname(n.Hostname) {
		return nil, fmt.Errorf("%.80q is not a host name", n.Hostname)
	}
	for _, l := range []struct {
		what   string
		n, max int
	}{{"addresses", len(n.Addresses), maxAddresses}, {"DNS servers", len(n.DNS), maxDNS},
		{"search domains", len(n.Search), maxSearch}, {"hosts", len(n.Hosts), maxHosts}} {
		if l.n > l.max {
			return nil, fmt.Errorf("%d %s; at most %d", l.n, l.what, l.max)
		}
	}
	for _, part := range []func(wire.Network) error{p.checkAddresses, p.checkMTU, p.checkDNS, p.checkHosts} {
		if err := part(n); err != nil {
			return nil, err
		}
	}
	return p, nil
}

func (p *plan) checkAddresses(n wire.Network) error {
	seen := make(map[netip.Addr]bool)
	for _, s := range n.Addresses {
		a, err := netip.ParsePrefix(s)
		if err != nil || !isUnicast(a.Addr()) || a.Bits() == 0 {
			return fmt.Errorf("%.80q is not an address with its prefix length", s)
		}
		if seen[a.Addr()] {
			return fmt.Errorf("the address %s is there twice", a.Addr())
		}
		seen[a.Addr()] = true
		p.addresses = append(p.addresses, a)
	}
	if n.Gateway == "" {
		return nil
	}
	g, err := netip.ParseAddr(n.Gateway)
	if err != nil || !isUnicast(g) {
		return fmt.Errorf("%.80q is not a gateway's address", n.Gateway)
	}
	if seen[g] {
		return fmt.Errorf("the gateway %s is the guest's own address", g)
	}
	if p.families()[g.Is4()] == 0 {
		return fmt.Errorf("the guest has no address of the family of its gateway %s", g)
	}
	p.gateway = g
	return nil
}

// families counts addresses; the key says whether they are of IPv4.
func (p *plan) families() map[bool]int {
	count := make(map[bool]int)
	for _, a := range p.addresses {
		count[a.Addr().Is4()]++
	}
	return count
}

// checkMTU: RFC 791 wants 68 bytes of every link, RFC 8200 1280.
func (p *plan) checkMTU(n wire.Network) error {
	least := 68
	if p.families()[false] > 0 {
		least = 1280
	}
	if n.MTU != 0 && (n.MTU < least || n.MTU > maxMTU) {
		return fmt.Errorf("an MTU is %d to %d, not %d", least, maxMTU, n.MTU)
	}
	return nil
}

func (p *plan) checkDNS(n wire.Network) error {
	for _, s := range n.DNS {
		a, err := netip.ParseAddr(s)
		if err != nil || a.Zone() != "" || a.Is4In6() || a.IsMulticast() || a.IsUnspecified() {
			return fmt.Errorf("%.80q is not a DNS server's address", s)
		}
		p.dns = append(p.dns, a)
	}
	for _, s := range n.Search {
		if s != "." && !isDomain(s) {
			return fmt.Errorf("%.80q is not a search domain", s)
		}
		p.search = append(p.search, s)
	}
	return nil
}

func (p *plan) checkHosts(n wire.Network) error {
	for _, h := range n.Hosts {
		a, err := netip.ParseAddr(h.Address)
		if err != nil || a.Zone() != "" {
			return fmt.Errorf("%.80q is not an address for hosts", h.Address)
		}
		if len(h.Names) == 0 || len(h.Names) > maxNames {
			return fmt.Errorf("hosts has %d names for %s, not 1 to %d", len(h.Names), a, maxNames)
		}
		for _, name := range h.Names {
			if !isDomain(name) {
				return fmt.Errorf("%.80q is not a name for hosts", name)
			}
			if isLoopbackName(name) && !a.Unmap().IsLoopback() {
				return fmt.Errorf("the name %q for hosts is the guest's own", name)
			}
		}
		p.hosts = append(p.hosts, hostLine{a, h.Names})
	}
	return nil
}

// isLoopbackName: what containers of a group call each other by. The host has
// all of the network but that.
func isLoopbackName(s string) bool {
	s = strings.ToLower(strings.TrimSuffix(s, "."))
	return s == "localhost" || strings.HasSuffix(s, ".localhost") || s == "ip6-localhost" || s == "ip6-loopback"
}

// isUnicast: an address an interface may have.
func isUnicast(a netip.Addr) bool {
	return a.IsValid() && a.Zone() == "" && !a.Is4In6() && !a.IsUnspecified() && !a.IsMulticast() && !a.IsLoopback() &&
		a != netip.AddrFrom4([4]byte{255, 255, 255, 255})
}

// Names may have underscores, which RFC 1123 does not know and everybody uses.
// \z, since $ alone would mean the same but reads as if it allowed a newline.
const label = `[a-zA-Z0-9_]([a-zA-Z0-9_-]*[a-zA-Z0-9_])?`

// isHostname: at most 63 bytes, since the kernel keeps 64. docker's pattern.
func isHostname(s string) bool {
	return regexp.MustCompile(`\A[a-zA-Z0-9][a-zA-Z0-9_.-]{0,62}\z`).MatchString(s)
}

// isDomain: labels and dots, the last dot may be there.
func isDomain(s string) bool {
	return len(s) <= maxName && regexp.MustCompile(`\A`+label+`(\.`+label+`)*\.?\z`).MatchString(s)
}

// hostsText is /etc/hosts. As with docker, the host name means the guest's own
// addresses; without any it means 127.0.0.1, as with Azure.
func (p *plan) hostsText() string {
	var b strings.Builder
	b.WriteString("127.0.0.1 localhost\n")
	names := p.hostname
	if !strings.Contains(p.hostname, ".") && len(p.search) > 0 && p.search[0] != "." {
		names = p.hostname + "." + strings.TrimSuffix(p.search[0], ".") + " " + p.hostname
	}
	for _, a := range p.addresses {
		fmt.Fprintf(&b, "%s %s\n", a.Addr(), names)
	}
	if len(p.addresses) == 0 {
		fmt.Fprintf(&b, "127.0.0.1 %s\n", names)
	}
	b.WriteString(`
# The following lines are desirable for IPv6 capable hosts
::1     localhost ip6-localhost ip6-loopback
fe00::0 ip6-localnet
ff00::0 ip6-mcastprefix
ff02::1 ip6-allnodes
ff02::2 ip6-allrouters
`)
	for _, h := range p.hosts {
		fmt.Fprintf(&b, "%s %s\n", h.address, strings.Join(h.names, " "))
	}
	return b.String()
}

// resolvText is /etc/resolv.conf, resolv.conf(5).
func (p *plan) resolvText() string {
	var b strings.Builder
	if len(p.search) > 0 {
		fmt.Fprintf(&b, "search %s\n", strings.Join(p.search, " "))
	}
	for _, a := range p.dns {
		fmt.Fprintf(&b, "nameserver %s\n", a)
	}
	return b.String()
}
