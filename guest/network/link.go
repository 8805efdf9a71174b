// SPDX-License-Identifier: Apache-2.0

package network

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// configureLinks brings the loopback interface up, then the other one with the
// plan's addresses.
func (p *plan) configureLinks() error {
	links, err := netlink.LinkList()
	if err != nil {
		return fmt.Errorf("listing interfaces: %w", err)
	}
	var others []netlink.Link
	for _, l := range links {
		a := l.Attrs()
		switch {
		case a.Flags&net.FlagLoopback != 0:
			if err := netlink.LinkSetUp(l); err != nil {
				return fmt.Errorf("bringing %s up: %w", a.Name, err)
			}
		case a.EncapType == "ether": // not the kernel's tunnels, such as sit0
			others = append(others, l)
		}
	}
	if len(p.addresses) == 0 {
		return nil
	}
	l, err := only(others)
	if err != nil {
		return err
	}
	return p.configureLink(l)
}

func only(links []netlink.Link) (netlink.Link, error) {
	if len(links) == 1 {
		return links[0], nil
	}
	var names []string
	for _, l := range links {
		names = append(names, l.Attrs().Name)
	}
	if len(names) == 0 {
		return nil, errors.New("there are addresses but no network interface")
	}
	return nil, fmt.Errorf("there are %d network interfaces, not one: %s", len(names), strings.Join(names, ", "))
}

func (p *plan) configureLink(l netlink.Link) error {
	name := l.Attrs().Name
	if p.mtu != 0 {
		if err := netlink.LinkSetMTU(l, p.mtu); err != nil {
			return fmt.Errorf("setting the MTU of %s to %d: %w", name, p.mtu, err)
		}
	}
	for _, a := range p.addresses {
		addr := &netlink.Addr{IPNet: ipNet(a)}
		if a.Addr().Is6() {
			addr.Flags = unix.IFA_F_NODAD // usable at once: nobody else is on this link
		}
		if err := netlink.AddrReplace(l, addr); err != nil {
			return fmt.Errorf("giving %s the address %s: %w", name, a, err)
		}
	}
	if err := netlink.LinkSetUp(l); err != nil {
		return fmt.Errorf("bringing %s up: %w", name, err)
	}
	if !p.gateway.IsValid() {
		return nil
	}
	return p.addDefaultRoute(l)
}

func (p *plan) addDefaultRoute(l netlink.Link) error {
	i := l.Attrs().Index
	if !p.onLink(p.gateway) {
		only := netip.PrefixFrom(p.gateway, p.gateway.BitLen())
		if err := netlink.RouteReplace(&netlink.Route{LinkIndex: i, Scope: netlink.SCOPE_LINK, Dst: ipNet(only)}); err != nil {
			return fmt.Errorf("adding a route to the gateway %s: %w", p.gateway, err)
		}
	}
	all := netip.PrefixFrom(netip.IPv6Unspecified(), 0)
	if p.gateway.Is4() {
		all = netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	}
	if err := netlink.RouteReplace(&netlink.Route{LinkIndex: i, Dst: ipNet(all), Gw: p.gateway.AsSlice()}); err != nil {
		return fmt.Errorf("adding the default route by %s: %w", p.gateway, err)
	}
	return nil
}

func (p *plan) onLink(a netip.Addr) bool {
	if a.IsLinkLocalUnicast() && a.Is6() {
		return true
	}
	for _, prefix := range p.addresses {
		if prefix.Contains(a) {
			return true
		}
	}
	return false
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
