// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/coffer-dev/coffer/host/state"
)

// stopped stops a group, which has to end by itself with this status.
func (u *user) stopped(name string, status int) {
	u.t.Helper()
	u.must("stop", "-t", "90", name)
	if g := u.group(name); g.Status != state.Exited || g.ExitCode != status || g.Error != "" || g.OOM {
		u.t.Errorf("after stop %s: %+v; want status %d", name, g, status)
	}
}

// resp is one connection to redis.
type resp struct {
	t    *testing.T
	conn net.Conn
	r    *bufio.Reader
}

// do sends a command and returns the first line of the answer, or a string's bytes.
func (c *resp) do(args ...string) string {
	c.t.Helper()
	var b bytes.Buffer
	fmt.Fprintf(&b, "*%d\r\n", len(args))
	for _, a := range args {
		fmt.Fprintf(&b, "$%d\r\n%s\r\n", len(a), a)
	}
	if err := c.conn.SetDeadline(time.Now().Add(patience)); err != nil {
		c.t.Fatal(err)
	}
	if _, err := c.conn.Write(b.Bytes()); err != nil {
		c.t.Fatal(err)
	}
	line, err := c.r.ReadString('\n')
	if err != nil {
		c.t.Fatalf("redis %.40q: %v", args, err)
	}
	line = strings.TrimSuffix(line, "\r\n")
	var n int
	if _, err := fmt.Sscanf(line, "$%d", &n); err != nil || n < 0 {
		return line
	}
	value := make([]byte, n+2)
	if _, err := io.ReadFull(c.r, value); err != nil {
		c.t.Fatal(err)
	}
	return string(value[:n])
}

func TestRedis(t *testing.T) {
	t.Parallel()
	u := newUser(t)
	port := freePort(t, "tcp")
	u.must("run", "-d", "--name", "redis", "-p", "127.0.0.1:"+port+":6379", "oci:"+image(t, "redis"))
	u.awaitLog("redis", "Ready to accept connections")
	conn, err := net.Dial("tcp", "127.0.0.1:"+port)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	c := &resp{t, conn, bufio.NewReader(conn)}
	big := strings.Repeat("0123456789abcdef", 1<<16) // 1 MiB, so that streams and windows have work
	for _, s := range []struct{ want, name, key, value string }{
		{"+PONG", "PING", "", ""}, {"+OK", "SET", "key", "a value\r\n"}, {"a value\r\n", "GET", "key", ""},
		{"+OK", "SET", "big", big}, {big, "GET", "big", ""}, {"$-1", "GET", "none", ""}, {":2", "DBSIZE", "", ""},
	} {
		args := []string{s.name}
		for _, a := range []string{s.key, s.value} {
			if a != "" {
				args = append(args, a)
			}
		}
		if got := c.do(args...); got != s.want {
			t.Errorf("%s %s = %.60q; want %.60q", s.name, s.key, got, s.want)
		}
	}
	if info := c.do("INFO", "server"); !strings.Contains(info, "process_id:1\r\n") {
		t.Errorf("redis is not the container's first process: %.300s", info)
	}
	u.stopped("redis", 0)
	r := u.run("logs", "redis")
	if log := r.stdout + r.stderr; !strings.Contains(log, "DB saved on disk") || !strings.Contains(log, "bye bye") {
		t.Errorf("redis did not save: %s", log)
	}
}

func TestPostgres(t *testing.T) {
	t.Parallel()
	u := newUser(t)
	port := freePort(t, "tcp")
	script := `psql -U postgres -At -v ON_ERROR_STOP=1 -c "create table t(i int primary key, s text); insert into t select n, md5(n::text) from generate_series(1, 2000) n" -c checkpoint -c "select count(*), sum(i), min(s) from t"`
	where := `df -P $PGDATA | tail -1 | cut -d" " -f1`
	u.must("run", "-d", "--name", "pg", "-e", "POSTGRES_PASSWORD=secret word", "--scratch-size", "1g", "-m", "768m", "-p", "127.0.0.1:"+port+":5432",
		"--allow-exec", "psql -U postgres -At -c 'select 1'", "--allow-exec", "sh -c '"+script+"'", "--allow-exec", "sh -c '"+where+"'",
		"oci:"+image(t, "postgres"))
	u.awaitLog("pg", "database system is ready to accept connections")
	if got := u.must("exec", "pg", "psql", "-U", "postgres", "-At", "-c", "select 1"); got != "1\n" {
		t.Errorf("select 1 = %q", got)
	}
	if got, want := u.must("exec", "pg", "sh", "-c", script), "2000|2001000|0014"; !strings.Contains(got, "2000|2001000|") {
		t.Errorf("psql = %q; want %s...", got, want)
	}
	if got := u.must("exec", "pg", "sh", "-c", where); !strings.HasPrefix(got, "/dev/dm-") {
		t.Errorf("the data are on %q; want a mapped disk", got)
	}
	u.keepsSecret("pg", "8f14e45fceea167a5a36dedd4bea2543")
	u.refused(125, []string{"denied by policy"}, "exec", "pg", "psql", "-U", "postgres", "-At", "-c", "select 2")
	t.Run("client", func(t *testing.T) {
		psql, err := exec.LookPath("psql")
		if err != nil {
			t.Skip("no psql on this machine: install postgresql-client")
		}
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		cmd := exec.CommandContext(ctx, psql, "-h", "127.0.0.1", "-p", port, "-U", "postgres", "-At", "-c", "select s from t where i = 7")
		cmd.Env = append(cmd.Environ(), "PGPASSWORD=secret word")
		if out, err := cmd.CombinedOutput(); err != nil || string(out) != "8f14e45fceea167a5a36dedd4bea2543\n" {
			t.Errorf("psql = %s, %v", out, err)
		}
		cmd = exec.CommandContext(ctx, psql, "-h", "127.0.0.1", "-p", port, "-U", "postgres", "-At", "-c", "select 1")
		cmd.Env = append(cmd.Environ(), "PGPASSWORD=wrong")
		if out, err := cmd.CombinedOutput(); err == nil {
			t.Errorf("a wrong password got %s", out)
		}
	})
	u.stopped("pg", 0)
	if r := u.run("logs", "pg"); !strings.Contains(r.stderr, "database system is shut down") {
		t.Errorf("postgres did not end in order: %s", r.stderr)
	}
}

// keepsSecret looks for text in the scratch disk, as a host can, and checks
// that there is something to be found at all.
func (u *user) keepsSecret(name, text string) {
	u.t.Helper()
	f, err := os.Open(filepath.Join(u.root, "groups", u.group(name).ID, "scratch"))
	if err != nil {
		u.t.Fatal(err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		u.t.Fatal(err)
	}
	if used := st.Sys().(*syscall.Stat_t).Blocks * 512; used < 30<<20 {
		u.t.Errorf("the scratch disk holds %d bytes; a database takes more", used)
	}
	b := make([]byte, 4<<20)
	for at := int64(0); ; at += int64(len(b) - len(text)) {
		n, err := f.ReadAt(b, at)
		if bytes.Contains(b[:n], []byte(text)) {
			u.t.Errorf("the scratch disk shows %q to the host", text)
		}
		if err == io.EOF {
			return
		}
		if err != nil {
			u.t.Fatal(err)
		}
	}
}

// datagrams is a UDP echo server in the language of the image.
const datagrams = `import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind(('', 9999))
print('listening', flush=True)
while True:
    b, a = s.recvfrom(65536); s.sendto(b'echo ' + b, a)`

func TestPyweb(t *testing.T) {
	t.Parallel()
	u := newUser(t)
	pyweb := "oci:" + image(t, "pyweb")
	port, udp := freePort(t, "tcp"), freePort(t, "udp")
	u.must("run", "-d", "--name", "notes", "-p", "127.0.0.1:"+port+":8000", "-p", "127.0.0.1:"+udp+":9999/udp",
		"--allow-exec", "python3 -c '"+strings.ReplaceAll(datagrams, "'", `"`)+"'", pyweb)
	url := "http://127.0.0.1:" + port + "/"
	var about struct{ UID, GID, PID int }
	if err := json.Unmarshal([]byte(get(t, url)), &about); err != nil || about.UID != 999 || about.GID != 999 {
		t.Errorf("the application runs as %+v, %v; want 999", about, err)
	}
	body := bytes.Repeat([]byte("\x00\xffnote"), 50_000)
	client := &http.Client{Timeout: patience}
	r, err := client.Post(url+"notes", "application/octet-stream", bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	var stored struct {
		ID     int
		SHA256 string
	}
	if err := json.NewDecoder(r.Body).Decode(&stored); err != nil || r.StatusCode != http.StatusCreated {
		t.Fatalf("POST: %s, %v", r.Status, err)
	}
	if want := fmt.Sprintf("%x", sha256.Sum256(body)); stored.SHA256 != want {
		t.Errorf("POST answered %s; want %s", stored.SHA256, want)
	}
	if got := get(t, fmt.Sprintf("%snotes/%d", url, stored.ID)); got != string(body) {
		t.Errorf("GET gave %d bytes, others than the %d posted", len(got), len(body))
	}
	t.Run("UDP", func(t *testing.T) { u.as(t).echoes(udp) })
	u.stopped("notes", 0)
}

// echoes starts the UDP server by exec and speaks with it.
func (u *user) echoes(port string) {
	t := u.t
	ctx, cancel := context.WithCancel(t.Context())
	server := u.command(ctx, "exec", "notes", "python3", "-c", strings.ReplaceAll(datagrams, "'", `"`))
	said := &syncBuffer{}
	server.Stdout, server.Stderr = said, said
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		cancel()
		_ = server.Wait() // it was killed
	}()
	eventually(t, "waiting for the UDP server", func() bool { return strings.Contains(said.String(), "listening") })
	conn, err := net.Dial("udp", "127.0.0.1:"+port)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for _, text := range []string{"ping", strings.Repeat("x", 1400)} {
		var got string
		eventually(t, "waiting for an echo", func() bool { // datagrams may be lost
			if _, err := conn.Write([]byte(text)); err != nil {
				return false
			}
			if err := conn.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
				t.Fatal(err)
			}
			b := make([]byte, 4096)
			n, err := conn.Read(b)
			got = string(b[:n])
			return err == nil && len(got) == len(text)+5
		})
		if got != "echo "+text {
			t.Errorf("got %.40q; want an echo", got)
		}
	}
}
