// SPDX-License-Identifier: Apache-2.0

package network

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/coffer-dev/coffer/wire"
)

// isolated puts the test on a thread of its own with an empty network and host
// name; both end with the thread.
func isolated(t *testing.T) {
	t.Helper()
	runtime.LockOSThread() // never unlocked: the thread must not be used again
	if err := unix.Unshare(unix.CLONE_NEWNET | unix.CLONE_NEWUTS); err != nil {
		t.Skipf("no network namespace for this user (%v); run as root", err)
	}
}

// addLink adds an Ethernet interface, by whatever this kernel has.
func addLink(t *testing.T, name string) {
	t.Helper()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	var errs []error
	for _, l := range []netlink.Link{
		&netlink.Dummy{LinkAttrs: attrs},
		&netlink.Bridge{LinkAttrs: attrs},
		&netlink.Tuntap{LinkAttrs: attrs, Mode: netlink.TUNTAP_MODE_TAP},
	} {
		err := netlink.LinkAdd(l)
		if err == nil {
			return
		}
		errs = append(errs, err)
	}
	t.Skipf("this kernel makes no interface of its own: %v", errors.Join(errs...))
}

func addresses(t *testing.T, l netlink.Link) []string {
	t.Helper()
	list, err := netlink.AddrList(l, netlink.FAMILY_ALL)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, a := range list {
		if !a.IP.IsLinkLocalUnicast() {
			got = append(got, a.IPNet.String())
		}
	}
	slices.Sort(got)
	return got
}

func TestConfigure(t *testing.T) {
	isolated(t)
	addLink(t, "eth7")
	dir := filepath.Join(t.TempDir(), "network")
	n := sound()
	if _, err := os.Stat("/proc/net/if_inet6"); err != nil {
		n.Addresses, n.MTU = n.Addresses[:1], 0
	}
	for range 2 { // again changes nothing
		if err := Configure(n, dir); err != nil {
			t.Fatalf("Configure = %v", err)
		}
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil || lo.Attrs().Flags&net.FlagUp == 0 {
		t.Errorf("lo: %v, %v; want it up", lo, err)
	}
	l, err := netlink.LinkByName("eth7")
	if err != nil {
		t.Fatal(err)
	}
	if a := l.Attrs(); a.Flags&net.FlagUp == 0 || (n.MTU != 0 && a.MTU != n.MTU) {
		t.Errorf("eth7 has flags %v, MTU %d; want it up, %d", a.Flags, a.MTU, n.MTU)
	}
	if got := addresses(t, l); !slices.Equal(got, n.Addresses) {
		t.Errorf("eth7 has %q; want %q", got, n.Addresses)
	}
	if got := gateway(t); got != "10.0.2.2" {
		t.Errorf("the default route is by %q; want 10.0.2.2", got)
	}
	if got, err := os.Hostname(); err != nil || got != n.Hostname {
		t.Errorf("host name is %q, %v; want %q", got, err, n.Hostname)
	}
	for _, s := range sysctls() {
		got, err := os.ReadFile(s.path)
		if err != nil || strings.Join(strings.Fields(string(got)), " ") != s.value {
			t.Errorf("%s is %q, %v; want %q", s.path, got, err, s.value)
		}
	}
}

func gateway(t *testing.T) string {
	t.Helper()
	routes, err := netlink.RouteList(nil, netlink.FAMILY_V4)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range routes {
		if r.Dst == nil || r.Dst.IP.IsUnspecified() {
			return r.Gw.String()
		}
	}
	return ""
}

func TestConfigureGatewayElsewhere(t *testing.T) {
	isolated(t)
	addLink(t, "eth0")
	if err := Configure(wire.Network{Hostname: "a", Addresses: []string{"10.0.2.15/32"}, Gateway: "192.0.2.1"}, t.TempDir()); err != nil {
		t.Fatalf("Configure = %v", err)
	}
	if got := gateway(t); got != "192.0.2.1" {
		t.Errorf("the default route is by %q; want 192.0.2.1", got)
	}
}

func TestConfigureLoopbackOnly(t *testing.T) {
	isolated(t)
	addLink(t, "eth0")
	if err := Configure(wire.Network{Hostname: "alone"}, t.TempDir()); err != nil {
		t.Fatalf("Configure = %v", err)
	}
	l, err := netlink.LinkByName("eth0")
	if err != nil || l.Attrs().Flags&net.FlagUp != 0 || len(addresses(t, l)) != 0 {
		t.Errorf("eth0: %v, %v; want it down and without addresses", l, err)
	}
}

func TestConfigureRefuses(t *testing.T) {
	isolated(t)
	if err := unix.Sethostname([]byte("before")); err != nil {
		t.Fatal(err)
	}
	n := wire.Network{Hostname: "a", Addresses: []string{"10.0.2.15/24"}}
	if err := Configure(n, t.TempDir()); err == nil || !strings.Contains(err.Error(), "no network interface") {
		t.Errorf("Configure without an interface = %v", err)
	}
	addLink(t, "eth0")
	addLink(t, "eth1")
	if err := Configure(n, t.TempDir()); err == nil || !strings.Contains(err.Error(), "2 network interfaces, not one") {
		t.Errorf("Configure with two interfaces = %v", err)
	}
	if err := unix.Sethostname([]byte("before")); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "network")
	n.Search = []string{"a\nb"}
	if err := Configure(n, dir); err == nil {
		t.Error("Configure with a malformed search domain = nil; want an error")
	}
	if got, err := os.Hostname(); err != nil || got != "before" {
		t.Errorf("after a refusal the host name is %q, %v; want what it was", got, err)
	}
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		t.Errorf("after a refusal Stat(%s) = %v; want that nothing was written", dir, err)
	}
}
