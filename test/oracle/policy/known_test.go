// SPDX-License-Identifier: Apache-2.0

//go:build rego

package oracle

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/coffer-dev/coffer/policy"
)

// small is a policy with one container, as confcom writes it.
func small(change func(object), flags ...string) []byte {
	c := object{
		"command": []string{"/pause"}, "env_rules": []object{{"pattern": "A=1", "strategy": "string", "required": false}},
		"layers": []string{"aa11"}, "mounts": []object{}, "exec_processes": []object{{"command": []string{"/bin/sh"}, "signals": []int{}}},
		"signals": []int{9}, "user": usersPool()[0], "capabilities": policy.DefaultCapabilities(), "seccomp_profile_sha256": "",
		"allow_elevated": false, "no_new_privileges": false, "allow_stdio_access": true, "working_dir": "/", "name": "one",
	}
	change(c)
	text, err := json.Marshal([]object{c})
	if err != nil {
		panic(err)
	}
	var b strings.Builder
	b.WriteString("package policy\napi_version := \"0.10.0\"\nframework_version := \"0.2.3\"\ncontainers := " + string(text) + "\n")
	for _, flag := range flags {
		b.WriteString(flag + " := true\n")
	}
	for _, point := range []string{"mount_device", "unmount_device", "mount_overlay", "unmount_overlay", "create_container",
		"exec_in_container", "exec_external", "shutdown_container", "signal_container_process", "plan9_mount",
		"plan9_unmount", "get_properties", "dump_stacks", "runtime_logging", "scratch_mount", "scratch_unmount"} {
		b.WriteString(point + " := data.framework." + point + "\n")
	}
	return []byte(b.String() + "reason := {\"errors\": data.framework.errors}\n")
}

func run(env ...string) policy.CreateContainer {
	return policy.CreateContainer{ContainerID: "c", ArgList: []string{"/pause"}, EnvList: env, WorkingDir: "/",
		SandboxDir: "/run/gcs/c/cafe/sandboxMounts", HugePagesDir: "/run/gcs/c/cafe/hugepages", Umask: "0022",
		User: policy.IDName{ID: "0", Name: "root"}, Capabilities: policy.DefaultCapabilities()}
}

func withMount(r policy.CreateContainer, source string) policy.CreateContainer {
	r.Mounts = []policy.Mount{{Destination: "/d", Type: "bind", Source: source, Options: []string{"rw"}}}
	return r
}

func mountRule(source string) func(object) {
	return func(c object) {
		c["mounts"] = []object{{"destination": "/d", "type": "bind", "source": source, "options": []string{"rw"}}}
	}
}

// TestKnownDifferences holds docs/policy.md, "Differences from the original", to what both engines really do. Each
// row's last request is the one they differ in.
func TestKnownDifferences(t *testing.T) {
	same := func(object) {}
	const box = "/run/gcs/c/cafe/sandboxMounts"
	begin := []policy.Request{
		policy.MountDevice{Target: "/m0", DeviceHash: "aa11"},
		policy.MountOverlay{ContainerID: "c", LayerPaths: []string{"/m0"}, Target: "/c"},
	}
	env := func(pattern string) func(object) {
		return func(c object) {
			c["env_rules"] = []object{{"pattern": pattern, "strategy": "re2", "required": false}}
		}
	}
	for _, row := range []struct {
		name  string
		text  []byte
		reqs  []policy.Request
		ours  bool
		v0141 bool
		v0150 bool
	}{
		{"signal 15 is added to old policies", small(same),
			[]policy.Request{run("A=1"), policy.SignalContainerProcess{ContainerID: "c", Signal: 15, IsInitProcess: true}}, true, false, true},
		{"empty environment and optional rules", small(same), []policy.Request{run()}, true, false, true},
		{"alternative escapes the anchors", small(env("A=1|B=2")), []policy.Request{run("A=1; and more")}, false, true, true},
		{"multi-line flag escapes the anchors", small(env("(?m)A=1")), []policy.Request{run("A=1\nB=2")}, false, true, true},
		{"user pattern is anchored", small(func(c object) {
			c["user"] = object{"umask": "0022", "user_idname": object{"pattern": "oo", "strategy": "re2"}, "group_idnames": []object{}}
		}), []policy.Request{run("A=1")}, false, true, false},
		{"mount source is anchored", small(mountRule("sandbox:///data")), []policy.Request{withMount(run("A=1"), box+"/data/../x")}, false, true, false},
		{"mount source leads out of the directory", small(mountRule("sandbox:///data/.+")),
			[]policy.Request{withMount(run("A=1"), box+"/data/../../../../../etc")}, false, true, true},
		{"source beside the directory", small(mountRule("sandbox://Other")), []policy.Request{withMount(run("A=1"), box+"Other")}, false, true, true},
		{"scheme without slash is below the directory", small(mountRule("hugepages://2M/x")),
			[]policy.Request{withMount(run("A=1"), "/run/gcs/c/cafe/hugepages/2M/x")}, true, false, false},
		{"source that still holds a scheme", small(mountRule("sandbox:///data")), []policy.Request{withMount(run("A=1"), "sandbox:///data")}, false, true, true},
		{"overlay again for an ID that was shut down", small(same),
			[]policy.Request{run("A=1"), policy.ShutdownContainer{ContainerID: "c"},
				policy.MountOverlay{ContainerID: "c", LayerPaths: []string{"/m0"}, Target: "/c2"}}, false, true, true},
		{"empty command", small(func(c object) { c["command"] = []string{} }), []policy.Request{func() policy.Request {
			r := run("A=1")
			r.ArgList = []string{}
			return r
		}()}, false, true, true},
	} {
		t.Run(row.name, func(t *testing.T) {
			old, err := newOriginal(row.text)
			if err != nil {
				t.Fatal(err)
			}
			engines := map[string]engine{"v0.14.1": old}
			want := map[string]bool{"ours": row.ours, "v0.14.1": row.v0141, "v0.15.0": row.v0150}
			if engines["ours"], err = newNative(row.text); err != nil {
				t.Fatal(err)
			}
			if _, err := loadHead(); err == nil {
				if engines["v0.15.0"], err = newHead(row.text); err != nil {
					t.Fatal(err)
				}
			}
			for name, e := range engines {
				reqs := append(begin[:2:2], row.reqs...)
				for i, req := range reqs {
					if got := e.decide(req); i == len(reqs)-1 && got.Allowed != want[name] || i < len(reqs)-1 && !got.Allowed {
						t.Errorf("%s: request %d: %s: allowed = %t; want %t (%q)", name, i, req.Point(), got.Allowed, want[name], got.Errors)
					}
				}
			}
		})
	}
}

// TestMissingFramework: a policy without framework_version can mount devices in the original.
func TestMissingFramework(t *testing.T) {
	text := []byte(strings.Replace(string(small(func(object) {})), "framework_version", "not_the_version", 1))
	old, err := newOriginal(text)
	if err != nil {
		t.Fatal(err)
	}
	ours, err := newNative(text)
	if err != nil {
		t.Fatal(err)
	}
	req := policy.MountDevice{Target: "/m0", DeviceHash: "aa11"}
	if got, want := ours.decide(req).Allowed, old.decide(req).Allowed; got || !want {
		t.Errorf("mount_device: ours %t, original %t; want false, true", got, want)
	}
	over := policy.MountOverlay{ContainerID: "c", LayerPaths: []string{"/m0"}, Target: "/c"}
	if got, want := ours.decide(over), old.decide(over); got.Allowed || want.Allowed || !strings.HasPrefix(got.Errors[0], "framework_version is missing") {
		t.Errorf("mount_overlay: ours %+v, original %+v; want both denied for the version", got, want)
	}
}
