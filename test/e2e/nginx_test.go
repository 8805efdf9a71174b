// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/coffer-dev/coffer/host/state"
	"github.com/coffer-dev/coffer/wire"
)

func TestNginx(t *testing.T) {
	t.Parallel()
	u := newUser(t)
	nginx, port := "oci:"+image(t, "nginx"), freePort(t, "tcp")
	u.must("run", "-d", "--name", "web", "-p", "127.0.0.1:"+port+":80", "--allow-signal", "HUP", nginx)
	url := "http://127.0.0.1:" + port + "/"
	want, err := os.ReadFile(filepath.Join(repository(), "test", "images", "nginx", "index.html"))
	if err != nil {
		t.Fatal(err)
	}
	if got := get(t, url); got != string(want) {
		t.Errorf("got %q; want %q", got, want)
	}
	follower := u.follow("web")
	get(t, url+"?followed")
	follower.sees("GET /?followed")

	t.Run("shown", func(t *testing.T) { u.as(t).nginxIsShown(port) })
	t.Run("evidence", func(t *testing.T) { u.as(t).nginxProvesItself(nginx) })
	t.Run("signals", func(t *testing.T) {
		u := u.as(t)
		u.must("kill", "-s", "HUP", "web")
		get(t, url)
		u.refused(1, []string{"denied by policy", "signal"}, "kill", "-s", "USR1", "web")
		u.refused(1, []string{"running", "coffer rm -f"}, "rm", "web")
		get(t, url)
	})
	t.Run("stop", func(t *testing.T) {
		u := u.as(t)
		start := time.Now()
		u.must("stop", "-t", "60", "web")
		if took := time.Since(start); took > 50*time.Second {
			t.Errorf("stop took %v: the signal did nothing", took)
		}
		if g := u.group("web"); g.Status != state.Exited || g.ExitCode != 0 || g.Error != "" {
			t.Errorf("after stop: %+v; want status 0", g)
		}
		if code := follower.ends(); code != 0 {
			t.Errorf("logs -f: status %d", code)
		}
		u.refused(125, []string{"not running"}, "exec", "web", "true")
		u.refused(1, []string{"not running"}, "attest", "web")
		u.must("stop", "web")
		u.must("rm", "web")
	})
}

// follow starts `logs -f`.
func (u *user) follow(name string) *terminal {
	u.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 5*patience)
	w := &terminal{t: u.t, screen: &syncBuffer{}, cmd: u.command(ctx, "logs", "-f", name), ended: make(chan error, 1)}
	w.cmd.Stdout, w.cmd.Stderr = w.screen, w.screen
	if err := w.cmd.Start(); err != nil {
		u.t.Fatal(err)
	}
	go func() { w.ended <- w.cmd.Wait() }()
	u.t.Cleanup(cancel)
	return w
}

// nginxIsShown checks ps, inspect and stats.
func (u *user) nginxIsShown(port string) {
	t := u.t
	g := u.group("web")
	if g.Status != state.Running || len(g.Ports) != 1 || !strings.Contains(g.Ports[0], port) || g.TEE != "emulated" || !alive(g.QEMU) || !alive(g.Supervisor) {
		t.Errorf("ps --json = %+v", g)
	}
	if got := u.must("ps"); !strings.Contains(got, g.ShortID()) || !strings.Contains(got, "web") || !strings.Contains(got, "Up ") || !strings.Contains(got, port) {
		t.Errorf("ps = %s", got)
	}
	var list []struct {
		ID           string `json:"id"`
		PolicySHA256 string `json:"policy_sha256"`
		PolicyFile   string `json:"policy_file"`
	}
	if err := json.Unmarshal([]byte(u.must("inspect", "web")), &list); err != nil || len(list) != 1 || list[0].ID != g.ID {
		t.Fatalf("inspect = %+v, %v", list, err)
	}
	if got := strings.TrimSpace(u.must("policy", "hash", list[0].PolicyFile)); got != list[0].PolicySHA256 {
		t.Errorf("policy hash = %s; inspect says %s", got, list[0].PolicySHA256)
	}
	if got := u.must("stats", "--no-stream", "web"); !strings.Contains(got, "MEM USAGE") || !strings.Contains(got, g.ShortID()) {
		t.Errorf("stats = %s", got)
	}
	var stats []struct {
		Stats wire.Stats `json:"stats"`
	}
	if err := json.Unmarshal([]byte(u.must("stats", "--json")), &stats); err != nil || len(stats) != 1 {
		t.Fatalf("stats --json = %+v, %v", stats, err)
	}
	if s := stats[0].Stats; s.MemoryBytes == 0 || s.Pids < 2 || s.CPUNanos == 0 || s.TxBytes == 0 {
		t.Errorf("stats = %+v; a web server with workers uses more", s)
	}
}

// nginxProvesItself takes evidence and verifies it, in right and wrong ways.
func (u *user) nginxProvesItself(nginx string) {
	t := u.t
	dir := t.TempDir()
	file := func(name string) string { return filepath.Join(dir, name) }
	nonce, other := strings.Repeat("ab", 32), strings.Repeat("cd", 32)
	u.must("attest", "web", "--nonce", nonce, "-o", file("evidence"))
	u.must("policy", "generate", "--allow-signal", "HUP", "-o", file("policy"), nginx)
	u.must("policy", "generate", "-o", file("other-policy"), nginx)
	text, err := os.ReadFile(filepath.Join(guestDir(t), "guest.json"))
	if err != nil {
		t.Fatal(err)
	}
	var ref map[string]any
	if err := json.Unmarshal(text, &ref); err != nil {
		t.Fatal(err)
	}
	for _, m := range ref["measurements"].([]any) {
		m.(map[string]any)["digest"] = strings.Repeat("ee", 48)
	}
	if text, err = json.Marshal(ref); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file("other.json"), text, 0o600); err != nil {
		t.Fatal(err)
	}
	verify := func(nonce, policy, reference string, more ...string) []string {
		return append([]string{"verify", file("evidence"), "--nonce", nonce, "--policy", file(policy), "--reference", reference}, more...)
	}
	good, accept := filepath.Join(guestDir(t), "guest.json"), "--insecure-accept-emulated"
	if got := u.must(verify(nonce, "policy", good, accept)...); !strings.Contains(got, "as expected, but emulated") || strings.Contains(got, "FAIL") {
		t.Errorf("verify = %s", got)
	}
	u.refused(1, []string{"emulated", accept}, verify(nonce, "policy", good)...)
	for _, c := range []struct {
		failed string
		args   []string
	}{
		{"report-data", verify(other, "policy", good, accept)},
		{"host-data", verify(nonce, "other-policy", good, accept)},
		{"measurement", verify(nonce, "policy", file("other.json"), accept)},
	} {
		r := u.refused(1, nil, c.args...)
		if !strings.Contains(r.stdout, "REFUSED") || strings.Count(r.stdout, "FAIL") != 1 || !failedCheck(r.stdout, c.failed) {
			t.Errorf("verify with another %s:\n%s", c.failed, r.stdout)
		}
	}
}

// failedCheck reports whether verify says FAIL of a check.
func failedCheck(out, name string) bool {
	for line := range strings.Lines(out) {
		if f := strings.Fields(line); len(f) > 1 && strings.EqualFold(f[0], name) && f[1] == "FAIL" {
			return true
		}
	}
	return false
}
