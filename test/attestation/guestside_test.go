// SPDX-License-Identifier: Apache-2.0

package attestation

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-sev-guest/client"
	"github.com/google/go-sev-guest/client/linuxabi"
	"golang.org/x/sys/unix"

	"github.com/coffer-dev/coffer/guest/attest"
	"github.com/coffer-dev/coffer/tee"
	"github.com/coffer-dev/coffer/tee/snp"
)

// This file is the guest's side of TestDeviceUnderRealKernel: the same binary
// is PID 1 there, and, as an ordinary user, the "container".

// Roles of the guest's processes, in the environment.
const (
	roleKey  = "COFFER_ATTESTATION_ROLE"
	roleUser = "user" // uses the device as programs do
	roleHang = "hang" // makes one call that no host answers
	nobody   = 65534  // neither may be root
	major    = 240    // numbers that the device is asked to have
	minor    = 5      //
	device   = "/dev/sev-guest"
)

func TestMain(m *testing.M) {
	switch {
	case os.Getpid() == 1:
		err := guestInit()
		if err != nil {
			fmt.Printf("GUEST FAILED: %v\n", err)
		} else {
			fmt.Println("GUEST OK")
		}
		_ = os.Stdout.Sync()
		_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	case os.Getenv(roleKey) == roleUser:
		exitWith(userProcess())
	case os.Getenv(roleKey) == roleHang:
		exitWith(hangingProcess())
	default:
		os.Exit(m.Run())
	}
}

func exitWith(err error) {
	if err != nil {
		fmt.Printf("process %d: %v\n", os.Getpid(), err)
		os.Exit(1)
	}
	os.Exit(0)
}

// guestBinding is what the guest's process asks to have signed.
func guestBinding() (b tee.Binding) {
	copy(b[:], "what a container asks for")
	b[63] = 0xFE
	return b
}

func guestInit() error {
	for _, m := range [][2]string{{"devtmpfs", "/dev"}, {"proc", "/proc"}, {"sysfs", "/sys"}} {
		if err := unix.Mount(m[0], m[1], m[0], 0, ""); err != nil {
			return fmt.Errorf("mounting %s: %w", m[1], err)
		}
	}
	modules, err := filepath.Glob("/modules/*")
	if err != nil {
		return err
	}
	for _, name := range modules { // in the order of their names
		f, err := os.Open(name)
		if err != nil {
			return err
		}
		if err := unix.FinitModule(int(f.Fd()), "", 0); err != nil {
			return fmt.Errorf("loading %s: %w", name, err)
		}
	}
	port, err := findPort()
	if err != nil {
		return err
	}
	if err := killedWhileWaiting(port); err != nil {
		return fmt.Errorf("killing a caller: %w", err)
	}
	return realUse(port)
}

// findPort waits for the virtio-serial port, which comes after its driver.
func findPort() (*os.File, error) {
	for range 1000 {
		names, err := filepath.Glob("/sys/class/virtio-ports/*/name")
		if err != nil {
			return nil, err
		}
		for _, name := range names {
			text, err := os.ReadFile(name)
			if err == nil && strings.TrimSpace(string(text)) == portName {
				return os.OpenFile(filepath.Join("/dev", filepath.Base(filepath.Dir(name))), os.O_RDWR, 0)
			}
		}
		wait()
	}
	return nil, errors.New("no virtio-serial port")
}

// wait gives way for a moment in a loop that is bounded by its caller.
func wait() { <-time.After(10 * time.Millisecond) }

// serving runs the device while f does.
func serving(p *attest.Processor, timeout time.Duration, f func() error) error {
	cuse, err := os.OpenFile("/dev/cuse", os.O_RDWR, 0)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	ready, served := make(chan attest.Device, 1), make(chan error, 1)
	cfg := attest.DeviceConfig{Major: major, Minor: minor, Mode: 0o666, Timeout: timeout, Ready: func(d attest.Device) { ready <- d }}
	go func() { served <- attest.ServeDevice(ctx, cuse, cfg, p) }()
	select {
	case d := <-ready:
		if d != (attest.Device{Path: device, Major: major, Minor: minor}) {
			return fmt.Errorf("ready with %+v", d)
		}
	case err := <-served:
		return fmt.Errorf("not ready: %w", err)
	}
	err = f()
	cancel()
	if served := <-served; !errors.Is(served, context.Canceled) {
		err = errors.Join(err, fmt.Errorf("device ended: %w", served))
	}
	for range 500 {
		if _, statErr := os.Stat(device); errors.Is(statErr, os.ErrNotExist) {
			return err
		}
		wait()
	}
	return errors.Join(err, errors.New("the node is still there"))
}

// child runs this binary in a role, without privileges.
func child(role string) *exec.Cmd {
	c := exec.Command("/init")
	c.Env = []string{roleKey + "=" + role}
	c.Stdout, c.Stderr = os.Stdout, os.Stderr
	c.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	return c
}

// killedWhileWaiting offers a device whose secure processor falls silent, lets
// a process wait on it and kills that.
func killedWhileWaiting(port *os.File) error {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	far := os.NewFile(uintptr(fds[1]), "far")
	silent := make(chan error, 1)
	heard := make(chan struct{}, 1)
	go func() { silent <- fallSilent(far, port, heard) }()
	p, err := attest.Open(attest.Config{Emulated: os.NewFile(uintptr(fds[0]), "near")})
	if err != nil {
		return err
	}
	err = serving(p, time.Hour, func() error {
		c := child(roleHang)
		if err := c.Start(); err != nil {
			return err
		}
		<-heard // the process waits now
		if err := c.Process.Kill(); err != nil {
			return err
		}
		ended := make(chan error, 1)
		go func() { ended <- c.Wait() }()
		select {
		case err := <-ended:
			var exit *exec.ExitError
			if !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
				return fmt.Errorf("killed process ended otherwise: %w", err)
			}
			return nil
		case <-time.After(time.Minute):
			return errors.New("a killed process still waits")
		}
	})
	return errors.Join(err, p.Close(), <-silent)
}

// fallSilent passes two requests on, which the device needs to start, and then
// only listens.
func fallSilent(far, port *os.File, heard chan<- struct{}) error {
	for i := 0; ; i++ {
		var frame [snp.ChannelRequestSize]byte
		if _, err := io.ReadFull(far, frame[:]); err != nil {
			return far.Close()
		}
		if i >= 2 {
			heard <- struct{}{}
			continue
		}
		if _, err := port.Write(frame[:]); err != nil {
			return err
		}
		reply, err := snp.ReadChannelReply(port)
		if err != nil {
			return err
		}
		out, err := reply.Encode()
		if err != nil {
			return err
		}
		if _, err := far.Write(out); err != nil {
			return err
		}
	}
}

// realUse offers the device that the host's emulator stands behind.
func realUse(port *os.File) error {
	p, err := attest.Open(attest.Config{Emulated: port})
	if err != nil {
		return err
	}
	e, err := p.Attest(context.Background(), guestBinding())
	if err != nil {
		return err
	}
	if err := send(e); err != nil {
		return err
	}
	err = serving(p, 0, func() error { return child(roleUser).Run() })
	return errors.Join(err, p.Close())
}

// send prints evidence for the host's side of the test.
func send(e tee.Evidence) error {
	doc, err := e.Encode()
	if err != nil {
		return err
	}
	_, err = fmt.Printf("EVIDENCE %s\n", base64.StdEncoding.EncodeToString(doc))
	return err
}

func hangingProcess() error {
	d, err := client.OpenDevice()
	if err != nil {
		return err
	}
	report, err := plainReport(d, guestBinding(), 0)
	return errors.Join(fmt.Errorf("the call returned %d bytes", len(report)), err)
}

// plainReport asks for a report only.
func plainReport(d client.Device, data [64]byte, vmpl int) ([]byte, error) {
	return client.GetRawReportAtVmpl(d, data, vmpl) //nolint:staticcheck // the plain ioctl, which quote providers do not use
}

// extendedReport asks for a report with certificates.
func extendedReport(d client.Device, data [64]byte) (report, certs []byte, err error) {
	return client.GetRawExtendedReport(d, data) //nolint:staticcheck // without the entry that quote providers add
}

// userProcess is a program written for the hardware.
func userProcess() error {
	if err := flag.Set("self_throttle_duration", "0s"); err != nil {
		return err
	}
	provider, err := client.GetQuoteProvider()
	if err != nil {
		return err
	}
	quote, err := provider.GetRawQuote(guestBinding())
	if err != nil {
		return fmt.Errorf("quote: %w", err)
	}
	if err := sendRaw(quote[:snp.ReportSize], quote[snp.ReportSize:]); err != nil {
		return err
	}
	d, err := client.OpenDevice()
	if err != nil {
		return err
	}
	plain, err := plainReport(d, guestBinding(), 0)
	if err != nil {
		return fmt.Errorf("plain report: %w", err)
	}
	report, certs, err := extendedReport(d, guestBinding())
	if err != nil {
		return fmt.Errorf("extended report: %w", err)
	}
	if !bytes.Equal(plain[:0x2A0], report[:0x2A0]) {
		return errors.New("plain and extended report differ in more than the signature")
	}
	if err := sendRaw(plain, certs); err != nil {
		return err
	}
	if err := errors.Join(refusals(d), manyAtOnce()); err != nil {
		return err
	}
	return errors.Join(d.Close(), ownDriver())
}

// sendRaw sends what another program's interface returned, in our table form:
// go-sev-guest adds an entry of its own.
func sendRaw(report, certs []byte) error {
	table, err := snp.ParseCertificateTable(certs)
	if err != nil {
		return err
	}
	if certs, err = snp.EncodeCertificateTable(table); err != nil {
		return err
	}
	return send(tee.Evidence{Kind: tee.Emulated, Report: report, Certificates: certs})
}

// refusals asks for what the device does not give.
func refusals(d *client.LinuxDevice) error {
	if _, err := plainReport(d, guestBinding(), 4); err == nil || !strings.Contains(err.Error(), "invalid parameters") {
		return errors.Join(errors.New("report at VMPL 4"), err)
	}
	key := &linuxabi.SnpDerivedKeyRespABI{}
	_, err := d.Ioctl(linuxabi.IocSnpGetDerivedKey, &linuxabi.SnpUserGuestRequest{ReqData: &linuxabi.SnpDerivedKeyReqABI{}, RespData: key})
	if err == nil || !strings.Contains(err.Error(), "0x27") || key.Data != [32]byte{} {
		return errors.Join(errors.New("derived key"), err)
	}
	f, err := os.OpenFile(device, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	if _, err := f.Write([]byte("x")); !errors.Is(err, unix.ENOSYS) {
		return errors.Join(errors.New("writing to the device"), err)
	}
	for _, tt := range []struct {
		command uint
		arg     int
		want    error
	}{{0xC0205303, 0, unix.EFAULT}, {0xC0205300, 0, unix.EFAULT}, {0xC0205300, 1 << 40, unix.EFAULT}} {
		if err := unix.IoctlSetInt(int(f.Fd()), tt.command, tt.arg); !errors.Is(err, tt.want) {
			return errors.Join(fmt.Errorf("ioctl %#x on %#x, want %w, got", tt.command, tt.arg, tt.want), err)
		}
	}
	return f.Close()
}

// manyAtOnce makes sure that callers get their own reports.
func manyAtOnce() error {
	var wg sync.WaitGroup
	errs := make([]error, 16)
	for i := range errs {
		wg.Go(func() {
			d, err := client.OpenDevice()
			if err != nil {
				errs[i] = err
				return
			}
			want := [64]byte{byte(i), 63: byte(i)}
			raw, err := plainReport(d, want, 0)
			if err == nil && !bytes.Equal(raw[0x50:0x90], want[:]) {
				err = errors.New("somebody else's report")
			}
			errs[i] = errors.Join(err, d.Close())
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// ownDriver lets the guest's code for hardware use the device: all goes well
// until it sees that this is no hardware.
func ownDriver() error {
	p, err := attest.Open(attest.Config{})
	if err != nil {
		return err
	}
	_, err = p.Attest(context.Background(), guestBinding())
	if !errors.Is(err, attest.ErrAnswer) || !strings.Contains(err.Error(), "family 0x7f on sev-snp") {
		return errors.Join(errors.New("evidence of hardware from an emulated device"), err)
	}
	return p.Close()
}
