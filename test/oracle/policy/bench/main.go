// SPDX-License-Identifier: Apache-2.0

//go:build rego

// Command bench compares the speed of package policy with the original engine, in one process, over confcom's
// two-container policy. It prints "name: value" lines. Run it in test/oracle:
//
//	go run -tags rego ./policy/bench [POLICY]
package main

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/Microsoft/hcsshim/pkg/securitypolicy"
	oci "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/coffer-dev/coffer/policy"
)

const (
	pauseHash = "16b514057a06ad665f92c02863aca074fd5976c755d26bff16365299169e8415"
	path      = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
)

func main() {
	if err := run(os.Stdout.WriteString); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(print func(string) (int, error)) error {
	file := "../../policy/testdata/confcom.rego"
	if len(os.Args) > 1 {
		file = os.Args[1]
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	load, create, device, err := native(text)
	if err != nil {
		return fmt.Errorf("measuring package policy: %w", err)
	}
	theirLoad, theirCreate, err := original(text)
	if err != nil {
		return fmt.Errorf("measuring the original: %w", err)
	}
	for _, line := range []struct {
		name  string
		value float64
	}{
		{"policy_load_us", load}, {"policy_create_container_us", create}, {"policy_mount_device_us", device},
		{"policy_load_ratio", theirLoad / load}, {"policy_create_ratio", theirCreate / create},
	} {
		if _, err := print(fmt.Sprintf("%s: %.2f\n", line.name, line.value)); err != nil {
			return err
		}
	}
	return nil
}

// median measures f and returns microseconds per call: the median of several rounds of n calls.
func median(rounds, n int, f func() error) (float64, error) {
	times := make([]float64, rounds)
	for i := range times {
		start := time.Now()
		for range n {
			if err := f(); err != nil {
				return 0, err
			}
		}
		times[i] = float64(time.Since(start).Nanoseconds()) / 1000 / float64(n)
	}
	slices.Sort(times)
	return times[rounds/2], nil
}

func request(id string) policy.CreateContainer {
	return policy.CreateContainer{ContainerID: id, ArgList: []string{"/pause"}, EnvList: []string{path, "TERM=xterm", "HOSTNAME=pod"},
		WorkingDir: "/", SandboxDir: "/run/gcs/c/s/sandboxMounts", HugePagesDir: "/run/gcs/c/s/hugepages",
		Mounts: policy.DefaultMounts(), User: policy.IDName{ID: "0", Name: "root"}, Groups: []policy.IDName{{ID: "0", Name: "root"}},
		Umask: "0022", Capabilities: policy.DefaultCapabilities()}
}

var errDenied = errors.New("denied")

func native(text []byte) (load, create, device float64, err error) {
	if load, err = median(21, 20, func() error { _, err := policy.Parse(text); return err }); err != nil {
		return
	}
	p, err := policy.Parse(text)
	if err != nil {
		return
	}
	s := p.Start()
	step := func(r policy.Request) error {
		d, next := s.Decide(r)
		if !d.Allowed {
			return d.Denial
		}
		s = next
		return nil
	}
	if device, err = median(21, 200, func() error {
		if d, _ := s.Decide(policy.MountDevice{Target: "/run/mounts/scsi/m0", DeviceHash: pauseHash, MountPathRegex: "/run/mounts/scsi/m[0-9]+"}); !d.Allowed {
			return errDenied
		}
		return nil
	}); err != nil {
		return
	}
	if err = step(policy.MountDevice{Target: "/m0", DeviceHash: pauseHash}); err != nil {
		return
	}
	if err = step(policy.MountOverlay{ContainerID: "c", LayerPaths: []string{"/m0"}, Target: "/c"}); err != nil {
		return
	}
	create, err = median(21, 200, func() error {
		if d, _ := s.Decide(request("c")); !d.Allowed {
			return d.Denial
		}
		return nil
	})
	return
}

func original(text []byte) (load, create float64, err error) {
	encoded := base64.StdEncoding.EncodeToString(text)
	var e securitypolicy.SecurityPolicyEnforcer
	if load, err = median(5, 1, func() (err error) {
		e, err = securitypolicy.CreateSecurityPolicyEnforcer("rego", encoded, mounts(policy.DefaultMounts()), mounts(policy.DefaultPrivilegedMounts()), 0)
		return err
	}); err != nil {
		return
	}
	ctx := context.Background()
	if err = e.EnforceDeviceMountPolicy(ctx, "/m0", pauseHash); err != nil {
		return
	}
	i := 0
	// Its state changes with each decision, so each needs a container of its own; only the decision is timed.
	var times []float64
	for ; i < 9; i++ {
		id := fmt.Sprint("c", i)
		if err = e.EnforceOverlayMountPolicy(ctx, id, []string{"/m0"}, "/"+id); err != nil {
			return
		}
		r := request(id)
		start := time.Now()
		_, _, _, err = e.EnforceCreateContainerPolicy(ctx, "s", id, r.ArgList, r.EnvList, r.WorkingDir, mounts(r.Mounts), false, false,
			securitypolicy.IDName(r.User), []securitypolicy.IDName{securitypolicy.IDName(r.Groups[0])}, r.Umask,
			&oci.LinuxCapabilities{Bounding: r.Capabilities.Bounding, Effective: r.Capabilities.Effective, Permitted: r.Capabilities.Permitted}, "")
		if err != nil {
			return
		}
		times = append(times, float64(time.Since(start).Nanoseconds())/1000)
	}
	slices.Sort(times)
	return load, times[len(times)/2], nil
}

func mounts(ms []policy.Mount) []oci.Mount {
	var out []oci.Mount
	for _, m := range ms {
		out = append(out, oci.Mount{Destination: m.Destination, Source: m.Source, Type: m.Type, Options: m.Options})
	}
	return out
}
