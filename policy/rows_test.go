// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

type object = map[string]any

// web is a container in full, as a policy names it.
func web() object {
	return object{
		"name": "web", "command": []string{"/bin/web", "-v"}, "layers": []string{"aa", "bb"}, "working_dir": "/app",
		"env_rules": []object{
			{"pattern": "PATH=/bin", "strategy": "string", "required": true},
			{"pattern": "HOSTNAME=[a-z]+", "strategy": "re2", "required": false},
		},
		"mounts":         []object{{"destination": "/data", "type": "bind", "source": "sandbox:///volumes/data", "options": []string{"rbind", "rw"}}},
		"exec_processes": []object{{"command": []string{"/bin/health"}, "signals": []int{2}}}, "signals": []int{10},
		"user": object{"umask": "0022", "user_idname": object{"pattern": "1000", "strategy": "id"},
			"group_idnames": []object{{"pattern": "100", "strategy": "id"}}},
		"capabilities": DefaultCapabilities(), "seccomp_profile_sha256": "", "allow_elevated": false, "no_new_privileges": true,
		"allow_stdio_access": true,
	}
}

// text writes a policy with these containers; flags are set to true.
func text(containers []object, flags ...string) []byte {
	list, err := json.Marshal(containers)
	if err != nil {
		panic(err)
	}
	var b strings.Builder
	fmt.Fprintf(&b, "package policy\napi_version := \"0.12.0\"\nframework_version := \"0.5.0\"\ncontainers := %s\n", list)
	for _, flag := range flags {
		b.WriteString(flag + " := true\n")
	}
	for _, point := range pointNames() {
		b.WriteString(point + " := data.framework." + point + "\n")
	}
	return []byte(b.String() + "reason := {\"errors\": data.framework.errors}\n")
}

func pointNames() []string {
	return []string{"mount_device", "unmount_device", "rw_mount_device", "rw_unmount_device", "mount_overlay", "unmount_overlay",
		"create_container", "exec_in_container", "exec_external", "shutdown_container", "signal_container_process", "plan9_mount",
		"plan9_unmount", "get_properties", "dump_stacks", "runtime_logging", "scratch_mount", "scratch_unmount", "host_network"}
}

// webRequests are all allowed in this order.
func webRequests() []Request {
	user, groups := IDName{ID: "1000", Name: "web"}, []IDName{{ID: "100", Name: "users"}}
	return []Request{
		MountDevice{Target: "/m0", DeviceHash: "aa", MountPathRegex: "/m[0-9]+"},
		MountDevice{Target: "/m1", DeviceHash: "bb", MountPathRegex: "/m[0-9]+"},
		ScratchMount{Target: "/scratch", Encrypted: true},
		RWMountDevice{Target: "/rw", Encrypted: true, EnsureFilesystem: true, Filesystem: "ext4"},
		MountOverlay{ContainerID: "c", LayerPaths: []string{"/m1", "/m0"}, Target: "/c"},
		Plan9Mount{RootPrefix: "/run", MountPathPrefix: "/mounts/m[0-9]+", Target: "/run/c/mounts/m1"},
		CreateContainer{
			ContainerID: "c", ArgList: []string{"/bin/web", "-v"}, EnvList: []string{"PATH=/bin", "HOSTNAME=web"}, WorkingDir: "/app",
			SandboxDir: "/box", HugePagesDir: "/huge", NoNewPrivileges: true, User: user, Groups: groups, Umask: "0022",
			Mounts: append(DefaultMounts(), Mount{Destination: "/data", Type: "bind", Source: "/box/volumes/data",
				Options: []string{"rw", "rbind"}}),
			Capabilities: DefaultCapabilities(),
		},
		ExecInContainer{
			ContainerID: "c", ArgList: []string{"/bin/health"}, EnvList: []string{"PATH=/bin"}, WorkingDir: "/app", NoNewPrivileges: true,
			User: user, Groups: groups, Umask: "0022", Capabilities: DefaultCapabilities(),
		},
		SignalContainerProcess{ContainerID: "c", Signal: 10, IsInitProcess: true},
		SignalContainerProcess{ContainerID: "c", Signal: 2, ArgList: []string{"/bin/health"}},
		ShutdownContainer{ContainerID: "c"},
		UnmountOverlay{UnmountTarget: "/c"},
		UnmountDevice{UnmountTarget: "/m0"},
		RWUnmountDevice{UnmountTarget: "/rw"},
		ScratchUnmount{UnmountTarget: "/scratch"},
		Plan9Unmount{UnmountTarget: "/run/c/mounts/m1"},
	}
}

func parse(t testing.TB, policy []byte) *Policy {
	t.Helper()
	p, err := Parse(policy)
	if err != nil {
		t.Fatalf("Parse: %v\n%s", err, policy)
	}
	return p
}

// upTo runs the requests before the first of the type of req, all of which must be allowed, then req.
func upTo(t *testing.T, p *Policy, req Request) (Decision, State) {
	t.Helper()
	s := p.Start()
	for _, r := range webRequests() {
		if r.Point() == req.Point() {
			d, _ := s.Decide(req)
			return d, s
		}
		d, next := s.Decide(r)
		if !d.Allowed {
			t.Fatalf("%s before %s: %v", r.Point(), req.Point(), d.Denial)
		}
		s = next
	}
	d, _ := s.Decide(req)
	return d, s
}

func TestEverythingAllowed(t *testing.T) {
	s := parse(t, text([]object{web()})).Start()
	for _, req := range webRequests() {
		d, next := s.Decide(req)
		if !d.Allowed || d.Denial != nil {
			t.Fatalf("%s: %v", req.Point(), d.Denial)
		}
		s = next
	}
}

func change[R Request](f func(*R)) Request {
	for _, req := range webRequests() {
		if r, ok := req.(R); ok {
			f(&r)
			return r
		}
	}
	panic("no such request")
}

// TestOneFieldChanged: each row is an allowed request with one field changed. It is denied, the denial names the field,
// and the edit that it proposes, made in the policy, allows the request.
func TestOneFieldChanged(t *testing.T) {
	create := func(f func(*CreateContainer)) Request { return change(f) }
	exec := func(f func(*ExecInContainer)) Request { return change(f) }
	caps := func(f func(*Capabilities)) *Capabilities {
		c := DefaultCapabilities()
		f(c)
		return c
	}
	for _, row := range []struct {
		name  string
		req   Request
		field string
		err   string
		edit  bool // whether an edit can allow it
	}{
		{"hash", change(func(r *MountDevice) { r.DeviceHash = "cc" }), "deviceHash", errHashUnknown, true},
		{"hash case", change(func(r *MountDevice) { r.DeviceHash = "AA" }), "deviceHash", errHashUnknown, true},
		{"no hash", change(func(r *MountDevice) { r.DeviceHash = "" }), "deviceHash", errHashUnknown, false},
		{"mount path", change(func(r *MountDevice) { r.Target = "/m0x" }), "target", errMountpoint, false},
		{"scratch", change(func(r *ScratchMount) { r.Encrypted = false }), "encrypted", errScratchPlain, true},
		{"rw encrypted", change(func(r *RWMountDevice) { r.Encrypted = false }), "encrypted", errRWUnencrypted, true},
		{"rw mkfs", change(func(r *RWMountDevice) { r.EnsureFilesystem = false }), "ensureFilesystem", errRWNoFilesystem, false},
		{"rw fs", change(func(r *RWMountDevice) { r.Filesystem = "vfat" }), "filesystem", errRWFilesystem, false},
		{"rw target", change(func(r *RWMountDevice) { r.Target = "/m0" }), "target", errDeviceMounted, false},
		{"layers swapped", change(func(r *MountOverlay) { r.LayerPaths = []string{"/m0", "/m1"} }), "layers", errOverlayUnknown, true},
		{"layer missing", change(func(r *MountOverlay) { r.LayerPaths = []string{"/m1"} }), "layers", errOverlayUnknown, false},
		{"layer twice", change(func(r *MountOverlay) { r.LayerPaths = []string{"/m0", "/m0"} }), "layers", errOverlayUnknown, true},
		{"no layers", change(func(r *MountOverlay) { r.LayerPaths = nil }), "layers", errOverlayUnknown, false},
		{"layer not mounted", change(func(r *MountOverlay) { r.LayerPaths = []string{"/m1", "/m9"} }), "layerPaths", errOverlayUnknown, false},
		{"plan9 other", change(func(r *Plan9Mount) { r.Target = "/run/d/mounts/m1" }), "target", "", false},
		{"plan9 longer", change(func(r *Plan9Mount) { r.Target = "/run/c/mounts/m1/x" }), "target", "", false},
		{"plan9 prefix of ID", change(func(r *Plan9Mount) { r.Target = "/run/cc/mounts/m1" }), "target", "", false},
		{"id", create(func(r *CreateContainer) { r.ContainerID = "d" }), "containerID", errCommand, false},
		{"command", create(func(r *CreateContainer) { r.ArgList = []string{"/bin/sh"} }), "command", errCommand, true},
		{"command longer", create(func(r *CreateContainer) { r.ArgList = append(r.ArgList, "-x") }), "command", errCommand, true},
		{"command split", create(func(r *CreateContainer) { r.ArgList = []string{"/bin/web -v"} }), "command", errCommand, true},
		{"env name", create(func(r *CreateContainer) { r.EnvList = append(r.EnvList, "LD_PRELOAD=/x") }), "env", errEnv + ": LD_PRELOAD", false},
		{"env value", create(func(r *CreateContainer) { r.EnvList[1] = "HOSTNAME=web2" }), "env", errEnv + ": HOSTNAME", false},
		{"env anchored", create(func(r *CreateContainer) { r.EnvList[1] = "XHOSTNAME=web" }), "env", errEnv + ": XHOSTNAME", false},
		{"env newline", create(func(r *CreateContainer) { r.EnvList[1] = "HOSTNAME=web\nA=b" }), "env", errEnv + ": HOSTNAME", false},
		{"env required", create(func(r *CreateContainer) { r.EnvList = r.EnvList[1:] }), "env", errMissingEnv, true},
		{"env none", create(func(r *CreateContainer) { r.EnvList = nil }), "env", errMissingEnv, true},
		{"dir", create(func(r *CreateContainer) { r.WorkingDir = "/" }), "working_dir", errDir, true},
		{"privileged", create(func(r *CreateContainer) { r.Privileged = true }), "allow_elevated", "privileged escalation not allowed", true},
		{"nnp", create(func(r *CreateContainer) { r.NoNewPrivileges = false }), "no_new_privileges", "invalid noNewPrivileges", true},
		{"user", create(func(r *CreateContainer) { r.User = IDName{ID: "0", Name: "root"} }), "user", "invalid user", true},
		{"group", create(func(r *CreateContainer) { r.Groups = append(r.Groups, IDName{ID: "0"}) }), "user", "invalid user", true},
		{"umask", create(func(r *CreateContainer) { r.Umask = "0000" }), "user", "invalid user", true},
		{"seccomp", create(func(r *CreateContainer) { r.SeccompProfileSHA256 = "ab" }), "seccomp_profile_sha256", "invalid seccomp", true},
		{"capability more", create(func(r *CreateContainer) {
			r.Capabilities = caps(func(c *Capabilities) { c.Ambient = []string{"CAP_KILL"} })
		}), "capabilities.ambient", errCaps, true},
		{"capability less", create(func(r *CreateContainer) {
			r.Capabilities = caps(func(c *Capabilities) { c.Bounding = c.Bounding[1:] })
		}), "capabilities.bounding", errCaps, true},
		{"mount elsewhere", create(func(r *CreateContainer) { r.Mounts[9].Destination = "/etc" }), `mounts["/etc"]`, "invalid mount list: /etc", true},
		{"mount source", create(func(r *CreateContainer) { r.Mounts[9].Source = "/box/volumes/data2" }), `mounts["/data"]`, "invalid mount list: /data", true},
		{"mount climbs", create(func(r *CreateContainer) { r.Mounts[9].Source = "/box/volumes/../x" }), `mounts["/data"]`, "invalid mount list: /data", false},
		{"mount type", create(func(r *CreateContainer) { r.Mounts[9].Type = "tmpfs" }), `mounts["/data"]`, "invalid mount list: /data", true},
		{"mount options", create(func(r *CreateContainer) { r.Mounts[9].Options = []string{"rw"} }), `mounts["/data"]`, "invalid mount list: /data", true},
		{"default mount rw", create(func(r *CreateContainer) { r.Mounts[5].Options[3] = "rw" }), `mounts["/sys"]`, "invalid mount list: /sys", true},
		{"device", create(func(r *CreateContainer) { r.Devices = []Device{{Path: "/dev/sda"}} }), "devices", errDevices, false},
		{"exec id", exec(func(r *ExecInContainer) { r.ContainerID = "d" }), "containerID", errNotStarted, false},
		{"exec command", exec(func(r *ExecInContainer) { r.ArgList = []string{"sh"} }), "exec_processes", errCommand, true},
		{"exec dir", exec(func(r *ExecInContainer) { r.WorkingDir = "/" }), "working_dir", errDir, false},
		{"exec user", exec(func(r *ExecInContainer) { r.User.ID = "0" }), "user", "invalid user", false},
		{"exec nnp", exec(func(r *ExecInContainer) { r.NoNewPrivileges = false }), "no_new_privileges", "invalid noNewPrivileges", true},
		{"exec env", exec(func(r *ExecInContainer) { r.EnvList = append(r.EnvList, "A=1") }), "env", errEnv + ": A", false},
		{"signal", change(func(r *SignalContainerProcess) { r.Signal = 9 }), "signals", errSignal, true},
		{"signal id", change(func(r *SignalContainerProcess) { r.ContainerID = "d" }), "containerID", errNotStarted, false},
		{"exec signal", SignalContainerProcess{ContainerID: "c", Signal: 9, ArgList: []string{"/bin/health"}}, "exec_processes[0].signals", errSignal, true},
		{"exec signal command", SignalContainerProcess{ContainerID: "c", Signal: 2, ArgList: []string{"/bin/web"}}, "exec_processes", errSignal, true},
		{"shutdown", change(func(r *ShutdownContainer) { r.ContainerID = "d" }), "containerID", errNotStarted, false},
		{"unmount overlay", change(func(r *UnmountOverlay) { r.UnmountTarget = "/d" }), "unmountTarget", errNoOverlay, false},
		{"unmount", change(func(r *UnmountDevice) { r.UnmountTarget = "/m7" }), "unmountTarget", errNoDevice, false},
		{"unmount rw", change(func(r *UnmountDevice) { r.UnmountTarget = "/rw" }), "unmountTarget", errDeviceIsRW, false},
		{"rw unmount ro", change(func(r *RWUnmountDevice) { r.UnmountTarget = "/m1" }), "unmountTarget", errDeviceIsRO, false},
		{"unmount scratch", change(func(r *ScratchUnmount) { r.UnmountTarget = "/x" }), "unmountTarget", errNoScratch, false},
		{"plan9 unmount", change(func(r *Plan9Unmount) { r.UnmountTarget = "/x" }), "unmountTarget", errNoDevice, false},
		{"external", ExecExternal{ArgList: []string{"ls"}, WorkingDir: "/"}, "external_processes", errCommand, false},
		{"properties", GetProperties{}, "allow_properties_access", "", true},
		{"stacks", DumpStacks{}, "allow_dump_stacks", "", true},
		{"logging", RuntimeLogging{}, "allow_runtime_logging", "", true},
		{"host network", HostNetwork{}, "allow_host_network", "", true},
	} {
		t.Run(row.name, func(t *testing.T) {
			containers := []object{web()}
			d, _ := upTo(t, parse(t, text(containers)), row.req)
			if d.Allowed || d.Denial == nil {
				t.Fatalf("Decide(%+v) is allowed", row.req)
			}
			if row.err != "" && !slices.Contains(d.Denial.Errors, row.err) {
				t.Errorf("errors %q; want %q", d.Denial.Errors, row.err)
			}
			if !slices.ContainsFunc(d.Denial.Fields, func(f FieldDiff) bool { return f.Field == row.field }) {
				t.Errorf("fields %+v; want %s", d.Denial.Fields, row.field)
			}
			if !row.edit {
				return
			}
			var flags []string
			for _, edit := range strings.Split(d.Denial.Edit, "; ") {
				if m := regexp.MustCompile(`^set (allow_\w+) to true$`).FindStringSubmatch(edit); m != nil {
					flags = append(flags, m[1])
					continue
				}
				containers = apply(t, containers, edit)
			}
			p := parse(t, text(containers, flags...))
			if again, _ := edited(t, p, row.req); !again.Allowed {
				t.Errorf("after %q it is still denied:\n%s", d.Denial.Edit, again.Denial.Explain())
			}
		})
	}
}

// edited is upTo under an edited policy, in which the requests before req may be denied now: an edit makes room for
// req, not for what no longer fits beside it. Those are asked again in the form that the edit asks for.
func edited(t *testing.T, p *Policy, req Request) (Decision, State) {
	t.Helper()
	s := p.Start()
	for _, r := range webRequests() {
		if r.Point() == req.Point() {
			break
		}
		d, next := s.Decide(r)
		if c, ok := r.(CreateContainer); ok && !d.Allowed {
			e := req.(ExecInContainer)
			c.NoNewPrivileges = e.NoNewPrivileges
			d, next = s.Decide(c)
		}
		if d.Allowed {
			s = next
		}
	}
	d, _ := s.Decide(req)
	return d, s
}

// apply makes an edit "set PATH to JSON" or "add JSON to PATH" in containers.
func apply(t *testing.T, containers []object, edit string) []object {
	t.Helper()
	raw, err := json.Marshal(containers)
	if err != nil {
		t.Fatal(err)
	}
	var list any
	if err := json.Unmarshal(raw, &list); err != nil {
		t.Fatal(err)
	}
	var path, value string
	if rest, ok := strings.CutPrefix(edit, "set "); ok {
		path, value, _ = strings.Cut(rest, " to ")
	} else if rest, ok := strings.CutPrefix(edit, "add "); ok {
		i := strings.LastIndex(rest, " to ")
		value, path = rest[:i], rest[i+4:]
		if path == "the layers of the container that it belongs to" {
			path = "containers[0].layers"
		}
		path += "[+]"
	} else {
		t.Fatalf("unknown edit %q", edit)
	}
	var v any
	if err := json.Unmarshal([]byte(value), &v); err != nil {
		t.Fatalf("edit %q: %v", edit, err)
	}
	steps := regexp.MustCompile(`\w+|\[\+\]`).FindAllString(path, -1)[1:]
	list = put(list, steps, v)
	var out []object
	for _, c := range list.([]any) {
		out = append(out, c.(object))
	}
	return out
}

func put(in any, steps []string, v any) any {
	if len(steps) == 0 {
		return v
	}
	switch x := in.(type) {
	case []any:
		if steps[0] == "[+]" {
			return append(x, v)
		}
		i, _ := strconv.Atoi(steps[0])
		x[i] = put(x[i], steps[1:], v)
		return x
	case object:
		x[steps[0]] = put(x[steps[0]], steps[1:], v)
		return x
	}
	return []any{v}
}
