// SPDX-License-Identifier: Apache-2.0

//go:build rego

package oracle

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"path"
	"sort"
	"syscall"

	"github.com/Microsoft/hcsshim/pkg/securitypolicy"
	oci "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/coffer-dev/coffer/policy"
)

// answer is what an engine says to a request, in a form that can be compared.
type answer struct {
	Allowed bool
	Env     []string             // sorted
	Caps    *policy.Capabilities // each set sorted
	Stdio   bool
	Errors  []string // sorted; nil if allowed
	// PolicyError is set if the policy itself could not answer.
	PolicyError bool
}

// engine is an implementation of the original.
type engine interface {
	decide(policy.Request) answer
}

// original is hcsshim v0.14.1 as it is: api 0.10.0, framework 0.3.0.
type original struct {
	e securitypolicy.SecurityPolicyEnforcer
}

func newOriginal(text []byte) (*original, error) {
	e, err := securitypolicy.CreateSecurityPolicyEnforcer("rego", base64.StdEncoding.EncodeToString(text),
		ociMounts(policy.DefaultMounts()), ociMounts(policy.DefaultPrivilegedMounts()), 0)
	if err != nil {
		return nil, err
	}
	return &original{e}, nil
}

func ociMounts(ms []policy.Mount) []oci.Mount {
	var out []oci.Mount
	for _, m := range ms {
		out = append(out, oci.Mount{Destination: m.Destination, Source: m.Source, Type: m.Type, Options: m.Options})
	}
	return out
}

func ociCaps(c *policy.Capabilities) *oci.LinuxCapabilities {
	if c == nil {
		return nil
	}
	return &oci.LinuxCapabilities{Bounding: c.Bounding, Effective: c.Effective, Inheritable: c.Inheritable,
		Permitted: c.Permitted, Ambient: c.Ambient}
}

func ownCaps(c *oci.LinuxCapabilities) *policy.Capabilities {
	if c == nil {
		return nil
	}
	return &policy.Capabilities{Bounding: c.Bounding, Effective: c.Effective, Inheritable: c.Inheritable,
		Permitted: c.Permitted, Ambient: c.Ambient}
}

func ids(groups []policy.IDName) []securitypolicy.IDName {
	out := []securitypolicy.IDName{}
	for _, g := range groups {
		out = append(out, securitypolicy.IDName(g))
	}
	return out
}

// sandboxID is the ID whose directories stand in the requests' SandboxDir and HugePagesDir.
const sandboxID = "cafe"

func (o *original) decide(req policy.Request) (a answer) {
	ctx := context.Background()
	var err error
	var env securitypolicy.EnvList
	var caps *oci.LinuxCapabilities
	switch r := req.(type) {
	case policy.MountDevice:
		err = o.e.EnforceDeviceMountPolicy(ctx, r.Target, r.DeviceHash)
	case policy.UnmountDevice:
		err = o.e.EnforceDeviceUnmountPolicy(ctx, r.UnmountTarget)
	case policy.MountOverlay:
		err = o.e.EnforceOverlayMountPolicy(ctx, r.ContainerID, r.LayerPaths, r.Target)
	case policy.UnmountOverlay:
		err = o.e.EnforceOverlayUnmountPolicy(ctx, r.UnmountTarget)
	case policy.ScratchMount:
		err = o.e.EnforceScratchMountPolicy(ctx, r.Target, r.Encrypted)
	case policy.ScratchUnmount:
		err = o.e.EnforceScratchUnmountPolicy(ctx, r.UnmountTarget)
	case policy.CreateContainer:
		if r.SandboxDir != path.Join("/run/gcs/c", sandboxID, "sandboxMounts") {
			panic("sandboxDir " + r.SandboxDir)
		}
		env, caps, a.Stdio, err = o.e.EnforceCreateContainerPolicy(ctx, sandboxID, r.ContainerID, r.ArgList, r.EnvList,
			r.WorkingDir, ociMounts(r.Mounts), r.Privileged, r.NoNewPrivileges, securitypolicy.IDName(r.User),
			ids(r.Groups), r.Umask, ociCaps(r.Capabilities), r.SeccompProfileSHA256)
	case policy.ExecInContainer:
		env, caps, a.Stdio, err = o.e.EnforceExecInContainerPolicy(ctx, r.ContainerID, r.ArgList, r.EnvList, r.WorkingDir,
			r.NoNewPrivileges, securitypolicy.IDName(r.User), ids(r.Groups), r.Umask, ociCaps(r.Capabilities))
	case policy.ExecExternal:
		env, a.Stdio, err = o.e.EnforceExecExternalProcessPolicy(ctx, r.ArgList, r.EnvList, r.WorkingDir)
	case policy.SignalContainerProcess:
		err = o.e.EnforceSignalContainerProcessPolicy(ctx, r.ContainerID, syscall.Signal(r.Signal), r.IsInitProcess, r.ArgList)
	case policy.ShutdownContainer:
		err = o.e.EnforceShutdownContainerPolicy(ctx, r.ContainerID)
	case policy.Plan9Mount:
		err = o.e.EnforcePlan9MountPolicy(ctx, r.Target)
	case policy.Plan9Unmount:
		err = o.e.EnforcePlan9UnmountPolicy(ctx, r.UnmountTarget)
	case policy.GetProperties:
		err = o.e.EnforceGetPropertiesPolicy(ctx)
	case policy.RuntimeLogging:
		err = o.e.EnforceRuntimeLoggingPolicy(ctx)
	case policy.DumpStacks:
		err = o.e.EnforceDumpStacksPolicy(ctx)
	default:
		panic(fmt.Sprintf("the original has no %T", req))
	}
	if err != nil {
		return denialOf(err.Error())
	}
	a.Allowed, a.Env, a.Caps = true, sorted(env), sortedCaps(ownCaps(caps))
	return a
}

// denialOf reads the wire form of a denial.
func denialOf(text string) answer {
	raw, err := securitypolicy.ExtractPolicyDecision(text)
	if err != nil {
		return answer{PolicyError: true, Errors: []string{text}}
	}
	var d struct {
		Reason      json.RawMessage `json:"reason"`
		PolicyError string          `json:"policyError"`
	}
	if err := json.Unmarshal([]byte(raw), &d); err != nil {
		panic(err)
	}
	if d.PolicyError != "" {
		return answer{PolicyError: true, Errors: []string{d.PolicyError}}
	}
	var reason struct{ Errors []string }
	_ = json.Unmarshal(d.Reason, &reason) // a text if the policy has no reason
	return answer{Errors: sorted(reason.Errors)}
}

func sorted(list []string) []string {
	out := append([]string{}, list...)
	sort.Strings(out)
	return out
}

func sortedCaps(c *policy.Capabilities) *policy.Capabilities {
	if c == nil {
		return nil
	}
	return &policy.Capabilities{Bounding: sorted(c.Bounding), Effective: sorted(c.Effective),
		Inheritable: sorted(c.Inheritable), Permitted: sorted(c.Permitted), Ambient: sorted(c.Ambient)}
}

// native is package policy behind the same interface.
type native struct{ s policy.State }

func newNative(text []byte) (*native, error) {
	p, err := policy.Parse(text)
	if err != nil {
		return nil, err
	}
	return &native{p.Start()}, nil
}

func (n *native) decide(req policy.Request) answer {
	d, next := n.s.Decide(req)
	n.s = next
	if !d.Allowed {
		if d.Denial.PolicyError != "" {
			return answer{PolicyError: true, Errors: []string{d.Denial.PolicyError}}
		}
		return answer{Errors: sorted(d.Denial.Errors)}
	}
	a := answer{Allowed: true, Env: sorted(d.Env), Caps: sortedCaps(d.Capabilities), Stdio: d.AllowStdio}
	return a
}
