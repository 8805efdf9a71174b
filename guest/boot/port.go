// SPDX-License-Identifier: Apache-2.0

package boot

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Names of the ports of a guest.
const (
	PortControl = "coffer.control"
	PortSEV     = "coffer.sev" // the emulated secure processor
)

// portTime is how long a virtio port may take to appear and to be connected.
const portTime = 20 * time.Second

const portClass = "/sys/class/virtio-ports"

// OpenPort opens the virtio-serial port of this name once the host has attached
// and connected it. Reads and writes block only their goroutine; the host's going
// away is io.EOF. Two ports of one name are an error, since the host alone would
// decide which of them is meant.
func OpenPort(name string) (*os.File, error) {
	ctx, cancel := context.WithTimeout(context.Background(), portTime)
	defer cancel()
	var f *os.File
	err := Await(ctx, func() (bool, error) {
		device, err := findPort(portClass, name)
		if err != nil || device == "" {
			return false, err
		}
		// sysfs is ahead of devtmpfs.
		f, err = os.OpenFile(filepath.Join("/dev", device), os.O_RDWR|unix.O_NONBLOCK, 0)
		if errors.Is(err, os.ErrNotExist) {
			return false, nil
		}
		return err == nil, err
	})
	if errors.Is(err, context.DeadlineExceeded) {
		err = errors.New("the host did not attach it")
	}
	if err != nil {
		return nil, fmt.Errorf("opening port %s: %w", name, err)
	}
	if err := awaitHost(f); err != nil {
		return nil, errors.Join(fmt.Errorf("opening port %s: %w", name, err), f.Close())
	}
	return f, nil
}

// awaitHost waits until the host's end is connected. Until then reads would say
// end of file.
func awaitHost(f *os.File) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	if err := f.SetReadDeadline(time.Now().Add(portTime)); err != nil {
		return err
	}
	var perr error
	err = raw.Read(func(fd uintptr) bool {
		poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}
		_, perr = unix.Poll(poll, 0)
		if errors.Is(perr, unix.EINTR) {
			perr, poll[0].Revents = nil, unix.POLLHUP
		}
		// False waits for the port's next event.
		return perr != nil || poll[0].Revents&unix.POLLHUP == 0
	})
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return errors.New("the host did not connect it")
	}
	return errors.Join(err, perr, f.SetReadDeadline(time.Time{}))
}

// HasPort reports whether the host attached a port of this name. It is
// meaningful once any other port has been opened: all come up together.
func HasPort(name string) bool {
	device, err := findPort(portClass, name)
	return err != nil || device != "" // a doubled name is OpenPort's to refuse
}

// findPort returns the one device below class that has this name, or "".
func findPort(class, name string) (string, error) {
	ports, err := os.ReadDir(class)
	if errors.Is(err, os.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	found := ""
	for _, p := range ports {
		b, err := os.ReadFile(filepath.Join(class, p.Name(), "name"))
		if err != nil || strings.TrimSuffix(string(b), "\n") != name {
			continue // a port without a name has no such file
		}
		if found != "" {
			return "", fmt.Errorf("%s and %s both have this name", found, p.Name())
		}
		found = p.Name()
	}
	return found, nil
}

// Await calls probe until it says true or fails: at first at once, then after
// each event of a kernel device, and now and then in case an event was lost.
// ctx's end is an error.
func Await(ctx context.Context, probe func() (bool, error)) error {
	if ok, err := probe(); ok || err != nil {
		return err
	}
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_KOBJECT_UEVENT)
	if err != nil {
		return fmt.Errorf("listening to device events: %w", err)
	}
	events := os.NewFile(uintptr(fd), "uevents")
	defer events.Close()
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 1}); err != nil {
		return fmt.Errorf("listening to device events: %w", err)
	}
	buf := make([]byte, 8192)
	for {
		if ok, err := probe(); ok || err != nil {
			return err
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := events.SetReadDeadline(time.Now().Add(50 * time.Millisecond)); err != nil {
			return err
		}
		// Which event it was does not matter.
		_, err = events.Read(buf)
		if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) && !errors.Is(err, unix.ENOBUFS) {
			return fmt.Errorf("listening to device events: %w", err)
		}
	}
}
