// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/coffer-dev/coffer/guest/container"
	"github.com/coffer-dev/coffer/tee"
	"github.com/coffer-dev/coffer/wire"
)

var (
	groupID = strings.Repeat("ab", 32)
	webID   = strings.Repeat("01", 32)
	hashA   = strings.Repeat("aa", 32)
	hashB   = strings.Repeat("bb", 32)
	hashVol = strings.Repeat("cc", 32)
)

// testPolicy allows one container of two layers, a read-only volume, and one exec.
func testPolicy() string {
	caps := `["CAP_CHOWN","CAP_DAC_OVERRIDE","CAP_FSETID","CAP_FOWNER","CAP_MKNOD","CAP_NET_RAW","CAP_SETGID","CAP_SETUID","CAP_SETFCAP","CAP_SETPCAP","CAP_NET_BIND_SERVICE","CAP_SYS_CHROOT","CAP_KILL","CAP_AUDIT_WRITE"]`
	one := func(command, layers, mounts, execs, signals string) string {
		return fmt.Sprintf(`{"allow_elevated":false,"allow_stdio_access":true,"capabilities":{"ambient":[],"bounding":%[1]s,"effective":%[1]s,"inheritable":[],"permitted":%[1]s},"command":%[2]s,"env_rules":[{"pattern":"A=1","required":false,"strategy":"string"}],"exec_processes":[%[5]s],"id":"i","layers":[%[3]s],"mounts":[%[4]s],"name":"web","no_new_privileges":false,"seccomp_profile_sha256":"","signals":[%[6]s],"user":{"group_idnames":[{"pattern":"","strategy":"any"}],"umask":"0022","user_idname":{"pattern":"","strategy":"any"}},"working_dir":"/"}`,
			caps, command, layers, mounts, execs, signals)
	}
	mount := fmt.Sprintf(`{"destination":"/data","options":["rbind","ro"],"source":"sandbox:///tmp/coffer/ro/%s","type":"bind"}`, hashVol)
	var b strings.Builder
	b.WriteString("package policy\n\nimport future.keywords.every\nimport future.keywords.in\n\napi_version := \"0.10.0\"\nframework_version := \"0.2.3\"\n\nfragments := []\n\n")
	b.WriteString("containers := [" + one(`["serve"]`, `"`+hashA+`","`+hashB+`"`, mount, `{"command":["check"],"signals":[]}`, "15") + "," +
		one("null", `"`+hashVol+`"`, "", "", "") + "]\n\n")
	b.WriteString("allow_properties_access := true\nallow_dump_stacks := false\nallow_runtime_logging := false\nallow_environment_variable_dropping := true\nallow_unencrypted_scratch := false\nallow_capability_dropping := true\n\n")
	for _, p := range []string{"mount_device", "unmount_device", "mount_overlay", "unmount_overlay", "create_container", "exec_in_container", "exec_external", "shutdown_container", "signal_container_process", "plan9_mount", "plan9_unmount", "get_properties", "dump_stacks", "runtime_logging", "load_fragment", "scratch_mount", "scratch_unmount"} {
		fmt.Fprintf(&b, "%s := data.framework.%s\n", p, p)
	}
	b.WriteString("reason := {\"errors\": data.framework.errors}\n")
	return b.String()
}

func number(n int) *int { return &n }

// create is the request that the policy allows.
func create() wire.CreateContainer {
	return wire.CreateContainer{Container: webID, Args: []string{"serve"}, Env: []string{"A=1"}, Cwd: "/",
		Mounts: []wire.Mount{{Destination: "/data", Device: number(2), ReadOnly: true}}}
}

// ready brings a guest to where a container can be created.
func ready(t *testing.T) *guest {
	g := newGuest(t, testPolicy())
	g.must(wire.OpHello, wire.Hello{Version: wire.Version, Group: groupID})
	g.must(wire.OpSetPolicy, wire.SetPolicy{Policy: []byte(g.policy)})
	g.must(wire.OpConfigureNetwork, wire.Network{Hostname: "h"})
	g.must(wire.OpPrepareScratch, wire.PrepareScratch{})
	for n, hash := range []string{hashA, hashB, hashVol} {
		g.must(wire.OpMountDevice, wire.MountDevice{Device: n, RootHash: hash, DataBlocks: 10})
	}
	g.must(wire.OpMountOverlay, wire.MountOverlay{Container: webID, Layers: []int{1, 0}})
	return g
}

func running(t *testing.T) *guest {
	g := ready(t)
	g.must(wire.OpCreateContainer, create())
	g.must(wire.OpStartContainer, wire.ContainerRef{Container: webID})
	return g
}

func TestNothingBeforeAPolicy(t *testing.T) {
	g := newGuest(t, testPolicy())
	all := []wire.Op{wire.OpSetPolicy, wire.OpConfigureNetwork, wire.OpMountDevice, wire.OpUnmountDevice, wire.OpPrepareScratch, wire.OpMountOverlay,
		wire.OpUnmountOverlay, wire.OpCreateContainer, wire.OpStartContainer, wire.OpExec, wire.OpSignal, wire.OpResize, wire.OpStats,
		wire.OpDeleteContainer, wire.OpAttest, wire.OpDumpStacks, wire.OpShutdown, "anything"}
	for _, op := range all {
		g.refused(op, struct{}{}, wire.CodeState, "before hello")
	}
	g.refused(wire.OpHello, wire.Hello{Version: wire.Version + 1, Group: groupID}, wire.CodeUnsupported, "same release")
	g.refused(wire.OpHello, wire.Hello{Version: wire.Version, Group: "../../etc"}, wire.CodeInvalid, "64")
	g.must(wire.OpHello, wire.Hello{Version: wire.Version, Group: groupID})
	g.refused(wire.OpHello, wire.Hello{Version: wire.Version, Group: groupID}, wire.CodeState, "already")
	for _, op := range all[1:] {
		g.refused(op, struct{}{}, wire.CodeState, "before a policy")
	}
	if len(g.disks.did) != 0 {
		t.Errorf("the guest did %v before it had a policy", g.disks.did)
	}
}

func TestPolicyMustBeTheMeasuredOne(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(*guest) []byte
		text   string
	}{
		{"another text", func(g *guest) []byte { return []byte(g.policy + "\n") }, "HOST_DATA"},
		{"no text", func(*guest) []byte { return nil }, "HOST_DATA"},
		{"stale report", func(g *guest) []byte { g.processor.stale = true; return []byte(g.policy) }, "not the answer"},
		{"no report", func(g *guest) []byte { g.processor.err = errors.New("gone"); return []byte(g.policy) }, "gone"},
	} {
		g := newGuest(t, testPolicy())
		g.must(wire.OpHello, wire.Hello{Version: wire.Version, Group: groupID})
		g.refused(wire.OpSetPolicy, wire.SetPolicy{Policy: c.change(g)}, wire.CodeFatal, c.text)
		g.refused(wire.OpMountDevice, wire.MountDevice{RootHash: hashA, DataBlocks: 1}, wire.CodeState, "before a policy")
	}
	g := newGuest(t, "package policy\nallow { true }\n")
	g.must(wire.OpHello, wire.Hello{Version: wire.Version, Group: groupID})
	g.refused(wire.OpSetPolicy, wire.SetPolicy{Policy: []byte(g.policy)}, wire.CodeFatal, "line 2, column 7")
	g = ready(t)
	g.refused(wire.OpSetPolicy, wire.SetPolicy{Policy: []byte(g.policy)}, wire.CodeState, "already")
}

func TestLifeOfAContainer(t *testing.T) {
	g := running(t)
	cfg := g.runs.configs[0]
	if diff := cmp.Diff([]string{"A=1"}, cfg.Process.Env); diff != "" {
		t.Errorf("environment: (-want +got)\n%s", diff)
	}
	last := cfg.Mounts[len(cfg.Mounts)-1]
	if last.Destination != "/data" || !strings.HasSuffix(last.Source, "/tmp/coffer/ro/"+hashVol) || !cmp.Equal(last.Options, []string{"rbind", "ro"}) {
		t.Errorf("volume mount = %+v", last)
	}
	g.must(wire.OpExec, wire.Exec{Container: webID, Process: "p1", Args: []string{"check"}, Env: []string{"A=1", "B=2"}})
	if diff := cmp.Diff([]string{"A=1"}, g.runs.started[1].env); diff != "" {
		t.Errorf("exec's environment: (-want +got)\n%s", diff)
	}
	g.refused(wire.OpUnmountDevice, wire.UnmountDevice{Device: 0}, wire.CodeState, "in use")
	g.refused(wire.OpUnmountDevice, wire.UnmountDevice{Device: 2}, wire.CodeState, "in use")
	g.refused(wire.OpUnmountOverlay, wire.ContainerRef{Container: webID}, wire.CodeState, "not been deleted")
	g.must(wire.OpStats, wire.ContainerRef{Container: webID})
	g.must(wire.OpSignal, wire.Signal{Container: webID, Signal: 15})
	g.must(wire.OpDeleteContainer, wire.ContainerRef{Container: webID})
	got := []string{<-g.host.events, <-g.host.events}
	for _, e := range got {
		if !strings.HasPrefix(e, "exit ") || !strings.Contains(e, `"status":137`) {
			t.Errorf("event = %s; want an exit with 137", e)
		}
	}
	g.must(wire.OpUnmountOverlay, wire.ContainerRef{Container: webID})
	g.must(wire.OpUnmountDevice, wire.UnmountDevice{Device: 0})
	g.refused(wire.OpMountOverlay, wire.MountOverlay{Container: webID, Layers: []int{1}}, wire.CodeDenied, "")
	if g.fatal != nil {
		t.Errorf("fatal: %v", g.fatal)
	}
}

// TestHostAsksForMore changes one field of what is allowed at a time.
func TestHostAsksForMore(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*wire.CreateContainer)
		code   wire.Code
		text   string
	}{
		"command":      {func(c *wire.CreateContainer) { c.Args = []string{"sh"} }, wire.CodeDenied, "command"},
		"argument":     {func(c *wire.CreateContainer) { c.Args = append(c.Args, "-x") }, wire.CodeDenied, "command"},
		"directory":    {func(c *wire.CreateContainer) { c.Cwd = "/tmp" }, wire.CodeDenied, "working"},
		"privileged":   {func(c *wire.CreateContainer) { c.Privileged = true }, wire.CodeDenied, "allow_elevated"},
		"mount":        {func(c *wire.CreateContainer) { c.Mounts[0].Destination = "/etc" }, wire.CodeDenied, "mount"},
		"volume":       {func(c *wire.CreateContainer) { c.Mounts = []wire.Mount{{Destination: "/data", Volume: "v"}} }, wire.CodeDenied, "mount"},
		"layer volume": {func(c *wire.CreateContainer) { c.Mounts[0].Device = number(0) }, wire.CodeDenied, "mount"},
		"no command":   {func(c *wire.CreateContainer) { c.Args = nil }, wire.CodeInvalid, "no command"},
		"user":         {func(c *wire.CreateContainer) { c.User = "nobody" }, wire.CodeInvalid, "no such user"},
		"path":         {func(c *wire.CreateContainer) { c.Mounts[0].Destination = "/data/../etc" }, wire.CodeInvalid, "clean"},
		"volume name":  {func(c *wire.CreateContainer) { c.Mounts = []wire.Mount{{Destination: "/v", Volume: "../x"}} }, wire.CodeInvalid, "name must match"},
		"both":         {func(c *wire.CreateContainer) { c.Mounts[0].Volume = "v" }, wire.CodeInvalid, "not both"},
		"writable":     {func(c *wire.CreateContainer) { c.Mounts[0].ReadOnly = false }, wire.CodeInvalid, "read-only"},
		"no device":    {func(c *wire.CreateContainer) { c.Mounts[0].Device = number(9) }, wire.CodeState, "not mounted"},
		"environment":  {func(c *wire.CreateContainer) { c.Env = []string{"=x"} }, wire.CodeInvalid, "NAME=VALUE"},
		"zero byte":    {func(c *wire.CreateContainer) { c.Args = []string{"serve\x00"} }, wire.CodeInvalid, "zero byte"},
		"container":    {func(c *wire.CreateContainer) { c.Container = groupID }, wire.CodeState, "no overlay"},
		"stream":       {func(c *wire.CreateContainer) { c.Stdio.Stdout = 77 }, wire.CodeInvalid, "did not open"},
		"both stdio":   {func(c *wire.CreateContainer) { c.Stdio = wire.Stdio{Terminal: 1, Stdin: 3} }, wire.CodeInvalid, "terminal"},
		"capabilities": {func(c *wire.CreateContainer) { c.Capabilities = &wire.Capabilities{Bounding: []string{"CAP_CHOWN"}} }, wire.CodeDenied, "capabilities"},
	} {
		t.Run(name, func(t *testing.T) {
			g := ready(t)
			in := create()
			c.change(&in)
			e := g.refused(wire.OpCreateContainer, in, c.code, c.text)
			if c.code == wire.CodeDenied && (e.Denial == nil || e.Denial.Point != "create_container" || !strings.HasPrefix(e.Denial.PolicyDecision, "policyDecision<")) {
				t.Errorf("denial = %+v; want the point and the original's form", e.Denial)
			}
			if len(g.runs.started) != 0 {
				t.Error("something was started")
			}
			// A refusal changes nothing: what is allowed still is.
			g.must(wire.OpCreateContainer, create())
		})
	}
}

// A container that has the volume could lead the copy out of it by a symbolic link.
func TestAVolumeInUseIsNotSeeded(t *testing.T) {
	text := strings.Replace(testPolicy(), `"options":["rbind","ro"],"source":"sandbox:///tmp/coffer/ro/`+hashVol, `"options":["rbind","rshared","rw"],"source":"sandbox:///tmp/coffer/volumes/v`, 1)
	g := newGuest(t, text)
	g.must(wire.OpHello, wire.Hello{Version: wire.Version, Group: groupID})
	g.must(wire.OpSetPolicy, wire.SetPolicy{Policy: []byte(text)})
	g.must(wire.OpPrepareScratch, wire.PrepareScratch{})
	for n, hash := range []string{hashA, hashB} {
		g.must(wire.OpMountDevice, wire.MountDevice{Device: n, RootHash: hash, DataBlocks: 10})
	}
	volume := filepath.Join(g.sandboxMounts(), volumeDir, "v")
	create := func(id string) {
		t.Helper()
		g.must(wire.OpMountOverlay, wire.MountOverlay{Container: id, Layers: []int{1, 0}})
		if err := os.MkdirAll(filepath.Join(g.rootfs(id), "data/sub"), 0o755); err != nil {
			t.Fatal(err)
		}
		g.must(wire.OpCreateContainer, wire.CreateContainer{Container: id, Args: []string{"serve"}, Cwd: "/",
			Mounts: []wire.Mount{{Destination: "/data", Volume: "v", Seed: true}}})
	}
	create(webID)
	if err := os.Remove(filepath.Join(volume, "sub")); err != nil { // as the container may
		t.Fatalf("a new volume was not seeded: %v", err)
	}
	second, third := strings.Repeat("02", 32), strings.Repeat("03", 32)
	create(second)
	if entries, err := os.ReadDir(volume); len(entries) != 0 || err != nil {
		t.Errorf("a volume in use has %v, %v; want nothing", entries, err)
	}
	for _, id := range []string{webID, second} {
		g.must(wire.OpDeleteContainer, wire.ContainerRef{Container: id})
	}
	create(third)
	if entries, err := os.ReadDir(volume); len(entries) != 1 || err != nil {
		t.Errorf("a volume that nobody has any more has %v, %v; want what the image has", entries, err)
	}
}

func TestDisksMustBeWhatThePolicyNames(t *testing.T) {
	g := ready(t)
	g.refused(wire.OpMountDevice, wire.MountDevice{Device: 5, RootHash: strings.Repeat("dd", 32), DataBlocks: 10}, wire.CodeDenied, "hash")
	g.refused(wire.OpMountDevice, wire.MountDevice{Device: 0, RootHash: hashA, DataBlocks: 10}, wire.CodeDenied, "not in use")
	g.refused(wire.OpMountDevice, wire.MountDevice{Device: -1, RootHash: hashA, DataBlocks: 10}, wire.CodeInvalid, "outside")
	g.refused(wire.OpMountDevice, wire.MountDevice{Device: 5, RootHash: strings.ToUpper(hashA), DataBlocks: 10}, wire.CodeInvalid, "lower-case")
	g.refused(wire.OpMountDevice, wire.MountDevice{Device: 5, RootHash: hashA}, wire.CodeInvalid, "data_blocks")
	other := strings.Repeat("02", 32)
	for name, layers := range map[string][]int{"swapped": {0, 1}, "one left out": {0}, "another added": {2, 1, 0}} {
		t.Run(name, func(t *testing.T) {
			g.refused(wire.OpMountOverlay, wire.MountOverlay{Container: other, Layers: layers}, wire.CodeDenied, "")
		})
	}
	g.refused(wire.OpMountOverlay, wire.MountOverlay{Container: other, Layers: []int{1, 0, 0}}, wire.CodeInvalid, "twice")
	g.refused(wire.OpMountOverlay, wire.MountOverlay{Container: other, Layers: []int{7}}, wire.CodeState, "not mounted")
	g.refused(wire.OpMountOverlay, wire.MountOverlay{Container: groupID, Layers: []int{1, 0}}, wire.CodeInvalid, "group")
	// The volume's pseudo container has an overlay that matches, but no command.
	g.must(wire.OpMountOverlay, wire.MountOverlay{Container: other, Layers: []int{2}})
	g.refused(wire.OpCreateContainer, wire.CreateContainer{Container: other, Args: []string{"serve"}, Cwd: "/"}, wire.CodeDenied, "")
}

func TestAFailedActionLeavesThePolicyAsItWas(t *testing.T) {
	g := newGuest(t, testPolicy())
	g.must(wire.OpHello, wire.Hello{Version: wire.Version, Group: groupID})
	g.must(wire.OpSetPolicy, wire.SetPolicy{Policy: []byte(g.policy)})
	g.must(wire.OpPrepareScratch, wire.PrepareScratch{})
	before := g.state.String()
	mount := wire.MountDevice{Device: 0, RootHash: hashA, DataBlocks: 10}
	g.disks.fail = "open"
	g.refused(wire.OpMountDevice, mount, wire.CodeFailed, "it broke")
	if got := g.state.String(); got != before {
		t.Errorf("state after a failed mount:\n%s\nwant\n%s", got, before)
	}
	g.disks.fail = ""
	g.must(wire.OpMountDevice, mount)
	g.must(wire.OpMountDevice, wire.MountDevice{Device: 1, RootHash: hashB, DataBlocks: 10})
	before = g.state.String()
	overlay := wire.MountOverlay{Container: webID, Layers: []int{1, 0}}
	g.disks.fail = "overlay"
	g.refused(wire.OpMountOverlay, overlay, wire.CodeFailed, "it broke")
	if got := g.state.String(); got != before {
		t.Errorf("state after a failed overlay:\n%s\nwant\n%s", got, before)
	}
	g.disks.fail = ""
	g.must(wire.OpMountOverlay, overlay)
	// An unmount that fails leaves the kernel in an unknown state: the end.
	g.disks.fail = "unoverlay"
	g.refused(wire.OpUnmountOverlay, wire.ContainerRef{Container: webID}, wire.CodeFatal, "it broke")
}

func TestExecAndSignalsAreDecided(t *testing.T) {
	g := running(t)
	g.refused(wire.OpExec, wire.Exec{Container: webID, Process: "p", Args: []string{"sh"}}, wire.CodeDenied, "exec_processes")
	g.refused(wire.OpExec, wire.Exec{Container: webID, Process: "p", Args: []string{"check"}, Cwd: "/tmp"}, wire.CodeDenied, "working")
	g.refused(wire.OpExec, wire.Exec{Container: webID, Process: "../p", Args: []string{"check"}}, wire.CodeInvalid, "name must match")
	g.refused(wire.OpExec, wire.Exec{Container: groupID, Process: "p", Args: []string{"check"}}, wire.CodeState, "no such")
	g.refused(wire.OpSignal, wire.Signal{Container: webID, Signal: 10}, wire.CodeDenied, "signal")
	g.refused(wire.OpSignal, wire.Signal{Container: webID, Signal: 65}, wire.CodeInvalid, "outside")
	g.must(wire.OpExec, wire.Exec{Container: webID, Process: "p", Args: []string{"check"}})
	g.refused(wire.OpExec, wire.Exec{Container: webID, Process: "p", Args: []string{"check"}}, wire.CodeState, "name")
	g.refused(wire.OpSignal, wire.Signal{Container: webID, Process: "p", Signal: 15}, wire.CodeDenied, "signal")
	g.refused(wire.OpDumpStacks, struct{}{}, wire.CodeDenied, "")
	g.refused(wire.OpStartContainer, wire.ContainerRef{Container: webID}, wire.CodeState, "already")
}

func TestStartErrorsKeepTheirKind(t *testing.T) {
	for _, c := range []struct {
		err  error
		code wire.Code
	}{
		{container.ErrCommandNotFound, wire.CodeNotFound}, {container.ErrCommandNotStarted, wire.CodeNotExec}, {errors.New("other"), wire.CodeFailed},
	} {
		g := ready(t)
		g.must(wire.OpCreateContainer, create())
		g.runs.err = fmt.Errorf("why: %w", c.err)
		g.refused(wire.OpStartContainer, wire.ContainerRef{Container: webID}, c.code, "why")
	}
}

func TestAttestBindsTheChallengeOnly(t *testing.T) {
	g := ready(t)
	nonce := []byte(strings.Repeat("n", 32))
	out := g.must(wire.OpAttest, wire.Attest{Nonce: nonce}).(wire.AttestReply)
	want, err := tee.ChallengeBinding(nonce)
	if err != nil {
		t.Fatal(err)
	}
	if got := out.Report[0x50:0x90]; string(got) != string(want[:]) {
		t.Errorf("REPORT_DATA = %x; want the challenge's binding", got)
	}
	g.refused(wire.OpAttest, wire.Attest{Nonce: nonce[:15]}, wire.CodeInvalid, "nonce")
	g.refused(wire.OpAttest, wire.Attest{Nonce: make([]byte, 65)}, wire.CodeInvalid, "nonce")
}

func TestRequestsAreReadStrictly(t *testing.T) {
	g := ready(t)
	for _, body := range []string{`{"container":"x","more":1}`, `[]`, `{"container":7}`, `{} {}`, `{`} {
		if _, err := g.Handle(context.Background(), wire.OpStartContainer, []byte(body)); err == nil || err.Code != wire.CodeInvalid {
			t.Errorf("start_container %s = %v; want invalid", body, err)
		}
	}
	g.refused("mount_everything", struct{}{}, wire.CodeUnsupported, "no such request")
}

// FuzzHandle sends arbitrary requests to a guest that is ready: it must answer
// each, start nothing, and never panic.
func FuzzHandle(f *testing.F) {
	valid, err := json.Marshal(create())
	if err != nil {
		f.Fatal(err)
	}
	f.Add("create_container", valid)
	for _, op := range []wire.Op{wire.OpMountDevice, wire.OpMountOverlay, wire.OpExec, wire.OpSignal, wire.OpConfigureNetwork, wire.OpAttest} {
		f.Add(string(op), []byte(`{"device":1,"container":"`+webID+`"}`))
	}
	f.Fuzz(func(t *testing.T, op string, body []byte) {
		g := ready(t)
		_, _ = g.Handle(context.Background(), wire.Op(op), body)
		if len(g.runs.started) != 0 {
			t.Fatal("one request started a process")
		}
	})
}
