// SPDX-License-Identifier: Apache-2.0

package container

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// User is a resolved identity. Names are "" where the image has none.
type User struct {
	UID, GID uint32
	Name     string
	Group    string
	Groups   []uint32 // additional ones, ascending
	// GroupNames are the names of Groups, in the same order.
	GroupNames []string
}

// maxIdentityFile bounds passwd and group, in bytes.
const maxIdentityFile = 4 << 20

// LookupUser resolves user[:group] in the passwd and group files below root,
// as docker does: names must be there, numbers need not. "" is root.
func LookupUser(root, user string) (User, error) {
	name, group, hasGroup := strings.Cut(user, ":")
	if name == "" {
		name = "0"
	}
	passwd, err := readIdentityFile(root, "/etc/passwd")
	if err != nil {
		return User{}, err
	}
	groups, err := readIdentityFile(root, "/etc/group")
	if err != nil {
		return User{}, err
	}
	u, err := findUser(passwd, name)
	if err != nil {
		return User{}, err
	}
	if hasGroup && group != "" {
		gid, gname, err := findGroup(groups, group)
		if err != nil {
			return User{}, err
		}
		// An explicit group replaces the memberships, as docker's does.
		u.GID, u.Group = gid, gname
		return u, nil
	}
	for _, f := range groups {
		gid, err := parseID(f[2])
		if err != nil {
			continue
		}
		if gid == u.GID && u.Group == "" {
			u.Group = f[0]
		}
		if u.Name != "" && gid != u.GID && slices.Contains(strings.Split(f[3], ","), u.Name) && !slices.Contains(u.Groups, gid) {
			u.Groups = append(u.Groups, gid)
			u.GroupNames = append(u.GroupNames, f[0])
		}
	}
	return u, nil
}

func findUser(passwd [][]string, name string) (User, error) {
	uid, numeric := parseID(name)
	for _, f := range passwd {
		id, err := parseID(f[2])
		gid, err2 := parseID(f[3])
		if err != nil || err2 != nil {
			continue
		}
		if f[0] == name || numeric == nil && id == uid {
			return User{UID: id, GID: gid, Name: f[0]}, nil
		}
	}
	if numeric != nil {
		return User{}, fmt.Errorf("finding user %q: no such user in the image's /etc/passwd", name)
	}
	return User{UID: uid}, nil
}

func findGroup(groups [][]string, name string) (uint32, string, error) {
	gid, numeric := parseID(name)
	for _, f := range groups {
		id, err := parseID(f[2])
		if err != nil {
			continue
		}
		if f[0] == name || numeric == nil && id == gid {
			return id, f[0], nil
		}
	}
	if numeric != nil {
		return 0, "", fmt.Errorf("finding group %q: no such group in the image's /etc/group", name)
	}
	return gid, "", nil
}

func parseID(s string) (uint32, error) {
	n, err := strconv.ParseUint(s, 10, 31)
	return uint32(n), err
}

// readIdentityFile gives the lines of a passwd or group file, split into at
// least four fields. No file is no lines.
func readIdentityFile(root, path string) ([][]string, error) {
	f, err := openInRoot(root, path)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading the image's %s: %w", path, err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil || !st.Mode().IsRegular() {
		return nil, fmt.Errorf("reading the image's %s: not a regular file", path)
	}
	var lines [][]string
	scan := bufio.NewScanner(io.LimitReader(f, maxIdentityFile))
	scan.Buffer(nil, maxIdentityFile)
	for scan.Scan() {
		fields := strings.Split(strings.TrimSpace(scan.Text()), ":")
		if len(fields) >= 4 && !strings.HasPrefix(fields[0], "#") {
			lines = append(lines, fields)
		}
	}
	if err := scan.Err(); err != nil {
		return nil, fmt.Errorf("reading the image's %s: %w", path, err)
	}
	return lines, nil
}

// openInRoot opens path as a process whose root directory is root would see
// it: symbolic links and ".." never lead out. It does not block on FIFOs.
func openInRoot(root, path string) (*os.File, error) {
	dir, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: root, Err: err}
	}
	defer unix.Close(dir)
	fd, err := unix.Openat2(dir, path, &unix.OpenHow{
		Flags: unix.O_RDONLY | unix.O_NONBLOCK | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS})
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: filepath.Join(root, path), Err: err}
	}
	return os.NewFile(uintptr(fd), path), nil
}
