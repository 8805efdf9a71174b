// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParsePorts(t *testing.T) {
	for _, tt := range []struct {
		in   string
		want []string
	}{
		{"8080:80", []string{"0.0.0.0:8080->80/tcp"}},
		{"127.0.0.1:8080:80", []string{"127.0.0.1:8080->80/tcp"}},
		{"53:53/udp", []string{"0.0.0.0:53->53/udp"}},
		{"8000-8002:80-82", []string{"0.0.0.0:8000->80/tcp", "0.0.0.0:8001->81/tcp", "0.0.0.0:8002->82/tcp"}},
	} {
		ports, err := parsePorts([]string{tt.in})
		if err != nil {
			t.Errorf("parsePorts(%q): %v", tt.in, err)
			continue
		}
		var got []string
		for _, p := range ports {
			got = append(got, p.String())
		}
		if diff := cmp.Diff(tt.want, got); diff != "" {
			t.Errorf("parsePorts(%q) (-want +got):\n%s", tt.in, diff)
		}
	}
	for _, in := range []string{"80", "127.0.0.1::80", "53/udp"} {
		ports, err := parsePorts([]string{in})
		if err != nil || len(ports) != 1 || ports[0].Host.Port() == 0 {
			t.Errorf("parsePorts(%q) = %v, %v; want a free port", in, ports, err)
		}
	}
	for _, in := range []string{"", "x", "0:80", "80:0", "70000:80", "1-3:1-2", "3-1", "1-2000:1-2000", "80/sctp", "[::1]:80:80", "a:80:80", "1:2:3:4"} {
		if got, err := parsePorts([]string{in}); err == nil {
			t.Errorf("parsePorts(%q) = %v; want an error", in, got)
		}
	}
}

func TestParseBytes(t *testing.T) {
	for in, want := range map[string]int64{"512": 512, "1k": 1 << 10, "512m": 512 << 20, "2g": 2 << 30, "1.5G": 3 << 29, "64MiB": 64 << 20, "1gb": 1 << 30} {
		if got, err := parseBytes(in); err != nil || got != want {
			t.Errorf("parseBytes(%q) = %d, %v; want %d", in, got, err, want)
		}
	}
	for _, in := range []string{"", "m", "-1m", "nan", "inf", "1e30g", "1x", "0x10m0"} {
		if got, err := parseBytes(in); err == nil {
			t.Errorf("parseBytes(%q) = %d; want an error", in, got)
		}
	}
}

func TestDetachKeys(t *testing.T) {
	for _, tt := range []struct {
		name  string
		in    []string
		want  string
		leave bool
	}{
		{"none", []string{"abc"}, "abc", false},
		{"both", []string{"ab\x10\x11c"}, "ab", true},
		{"apart", []string{"a\x10", "\x11"}, "a", true},
		{"another key", []string{"\x10", "x"}, "\x10x", false},
		{"twice", []string{"\x10\x10\x11"}, "\x10", true},
		{"q alone", []string{"\x11"}, "\x11", false},
	} {
		var d detachKeys
		var got bytes.Buffer
		left := false
		for _, in := range tt.in {
			out, leave := d.scan([]byte(in))
			got.Write(out)
			left = left || leave
		}
		if got.String() != tt.want || left != tt.leave {
			t.Errorf("%s: %q, %v; want %q, %v", tt.name, got.String(), left, tt.want, tt.leave)
		}
	}
}
