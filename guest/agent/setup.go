// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/coffer-dev/coffer/policy"
	"github.com/coffer-dev/coffer/tee"
	"github.com/coffer-dev/coffer/tee/snp"
	"github.com/coffer-dev/coffer/wire"
)

func (a *Agent) hello(in wire.Hello) (any, error) {
	if a.group != "" {
		return nil, refuse(wire.CodeState, "hello was said already")
	}
	if in.Version != wire.Version {
		return nil, refuse(wire.CodeUnsupported, "the host speaks protocol version %d, this guest %d: use a guest and a coffer of the same release", in.Version, wire.Version)
	}
	if err := checkID("group", in.Group); err != nil {
		return nil, err
	}
	a.group = in.Group
	return wire.HelloReply{Version: wire.Version, Guest: a.cfg.Version, TEE: a.cfg.Kind}, nil
}

// setPolicy is the root of all that the guest permits: the text must be the
// one whose digest the secure processor was given at launch.
func (a *Agent) setPolicy(ctx context.Context, in wire.SetPolicy) error {
	if a.policy != nil {
		return refuse(wire.CodeState, "a policy has been set already")
	}
	digest := policy.Digest(in.Policy)
	bound, err := a.hostData(ctx)
	if err != nil {
		return refuse(wire.CodeFatal, "setting the policy: %v", err)
	}
	if subtle.ConstantTimeCompare(digest[:], bound[:]) != 1 {
		return refuse(wire.CodeFatal, "setting the policy: its SHA-256 is %x, but this guest was launched for %x (HOST_DATA)", digest, bound)
	}
	p, err := policy.Parse(in.Policy)
	if err != nil {
		return refuse(wire.CodeFatal, "setting the policy: %v", err)
	}
	a.policy, a.state = p, p.Start()
	if d, next := a.state.Decide(policy.RuntimeLogging{}); d.Allowed {
		a.state = next
		a.log = slog.New(slog.NewTextHandler(lineWriter{a.host}, nil))
	}
	return nil
}

// hostData reads HOST_DATA from a fresh report of this guest.
func (a *Agent) hostData(ctx context.Context) ([32]byte, error) {
	var fresh tee.Binding
	rand.Read(fresh[:])
	e, err := a.cfg.Attester.Attest(ctx, fresh)
	if err != nil {
		return [32]byte{}, fmt.Errorf("getting the guest's own report: %w", err)
	}
	r, err := snp.ParseReport(e.Report)
	if err != nil {
		return [32]byte{}, fmt.Errorf("reading the guest's own report: %w", err)
	}
	if r.ReportData != fresh {
		return [32]byte{}, fmt.Errorf("reading the guest's own report: it is not the answer to this request")
	}
	return r.HostData, nil
}

// lineWriter sends log lines to the host, which the policy has allowed.
type lineWriter struct{ host Host }

func (w lineWriter) Write(p []byte) (int, error) {
	return len(p), w.host.Send(wire.EventLog, wire.Log{Line: string(p)})
}

func (a *Agent) configureNetwork(in wire.Network) error {
	if a.network {
		return refuse(wire.CodeState, "the network has been configured already")
	}
	if err := os.MkdirAll(a.cfg.NetworkFiles, 0o755); err != nil {
		return fmt.Errorf("configuring the network: %w", err)
	}
	if err := a.cfg.Network(in, a.cfg.NetworkFiles); err != nil {
		return refuse(wire.CodeInvalid, "configuring the network: %v", err)
	}
	a.network, a.hostname = true, in.Hostname
	a.state = a.state.WithDefaultMounts(append(a.networkMounts(false), a.networkMounts(true)...))
	return nil
}

// networkMounts are the group's own files, which every container gets.
func (a *Agent) networkMounts(readOnly bool) []policy.Mount {
	options := []string{"bind"}
	if readOnly {
		options = append(options, "ro")
	}
	var ms []policy.Mount
	for _, name := range []string{"hostname", "hosts", "resolv.conf"} {
		ms = append(ms, policy.Mount{Destination: "/etc/" + name, Type: "bind",
			Source: filepath.Join(a.cfg.NetworkFiles, name), Options: options})
	}
	return ms
}

func (a *Agent) prepareScratch(ctx context.Context, in wire.PrepareScratch) error {
	if a.scratch {
		return refuse(wire.CodeState, "scratch has been prepared already")
	}
	if in.SizeBytes < 0 {
		return refuse(wire.CodeInvalid, "size_bytes is negative")
	}
	commit := func() {}
	if in.Disk {
		// What the guest will do, not what the host says it should do.
		var err error
		_, commit, err = a.decide(policy.RWMountDevice{Target: a.groupDir(), Encrypted: true, EnsureFilesystem: true, Filesystem: "ext4"})
		if err != nil {
			return err
		}
	}
	if err := os.MkdirAll(a.groupDir(), 0o711); err != nil {
		return fmt.Errorf("preparing scratch: %w", err)
	}
	if err := a.cfg.Disks.Scratch(ctx, in.Disk, in.SizeBytes, a.groupDir()); err != nil {
		return fmt.Errorf("preparing scratch: %w", err)
	}
	for _, dir := range []string{a.sandboxMounts(), filepath.Join(a.groupDir(), "scratch")} {
		if err := os.MkdirAll(dir, 0o711); err != nil {
			return refuse(wire.CodeFatal, "preparing scratch: %v", err)
		}
	}
	commit()
	a.scratch = true
	return nil
}

// The paths that policies know. All are made of checked names.
func (a *Agent) groupDir() string      { return filepath.Join(a.cfg.Groups, a.group) }
func (a *Agent) sandboxMounts() string { return filepath.Join(a.groupDir(), "sandboxMounts") }
func (a *Agent) hugePages() string     { return filepath.Join(a.groupDir(), "hugepages") }
func (a *Agent) scratchDir(container string) string {
	return filepath.Join(a.groupDir(), "scratch", container)
}
func (a *Agent) bundle(container string) string { return filepath.Join(a.cfg.Groups, container) }
func (a *Agent) rootfs(container string) string { return filepath.Join(a.bundle(container), "rootfs") }
