// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"fmt"
	"os"
	"testing"
)

const pauseHash = "16b514057a06ad665f92c02863aca074fd5976c755d26bff16365299169e8415"

func benchText(b *testing.B) []byte {
	text, err := os.ReadFile("testdata/confcom.rego")
	if err != nil {
		b.Fatal(err)
	}
	return text
}

func BenchmarkLoad(b *testing.B) {
	text := benchText(b)
	b.SetBytes(int64(len(text)))
	for b.Loop() {
		if _, err := Parse(text); err != nil {
			b.Fatal(err)
		}
	}
}

func must(b testing.TB, s State, req Request) State {
	b.Helper()
	d, next := s.Decide(req)
	if !d.Allowed {
		b.Fatal(d.Denial)
	}
	return next
}

func BenchmarkMountDevice(b *testing.B) {
	s := readPolicy(b, "confcom.rego").Start()
	req := MountDevice{Target: "/run/mounts/scsi/m0", DeviceHash: pauseHash, MountPathRegex: "/run/mounts/scsi/m[0-9]+"}
	for b.Loop() {
		must(b, s, req)
	}
}

func pauseRequest() CreateContainer {
	return CreateContainer{
		ContainerID: "c", ArgList: []string{"/pause"}, WorkingDir: "/", SandboxDir: "/box", HugePagesDir: "/huge",
		EnvList: []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "TERM=xterm", "HOSTNAME=pod", "A=1"},
		Mounts:  DefaultMounts(), User: IDName{ID: "0", Name: "root"}, Groups: []IDName{{ID: "0", Name: "root"}}, Umask: "0022",
		Capabilities: DefaultCapabilities(),
	}
}

func BenchmarkCreateContainer(b *testing.B) {
	s := must(b, readPolicy(b, "confcom.rego").Start(), MountDevice{Target: "/m0", DeviceHash: pauseHash})
	s = must(b, s, MountOverlay{ContainerID: "c", LayerPaths: []string{"/m0"}, Target: "/c"})
	req := pauseRequest()
	for b.Loop() {
		must(b, s, req)
	}
}

// many is 200 containers of 40 layers. If alike they are all candidates for the same layers.
func many(alike bool) []byte {
	var containers []object
	for i := range 200 {
		layers := make([]string, 40)
		for j := range layers {
			n := i
			if alike {
				n = 0
			}
			layers[j] = fmt.Sprintf("%064x", n*100+j)
		}
		c := with(web(), object{"name": fmt.Sprint("c", i), "layers": layers})
		env := []object{}
		for k := range 12 {
			env = append(env, object{"pattern": fmt.Sprintf("V%d=.+", k), "strategy": "re2", "required": false})
		}
		c["env_rules"] = append(env, web()["env_rules"].([]object)...)
		containers = append(containers, c)
	}
	return text(containers)
}

func BenchmarkLoadLarge(b *testing.B) {
	text := many(false)
	b.SetBytes(int64(len(text)))
	for b.Loop() {
		if _, err := Parse(text); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkCreateContainerLarge(b *testing.B) {
	p, err := Parse(many(true))
	if err != nil {
		b.Fatal(err)
	}
	s := p.Start()
	over := MountOverlay{ContainerID: "c", Target: "/c"}
	for j := range 40 {
		path := fmt.Sprint("/m", j)
		s = must(b, s, MountDevice{Target: path, DeviceHash: fmt.Sprintf("%064x", j)})
		over.LayerPaths = append([]string{path}, over.LayerPaths...)
	}
	s = must(b, s, over)
	req := change(func(r *CreateContainer) {
		for k := range 12 {
			r.EnvList = append(r.EnvList, fmt.Sprintf("V%d=x", k))
		}
	})
	for b.Loop() {
		must(b, s, req)
	}
}
