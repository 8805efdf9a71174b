// SPDX-License-Identifier: Apache-2.0

//go:build rego

package oracle

import (
	"fmt"
	"testing"

	"github.com/coffer-dev/coffer/owner/author"
	"github.com/coffer-dev/coffer/policy"
)

// TestGeneratedInOriginal: a policy that author writes allows the same run in the original engines.
func TestGeneratedInOriginal(t *testing.T) {
	hash := func(n int) string { return fmt.Sprintf("%064x", n) }
	c := author.Container{
		Name: "web", Layers: []string{hash(1), hash(2)}, AllowStdio: true, Terminal: true,
		Image: author.Image{Cmd: []string{"serve"}, Env: []string{"A=é"}, User: "web:27", WorkingDir: "/srv",
			Healthcheck: []string{"CMD", "check"}},
		Volumes: []author.Volume{{Destination: "/data", Name: "my.data"}, {Destination: "/conf", RootHash: hash(9)}},
	}
	text, err := author.Generate(author.Spec{Containers: []author.Container{c}})
	if err != nil {
		t.Fatal(err)
	}
	p, err := c.Resolve()
	if err != nil {
		t.Fatal(err)
	}
	const box = "/run/gcs/c/cafe/sandboxMounts"
	user, groups := policy.IDName{ID: "33", Name: "web"}, []policy.IDName{{ID: "27", Name: "sudo"}}
	create := policy.CreateContainer{ContainerID: "c", ArgList: p.Args, EnvList: append(p.Env, "HOSTNAME=h"), WorkingDir: p.WorkingDir,
		SandboxDir: box, HugePagesDir: "/run/gcs/c/cafe/hugepages", User: user, Groups: groups, Umask: "0022",
		Capabilities: policy.DefaultCapabilities(), Mounts: append(policy.DefaultMounts(),
			policy.Mount{Destination: "/conf", Type: "bind", Source: box + "/tmp/coffer/ro/" + hash(9), Options: []string{"rbind", "ro"}},
			policy.Mount{Destination: "/data", Type: "bind", Source: box + "/tmp/coffer/volumes/my.data", Options: []string{"rbind", "rshared", "rw"}})}
	volume := create
	volume.ContainerID, volume.ArgList, volume.Mounts = "v", []string{}, nil
	engines := map[string]engine{}
	if engines["v0.14.1"], err = newOriginal(text); err != nil {
		t.Fatal(err)
	}
	if engines["ours"], err = newNative(text); err != nil {
		t.Fatal(err)
	}
	if _, err := loadHead(); err == nil {
		if engines["v0.15.0"], err = newHead(text); err != nil {
			t.Fatal(err)
		}
	}
	for name, e := range engines {
		for i, step := range []struct {
			req  policy.Request
			want bool
		}{
			{policy.MountDevice{Target: "/m0", DeviceHash: hash(1)}, true},
			{policy.MountDevice{Target: "/m1", DeviceHash: hash(2)}, true},
			{policy.MountDevice{Target: "/m2", DeviceHash: hash(9)}, true},
			{policy.MountDevice{Target: "/m3", DeviceHash: hash(8)}, false},
			{policy.ScratchMount{Target: "/s", Encrypted: true}, true},
			{policy.MountOverlay{ContainerID: "c", LayerPaths: []string{"/m1", "/m0"}, Target: "/c"}, true},
			{policy.MountOverlay{ContainerID: "v", LayerPaths: []string{"/m2"}, Target: "/v"}, true},
			{volume, false},
			{create, true},
			{policy.ExecInContainer{ContainerID: "c", ArgList: []string{"check"}, EnvList: create.EnvList, WorkingDir: "/srv", User: user,
				Groups: groups, Umask: "0022", Capabilities: create.Capabilities}, true},
			{policy.SignalContainerProcess{ContainerID: "c", Signal: 9, ArgList: []string{"check"}}, true},
			{policy.SignalContainerProcess{ContainerID: "c", Signal: 15, IsInitProcess: true}, true},
			{policy.SignalContainerProcess{ContainerID: "c", Signal: 10, IsInitProcess: true}, false},
			{policy.GetProperties{}, true},
			{policy.DumpStacks{}, false},
			{policy.ShutdownContainer{ContainerID: "c"}, true},
		} {
			if got := e.decide(step.req); got.Allowed != step.want {
				t.Errorf("%s: step %d, %s: allowed = %t; want %t (%q)", name, i, step.req.Point(), got.Allowed, step.want, got.Errors)
			}
		}
	}
}
