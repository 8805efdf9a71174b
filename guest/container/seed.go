// SPDX-License-Identifier: Apache-2.0

package container

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// Seed fills an empty volume with what the image holds at destination, with
// owners, modes, times and extended attributes, as docker does for a new
// volume. A volume that has content is left alone; so is one whose destination
// the image does not have. Nothing may be running in root yet.
func Seed(root, destination, volume string) error {
	entries, err := os.ReadDir(volume)
	if err != nil {
		return fmt.Errorf("seeding volume: %w", err)
	}
	if len(entries) > 0 {
		return nil
	}
	src, err := openInRoot(root, destination)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("seeding volume: %w", err)
	}
	defer src.Close()
	if st, err := src.Stat(); err != nil || !st.IsDir() {
		return err // nil for what is no directory: there is nothing to copy
	}
	from, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", src.Fd())) // resolved inside root
	if err != nil {
		return fmt.Errorf("seeding volume: %w", err)
	}
	if err := copyTree(from, volume); err != nil {
		return fmt.Errorf("seeding volume from %s: %w", destination, err)
	}
	return nil
}

// copyTree copies below from to below to. Directories get their attributes
// after their content, so that their times stay.
func copyTree(from, to string) error {
	type dir struct{ src, dst string }
	var dirs []dir
	err := filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		dst := filepath.Join(to, strings.TrimPrefix(path, from))
		if d.IsDir() {
			if err := os.Mkdir(dst, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
				return err
			}
			dirs = append(dirs, dir{path, dst})
			return nil
		}
		if err := copyNode(path, dst); err != nil {
			return err
		}
		return copyAttributes(path, dst)
	})
	if err != nil {
		return err
	}
	for i := len(dirs) - 1; i >= 0; i-- {
		if err := copyAttributes(dirs[i].src, dirs[i].dst); err != nil {
			return err
		}
	}
	return nil
}

func copyNode(src, dst string) error {
	var st unix.Stat_t
	if err := unix.Lstat(src, &st); err != nil {
		return &os.PathError{Op: "lstat", Path: src, Err: err}
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		return copyFile(src, dst)
	case unix.S_IFLNK:
		target, err := os.Readlink(src)
		if err != nil {
			return err
		}
		return os.Symlink(target, dst)
	case unix.S_IFSOCK: // a dead one; docker leaves it out too
		return nil
	default:
		return unix.Mknod(dst, st.Mode, int(st.Rdev))
	}
}

func copyFile(src, dst string) error {
	in, err := os.Open(src)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(dst, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}

func copyAttributes(src, dst string) error {
	var st unix.Stat_t
	if err := unix.Lstat(src, &st); err != nil {
		return &os.PathError{Op: "lstat", Path: src, Err: err}
	}
	if st.Mode&unix.S_IFMT == unix.S_IFSOCK {
		return nil
	}
	if err := os.Lchown(dst, int(st.Uid), int(st.Gid)); err != nil {
		return err
	}
	if err := copyXattrs(src, dst); err != nil { // after chown, which drops capabilities
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFLNK {
		if err := unix.Chmod(dst, st.Mode&0o7777); err != nil {
			return &os.PathError{Op: "chmod", Path: dst, Err: err}
		}
	}
	times := []unix.Timespec{st.Atim, st.Mtim}
	return unix.UtimesNanoAt(unix.AT_FDCWD, dst, times, unix.AT_SYMLINK_NOFOLLOW)
}

// copyXattrs leaves out the overlay's own attributes.
func copyXattrs(src, dst string) error {
	names := make([]byte, 64<<10) // the kernel's limit
	n, err := unix.Llistxattr(src, names)
	if errors.Is(err, unix.ENOTSUP) {
		return nil
	}
	if err != nil {
		return &os.PathError{Op: "listxattr", Path: src, Err: err}
	}
	value := make([]byte, 64<<10)
	for name := range strings.SplitSeq(strings.TrimRight(string(names[:n]), "\x00"), "\x00") {
		if name == "" || strings.HasPrefix(name, "trusted.overlay.") {
			continue
		}
		n, err := unix.Lgetxattr(src, name, value)
		if err != nil {
			return &os.PathError{Op: "getxattr", Path: src, Err: err}
		}
		if err := unix.Lsetxattr(dst, name, value[:n], 0); err != nil && !errors.Is(err, unix.ENOTSUP) {
			return &os.PathError{Op: "setxattr", Path: dst, Err: err}
		}
	}
	return nil
}
