// SPDX-License-Identifier: Apache-2.0

package attest

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/coffer-dev/coffer/tee"
)

// DeviceConfig says how the emulated /dev/sev-guest looks. The zero value is
// a device with numbers of the kernel's choice that only root can open.
type DeviceConfig struct {
	// Major and Minor are the device numbers to ask for, so that nodes made
	// before a restart stay good. Zero lets the kernel choose. The misc major,
	// 10, cannot be had.
	Major, Minor uint32
	// Mode is what the node is changed to; zero leaves the kernel's 0600.
	Mode fs.FileMode
	// Timeout bounds one request to the secure processor; zero means 10 s.
	// The caller then gets ETIMEDOUT, as from the kernel's driver.
	Timeout time.Duration
	// Ready, if not nil, is called once, when the node exists.
	Ready func(Device)

	// dir and stat replace /dev and the real stat in tests.
	dir  string
	stat func(string) (Device, error)
}

// Device is the node that containers are given.
type Device struct {
	Path         string
	Major, Minor uint32
}

const (
	deviceName     = "sev-guest"
	defaultTimeout = 10 * time.Second
	nodeTimeout    = 5 * time.Second
	nodeInterval   = 5 * time.Millisecond
	// maxCalls bounds the calls that wait for the secure processor at a time.
	maxCalls = 64
)

// ErrDevice is wrapped by what goes wrong with the emulated device as a whole.
var ErrDevice = errors.New("emulated /dev/sev-guest")

// ServeDevice offers /dev/sev-guest, backed by p, until ctx is done or the
// kernel drops the device. cuse is an open /dev/cuse, which ServeDevice takes
// over: closing it, always done on return, removes the node. p must be
// emulated; on hardware the kernel has the real device.
//
// Callers are hostile. A call waits at most cfg.Timeout and ends at a signal.
func ServeDevice(ctx context.Context, cuse *os.File, cfg DeviceConfig, p *Processor) error {
	s, err := newServer(cuse, cfg, p)
	if err == nil {
		err = s.run(ctx)
	}
	closeErr := cuse.Close()
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err = errors.Join(err, ignoreClosed(closeErr)); err != nil {
		return fmt.Errorf("%w: %w", ErrDevice, err)
	}
	return nil
}

func ignoreClosed(err error) error {
	if errors.Is(err, os.ErrClosed) {
		return nil
	}
	return err
}

// server serves one device.
type server struct {
	cuse *os.File
	cfg  DeviceConfig
	p    *Processor

	calls sync.WaitGroup

	// mu guards waiting and failed.
	mu sync.Mutex
	// waiting has the calls that wait for the secure processor, by their
	// request's number, with what makes them stop waiting.
	waiting map[uint64]context.CancelFunc
	// failed is the first error of a write, which ends the device.
	failed error
}

func newServer(cuse *os.File, cfg DeviceConfig, p *Processor) (*server, error) {
	if p == nil || p.Kind() != tee.Emulated {
		return nil, errors.New("only an emulated secure processor is offered this way")
	}
	if cfg.Timeout == 0 {
		cfg.Timeout = defaultTimeout
	}
	if cfg.dir == "" {
		cfg.dir = "/dev"
	}
	if cfg.stat == nil {
		cfg.stat = statDevice
	}
	return &server{cuse: cuse, cfg: cfg, p: p, waiting: make(map[uint64]context.CancelFunc)}, nil
}

// run makes the device and serves it. All calls have ended when it returns.
func (s *server) run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer s.calls.Wait()
	defer cancel()
	// Closing makes a blocked read return.
	stop := context.AfterFunc(ctx, func() { _ = s.cuse.Close() })
	defer stop()

	// The size that callers need room for must be known before the first one.
	certs, err := s.certificates(ctx)
	if err != nil {
		return err
	}
	if err := s.initialize(ctx); err != nil {
		return err
	}
	buf := make([]byte, maxRequestSize)
	for {
		n, err := s.read(buf)
		if err != nil {
			return err
		}
		r, err := parseRequest(buf[:n])
		if err != nil {
			return err
		}
		if err := s.dispatch(ctx, r, uint32(len(certs))); err != nil {
			return err
		}
	}
}

// certificates returns the table that extended reports carry.
func (s *server) certificates(ctx context.Context) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.Timeout)
	defer cancel()
	_, certs, err := s.p.Report(ctx, [64]byte{}, 0)
	if err != nil {
		return nil, fmt.Errorf("fetching certificates: %w", err)
	}
	return certs, nil
}

// read reads one request.
func (s *server) read(buf []byte) (int, error) {
	for {
		n, err := s.cuse.Read(buf)
		switch {
		case err == nil:
			return n, nil
		case errors.Is(err, unix.EINTR), errors.Is(err, unix.ENOENT):
			// ENOENT: the request is gone before it was read.
		case errors.Is(err, unix.ENODEV):
			return 0, errors.Join(errors.New("the kernel dropped the device"), s.failure())
		default:
			return 0, errors.Join(fmt.Errorf("reading a request: %w", err), s.failure())
		}
	}
}

// write sends one reply. The caller may be gone, which is no error.
func (s *server) write(reply []byte) {
	_, err := s.cuse.Write(reply)
	if err == nil || errors.Is(err, unix.ENOENT) || errors.Is(err, os.ErrClosed) {
		return
	}
	s.mu.Lock()
	if s.failed == nil {
		s.failed = fmt.Errorf("writing a reply: %w", err)
	}
	s.mu.Unlock()
	// A caller would wait for ever for what cannot be written.
	_ = s.cuse.Close()
}

func (s *server) failure() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.failed
}

// initialize answers CUSE_INIT and waits for the node: a refusal by the kernel
// shows in nothing else.
func (s *server) initialize(ctx context.Context) error {
	path := filepath.Join(s.cfg.dir, deviceName)
	if _, err := s.cfg.stat(path); err == nil {
		return fmt.Errorf("%s is there already", path)
	} else if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	buf := make([]byte, maxRequestSize)
	n, err := s.read(buf)
	if err != nil {
		return err
	}
	r, err := parseRequest(buf[:n])
	if err != nil {
		return err
	}
	out, err := initReply(r, deviceName, s.cfg.Major, s.cfg.Minor)
	if err != nil {
		return err
	}
	if _, err := s.cuse.Write(out); err != nil {
		return fmt.Errorf("answering CUSE_INIT: %w", err)
	}
	d, err := s.waitForNode(ctx, path)
	if err != nil {
		return err
	}
	if s.cfg.Mode != 0 {
		if err := os.Chmod(path, s.cfg.Mode.Perm()); err != nil {
			return err
		}
	}
	if s.cfg.Ready != nil {
		s.cfg.Ready(d)
	}
	return nil
}

func (s *server) waitForNode(ctx context.Context, path string) (Device, error) {
	ctx, cancel := context.WithTimeout(ctx, nodeTimeout)
	defer cancel()
	tick := time.NewTicker(nodeInterval)
	defer tick.Stop()
	for {
		d, err := s.cfg.stat(path)
		if err == nil {
			if s.cfg.Major != 0 && (d.Major != s.cfg.Major || d.Minor != s.cfg.Minor) {
				return Device{}, fmt.Errorf("%s has numbers %d:%d, asked for %d:%d", path, d.Major, d.Minor, s.cfg.Major, s.cfg.Minor)
			}
			return d, nil
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return Device{}, err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return Device{}, fmt.Errorf("waiting for %s: the kernel made no device (are the numbers %d:%d free?): %w", path, s.cfg.Major, s.cfg.Minor, ctx.Err())
		}
	}
}

// statDevice returns the numbers of the character device at path.
func statDevice(path string) (Device, error) {
	info, err := os.Lstat(path)
	if err != nil {
		return Device{}, err
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok || info.Mode()&fs.ModeCharDevice == 0 {
		return Device{}, fmt.Errorf("%s is no character device", path)
	}
	return Device{path, unix.Major(st.Rdev), unix.Minor(st.Rdev)}, nil
}

// dispatch answers a request, or starts what will.
func (s *server) dispatch(ctx context.Context, r request, certsSize uint32) error {
	switch r.opcode {
	case opOpen:
		body := make([]byte, openOutSize)
		body[8] = openDirectIO
		s.write(reply(r.unique, 0, body))
	case opRelease, opDestroy:
		s.write(reply(r.unique, 0, nil))
	case opInterrupt:
		if len(r.body) < interruptSize {
			return fmt.Errorf("%w: interrupt of %d bytes", errFUSE, len(r.body))
		}
		s.interrupt(le64(r.body))
	case opIoctl:
		return s.ioctl(ctx, r, certsSize)
	default:
		s.write(reply(r.unique, unix.ENOSYS, nil))
	}
	return nil
}

func (s *server) ioctl(ctx context.Context, r request, certsSize uint32) error {
	c, compat, err := parseIoctl(r.body)
	if err != nil {
		return err
	}
	a := fail(unix.ENOTTY)
	if !compat {
		a = next(c, certsSize)
	}
	if a.work != nil {
		s.start(ctx, r.unique, a.work)
		return nil
	}
	s.write(ioctlReply(r.unique, a))
	return nil
}

// start runs one call to the secure processor, unless too many wait already.
func (s *server) start(ctx context.Context, unique uint64, w *work) {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.Timeout)
	s.mu.Lock()
	full := len(s.waiting) >= maxCalls
	if !full {
		s.waiting[unique] = cancel
	}
	s.mu.Unlock()
	if full {
		cancel()
		s.write(ioctlReply(unique, fail(unix.EBUSY)))
		return
	}
	s.calls.Go(func() {
		defer cancel()
		report, certs, err := s.p.Report(ctx, w.data, w.vmpl)
		s.mu.Lock()
		delete(s.waiting, unique)
		s.mu.Unlock()
		s.write(ioctlReply(unique, finish(w, report, certs, err)))
	})
}

// finish turns what the secure processor said into the end of the call.
func finish(w *work, report, certs []byte, err error) answer {
	var refused *StatusError
	switch {
	case err == nil && w.certsLen > 0 && uint64(len(certs)) > uint64(w.certsLen):
		return fail(unix.EIO) // the host changed its certificates meanwhile
	case err == nil, errors.As(err, &refused):
		return w.done(report, certs, refused)
	case errors.Is(err, context.DeadlineExceeded):
		return fail(unix.ETIMEDOUT)
	case errors.Is(err, context.Canceled):
		return fail(unix.EINTR)
	}
	return fail(unix.EIO)
}

// interrupt ends the waiting of a call whose caller got a signal.
func (s *server) interrupt(unique uint64) {
	s.mu.Lock()
	cancel := s.waiting[unique]
	s.mu.Unlock()
	if cancel != nil {
		cancel()
	}
}
