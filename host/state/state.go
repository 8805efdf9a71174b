// SPDX-License-Identifier: Apache-2.0

// Package state keeps the records of container groups on disk: names,
// status, exit status, and a directory for each group's files.
//
// It promises that a group counts as running only while a process holds its
// lock, that a record is always whole, and that whatever a crash leaves is
// cleared by the next [Open]. It runs in the host zone: nobody has to trust
// it, and nothing in a record is believed by guest or owner.
package state

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Status says where a group is in its life.
type Status string

// The statuses, in order.
const (
	Created Status = "created" // being started
	Running Status = "running"
	Exited  Status = "exited"
)

// CrashStatus is the exit status of a group whose supervisor ended without a word.
const CrashStatus = 255

// Errors that callers branch on.
var (
	ErrNotFound  = errors.New("no such container")
	ErrAmbiguous = errors.New("ID prefix is ambiguous")
	ErrNameTaken = errors.New("name is taken")
	ErrName      = errors.New("a name must match [a-zA-Z0-9][a-zA-Z0-9_.-]*, at most 63 characters")
	ErrRunning   = errors.New("container is running")
)

// Group is one group's record.
type Group struct {
	// ID is 64 lower-case hex digits.
	ID   string `json:"id"`
	Name string `json:"name"`
	// Image is the reference as the user wrote it; ImageID its digest.
	Image   string   `json:"image"`
	ImageID string   `json:"image_id"`
	Command []string `json:"command"`
	Ports   []string `json:"ports,omitempty"`
	TEE     string   `json:"tee"`

	Status   Status    `json:"status"`
	Created  time.Time `json:"created"`
	Started  time.Time `json:"started,omitzero"`
	Finished time.Time `json:"finished,omitzero"`
	ExitCode int       `json:"exit_code"`
	OOM      bool      `json:"oom_killed,omitempty"`
	// Error says why the group ended otherwise than by its container's exit.
	Error string `json:"error,omitempty"`

	Terminal   bool `json:"terminal,omitempty"`
	AutoRemove bool `json:"auto_remove,omitempty"`
	// Supervisor and QEMU are process IDs, for a person; 0 is none.
	Supervisor int `json:"supervisor,omitempty"`
	QEMU       int `json:"qemu,omitempty"`
}

// ShortID is the part of the ID that people see.
func (g *Group) ShortID() string { return g.ID[:12] }

// Dir is the directory of all groups. Several processes may use it at once.
//
//	.lock          held while groups come and go
//	ID/lock        held by the group's supervisor for as long as it lives
//	ID/group.json  the record
type Dir struct{ root string }

// maxRecord bounds a record on disk, in bytes.
const maxRecord = 8 << 20

const trash = ".trash-"

// Open opens or makes the directory and clears what crashes left: a group
// whose lock nobody holds has ended.
func Open(root string) (*Dir, error) {
	if err := os.MkdirAll(root, 0o700); err != nil {
		return nil, fmt.Errorf("opening groups: %w", err)
	}
	d := &Dir{root: root}
	if err := d.exclusive(d.clear); err != nil {
		return nil, fmt.Errorf("opening groups: %w", err)
	}
	return d, nil
}

// exclusive runs f while no other process changes the set of groups.
func (d *Dir) exclusive(f func() error) error {
	l, err := os.OpenFile(filepath.Join(d.root, ".lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	defer l.Close()
	for {
		err := unix.Flock(int(l.Fd()), unix.LOCK_EX)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return fmt.Errorf("locking groups: %w", err)
		}
		return f()
	}
}

func (d *Dir) clear() error {
	entries, err := os.ReadDir(d.root)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), trash) {
			err = errors.Join(err, os.RemoveAll(filepath.Join(d.root, e.Name())))
		} else if validID(e.Name()) {
			err = errors.Join(err, d.clearGroup(e.Name()))
		}
	}
	return err
}

// clearGroup settles a group that nobody supervises.
func (d *Dir) clearGroup(id string) error {
	if d.held(id) {
		return nil
	}
	g, err := d.read(id)
	if err != nil || (g.AutoRemove && g.Status != Exited) {
		return d.discard(id) // never recorded whole, or nobody's wish to keep it
	}
	if g.Status == Exited {
		if g.AutoRemove {
			return d.discard(id)
		}
		return nil
	}
	g.Status, g.ExitCode, g.Finished = Exited, CrashStatus, time.Now().UTC()
	g.Error = "the supervisor ended unexpectedly, and the group with it"
	g.Supervisor, g.QEMU = 0, 0
	os.Remove(filepath.Join(d.Path(id), "sock"))
	os.Remove(filepath.Join(d.Path(id), "scratch"))
	return d.write(&g)
}

// held reports whether a process has the group's lock. Probes are shared, so
// that two of them at once do not take each other for a supervisor.
func (d *Dir) held(id string) bool {
	l, err := os.Open(filepath.Join(d.Path(id), "lock"))
	if err != nil {
		return false
	}
	defer l.Close()
	return errors.Is(unix.Flock(int(l.Fd()), unix.LOCK_SH|unix.LOCK_NB), unix.EWOULDBLOCK)
}

// Path is the directory of a group.
func (d *Dir) Path(id string) string { return filepath.Join(d.root, id) }

// Handle is a group that this process holds the lock of.
type Handle struct {
	Group Group
	// Lock is the lock; whoever inherits the file holds it too.
	Lock *os.File
	dir  *Dir
}

// Path is the group's directory.
func (h *Handle) Path() string { return h.dir.Path(h.Group.ID) }

// Create records a new group: it gets an ID, and a name if it has none. The
// caller, or whoever it hands Lock to, supervises it.
func (d *Dir) Create(g Group) (*Handle, error) {
	var id [32]byte
	rand.Read(id[:])
	g.ID, g.Status, g.Created = hex.EncodeToString(id[:]), Created, time.Now().UTC()
	if g.Name != "" && !nameForm().MatchString(g.Name) {
		return nil, fmt.Errorf("creating group %q: %w", g.Name, ErrName)
	}
	h := &Handle{dir: d}
	err := d.exclusive(func() error {
		all, err := d.List()
		if err != nil {
			return err
		}
		taken := func(name string) bool {
			return slices.ContainsFunc(all, func(o Group) bool { return o.Name == name })
		}
		for g.Name == "" || taken(g.Name) {
			if g.Name != "" {
				return fmt.Errorf("%w: %s", ErrNameTaken, g.Name)
			}
			if name := randomName(); !taken(name) {
				g.Name = name
			}
		}
		h.Group = g
		return d.make(h)
	})
	if err != nil {
		return nil, fmt.Errorf("creating group: %w", err)
	}
	return h, nil
}

// make makes the directory with lock and record.
func (d *Dir) make(h *Handle) error {
	dir := d.Path(h.Group.ID)
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	l, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	if err := unix.Flock(int(l.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		l.Close()
		return fmt.Errorf("locking: %w", err)
	}
	h.Lock = l
	return d.write(&h.Group)
}

// Adopt takes over a group whose lock was inherited as an open file.
func Adopt(dir string, l *os.File) (*Handle, error) {
	d := &Dir{root: filepath.Dir(dir)}
	g, err := d.read(filepath.Base(dir))
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(l.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, fmt.Errorf("adopting group: %w", err)
	}
	return &Handle{Group: g, Lock: l, dir: d}, nil
}

// Save writes the record.
func (h *Handle) Save() error { return h.dir.write(&h.Group) }

// Close gives the lock up. A group that ended and is to be removed goes.
func (h *Handle) Close() error {
	var err error
	if h.Group.AutoRemove {
		err = h.dir.exclusive(func() error { return h.dir.discard(h.Group.ID) })
	}
	return errors.Join(err, h.Lock.Close())
}

// Discard removes the group whatever its state, and gives the lock up.
func (h *Handle) Discard() error {
	err := h.dir.exclusive(func() error { return h.dir.discard(h.Group.ID) })
	return errors.Join(err, h.Lock.Close())
}

// List returns all groups, the newest first.
func (d *Dir) List() ([]Group, error) {
	entries, err := os.ReadDir(d.root)
	if err != nil {
		return nil, fmt.Errorf("listing groups: %w", err)
	}
	var all []Group
	for _, e := range entries {
		if !validID(e.Name()) {
			continue
		}
		g, err := d.read(e.Name())
		if err != nil {
			continue // being made or removed; what is broken is cleared by Open
		}
		all = append(all, g)
	}
	slices.SortFunc(all, func(a, b Group) int { return b.Created.Compare(a.Created) })
	return all, nil
}

// Find returns the group with this name, ID, or beginning of an ID.
func (d *Dir) Find(name string) (Group, error) {
	all, err := d.List()
	if err != nil {
		return Group{}, err
	}
	var found []Group
	for _, g := range all {
		if g.Name == name || g.ID == name {
			return g, nil
		}
		if name != "" && strings.HasPrefix(g.ID, name) {
			found = append(found, g)
		}
	}
	switch len(found) {
	case 0:
		return Group{}, fmt.Errorf("%w: %s", ErrNotFound, name)
	case 1:
		return found[0], nil
	}
	return Group{}, fmt.Errorf("%w: %s", ErrAmbiguous, name)
}

// Live reports whether somebody supervises the group.
func (d *Dir) Live(id string) bool { return d.held(id) }

// Remove removes a group that has ended. The error is ErrRunning's kind if it
// has not.
func (d *Dir) Remove(id string) error {
	return d.exclusive(func() error {
		if d.held(id) {
			return fmt.Errorf("removing %.12s: %w", id, ErrRunning)
		}
		return d.discard(id)
	})
}

// discard takes the group away in one step; what is left then is trash.
func (d *Dir) discard(id string) error {
	gone := filepath.Join(d.root, trash+id)
	if err := os.Rename(d.Path(id), gone); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return fmt.Errorf("removing group: %w", err)
	}
	return os.RemoveAll(gone)
}

func (d *Dir) read(id string) (Group, error) {
	f, err := os.Open(filepath.Join(d.Path(id), "group.json"))
	if err != nil {
		return Group{}, fmt.Errorf("reading group: %w", err)
	}
	defer f.Close()
	if st, err := f.Stat(); err != nil || st.Size() > maxRecord {
		return Group{}, fmt.Errorf("reading group %s: more than %d bytes", id, maxRecord)
	}
	var g Group
	if err := json.NewDecoder(f).Decode(&g); err != nil {
		return Group{}, fmt.Errorf("reading group %s: %w", id, err)
	}
	if g.ID != id {
		return Group{}, fmt.Errorf("reading group %s: the record is of another one", id)
	}
	return g, nil
}

// write replaces the record. It is not synced: after a power cut no group runs.
func (d *Dir) write(g *Group) error {
	raw, err := json.MarshalIndent(g, "", " ")
	if err != nil {
		return fmt.Errorf("encoding group: %w", err)
	}
	name := filepath.Join(d.Path(g.ID), "group.json")
	if err := os.WriteFile(name+".new", raw, 0o600); err != nil {
		return fmt.Errorf("writing group: %w", err)
	}
	if err := os.Rename(name+".new", name); err != nil {
		return fmt.Errorf("writing group: %w", err)
	}
	return nil
}

func validID(s string) bool {
	return len(s) == 64 && strings.Trim(s, "0123456789abcdef") == ""
}

func nameForm() *regexp.Regexp { return regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,62}$`) }

// AwaitEnd waits until nobody supervises the group.
func (d *Dir) AwaitEnd(ctx context.Context, id string) error {
	t := time.NewTicker(20 * time.Millisecond)
	defer t.Stop()
	for d.held(id) {
		select {
		case <-ctx.Done():
			return fmt.Errorf("waiting for %.12s to end: %w", id, ctx.Err())
		case <-t.C:
		}
	}
	return nil
}
