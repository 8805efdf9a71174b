// SPDX-License-Identifier: Apache-2.0

package boot

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Mount mounts a file system on a directory that exists.
type Mount struct {
	Source, Target, Type string
	Flags                uintptr
	Data                 string
}

// Do implements Step.
func (m Mount) Do() error { return unix.Mount(m.Source, m.Target, m.Type, m.Flags, m.Data) }

func (m Mount) String() string { return "mounting " + m.Type + " on " + m.Target }

// Dir makes a directory with exactly this mode; its parent exists.
type Dir struct {
	Path string
	Mode uint32
}

// Do implements Step.
func (d Dir) Do() error {
	if err := unix.Mkdir(d.Path, d.Mode); err != nil && !errors.Is(err, unix.EEXIST) {
		return err
	}
	return unix.Chmod(d.Path, d.Mode)
}

func (d Dir) String() string { return "making " + d.Path }

// File writes a line into a file of the kernel's, which exists.
type File struct{ Path, Content string }

// Do implements Step.
func (f File) Do() error {
	fd, err := unix.Open(f.Path, unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	_, err = unix.Write(fd, []byte(f.Content))
	return errors.Join(err, unix.Close(fd))
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

// Controllers enables all controllers of the cgroup hierarchy mounted at Path for
// the groups below.
type Controllers struct{ Path string }

// Do implements Step.
func (c Controllers) Do() error {
	list, err := os.ReadFile(filepath.Join(c.Path, "cgroup.controllers"))
	if err != nil {
		return err
	}
	names := strings.Fields(string(list))
	if len(names) == 0 {
		return errors.New("the kernel has none")
	}
	return File{filepath.Join(c.Path, "cgroup.subtree_control"), "+" + strings.Join(names, " +")}.Do()
}

func (c Controllers) String() string { return "enabling cgroup controllers" }

// Limit sets a resource limit of this process and all its children, soft and
// hard.
type Limit struct {
	Resource int
	Value    uint64
}

// Do implements Step.
func (l Limit) Do() error {
	// By the syscall package, which then also forgets the lower limit that it
	// would give back to children.
	return syscall.Setrlimit(l.Resource, &syscall.Rlimit{Cur: l.Value, Max: l.Value})
}

func (l Limit) String() string { return fmt.Sprintf("setting resource limit %d", l.Resource) }

// Hostname is the machine's name until its network is configured.
type Hostname string

// Do implements Step.
func (h Hostname) Do() error { return unix.Sethostname([]byte(h)) }

func (h Hostname) String() string { return "setting the hostname" }

// Link brings a network interface up.
type Link string

// Do implements Step.
func (l Link) Do() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	ifr, err := unix.NewIfreq(string(l))
	if err != nil {
		return err
	}
	if err := unix.IoctlIfreq(fd, unix.SIOCGIFFLAGS, ifr); err != nil {
		return err
	}
	ifr.SetUint16(ifr.Uint16() | unix.IFF_UP)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, ifr)
}

func (l Link) String() string { return "bringing up " + string(l) }

// Root puts a mount of the root directory over itself, read-only. The kernel
// refuses pivot_root on its initial root; a mount over it is an ordinary one, and
// costs nothing.
type Root struct{}

// Do implements Step.
func (Root) Do() error {
	const stage = "/run" // any directory, for a moment
	for _, do := range []func() error{
		func() error { return unix.Mount("/", stage, "", unix.MS_BIND, "") },
		func() error { return unix.Chdir(stage) },
		func() error { return unix.Mount(".", "/", "", unix.MS_MOVE, "") },
		func() error { return unix.Chroot(".") },
		func() error { return unix.Chdir("/") },
		func() error { return unix.Mount("", "/", "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, "") },
	} {
		if err := do(); err != nil {
			return err
		}
	}
	return nil
}

func (Root) String() string { return "mounting the root" }
