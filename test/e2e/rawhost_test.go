// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coffer-dev/coffer/host/emulator"
	"github.com/coffer-dev/coffer/host/qemu"
	"github.com/coffer-dev/coffer/layer"
	"github.com/coffer-dev/coffer/owner/appraise"
	"github.com/coffer-dev/coffer/wire"
)

// rawHost is a host that does as a test says, not as Coffer's own does: it
// starts the real guest and speaks to it directly.
type rawHost struct {
	*wire.Client
	t       *testing.T
	vm      *qemu.Process
	console *syncBuffer
	exits   chan wire.Exit
	fatals  chan string
}

// launch is what a rawHost starts. The zero value of each field is the
// ordinary thing.
type launch struct {
	policy  string   // whose digest becomes HOST_DATA
	layers  []string // image files
	scratch string
	append  string // instead of the reference's
	kernel  string
	initrd  string
	network bool
}

// guestReference reads what the guest was built from.
func guestReference(t testing.TB) appraise.Reference {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(guestDir(t), "guest.json"))
	if err != nil {
		t.Fatal(err)
	}
	r, err := appraise.ParseReference(text)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func or(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}

// startRaw starts a guest and ends it with the test.
func startRaw(t *testing.T, l launch) *rawHost {
	t.Helper()
	dir, ref := guestDir(t), guestReference(t)
	binary, err := qemu.Find("")
	if err != nil {
		t.Fatal(err)
	}
	m := &qemu.Machine{Binary: binary, TEE: qemu.Emulated{}, Accel: "tcg", CPUs: 1, Memory: 1 << 30,
		Firmware: filepath.Join(dir, ref.Firmware.Name), Kernel: or(l.kernel, filepath.Join(dir, ref.Kernel.Name)),
		Initrd: or(l.initrd, filepath.Join(dir, ref.Initrd.Name)), Append: or(l.append, ref.Append),
		Layers: l.layers, Scratch: l.scratch, Network: l.network}
	measurement, err := emulator.Measure(emulator.Started{Firmware: m.Firmware, Kernel: m.Kernel, Initrd: m.Initrd, Append: m.Append, VCPUs: m.CPUs})
	if err != nil {
		t.Fatal(err)
	}
	processor, err := emulator.New(emulatedRoot(t), emulator.Launch{Measurement: measurement, HostData: sha256.Sum256([]byte(l.policy))})
	if err != nil {
		t.Fatal(err)
	}
	vm, err := qemu.Start(m)
	if err != nil {
		t.Fatal(err)
	}
	h := &rawHost{t: t, vm: vm, console: &syncBuffer{}, exits: make(chan wire.Exit, 64), fatals: make(chan string, 8)}
	var helpers sync.WaitGroup
	helpers.Go(func() { _, _ = io.Copy(h.console, vm.Console) })
	helpers.Go(func() { _ = processor.Serve(context.Background(), vm.SEV) })
	h.Client, err = wire.Dial(vm.Control, h.event)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		vm.Kill()
		h.Close()
		vm.Close()
		helpers.Wait()
		if t.Failed() {
			t.Logf("console:\n%s", h.console)
		}
	})
	return h
}

func (h *rawHost) event(e wire.Event, body json.RawMessage) {
	switch e {
	case wire.EventExit:
		var x wire.Exit
		if wire.Decode(body, &x) == nil {
			h.exits <- x
		}
	case wire.EventFatal:
		h.fatals <- string(body)
	}
}

// patience bounds one step under emulation on a busy machine.
const patience = 2 * time.Minute

func (h *rawHost) ask(op wire.Op, in, out any) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	return h.Call(ctx, op, in, out)
}

func (h *rawHost) must(op wire.Op, in, out any) {
	h.t.Helper()
	if err := h.ask(op, in, out); err != nil {
		h.t.Fatalf("%s: %v", op, err)
	}
}

// waitEnd waits until the guest is gone and returns what its console showed.
func (h *rawHost) waitEnd() string {
	h.t.Helper()
	select {
	case <-h.vm.Done():
	case <-time.After(patience):
		h.t.Error("the guest did not end")
	}
	return h.console.String()
}

// open opens a data stream for Stdio.
func (h *rawHost) open() wire.Stream {
	h.t.Helper()
	s, err := h.OpenStream()
	if err != nil {
		h.t.Fatal(err)
	}
	return s
}

func randomID() string {
	var id [32]byte
	rand.Read(id[:])
	return hex.EncodeToString(id[:])
}

// syncBuffer is a bytes.Buffer for several goroutines.
type syncBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return strings.ToValidUTF8(b.buf.String(), "?")
}

// convert makes a layer image of a tar.
func convert(t *testing.T, tar io.Reader) (string, layer.Image) {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "layer"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	img, err := layer.Convert(context.Background(), tar, f)
	if err != nil {
		t.Fatal(err)
	}
	return f.Name(), img
}
