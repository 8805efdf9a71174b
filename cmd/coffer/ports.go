// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"

	"github.com/coffer-dev/coffer/host/qemu"
)

// maxRange bounds how many ports one -p may publish.
const maxRange = 1000

// parsePorts reads docker's forms: PORT, PORT:PORT, IP:PORT:PORT and
// IP::PORT, each with /tcp or /udp and with ranges of equal length.
func parsePorts(list []string) ([]qemu.Port, error) {
	var out []qemu.Port
	for _, s := range list {
		ports, err := parsePort(s)
		if err != nil {
			return nil, hint(fmt.Errorf("--publish %q: %w", s, err), "the form is [[IP:]PORT:]PORT[/tcp|/udp]")
		}
		out = append(out, ports...)
	}
	return out, nil
}

func parsePort(s string) ([]qemu.Port, error) {
	rest, proto, found := strings.Cut(s, "/")
	if !found {
		proto = "tcp"
	}
	if proto != "tcp" && proto != "udp" {
		return nil, fmt.Errorf("protocol %q", proto)
	}
	host, guest := "", rest
	if i := strings.LastIndexByte(rest, ':'); i >= 0 {
		host, guest = rest[:i], rest[i+1:]
	}
	address := netip.IPv4Unspecified()
	if i := strings.LastIndexByte(host, ':'); i >= 0 {
		var err error
		if address, err = netip.ParseAddr(strings.Trim(host[:i], "[]")); err != nil {
			return nil, err
		}
		if !address.Is4() {
			return nil, fmt.Errorf("only IPv4 addresses can be published on")
		}
		host = host[i+1:]
	}
	first, last, err := portRange(guest)
	if err != nil {
		return nil, err
	}
	var hostFirst, hostLast int
	if host != "" {
		if hostFirst, hostLast, err = portRange(host); err != nil {
			return nil, err
		}
		if hostLast-hostFirst != last-first {
			return nil, fmt.Errorf("the ranges differ in length")
		}
	}
	var out []qemu.Port
	for i := range last - first + 1 {
		h := hostFirst + i
		if host == "" {
			if h, err = freePort(proto, address); err != nil {
				return nil, err
			}
		}
		out = append(out, qemu.Port{Proto: proto, Host: netip.AddrPortFrom(address, uint16(h)), Guest: uint16(first + i)})
	}
	return out, nil
}

func portRange(s string) (first, last int, err error) {
	a, b, ranged := strings.Cut(s, "-")
	if !ranged {
		b = a
	}
	if first, err = portNumber(a); err != nil {
		return 0, 0, err
	}
	if last, err = portNumber(b); err != nil {
		return 0, 0, err
	}
	if last < first || last-first >= maxRange {
		return 0, 0, fmt.Errorf("range %s", s)
	}
	return first, last, nil
}

func portNumber(s string) (int, error) {
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil || n == 0 {
		return 0, fmt.Errorf("port %q", s)
	}
	return int(n), nil
}

// freePort asks the kernel for a port that is free now.
func freePort(proto string, a netip.Addr) (int, error) {
	at := netip.AddrPortFrom(a, 0)
	if proto == "udp" {
		c, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(at))
		if err != nil {
			return 0, fmt.Errorf("finding a free port: %w", err)
		}
		defer c.Close()
		return int(c.LocalAddr().(*net.UDPAddr).AddrPort().Port()), nil
	}
	l, err := net.ListenTCP("tcp4", net.TCPAddrFromAddrPort(at))
	if err != nil {
		return 0, fmt.Errorf("finding a free port: %w", err)
	}
	defer l.Close()
	return int(l.Addr().(*net.TCPAddr).AddrPort().Port()), nil
}
