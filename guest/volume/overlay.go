// SPDX-License-Identifier: Apache-2.0

package volume

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"strconv"

	"golang.org/x/sys/unix"
)

// maxLowers is the kernel's OVL_MAX_STACK.
const maxLowers = 500

// overlayOptions pins what a kernel's configuration may change.
//
//   - redirect_dir=nofollow, metacopy=off: what a layer's attributes say about
//     other places in other layers is not followed. Renaming a directory of the
//     image is then answered by EXDEV, as with docker.
//   - index, nfs_export, xino off: as docker has them.
//   - volatile: what is written does not outlive the guest, so that a sync has
//     nothing to keep.
const overlayOptions = "index=off,metacopy=off,nfs_export=off,redirect_dir=nofollow,xino=off,volatile"

// Overlay mounts lowers, topmost first, with upper and work at target. All are
// directories that exist; upper and work are on one writable file system and
// have not been used before. Closing unmounts target and leaves the rest.
func (d *Disks) Overlay(target string, lowers []string, upper, work string) (io.Closer, error) {
	if len(lowers) == 0 || len(lowers) > maxLowers {
		return nil, fmt.Errorf("mounting overlay: it has %d layers, not 1 to %d", len(lowers), maxLowers)
	}
	// The kernel takes one page of options. Directories are therefore named
	// by the numbers of open files, seen from /proc/self/fd; no name can be
	// too long or hold a colon, a comma or a backslash that way.
	var open directories
	defer open.close()
	var options bytes.Buffer
	options.WriteString(overlayOptions)
	for i, dir := range append([]string{upper, work}, lowers...) {
		separator := []string{",upperdir=", ",workdir=", ",lowerdir="}[min(i, 2)]
		if i > 2 {
			separator = ":"
		}
		n, err := open.add(dir)
		if err != nil {
			return nil, fmt.Errorf("mounting overlay: %w", err)
		}
		options.WriteString(separator)
		options.WriteString(strconv.Itoa(n))
	}
	err := in("/proc/self/fd", func() error {
		return unix.Mount("overlay", target, "overlay", 0, options.String())
	})
	if err != nil {
		return nil, fmt.Errorf("mounting overlay of %d layers at %s: %w", len(lowers), target, err)
	}
	return &mount{target: target}, nil
}

// directories are open, to be named and not to be read.
type directories []int

func (ds *directories) add(path string) (int, error) {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, &os.PathError{Op: "open", Path: path, Err: err}
	}
	*ds = append(*ds, fd)
	return fd, nil
}

func (ds *directories) close() {
	for _, fd := range *ds {
		_ = unix.Close(fd) // nothing was written
	}
}

// in runs f with dir as the working directory of its thread alone. The thread
// is used again afterwards, since programs that it started may be set to end
// with it; its working directory is what it was, though no longer shared with
// other threads. Nothing in PID 1 changes its working directory otherwise.
func in(dir string, f func() error) (err error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	before, err := unix.Open(".", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("opening the working directory: %w", err)
	}
	defer unix.Close(before)
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return fmt.Errorf("separating a thread's working directory: %w", err)
	}
	if err := unix.Chdir(dir); err != nil {
		return fmt.Errorf("entering %s: %w", dir, err)
	}
	defer func() {
		if back := unix.Fchdir(before); back != nil {
			err = errors.Join(err, fmt.Errorf("leaving %s: %w", dir, back))
		}
	}()
	return f()
}

// Bind makes the directory or file source appear at target, read-only. It is
// never writable there, not even for a moment. Closing undoes it.
func (d *Disks) Bind(source, target string) (io.Closer, error) {
	fd, err := unix.OpenTree(unix.AT_FDCWD, source, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_SYMLINK_NOFOLLOW)
	if err != nil {
		return nil, fmt.Errorf("binding %s: %w", source, err)
	}
	defer unix.Close(fd)
	if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}); err != nil {
		return nil, fmt.Errorf("making %s read-only: %w", source, err)
	}
	if err := unix.MoveMount(fd, "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return nil, fmt.Errorf("binding %s to %s: %w", source, target, err)
	}
	return &mount{target: target}, nil
}
