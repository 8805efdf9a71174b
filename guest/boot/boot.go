// SPDX-License-Identifier: Apache-2.0

// Package boot brings the guest from the kernel's first process to the point
// where the agent can be served. The start is a table of values: to read the
// table is to read the boot. Any step that fails ends the guest; nothing is
// retried, nothing is optional, and there is no shell to fall into.
//
// It runs before any policy is known and takes nothing from the host.
package boot

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// A Step is one thing that must hold before the agent runs.
type Step interface {
	Do() error
	fmt.Stringer
}

// Run does the steps in order and returns the first error.
func Run(steps []Step) error {
	for _, s := range steps {
		if err := s.Do(); err != nil {
			return fmt.Errorf("%s: %w", s, err)
		}
	}
	return nil
}

// Table is the boot of a real guest, up to its modules.
func Table() []Step {
	nosuid := uintptr(unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC)
	return []Step{
		Umask(0o022),
		Root{}, // so that runc can pivot_root
		Mount{"proc", "/proc", "proc", nosuid, ""},
		Mount{"sysfs", "/sys", "sysfs", nosuid, ""},
		Mount{"devtmpfs", "/dev", "devtmpfs", unix.MS_NOSUID | unix.MS_NOEXEC, "mode=0755"},
		Mount{"tmpfs", "/run", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, "mode=0755"},
		Mount{"tmpfs", "/tmp", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, "mode=1777"},
		Mount{"cgroup2", "/sys/fs/cgroup", "cgroup2", nosuid, ""},
		File{"/sys/fs/cgroup/cgroup.subtree_control", "+cpu +memory +pids +io"},
		Dir{"/dev/pts", 0o755},
		Dir{"/dev/shm", 0o1777},
		Dir{"/dev/mqueue", 0o755},
		Mount{"devpts", "/dev/pts", "devpts", unix.MS_NOSUID | unix.MS_NOEXEC, "mode=0620,gid=5,ptmxmode=0666"},
		Mount{"tmpfs", "/dev/shm", "tmpfs", nosuid, "mode=1777"},
		Mount{"mqueue", "/dev/mqueue", "mqueue", nosuid, ""},
		Symlink{"/proc/self/fd", "/dev/fd"},
		// What docker's hosts have, as far as a container may notice it.
		File{"/proc/sys/kernel/pid_max", "4194304"},
		File{"/proc/sys/fs/file-max", "9223372036854775807"},
		File{"/proc/sys/fs/nr_open", "1073741816"},
		File{"/proc/sys/vm/max_map_count", "262144"},
		// A guest that has oopsed has lost its word.
		File{"/proc/sys/kernel/panic_on_oops", "1"},
		File{"/proc/sys/kernel/panic", "-1"},
	}
}

// Mount mounts a file system; the target is made if it is missing.
type Mount struct {
	Source, Target, Type string
	Flags                uintptr
	Data                 string
}

// Do implements Step.
func (m Mount) Do() error {
	if err := os.MkdirAll(m.Target, 0o755); err != nil {
		return err
	}
	return unix.Mount(m.Source, m.Target, m.Type, m.Flags, m.Data)
}

func (m Mount) String() string { return "mounting " + m.Type + " on " + m.Target }

// Dir makes a directory with exactly this mode.
type Dir struct {
	Path string
	Mode uint32
}

// Do implements Step.
func (d Dir) Do() error {
	if err := os.MkdirAll(d.Path, 0o755); err != nil {
		return err
	}
	return unix.Chmod(d.Path, d.Mode)
}

func (d Dir) String() string { return "making " + d.Path }

// File writes a line into a file of the kernel's.
type File struct{ Path, Content string }

// Do implements Step.
func (f File) Do() error {
	w, err := os.OpenFile(f.Path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = w.WriteString(f.Content)
	return errors.Join(err, w.Close())
}

func (f File) String() string { return "writing " + f.Path }

// Symlink makes a symbolic link.
type Symlink struct{ Target, Path string }

// Do implements Step.
func (s Symlink) Do() error { return os.Symlink(s.Target, s.Path) }

func (s Symlink) String() string { return "linking " + s.Path }

// Umask sets the file mode mask of everything that follows.
type Umask int

// Do implements Step.
func (u Umask) Do() error { unix.Umask(int(u)); return nil }

func (u Umask) String() string { return "setting the umask" }

// Root puts a mount of the root directory over itself. The kernel refuses
// pivot_root on its initial root; a mount over it is an ordinary one, and
// costs nothing.
type Root struct{}

// Do implements Step.
func (Root) Do() error {
	const stage = "/newroot"
	if err := os.MkdirAll(stage, 0o755); err != nil {
		return err
	}
	for _, do := range []func() error{
		func() error { return unix.Mount("/", stage, "", unix.MS_BIND, "") },
		func() error { return unix.Chdir(stage) },
		func() error { return unix.Mount(".", "/", "", unix.MS_MOVE, "") },
		func() error { return unix.Chroot(".") },
		func() error { return unix.Chdir("/") },
	} {
		if err := do(); err != nil {
			return err
		}
	}
	return nil
}

func (Root) String() string { return "mounting the root" }

// Fatal ends the guest with one line that the host shows its user. It does not
// return.
func Fatal(err error) {
	// One line, whatever an error holds.
	line := "coffer-guest: fatal: " + strings.Join(strings.Fields(err.Error()), " ") + "\n"
	if console, cerr := os.OpenFile("/dev/console", os.O_WRONLY|unix.O_NOCTTY, 0); cerr == nil {
		_, _ = io.WriteString(console, "\n"+line) // nobody is left to tell
	} else {
		_, _ = io.WriteString(os.Stderr, "\n"+line)
	}
	PowerOff()
}

// PowerOff ends the guest. It does not return.
func PowerOff() {
	unix.Sync()
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	os.Exit(1) // PID 1's end panics the kernel, which ends the machine too
}

// portTime is how long a virtio port may take to appear.
const portTime = 20 * time.Second

// OpenPort opens the virtio-serial port of this name, once the host has
// connected it.
func OpenPort(name string) (*os.File, error) {
	for deadline := time.Now().Add(portTime); ; {
		f, err := openPort(name)
		if err == nil || !errors.Is(err, os.ErrNotExist) {
			return f, err
		}
		if time.Now().After(deadline) {
			return nil, fmt.Errorf("opening port %s: the host did not attach it", name)
		}
		time.Sleep(2 * time.Millisecond) // ports come up by themselves, within milliseconds
	}
}

// HasPort reports whether the host attached a port of this name. It is
// meaningful once any other port has been opened: all come up together.
func HasPort(name string) bool {
	_, err := portDevice(name)
	return err == nil
}

func portDevice(name string) (string, error) {
	const class = "/sys/class/virtio-ports"
	ports, err := os.ReadDir(class)
	if err != nil {
		return "", err
	}
	for _, p := range ports {
		b, err := os.ReadFile(class + "/" + p.Name() + "/name")
		if err == nil && strings.TrimSpace(string(b)) == name {
			return "/dev/" + p.Name(), nil
		}
	}
	return "", os.ErrNotExist
}

func openPort(name string) (*os.File, error) {
	path, err := portDevice(name)
	if err != nil {
		return nil, err
	}
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	// Until the host's end is known to be connected, reads say end of file.
	poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}
	if _, err := unix.Poll(poll, 0); err != nil || poll[0].Revents&unix.POLLHUP != 0 {
		return nil, errors.Join(os.ErrNotExist, unix.Close(fd))
	}
	return os.NewFile(uintptr(fd), path), nil
}
