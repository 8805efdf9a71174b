// SPDX-License-Identifier: Apache-2.0

package network

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/coffer-dev/coffer/wire"
)

func sound() wire.Network {
	return wire.Network{
		Hostname:  "web-1",
		Addresses: []string{"10.0.2.15/24", "fd00::15/64"},
		Gateway:   "10.0.2.2",
		DNS:       []string{"10.0.2.3", "fd00::3"},
		Search:    []string{"corp.example", "example."},
		MTU:       1400,
		Hosts:     []wire.HostEntry{{Address: "192.0.2.7", Names: []string{"db", "db.corp.example"}}, {Address: "::1", Names: []string{"six"}}},
	}
}

func TestFiles(t *testing.T) {
	const end = `
# The following lines are desirable for IPv6 capable hosts
::1     localhost ip6-localhost ip6-loopback
fe00::0 ip6-localnet
ff00::0 ip6-mcastprefix
ff02::1 ip6-allnodes
ff02::2 ip6-allrouters
`
	tests := []struct {
		name                    string
		network                 wire.Network
		hostname, hosts, resolv string
	}{
		{"everything", sound(), "web-1\n",
			"127.0.0.1 localhost\n10.0.2.15 web-1.corp.example web-1\nfd00::15 web-1.corp.example web-1\n" + end + "192.0.2.7 db db.corp.example\n::1 six\n",
			"search corp.example example.\nnameserver 10.0.2.3\nnameserver fd00::3\n"},
		{"loopback only", wire.Network{Hostname: "alone"}, "alone\n", "127.0.0.1 localhost\n127.0.0.1 alone\n" + end, ""},
		{"host name with a domain", wire.Network{Hostname: "a.b", Search: []string{"c"}}, "a.b\n", "127.0.0.1 localhost\n127.0.0.1 a.b\n" + end, "search c\n"},
		{"search for nothing", wire.Network{Hostname: "a", Search: []string{"."}}, "a\n", "127.0.0.1 localhost\n127.0.0.1 a\n" + end, "search .\n"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p, err := check(tt.network)
			if err != nil {
				t.Fatalf("check = %v", err)
			}
			dir := filepath.Join(t.TempDir(), "made")
			if err := p.writeFiles(dir); err != nil {
				t.Fatal(err)
			}
			for name, want := range map[string]string{"hostname": tt.hostname, "hosts": tt.hosts, "resolv.conf": tt.resolv} {
				got, err := os.ReadFile(filepath.Join(dir, name))
				if err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff(want, string(got)); diff != "" {
					t.Errorf("%s (-want +got):\n%s", name, diff)
				}
			}
		})
	}
}

func TestCheckRefuses(t *testing.T) {
	many := func(n int, s string) []string { return strings.Split(strings.Repeat(s+" ", n-1)+s, " ") }
	tests := []struct {
		name   string
		mutate func(n *wire.Network)
		want   string
	}{
		{"no host name", func(n *wire.Network) { n.Hostname = "" }, "host name"},
		{"newline in the host name", func(n *wire.Network) { n.Hostname = "a\n10.0.0.1 bank" }, "host name"},
		{"newline after the host name", func(n *wire.Network) { n.Hostname = "a\n" }, "host name"},
		{"space in the host name", func(n *wire.Network) { n.Hostname = "a b" }, "host name"},
		{"hyphen first", func(n *wire.Network) { n.Hostname = "-a" }, "host name"},
		{"64 bytes", func(n *wire.Network) { n.Hostname = strings.Repeat("a", 64) }, "host name"},
		{"not ASCII", func(n *wire.Network) { n.Hostname = "wéb" }, "host name"},
		{"address without prefix", func(n *wire.Network) { n.Addresses = []string{"10.0.2.15"} }, "prefix"},
		{"address with a zone", func(n *wire.Network) { n.Addresses = []string{"fe80::1%eth0/64"} }, "prefix"},
		{"any address", func(n *wire.Network) { n.Addresses = []string{"0.0.0.0/8"} }, "prefix"},
		{"prefix of everything", func(n *wire.Network) { n.Addresses = []string{"10.0.2.15/0"} }, "prefix"},
		{"loopback", func(n *wire.Network) { n.Addresses = []string{"127.0.0.2/8"} }, "prefix"},
		{"multicast", func(n *wire.Network) { n.Addresses = []string{"224.0.0.1/8"} }, "prefix"},
		{"broadcast", func(n *wire.Network) { n.Addresses = []string{"255.255.255.255/8"} }, "prefix"},
		{"IPv4 in IPv6", func(n *wire.Network) { n.Addresses = []string{"::ffff:10.0.2.15/120"} }, "prefix"},
		{"empty address", func(n *wire.Network) { n.Addresses = []string{""} }, "prefix"},
		{"address twice", func(n *wire.Network) { n.Addresses = []string{"10.0.2.15/24", "10.0.2.15/16"} }, "twice"},
		{"too many addresses", func(n *wire.Network) { n.Addresses = many(17, "10.0.2.15/24") }, "17 addresses"},
		{"gateway is a name", func(n *wire.Network) { n.Gateway = "gw" }, "gateway"},
		{"gateway has a zone", func(n *wire.Network) { n.Gateway = "fe80::1%eth0" }, "gateway"},
		{"gateway is the guest", func(n *wire.Network) { n.Gateway = "10.0.2.15" }, "own address"},
		{"gateway without address", func(n *wire.Network) { n.Addresses = nil }, "family"},
		{"gateway of the other family", func(n *wire.Network) { n.Addresses = []string{"fd00::15/64"} }, "family"},
		{"DNS server is a name", func(n *wire.Network) { n.DNS = []string{"dns"} }, "DNS"},
		{"newline in a DNS server", func(n *wire.Network) { n.DNS = []string{"10.0.0.1\noptions x"} }, "DNS"},
		{"zone of a DNS server", func(n *wire.Network) { n.DNS = []string{"fe80::1%a\nb"} }, "DNS"},
		{"too many DNS servers", func(n *wire.Network) { n.DNS = many(9, "10.0.0.1") }, "9 DNS servers"},
		{"newline in a search domain", func(n *wire.Network) { n.Search = []string{"a\nnameserver 10.0.0.1"} }, "search domain"},
		{"space in a search domain", func(n *wire.Network) { n.Search = []string{"a b"} }, "search domain"},
		{"empty search domain", func(n *wire.Network) { n.Search = []string{""} }, "search domain"},
		{"empty label", func(n *wire.Network) { n.Search = []string{"a..b"} }, "search domain"},
		{"long search domain", func(n *wire.Network) { n.Search = []string{strings.Repeat("a.", 127) + "a"} }, "search domain"},
		{"too many search domains", func(n *wire.Network) { n.Search = many(33, "a") }, "33 search domains"},
		{"MTU too small for IPv6", func(n *wire.Network) { n.MTU = 1279 }, "MTU"},
		{"MTU too small", func(n *wire.Network) { n.MTU, n.Addresses = 67, n.Addresses[:1] }, "MTU"},
		{"MTU too large", func(n *wire.Network) { n.MTU = 65536 }, "MTU"},
		{"negative MTU", func(n *wire.Network) { n.MTU = -1 }, "MTU"},
		{"hosts of no address", func(n *wire.Network) { n.Hosts[0].Address = "db" }, "hosts"},
		{"newline in hosts' zone", func(n *wire.Network) { n.Hosts[0].Address = "fe80::1%a\n10.0.0.1" }, "hosts"},
		{"hosts without name", func(n *wire.Network) { n.Hosts[0].Names = nil }, "0 names"},
		{"newline in hosts", func(n *wire.Network) { n.Hosts[0].Names[1] = "a\n10.0.0.1 b" }, "hosts"},
		{"comment in hosts", func(n *wire.Network) { n.Hosts[0].Names[1] = "#" }, "hosts"},
		{"too many names", func(n *wire.Network) { n.Hosts[0].Names = many(33, "a") }, "33 names"},
		{"localhost elsewhere", func(n *wire.Network) { n.Hosts[0].Names[1] = "LocalHost." }, "guest's own"},
		{"below localhost elsewhere", func(n *wire.Network) { n.Hosts[0].Names[1] = "a.localhost" }, "guest's own"},
		{"IPv6 loopback elsewhere", func(n *wire.Network) { n.Hosts[0].Names[1] = "ip6-loopback" }, "guest's own"},
		{"too many hosts", func(n *wire.Network) { n.Hosts = make([]wire.HostEntry, 1025) }, "1025 hosts"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			n := sound()
			tt.mutate(&n)
			p, err := check(n)
			if err == nil || p != nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("check = %v, %v; want nil and an error with %q", p, err, tt.want)
			}
		})
	}
}

func TestCheckAccepts(t *testing.T) {
	for name, mutate := range map[string]func(n *wire.Network){
		"sound":                   func(*wire.Network) {},
		"63 bytes":                func(n *wire.Network) { n.Hostname = strings.Repeat("a", 63) },
		"underscore":              func(n *wire.Network) { n.Hosts[0].Names[0], n.Hostname = "_a_b", "a_b" },
		"no gateway":              func(n *wire.Network) { n.Gateway = "" },
		"gateway of another net":  func(n *wire.Network) { n.Gateway = "192.0.2.1" },
		"link-local IPv6 gateway": func(n *wire.Network) { n.Gateway = "fe80::2" },
		"least MTU":               func(n *wire.Network) { n.MTU = 1280 },
		"localhost":               func(n *wire.Network) { n.Hosts[1].Names[0] = "localhost" },
		"one address":             func(n *wire.Network) { n.Addresses = []string{"10.0.2.15/32"} },
		"DNS on loopback":         func(n *wire.Network) { n.DNS = []string{"127.0.0.53"} },
	} {
		n := sound()
		mutate(&n)
		if _, err := check(n); err != nil {
			t.Errorf("%s: check = %v; want nil", name, err)
		}
	}
}

// FuzzCheck: whatever the host sends, a line of a file holds one address or
// keyword and names, nothing else.
func FuzzCheck(f *testing.F) {
	f.Add("web-1", "10.0.2.15/24", "10.0.2.2", "10.0.2.3", "corp.example", "192.0.2.7", "db")
	f.Add("a\nb", "fd00::1%a/64", "fe80::1%\n", "::1%x", "a\nnameserver b", "fe80::1%eth0\n", "a b")
	f.Fuzz(func(t *testing.T, hostname, address, gateway, dns, search, host, name string) {
		p, err := check(wire.Network{Hostname: hostname, Addresses: []string{address}, Gateway: gateway, DNS: []string{dns},
			Search: []string{search}, Hosts: []wire.HostEntry{{Address: host, Names: []string{name}}}})
		if err != nil {
			return
		}
		hosts := strings.Split(strings.TrimSuffix(p.hostsText(), "\n"), "\n")
		if len(hosts) != 10 || strings.Count(p.resolvText(), "\n") != 2 || strings.ContainsAny(hostname, "\n /") {
			t.Fatalf("hosts %q, resolv.conf %q", hosts, p.resolvText())
		}
		for _, line := range append(hosts[:2:2], hosts[9]) {
			if fields := strings.Fields(line); len(fields) < 2 || len(fields) > 3 || !isAddress(fields[0]) {
				t.Fatalf("hosts has the line %q", line)
			}
		}
		for i, line := range strings.Split(strings.TrimSuffix(p.resolvText(), "\n"), "\n") {
			if fields := strings.Fields(line); len(fields) != 2 || fields[0] != []string{"search", "nameserver"}[i] {
				t.Fatalf("resolv.conf has the line %q", line)
			}
		}
	})
}

func isAddress(s string) bool {
	_, err := netip.ParseAddr(s)
	return err == nil
}
