// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/coffer-dev/coffer/layer"
	"github.com/coffer-dev/coffer/wire"
)

// smallLayer is a root file system of one static program with a few names.
func smallLayer(t *testing.T) (string, layer.Image) {
	t.Helper()
	shell := need(t, "/bin/busybox", "install busybox-static")
	program, err := os.ReadFile(shell)
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	add := func(h *tar.Header, content []byte) {
		h.Size = int64(len(content))
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(content); err != nil {
			t.Fatal(err)
		}
	}
	for _, dir := range []string{"bin/", "etc/", "proc/", "sys/", "dev/", "tmp/"} {
		add(&tar.Header{Typeflag: tar.TypeDir, Name: dir, Mode: 0o755}, nil)
	}
	add(&tar.Header{Typeflag: tar.TypeReg, Name: "bin/busybox", Mode: 0o755}, program)
	for _, name := range []string{"sh", "true", "cat", "sleep", "id", "ls", "mount", "grep", "dd", "sync"} {
		add(&tar.Header{Typeflag: tar.TypeSymlink, Name: "bin/" + name, Linkname: "busybox"}, nil)
	}
	add(&tar.Header{Typeflag: tar.TypeReg, Name: "etc/passwd", Mode: 0o644}, []byte("root:x:0:0:root:/:/bin/sh\n"))
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return convert(t, &b)
}

// handPolicy is a policy written by hand for one container of one layer.
func handPolicy(root layer.RootHash, command string, execs ...string) string {
	caps := `["CAP_CHOWN","CAP_DAC_OVERRIDE","CAP_FSETID","CAP_FOWNER","CAP_MKNOD","CAP_NET_RAW","CAP_SETGID","CAP_SETUID","CAP_SETFCAP","CAP_SETPCAP","CAP_NET_BIND_SERVICE","CAP_SYS_CHROOT","CAP_KILL","CAP_AUDIT_WRITE"]`
	var processes []string
	for _, e := range execs {
		processes = append(processes, fmt.Sprintf(`{"command":%s,"signals":[9]}`, e))
	}
	var b strings.Builder
	b.WriteString("package policy\n\nimport future.keywords.every\nimport future.keywords.in\n\napi_version := \"0.10.0\"\nframework_version := \"0.2.3\"\n\nfragments := []\n\n")
	fmt.Fprintf(&b, `containers := [{"allow_elevated":false,"allow_stdio_access":true,"capabilities":{"ambient":[],"bounding":%[1]s,"effective":%[1]s,"inheritable":[],"permitted":%[1]s},"command":%[2]s,"env_rules":[{"pattern":".+","required":false,"strategy":"re2"}],"exec_processes":[%[4]s],"id":"small","layers":["%[3]s"],"mounts":[],"name":"small","no_new_privileges":false,"seccomp_profile_sha256":"","signals":[9,15],"user":{"group_idnames":[{"pattern":"","strategy":"any"}],"umask":"0022","user_idname":{"pattern":"","strategy":"any"}},"working_dir":"/"}]`,
		caps, command, root, strings.Join(processes, ","))
	b.WriteString("\n\nallow_properties_access := true\nallow_dump_stacks := false\nallow_runtime_logging := false\nallow_environment_variable_dropping := true\nallow_unencrypted_scratch := false\nallow_capability_dropping := true\n\n")
	for _, p := range []string{"mount_device", "unmount_device", "mount_overlay", "unmount_overlay", "create_container", "exec_in_container", "exec_external", "shutdown_container", "signal_container_process", "plan9_mount", "plan9_unmount", "get_properties", "dump_stacks", "runtime_logging", "load_fragment", "scratch_mount", "scratch_unmount"} {
		fmt.Fprintf(&b, "%s := data.framework.%s\n", p, p)
	}
	b.WriteString("reason := {\"errors\": data.framework.errors}\n")
	return b.String()
}

// upTo brings a guest to a mounted overlay and returns the container's ID.
func (h *rawHost) upTo(policy string, img layer.Image) string {
	h.t.Helper()
	var hello wire.HelloReply
	h.must(wire.OpHello, wire.Hello{Version: wire.Version, Group: randomID()}, &hello)
	h.must(wire.OpSetPolicy, wire.SetPolicy{Policy: []byte(policy)}, nil)
	h.must(wire.OpConfigureNetwork, wire.Network{Hostname: "small"}, nil)
	h.must(wire.OpPrepareScratch, wire.PrepareScratch{Disk: false}, nil)
	h.must(wire.OpMountDevice, wire.MountDevice{Device: 0, RootHash: img.Root.String(), DataBlocks: img.DataBlocks}, nil)
	id := randomID()
	h.must(wire.OpMountOverlay, wire.MountOverlay{Container: id, Layers: []int{0}}, nil)
	return id
}

func TestGuestRunsAContainer(t *testing.T) {
	file, img := smallLayer(t)
	script := `echo hello; cat /proc/self/cgroup; id; cat; echo bye >&2; exit 7`
	policy := handPolicy(img.Root, fmt.Sprintf(`["/bin/sh","-c",%q]`, script), `["/bin/true"]`)
	h := startRaw(t, launch{policy: policy, layers: []string{file}})
	id := h.upTo(policy, img)
	in, out, errs := h.open(), h.open(), h.open()
	h.must(wire.OpCreateContainer, wire.CreateContainer{Container: id, Args: []string{"/bin/sh", "-c", script},
		Env: []string{"PATH=/bin"}, Cwd: "/", Stdio: wire.Stdio{Stdin: in.StreamID(), Stdout: out.StreamID(), Stderr: errs.StreamID()}}, nil)
	h.must(wire.OpStartContainer, wire.ContainerRef{Container: id}, nil)
	if _, err := io.WriteString(in, "typed\n"); err != nil {
		t.Fatal(err)
	}
	in.Close()
	stdout, err := io.ReadAll(out)
	if err != nil || !strings.HasPrefix(string(stdout), "hello\n") || !strings.Contains(string(stdout), "uid=0(root)") || !strings.HasSuffix(string(stdout), "typed\n") {
		t.Errorf("stdout = %q, %v", stdout, err)
	}
	stderr, err := io.ReadAll(errs)
	if err != nil || string(stderr) != "bye\n" {
		t.Errorf("stderr = %q, %v; want bye", stderr, err)
	}
	if x := <-h.exits; x.Status != 7 || x.Container != id {
		t.Errorf("exit = %+v; want status 7", x)
	}
	h.must(wire.OpDeleteContainer, wire.ContainerRef{Container: id}, nil)
	h.must(wire.OpUnmountOverlay, wire.ContainerRef{Container: id}, nil)
	h.must(wire.OpUnmountDevice, wire.UnmountDevice{Device: 0}, nil)
	h.must(wire.OpShutdown, nil, nil)
	if console := h.waitEnd(); strings.Contains(console, "fatal") {
		t.Errorf("the guest did not end in order: %s", console)
	}
}

func TestGuestRefusesAnotherPolicy(t *testing.T) {
	h := startRaw(t, launch{policy: "package policy\n# measured"})
	h.must(wire.OpHello, wire.Hello{Version: wire.Version, Group: randomID()}, nil)
	err := h.ask(wire.OpSetPolicy, wire.SetPolicy{Policy: []byte("package policy\n# another")}, nil)
	var refusal *wire.Error
	if !errors.As(err, &refusal) || refusal.Code != wire.CodeFatal || !strings.Contains(refusal.Text, "HOST_DATA") {
		t.Errorf("set_policy = %v; want a fatal refusal that names HOST_DATA", err)
	}
	if console := h.waitEnd(); !strings.Contains(console, "coffer-guest: fatal: ") {
		t.Errorf("console = %q; want the reason in one line", console)
	}
}

func TestFlippedBitEndsTheGuest(t *testing.T) {
	file, img := smallLayer(t)
	content, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	at := bytes.Index(content, []byte("BusyBox v"))
	if at < 0 {
		t.Fatal("the layer does not hold busybox")
	}
	content[at] ^= 1
	altered := filepath.Join(t.TempDir(), "altered")
	if err := os.WriteFile(altered, content, 0o600); err != nil {
		t.Fatal(err)
	}
	policy := handPolicy(img.Root, `["/bin/cat","/bin/busybox"]`)
	h := startRaw(t, launch{policy: policy, layers: []string{altered}})
	id := h.upTo(policy, img)
	out := h.open()
	err = h.ask(wire.OpCreateContainer, wire.CreateContainer{Container: id, Args: []string{"/bin/cat", "/bin/busybox"}, Cwd: "/", Stdio: wire.Stdio{Stdout: out.StreamID()}}, nil)
	if err == nil {
		err = h.ask(wire.OpStartContainer, wire.ContainerRef{Container: id}, nil)
	}
	console := h.waitEnd()
	if !strings.Contains(console, "is corrupted") {
		t.Errorf("start = %v; console = %q; want dm-verity's verdict", err, console)
	}
}
