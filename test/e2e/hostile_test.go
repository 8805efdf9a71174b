// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	"golang.org/x/sync/errgroup"

	"github.com/coffer-dev/coffer/layer"
	"github.com/coffer-dev/coffer/wire"
)

// refused asks for what the guest must refuse with this code, and checks that
// the reason names what it should.
func (h *rawHost) refused(op wire.Op, in any, code wire.Code, text string) {
	h.t.Helper()
	err := h.ask(op, in, nil)
	var refusal *wire.Error
	if !errors.As(err, &refusal) || refusal.Code != code || !strings.Contains(refusal.Text, text) {
		h.t.Errorf("%s %+v = %v; want %s with %q", op, in, err, code, text)
	}
}

// secondLayer is a layer of one file.
func secondLayer(t *testing.T, content string) (string, layer.Image) {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "second", Mode: 0o644, Size: int64(len(content))}); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(w, content); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return convert(t, &b)
}

// TestHostAsksForMoreThanThePolicy is one guest whose host tries one thing
// after the other. What is allowed must still work in the end.
func TestHostAsksForMoreThanThePolicy(t *testing.T) {
	bottomFile, bottom := smallLayer(t)
	topFile, top := secondLayer(t, "top")
	otherFile, other := secondLayer(t, "another image")
	policy := strings.Replace(handPolicy(bottom.Root, `["/bin/sleep","1000"]`, `["/bin/true"]`),
		fmt.Sprintf(`"layers":["%s"]`, bottom.Root), fmt.Sprintf(`"layers":["%s","%s"]`, bottom.Root, top.Root), 1)
	h := startRaw(t, launch{policy: policy, layers: []string{bottomFile, topFile, otherFile, bottomFile}})

	// Nothing runs without a policy.
	id := randomID()
	mount := func(n int, img layer.Image) wire.MountDevice {
		return wire.MountDevice{Device: n, RootHash: img.Root.String(), DataBlocks: img.DataBlocks}
	}
	h.refused(wire.OpMountDevice, mount(0, bottom), wire.CodeState, "before hello")
	h.must(wire.OpHello, wire.Hello{Version: wire.Version, Group: randomID()}, nil)
	for _, op := range []wire.Op{wire.OpMountDevice, wire.OpMountOverlay, wire.OpCreateContainer, wire.OpStartContainer, wire.OpExec, wire.OpAttest, wire.OpShutdown} {
		h.refused(op, struct{}{}, wire.CodeState, "before a policy")
	}
	h.must(wire.OpSetPolicy, wire.SetPolicy{Policy: []byte(policy)}, nil)
	h.refused(wire.OpSetPolicy, wire.SetPolicy{Policy: []byte(policy)}, wire.CodeState, "already")
	h.must(wire.OpConfigureNetwork, wire.Network{Hostname: "hostile"}, nil)
	h.must(wire.OpPrepareScratch, wire.PrepareScratch{}, nil)

	// Layers: another image's, one that the disk does not hold, one twice.
	h.refused(wire.OpMountDevice, mount(2, other), wire.CodeDenied, "mount_device")
	h.refused(wire.OpMountDevice, mount(7, bottom), wire.CodeFailed, "layer7")
	short := mount(0, bottom)
	short.DataBlocks--
	h.refused(wire.OpMountDevice, short, wire.CodeFailed, "")
	h.must(wire.OpMountDevice, mount(0, bottom), nil)
	h.refused(wire.OpMountDevice, mount(0, bottom), wire.CodeDenied, "not in use")
	h.must(wire.OpMountDevice, mount(1, top), nil)
	for _, layers := range [][]int{{0, 1}, {0}, {1}, {1, 1}, {2}} {
		code := wire.CodeDenied
		switch {
		case len(layers) == 2 && layers[0] == layers[1]:
			code = wire.CodeInvalid
		case layers[0] == 2:
			code = wire.CodeState
		}
		h.refused(wire.OpMountOverlay, wire.MountOverlay{Container: randomID(), Layers: layers}, code, "")
	}
	h.must(wire.OpMountOverlay, wire.MountOverlay{Container: id, Layers: []int{1, 0}}, nil)
	h.refused(wire.OpUnmountDevice, wire.UnmountDevice{Device: 0}, wire.CodeState, "in use")

	// The container, one field at a time.
	ok := wire.CreateContainer{Container: id, Args: []string{"/bin/sleep", "1000"}, Env: []string{"PATH=/bin"}, Cwd: "/"}
	for field, change := range map[string]func(*wire.CreateContainer){
		"command":        func(c *wire.CreateContainer) { c.Args = []string{"/bin/sh"} },
		"working_dir":    func(c *wire.CreateContainer) { c.Cwd = "/tmp" },
		"allow_elevated": func(c *wire.CreateContainer) { c.Privileged = true },
		"mounts":         func(c *wire.CreateContainer) { c.Mounts = []wire.Mount{{Destination: "/etc", Volume: "v"}} },
		"capabilities": func(c *wire.CreateContainer) {
			c.Capabilities = &wire.Capabilities{Bounding: []string{"CAP_SYS_ADMIN"}}
		},
	} {
		in := ok
		change(&in)
		h.refused(wire.OpCreateContainer, in, wire.CodeDenied, field)
	}
	h.must(wire.OpCreateContainer, ok, nil)
	h.must(wire.OpStartContainer, wire.ContainerRef{Container: id}, nil)
	h.refused(wire.OpExec, wire.Exec{Container: id, Process: "p", Args: []string{"/bin/sh"}}, wire.CodeDenied, "exec_processes")
	h.refused(wire.OpSignal, wire.Signal{Container: id, Signal: 10}, wire.CodeDenied, "signal")
	h.refused(wire.OpDumpStacks, nil, wire.CodeDenied, "dump_stacks")
	h.refused("mount_everything", nil, wire.CodeUnsupported, "no such request")

	// Requests at once are handled one after the other.
	var calls errgroup.Group
	for range 20 {
		calls.Go(func() error {
			err := h.Call(context.Background(), wire.OpMountOverlay, wire.MountOverlay{Container: id, Layers: []int{1, 0}}, nil)
			var refusal *wire.Error
			if !errors.As(err, &refusal) || refusal.Code != wire.CodeDenied {
				return fmt.Errorf("a second overlay for a container: %w", err)
			}
			return nil
		})
	}
	if err := calls.Wait(); err != nil {
		t.Error(err)
	}
	h.must(wire.OpExec, wire.Exec{Container: id, Process: "p", Args: []string{"/bin/true"}, Env: []string{"PATH=/bin"}}, nil)
	if x := <-h.exits; x.Process != "p" || x.Status != 0 {
		t.Errorf("exit = %+v; want p with 0", x)
	}
	h.must(wire.OpSignal, wire.Signal{Container: id, Signal: 9}, nil)
	if x := <-h.exits; x.Process != "" || x.Status != 137 {
		t.Errorf("exit = %+v; want the container with 137", x)
	}
	h.must(wire.OpShutdown, nil, nil)
	h.waitEnd()
}

// TestBrokenControlChannel sends what is no session, and a message over the limit.
func TestBrokenControlChannel(t *testing.T) {
	for name, send := range map[string]func(h *rawHost) error{
		"garbage": func(h *rawHost) error {
			_, err := h.vm.Control.Write(bytes.Repeat([]byte{0xff}, 4096))
			return err
		},
		"announced length over the limit": func(h *rawHost) error {
			// The control stream is stream 1 of yamux: version 0, type 0 (data), no flags.
			frame := make([]byte, 16)
			binary.BigEndian.PutUint32(frame[4:], 1)
			binary.BigEndian.PutUint32(frame[8:], 4)
			binary.BigEndian.PutUint32(frame[12:], wire.MaxMessage+1)
			_, err := h.vm.Control.Write(frame)
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			h := startRaw(t, launch{policy: "x"})
			h.must(wire.OpHello, wire.Hello{Version: wire.Version, Group: randomID()}, nil)
			if err := send(h); err != nil {
				t.Fatal(err)
			}
			if console := h.waitEnd(); strings.Contains(console, "panic: ") || strings.Contains(console, "runtime error") {
				t.Errorf("console = %q; want an orderly end", console)
			}
		})
	}
}
