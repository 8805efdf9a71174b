// SPDX-License-Identifier: Apache-2.0

package volume

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"golang.org/x/sys/unix"
)

// sectorSize is the unit of the block layer and of device-mapper tables in bytes.
const sectorSize = 512

// blockSize is the size in bytes of a block of a layer, of its hash tree, and
// of a sector of a scratch disk.
const blockSize = 4096

// Config is what Disks needs from the rest of the guest. The kernel has the
// modules virtio_blk, dm-mod, dm-verity and overlay already.
type Config struct {
	// Run runs a program, mke2fs, and returns what it wrote; nil error is exit
	// status 0. (*reap.Reaper).Run is one.
	Run func(ctx context.Context, path string, args []string, stdin []byte) ([]byte, error)
	// Mke2fs is the path of mke2fs; empty is /sbin/mke2fs.
	Mke2fs string
	// LoadModules loads kernel modules by name with what they need. It is
	// called for what only a scratch disk needs; nil: the kernel has all.
	LoadModules func(names ...string) error
	// Sys and Dev are where sysfs and devtmpfs are mounted; empty is /sys and /dev.
	Sys, Dev string
}

// Disks opens and mounts disks. Its methods may be called concurrently.
type Disks struct {
	cfg Config

	mu      sync.Mutex
	serials map[string][]string // names of disks by serial, as the host gave them
	mapped  int                 // mappings made so far, for unique names
}

// New returns Disks for a guest.
func New(cfg Config) *Disks {
	if cfg.Mke2fs == "" {
		cfg.Mke2fs = "/sbin/mke2fs"
	}
	if cfg.Sys == "" {
		cfg.Sys = "/sys"
	}
	if cfg.Dev == "" {
		cfg.Dev = "/dev"
	}
	if cfg.LoadModules == nil {
		cfg.LoadModules = func(...string) error { return nil }
	}
	return &Disks{cfg: cfg}
}

// mount is something mounted, perhaps on a mapping that goes with it.
type mount struct {
	target string
	under  *mapping // nil: nothing of ours

	mu     sync.Mutex
	closed bool
}

// Close unmounts. It fails if the mount is in use, and may then be called
// again. Closing twice is an error.
func (m *mount) Close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return errors.New("unmounting: already unmounted")
	}
	if err := unix.Unmount(m.target, unix.UMOUNT_NOFOLLOW); err != nil {
		return fmt.Errorf("unmounting %s: %w", m.target, err)
	}
	m.closed = true
	if m.under == nil {
		return nil
	}
	return m.under.remove()
}
