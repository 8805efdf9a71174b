// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/coffer-dev/coffer/host/state"
)

// user runs the real bin/coffer as a person would, with a root of its own.
type user struct {
	t     *testing.T
	root  string
	guest string // --guest; empty is coffer's own choice
}

// result is how a command ended.
type result struct {
	stdout, stderr string
	code           int
}

// newUser makes a user whose groups end with the test, which checks that
// nothing of them is left.
func newUser(t *testing.T) *user {
	t.Helper()
	guestDir(t)
	u := &user{t: t, root: filepath.Join(t.TempDir(), "root")}
	// Keys take seconds to make; all tests share one set.
	emulatedRoot(t)
	if err := os.CopyFS(filepath.Join(u.root, "emulator"), os.DirFS(rootDir)); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Join(u.root, "emulator", "root.pem"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(u.end)
	return u
}

// as is the same user in a subtest.
func (u *user) as(t *testing.T) *user {
	c := *u
	c.t = t
	return &c
}

func (u *user) end() {
	if u.t.Failed() {
		u.dump()
	}
	if list := strings.Fields(u.run("ps", "-a", "-q", "--no-trunc").stdout); len(list) > 0 {
		if r := u.run(append([]string{"rm", "--force"}, list...)...); r.code != 0 {
			u.t.Errorf("rm --force: %s", r.stderr)
		}
	}
	u.noProcesses()
}

// dump shows what the guests said.
func (u *user) dump() {
	for _, name := range []string{"console.log", "supervisor.log"} {
		files, _ := filepath.Glob(filepath.Join(u.root, "groups", "*", name))
		for _, f := range files {
			b, _ := os.ReadFile(f)
			u.t.Logf("%s:\n%s", f, strings.ToValidUTF8(string(b[max(0, len(b)-4000):]), "?"))
		}
	}
}

// noProcesses fails the test unless all processes of this root end.
func (u *user) noProcesses() {
	u.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	var left []string
	if poll(ctx, func() bool { left = u.processes(); return len(left) == 0 }) != nil {
		u.t.Errorf("processes are left: %q", left)
	}
}

// processes are the command lines that name this root, with the process's number before.
func (u *user) processes() []string {
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		u.t.Fatal(err)
	}
	var out []string
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err == nil && bytes.Contains(b, []byte(u.root)) {
			out = append(out, filepath.Base(filepath.Dir(f))+" "+strings.ReplaceAll(string(b), "\x00", " "))
		}
	}
	return out
}

// vm is the number of a VM's process in this root, or 0.
func (u *user) vm() int {
	u.t.Helper()
	for _, p := range u.processes() {
		number, command, _ := strings.Cut(p, " ")
		if program, _, _ := strings.Cut(command, " "); strings.Contains(program, "qemu") {
			pid, err := strconv.Atoi(number)
			if err != nil {
				u.t.Fatal(err)
			}
			return pid
		}
	}
	return 0
}

// poll waits until done says so.
func poll(ctx context.Context, done func() bool) error {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for !done() {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-tick.C:
		}
	}
	return nil
}

// eventually waits until done says so, and fails the test if it never does.
func eventually(t *testing.T, what string, done func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := poll(ctx, done); err != nil {
		t.Fatalf("%s: %v", what, err)
	}
}

// command is coffer with these arguments, which is killed when it takes far too long.
func (u *user) command(ctx context.Context, args ...string) *exec.Cmd {
	u.t.Helper()
	flags := []string{"--root", u.root}
	if u.guest != "" {
		flags = append(flags, "--guest", u.guest)
	}
	bin := need(u.t, filepath.Join(repository(), "bin", "coffer"), "run `make build`")
	cmd := exec.CommandContext(ctx, bin, append(flags, args...)...)
	cmd.Dir = repository()
	return cmd
}

// run runs coffer to its end.
func (u *user) run(args ...string) result {
	u.t.Helper()
	return u.runWith(nil, args...)
}

// runWith is run with a standard input.
func (u *user) runWith(stdin io.Reader, args ...string) result {
	u.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*patience)
	defer cancel()
	var out, errs bytes.Buffer
	cmd := u.command(ctx, args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, &out, &errs
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		u.t.Fatalf("coffer %q: %v", args, err)
	}
	r := result{out.String(), withoutNotes(errs.String()), cmd.ProcessState.ExitCode()}
	if r.code < 0 {
		u.t.Errorf("coffer %q did not end by itself: %v", args, cmd.ProcessState)
	}
	return r
}

// withoutNotes takes away what coffer says of progress and of the missing TEE.
func withoutNotes(s string) string {
	var keep []string
	for _, line := range strings.SplitAfter(s, "\n") {
		if !strings.HasPrefix(line, "coffer: note: ") && !strings.HasPrefix(line, "layer ") &&
			!strings.HasPrefix(line, "coffer: trying whether /dev/kvm") && !strings.HasPrefix(line, "packing ") {
			keep = append(keep, line)
		}
	}
	return strings.Join(keep, "")
}

// must runs coffer, which has to succeed, and returns its standard output.
func (u *user) must(args ...string) string {
	u.t.Helper()
	r := u.run(args...)
	if r.code != 0 {
		u.t.Fatalf("coffer %q: status %d\n%s%s", args, r.code, r.stdout, r.stderr)
	}
	return r.stdout
}

// refused runs coffer, which has to fail with this status and say these words.
func (u *user) refused(code int, words []string, args ...string) result {
	u.t.Helper()
	r := u.run(args...)
	if r.code != code {
		u.t.Errorf("coffer %q: status %d; want %d\n%s%s", args, r.code, code, r.stdout, r.stderr)
	}
	for _, w := range words {
		if !strings.Contains(r.stderr, w) {
			u.t.Errorf("coffer %q: %q is missing in:\n%s", args, w, r.stderr)
		}
	}
	u.readable(r.stderr)
	return r
}

// readable fails the test if a message is not one for people: long words, and
// sentences said twice.
func (u *user) readable(text string) {
	u.t.Helper()
	seen := map[string]bool{}
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		for _, word := range strings.FieldsFunc(line, func(r rune) bool { return strings.ContainsRune(" \t\"'`:,()[]{}=/", r) }) {
			if len(word) > 64+len("sha256") {
				u.t.Errorf("no word for people, %q, in:\n%s", word, text)
			}
		}
		if len(line) > 30 && seen[line] {
			u.t.Errorf("%q is there twice in:\n%s", line, text)
		}
		seen[line] = true
	}
}

// group is a group's record, from `ps`.
func (u *user) group(name string) state.Group {
	u.t.Helper()
	for _, g := range u.groups("-a") {
		if g.Name == name || g.ID == name {
			return g
		}
	}
	u.t.Fatalf("ps does not know %s", name)
	return state.Group{}
}

func (u *user) groups(flags ...string) []state.Group {
	u.t.Helper()
	var list []state.Group
	if err := json.Unmarshal([]byte(u.must(append([]string{"ps", "--json"}, flags...)...)), &list); err != nil {
		u.t.Fatal(err)
	}
	return list
}

// awaitLog waits until a container's log holds text.
func (u *user) awaitLog(name, text string) {
	u.t.Helper()
	eventually(u.t, "waiting for "+strconv.Quote(text)+" in the log of "+name, func() bool {
		r := u.run("logs", name)
		if strings.Contains(r.stdout+r.stderr, text) {
			return true
		}
		if g := u.group(name); g.Status == state.Exited {
			u.t.Fatalf("%s ended with %d (%s) before it said %q:\n%s%s", name, g.ExitCode, g.Error, text, r.stdout, r.stderr)
		}
		return false
	})
}

// freePort is a TCP or UDP port of this machine that was free just now.
func freePort(t *testing.T, proto string) string {
	t.Helper()
	var addr net.Addr
	if proto == "udp" {
		c, err := net.ListenPacket("udp4", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		addr = c.LocalAddr()
	} else {
		l, err := net.Listen("tcp4", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		addr = l.Addr()
	}
	_, port, err := net.SplitHostPort(addr.String())
	if err != nil {
		t.Fatal(err)
	}
	return port
}

// get fetches a page, and waits for its server to be there.
func get(t *testing.T, url string) string {
	t.Helper()
	client := &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	var body []byte
	eventually(t, "getting "+url, func() bool {
		r, err := client.Get(url)
		if err != nil {
			return false
		}
		defer r.Body.Close()
		body, err = io.ReadAll(io.LimitReader(r.Body, 4<<20))
		return err == nil && r.StatusCode == http.StatusOK
	})
	return string(body)
}

// alive reports whether a process exists and is no zombie.
func alive(pid int) bool {
	f := stat(pid)
	return len(f) > 0 && f[0] != "Z"
}

// stat is what proc(5) says of a process, from its state on; nil if there is none.
func stat(pid int) []string {
	b, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	if err != nil {
		return nil
	}
	return strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
}
