// SPDX-License-Identifier: Apache-2.0

package attest

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/coffer-dev/coffer/tee"
	"github.com/coffer-dev/coffer/tee/snp"
)

// fakeKernel is the kernel's side of /dev/cuse on a socket that keeps message
// borders, as far as its documentation and a real run show it.
type fakeKernel struct {
	t      *testing.T
	file   *os.File
	device atomic.Bool // the node exists
	info   string      // of the init reply

	mu      sync.Mutex
	unique  uint64
	waiting map[uint64]chan []byte
}

// pair returns the two ends of /dev/cuse.
func pair(t *testing.T) (server *os.File, k *fakeKernel) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	k = &fakeKernel{t: t, file: os.NewFile(uintptr(fds[1]), "kernel"), waiting: make(map[uint64]chan []byte)}
	return os.NewFile(uintptr(fds[0]), "cuse"), k
}

func (k *fakeKernel) send(opcode uint32, body []byte) (unique uint64, answered chan []byte) {
	k.mu.Lock()
	k.unique += 2
	unique = k.unique
	answered = make(chan []byte, 1)
	k.waiting[unique] = answered
	k.mu.Unlock()
	out := make([]byte, inHeaderSize)
	binary.LittleEndian.PutUint32(out, uint32(inHeaderSize+len(body)))
	binary.LittleEndian.PutUint32(out[4:], opcode)
	binary.LittleEndian.PutUint64(out[8:], unique)
	if _, err := k.file.Write(append(out, body...)); err != nil {
		k.t.Errorf("kernel: writing request: %v", err)
	}
	return unique, answered
}

// receive hands replies to whoever waits for them until the server closes.
func (k *fakeKernel) receive() {
	buf := make([]byte, 256<<10)
	for {
		n, err := k.file.Read(buf)
		if err != nil || n == 0 {
			return
		}
		r := bytes.Clone(buf[:n])
		if n < outHeaderSize || int(binary.LittleEndian.Uint32(r)) != n {
			k.t.Errorf("kernel: malformed reply of %d bytes", n)
			return
		}
		unique := binary.LittleEndian.Uint64(r[8:])
		k.mu.Lock()
		answered := k.waiting[unique]
		delete(k.waiting, unique)
		k.mu.Unlock()
		if answered == nil {
			k.t.Errorf("kernel: reply to nothing")
			return
		}
		answered <- r
	}
}

// request sends one request and returns the reply's error and body.
func (k *fakeKernel) request(opcode uint32, body []byte) (unix.Errno, []byte) {
	_, answered := k.send(opcode, body)
	r := <-answered
	return unix.Errno(-int32(binary.LittleEndian.Uint32(r[4:]))), r[outHeaderSize:]
}

// initialize does what the kernel does when /dev/cuse is opened.
func (k *fakeKernel) initialize(minor uint32) {
	var body [initInSize]byte
	binary.LittleEndian.PutUint32(body[0:], 7)
	binary.LittleEndian.PutUint32(body[4:], minor)
	binary.LittleEndian.PutUint32(body[12:], 1)
	_, answered := k.send(opCUSEInit, body[:])
	go func() {
		r := <-answered
		k.info = string(r[outHeaderSize+initOutSize:])
		k.device.Store(true)
	}()
}

func (k *fakeKernel) stat(path string) (Device, error) {
	if !k.device.Load() {
		return Device{}, fs.ErrNotExist
	}
	return Device{Path: path, Major: 240, Minor: 5}, nil
}

// userspace is the memory of a calling process.
type userspace map[uint64][]byte

func (u userspace) at(m memory) []byte {
	for base, data := range u {
		if m.base >= base && m.base-base <= uint64(len(data)) && m.size <= uint64(len(data))-(m.base-base) {
			return data[m.base-base:][:m.size]
		}
	}
	return nil
}

func total(list []memory) (n uint64) {
	for _, m := range list {
		n += m.size
	}
	return n
}

// ioctl is the loop of fuse_do_ioctl. started, if not nil, gets the number of
// every request sent.
func (k *fakeKernel) ioctl(u userspace, command uint32, arg uint64, started chan<- uint64) unix.Errno {
	var in, out []memory
	for {
		body := make([]byte, ioctlInSize)
		binary.LittleEndian.PutUint32(body[8:], 2) // unrestricted
		binary.LittleEndian.PutUint32(body[12:], command)
		binary.LittleEndian.PutUint64(body[16:], arg)
		binary.LittleEndian.PutUint32(body[24:], uint32(total(in)))
		binary.LittleEndian.PutUint32(body[28:], uint32(total(out)))
		for _, m := range in {
			data := u.at(m)
			if data == nil {
				return unix.EFAULT
			}
			body = append(body, data...)
		}
		unique, answered := k.send(opIoctl, body)
		if started != nil {
			started <- unique
		}
		r := (<-answered)
		if e := int32(binary.LittleEndian.Uint32(r[4:])); e != 0 {
			return unix.Errno(-e)
		}
		r = r[outHeaderSize:]
		if binary.LittleEndian.Uint32(r[4:])&ioctlRetry == 0 {
			return k.finish(u, out, r)
		}
		in, out = nil, nil
		nin, nout := binary.LittleEndian.Uint32(r[8:]), binary.LittleEndian.Uint32(r[12:])
		r = r[ioctlOutSize:]
		if nin+nout > 256 || len(r) != int(nin+nout)*iovecSize {
			k.t.Errorf("kernel: RETRY with %d+%d areas in %d bytes", nin, nout, len(r))
			return unix.EIO
		}
		for i := range nin + nout {
			m := memory{binary.LittleEndian.Uint64(r[i*iovecSize:]), binary.LittleEndian.Uint64(r[i*iovecSize+8:])}
			if i < nin {
				in = append(in, m)
			} else {
				out = append(out, m)
			}
		}
		if total(in) > 128<<10 || total(out) > 128<<10 {
			k.t.Errorf("kernel: RETRY for %d and %d bytes", total(in), total(out))
			return unix.ENOMEM
		}
	}
}

// finish scatters the payload.
func (k *fakeKernel) finish(u userspace, out []memory, r []byte) unix.Errno {
	data := r[ioctlOutSize:]
	if uint64(len(data)) > total(out) {
		k.t.Errorf("kernel: %d bytes for %d", len(data), total(out))
		return unix.EIO
	}
	for _, m := range out {
		n := min(len(data), int(m.size))
		to := u.at(memory{m.base, uint64(n)})
		if to == nil {
			return unix.EFAULT
		}
		copy(to, data[:n])
		data = data[n:]
	}
	return unix.Errno(-int32(binary.LittleEndian.Uint32(r)))
}

// serve runs ServeDevice against a fake kernel until the test ends.
func serve(t *testing.T, cfg DeviceConfig, p *Processor) *fakeKernel {
	t.Helper()
	server, k := pair(t)
	ready := make(chan Device, 1)
	cfg.stat, cfg.dir, cfg.Ready = k.stat, t.TempDir(), func(d Device) { ready <- d }
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	result := make(chan error, 1)
	wg.Go(k.receive)
	wg.Go(func() { result <- ServeDevice(ctx, server, cfg, p) })
	t.Cleanup(func() {
		cancel()
		if err := <-result; !errors.Is(err, context.Canceled) {
			t.Errorf("ServeDevice = %v; want %v", err, context.Canceled)
		}
		if err := k.file.Close(); err != nil {
			t.Error(err)
		}
		wg.Wait()
	})
	k.initialize(38)
	select {
	case d := <-ready:
		if filepath.Base(d.Path) != "sev-guest" || d.Major != 240 || d.Minor != 5 {
			t.Errorf("ready with %+v", d)
		}
	case err := <-result:
		result <- err
		t.Fatalf("ServeDevice = %v", err)
	}
	if k.info != "DEVNAME=sev-guest\x00" {
		t.Errorf("device information = %q", k.info)
	}
	return k
}

// Addresses in the calling process.
const (
	argAt, reqAt, respAt, certsAt = 0x1000, 0x2000, 0x3000, 0x8000
)

// caller is a process about to call: what each test changes.
type caller struct {
	command        uint32
	arg, req, resp []byte
	certs          []byte
}

func newCaller(command uint32, data byte) *caller {
	c := &caller{command: command, arg: make([]byte, argSize), req: make([]byte, extReportReqSize), resp: bytes.Repeat([]byte{0xDD}, reportRespSize), certs: bytes.Repeat([]byte{0xDD}, maxCertsLen)}
	le := binary.LittleEndian
	c.arg[0] = 1
	le.PutUint64(c.arg[offReq:], reqAt)
	le.PutUint64(c.arg[offResp:], respAt)
	le.PutUint64(c.arg[offExitinfo:], 0x7777)
	for i := range 64 {
		c.req[i] = data
	}
	le.PutUint64(c.req[offCerts:], certsAt)
	le.PutUint32(c.req[offCertsLen:], maxCertsLen)
	return c
}

func (c *caller) memory() userspace {
	return userspace{argAt: c.arg, reqAt: c.req, respAt: c.resp, certsAt: c.certs}
}

func (c *caller) exitinfo() uint64 { return binary.LittleEndian.Uint64(c.arg[offExitinfo:]) }

func TestDeviceReports(t *testing.T) {
	table := makeTable(t, 5000)
	k := serve(t, DeviceConfig{}, fakeProcessor(t, table, nil))
	if errno, body := k.request(opOpen, make([]byte, 8)); errno != 0 || len(body) != openOutSize {
		t.Errorf("open = %v, %d bytes", errno, len(body))
	}
	for _, command := range []uint32{ioctlGetReport, ioctlGetExtReport} {
		c := newCaller(command, 0x42)
		if errno := k.ioctl(c.memory(), command, argAt, nil); errno != 0 {
			t.Fatalf("ioctl %#x = %v", command, errno)
		}
		want := makeReport(t, [64]byte(c.req), 0)
		if !bytes.Equal(c.resp[respHeaderSize:respHeaderSize+len(want)], want) || binary.LittleEndian.Uint32(c.resp) != 0 || binary.LittleEndian.Uint32(c.resp[4:]) != 1184 {
			t.Errorf("ioctl %#x: response %x...", command, c.resp[:64])
		}
		if !bytes.Equal(c.resp[respHeaderSize+len(want):], make([]byte, reportRespSize-respHeaderSize-len(want))) {
			t.Errorf("ioctl %#x: the response's end is not zero", command)
		}
		if c.exitinfo() != 0x7777 {
			t.Errorf("ioctl %#x wrote the argument back: exitinfo2 = %#x", command, c.exitinfo())
		}
		if wrote := c.certs[0] != 0xDD; wrote != (command == ioctlGetExtReport) {
			t.Errorf("ioctl %#x wrote certificates: %v", command, wrote)
		}
		if command == ioctlGetExtReport && !bytes.Equal(c.certs, append(bytes.Clone(table), make([]byte, maxCertsLen-len(table))...)) {
			t.Error("certificates are not the table and zeros")
		}
	}
	if errno, _ := k.request(opRelease, make([]byte, 24)); errno != 0 {
		t.Errorf("release = %v", errno)
	}
	for _, op := range []uint32{15, 16, 40, 1, 4711} { // READ, WRITE, POLL, LOOKUP, none
		if errno, _ := k.request(op, make([]byte, 40)); errno != unix.ENOSYS {
			t.Errorf("request %d = %v; want ENOSYS", op, errno)
		}
	}
}

// TestDeviceErrors goes through the behaviour of the kernel's driver.
func TestDeviceErrors(t *testing.T) {
	le := binary.LittleEndian
	k := serve(t, DeviceConfig{}, fakeProcessor(t, makeTable(t, 5000), nil))
	const unwritten = 0x7777
	for _, tt := range []struct {
		name     string
		command  uint32
		change   func(*caller)
		want     unix.Errno
		exitinfo uint64
	}{
		{"version 0", ioctlGetReport, func(c *caller) { c.arg[0] = 0 }, unix.EINVAL, unwritten},
		{"unknown command", 0xC0205303, func(*caller) {}, unix.ENOTTY, 0xFF},
		{"TCGETS", 0x5401, func(*caller) {}, unix.ENOTTY, 0xFF},
		{"null request", ioctlGetReport, func(c *caller) { le.PutUint64(c.arg[offReq:], 0) }, unix.EINVAL, 0xFF},
		{"null response", ioctlGetExtReport, func(c *caller) { le.PutUint64(c.arg[offResp:], 0) }, unix.EINVAL, 0xFF},
		{"unreadable request", ioctlGetReport, func(c *caller) { le.PutUint64(c.arg[offReq:], 0xBAD00000) }, unix.EFAULT, unwritten},
		{"unwritable response", ioctlGetReport, func(c *caller) { le.PutUint64(c.arg[offResp:], 0xBAD00000) }, unix.EFAULT, unwritten},
		{"request at the end of memory", ioctlGetReport, func(c *caller) { le.PutUint64(c.arg[offReq:], ^uint64(0)) }, unix.EFAULT, unwritten},
		{"odd room", ioctlGetExtReport, func(c *caller) { le.PutUint32(c.req[offCertsLen:], 8191) }, unix.EINVAL, 0xFF},
		{"much room", ioctlGetExtReport, func(c *caller) { le.PutUint32(c.req[offCertsLen:], maxCertsLen+4096) }, unix.EINVAL, 0xFF},
		{"room of 4 GiB", ioctlGetExtReport, func(c *caller) { le.PutUint32(c.req[offCertsLen:], 0xFFFFF000) }, unix.EINVAL, 0xFF},
		{"unwritable room", ioctlGetExtReport, func(c *caller) { le.PutUint64(c.req[offCerts:], 0xBAD00000) }, unix.EFAULT, unwritten},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := newCaller(tt.command, 1)
			tt.change(c)
			if got := k.ioctl(c.memory(), tt.command, argAt, nil); got != tt.want {
				t.Errorf("ioctl = %v; want %v", got, tt.want)
			}
			if c.exitinfo() != tt.exitinfo {
				t.Errorf("exitinfo2 = %#x; want %#x", c.exitinfo(), tt.exitinfo)
			}
			if strings.HasPrefix(string(c.resp), "\x00") && tt.want != unix.EFAULT {
				t.Error("the response was written")
			}
		})
	}
	if got := k.ioctl(userspace{}, ioctlGetReport, 0, nil); got != unix.EFAULT {
		t.Errorf("ioctl with a null argument = %v; want EFAULT", got)
	}
}

// TestDeviceCertificateLength is the question that clients begin with.
func TestDeviceCertificateLength(t *testing.T) {
	le := binary.LittleEndian
	k := serve(t, DeviceConfig{}, fakeProcessor(t, makeTable(t, 5000), nil))
	for name, change := range map[string]func(*caller){
		"no length":  func(c *caller) { le.PutUint32(c.req[offCertsLen:], 0) },
		"no address": func(c *caller) { le.PutUint64(c.req[offCerts:], 0) },
		"one page":   func(c *caller) { le.PutUint32(c.req[offCertsLen:], 4096) },
	} {
		c := newCaller(ioctlGetExtReport, 1)
		change(c)
		if got := k.ioctl(c.memory(), ioctlGetExtReport, argAt, nil); got != unix.EIO {
			t.Errorf("%s: ioctl = %v; want EIO", name, got)
		}
		if c.exitinfo() != 1<<32 || le.Uint32(c.req[offCertsLen:]) != 8192 {
			t.Errorf("%s: exitinfo2 %#x, length %d; want %#x, 8192", name, c.exitinfo(), le.Uint32(c.req[offCertsLen:]), uint64(1)<<32)
		}
		if c.resp[0] != 0xDD || c.certs[0] != 0xDD {
			t.Errorf("%s: response or certificates were written", name)
		}
	}
}

func TestDeviceRefusals(t *testing.T) {
	le := binary.LittleEndian
	k := serve(t, DeviceConfig{}, fakeProcessor(t, makeTable(t, 100), nil))
	for _, command := range []uint32{ioctlGetReport, ioctlGetExtReport} {
		c := newCaller(command, 1)
		le.PutUint32(c.req[offVMPL:], 4)
		if got := k.ioctl(c.memory(), command, argAt, nil); got != 0 || le.Uint32(c.resp) != 0x16 || le.Uint32(c.resp[4:]) != 0 {
			t.Errorf("ioctl %#x at VMPL 4 = %v, status %#x", command, got, le.Uint32(c.resp))
		}
	}
	c := newCaller(ioctlGetDerivedKey, 1)
	if got := k.ioctl(c.memory(), ioctlGetDerivedKey, argAt, nil); got != 0 || le.Uint32(c.resp) != 0x27 {
		t.Errorf("derived key = %v, status %#x; want 0, 0x27", got, le.Uint32(c.resp))
	}
	if !bytes.Equal(c.resp[4:derivedKeyResp], make([]byte, derivedKeyResp-4)) || c.resp[derivedKeyResp] != 0xDD {
		t.Error("derived key's response is not 64 bytes without a key")
	}
	// A 32-bit caller has another struct.
	body := make([]byte, ioctlInSize)
	le.PutUint32(body[8:], 0xB)
	le.PutUint32(body[12:], ioctlGetReport)
	if _, r := k.request(opIoctl, body); int32(le.Uint32(r)) != -int32(unix.ENOTTY) {
		t.Errorf("compat ioctl = %d; want ENOTTY", int32(le.Uint32(r)))
	}
}

func TestDeviceConcurrent(t *testing.T) {
	k := serve(t, DeviceConfig{}, fakeProcessor(t, makeTable(t, 100), nil))
	var wg sync.WaitGroup
	for i := range 32 {
		wg.Go(func() {
			c := newCaller(ioctlGetExtReport, byte(i))
			if got := k.ioctl(c.memory(), c.command, argAt, nil); got != 0 {
				t.Errorf("ioctl = %v", got)
				return
			}
			r, err := snp.ParseReport(c.resp[respHeaderSize : respHeaderSize+snp.ReportSize])
			if err != nil || r.ReportData[0] != byte(i) || r.ReportData[63] != byte(i) {
				t.Errorf("caller %d got another's report, or none: %v", i, err)
			}
		})
	}
	wg.Wait()
}

// stalling returns a processor whose host answers the first report, for
// ServeDevice, and no other.
func stalling(t *testing.T) *Processor {
	reports := 0
	return fakeProcessor(t, makeTable(t, 100), func(r *snp.ChannelReply) bool {
		if r.Type == snp.GetReport {
			reports++
		}
		return reports < 2
	})
}

func TestDeviceTimeout(t *testing.T) {
	k := serve(t, DeviceConfig{Timeout: 50 * time.Millisecond}, stalling(t))
	c := newCaller(ioctlGetReport, 1)
	if got := k.ioctl(c.memory(), c.command, argAt, nil); got != unix.ETIMEDOUT {
		t.Errorf("ioctl with a silent host = %v; want ETIMEDOUT", got)
	}
}

// TestDeviceSignalsAndBounds fills the device with calls that a silent host
// leaves waiting, then signals them.
func TestDeviceSignalsAndBounds(t *testing.T) {
	k := serve(t, DeviceConfig{Timeout: time.Hour}, stalling(t))
	var wg sync.WaitGroup
	var last []uint64
	for range maxCalls {
		started := make(chan uint64, 3)
		wg.Go(func() {
			c := newCaller(ioctlGetReport, 1)
			if got := k.ioctl(c.memory(), c.command, argAt, started); got != unix.EINTR {
				t.Errorf("signalled ioctl = %v; want EINTR", got)
			}
		})
		<-started
		<-started
		last = append(last, <-started)
	}
	c := newCaller(ioctlGetReport, 1)
	if got := k.ioctl(c.memory(), c.command, argAt, nil); got != unix.EBUSY {
		t.Errorf("ioctl beyond the bound = %v; want EBUSY", got)
	}
	for _, unique := range append(last, 0xDEAD) {
		body := binary.LittleEndian.AppendUint64(nil, unique)
		k.send(opInterrupt, body) // has no reply
	}
	wg.Wait()
}

func TestServeDeviceRefuses(t *testing.T) {
	hardware := newProcessor(tee.SEVSNP, newChannel(&replay{}))
	for name, p := range map[string]*Processor{"nil": nil, "hardware": hardware} {
		server, k := pair(t)
		if err := ServeDevice(t.Context(), server, DeviceConfig{}, p); !errors.Is(err, ErrDevice) {
			t.Errorf("%s: ServeDevice = %v; want ErrDevice", name, err)
		}
		if err := k.file.Close(); err != nil {
			t.Error(err)
		}
	}
	for _, tt := range []struct {
		name string
		cfg  DeviceConfig
		stat func(k *fakeKernel) func(string) (Device, error)
		run  func(*fakeKernel)
		text string
	}{
		{"there already", DeviceConfig{}, func(*fakeKernel) func(string) (Device, error) {
			return func(string) (Device, error) { return Device{}, nil }
		}, func(*fakeKernel) {}, "already"},
		{"other numbers", DeviceConfig{Major: 240, Minor: 6}, nil, func(k *fakeKernel) { k.initialize(38) }, "240:5"},
		{"old kernel", DeviceConfig{}, nil, func(k *fakeKernel) { k.initialize(10) }, "7.10"},
		{"no init", DeviceConfig{}, nil, func(k *fakeKernel) { k.send(opOpen, make([]byte, 64)) }, "CUSE_INIT"},
		{"short request", DeviceConfig{}, nil, func(k *fakeKernel) { _, _ = k.file.Write([]byte{1, 2, 3}) }, "3 bytes"},
		{"kernel gone", DeviceConfig{}, nil, func(k *fakeKernel) { _ = k.file.Close() }, "reading"},
		{"malformed ioctl", DeviceConfig{}, nil, func(k *fakeKernel) {
			k.initialize(38)
			k.send(opIoctl, make([]byte, 8))
		}, "ioctl of 8 bytes"},
		{"malformed interrupt", DeviceConfig{}, nil, func(k *fakeKernel) {
			k.initialize(38)
			k.send(opInterrupt, nil)
		}, "interrupt of 0 bytes"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			server, k := pair(t)
			go k.receive()
			tt.cfg.dir, tt.cfg.stat = t.TempDir(), k.stat
			if tt.stat != nil {
				tt.cfg.stat = tt.stat(k)
			}
			tt.run(k)
			err := ServeDevice(t.Context(), server, tt.cfg, fakeProcessor(t, makeTable(t, 100), nil))
			if !errors.Is(err, ErrDevice) || !strings.Contains(err.Error(), tt.text) {
				t.Errorf("ServeDevice = %v; want an error with %q", err, tt.text)
			}
			_ = k.file.Close() // "kernel gone" has closed it
		})
	}
}

// TestServeDeviceCancelled ends the service while the node does not come.
func TestServeDeviceCancelled(t *testing.T) {
	server, k := pair(t)
	ctx, cancel := context.WithCancel(t.Context())
	asked := 0
	cfg := DeviceConfig{dir: t.TempDir(), stat: func(string) (Device, error) {
		if asked++; asked == 3 {
			cancel()
		}
		return Device{}, fs.ErrNotExist
	}}
	k.initialize(38)
	go k.receive()
	if err := ServeDevice(ctx, server, cfg, fakeProcessor(t, makeTable(t, 100), nil)); !errors.Is(err, context.Canceled) {
		t.Errorf("ServeDevice = %v; want %v", err, context.Canceled)
	}
	if err := k.file.Close(); err != nil {
		t.Error(err)
	}
}

func FuzzIoctl(f *testing.F) {
	c := newCaller(ioctlGetExtReport, 1)
	f.Add(uint32(ioctlGetReport), uint64(argAt), []byte{}, uint32(0))
	f.Add(uint32(ioctlGetReport), uint64(argAt), append(bytes.Clone(c.arg), c.req[:reportReqSize]...), uint32(reportRespSize))
	f.Add(uint32(ioctlGetExtReport), uint64(argAt), append(bytes.Clone(c.arg), c.req...), uint32(reportRespSize+maxCertsLen))
	f.Add(uint32(ioctlGetDerivedKey), uint64(argAt), append(bytes.Clone(c.arg), make([]byte, 32)...), uint32(64))
	f.Add(uint32(0), uint64(0), c.arg, uint32(32))
	f.Fuzz(func(t *testing.T, command uint32, arg uint64, in []byte, outSize uint32) {
		before := bytes.Clone(in)
		a := next(call{command: command, arg: arg, in: in, outSize: outSize}, 5000)
		if !bytes.Equal(in, before) {
			t.Error("the request was changed")
		}
		if total(a.in) > argSize+extReportReqSize || total(a.out) > reportRespSize+maxCertsLen || len(a.in)+len(a.out) > 4 {
			t.Errorf("asks for %v, %v", a.in, a.out)
		}
		if len(a.in) > 0 && a.in[0] != (memory{arg, argSize}) {
			t.Errorf("does not begin with the argument: %v", a.in)
		}
		if a.work != nil {
			a = a.work.done(make([]byte, snp.ReportSize), make([]byte, 5000), nil)
		}
		if len(a.in) == 0 && uint32(len(a.data)) > outSize {
			t.Errorf("%d bytes for %d", len(a.data), outSize)
		}
		if r := ioctlReply(1, a); int(binary.LittleEndian.Uint32(r)) != len(r) {
			t.Errorf("reply of %d bytes says %d", len(r), binary.LittleEndian.Uint32(r))
		}
	})
}

func FuzzRequest(f *testing.F) {
	f.Add(reply(1, 0, make([]byte, ioctlInSize+8)))
	f.Add(make([]byte, inHeaderSize))
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := parseRequest(data)
		if err != nil {
			return
		}
		_, _ = initReply(r, deviceName, 1, 2)
		if c, _, err := parseIoctl(r.body); err == nil && len(c.in) > len(data) {
			t.Error("ioctl with more than the request")
		}
	})
}
