// SPDX-License-Identifier: Apache-2.0

package volume

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Layout of struct dm_ioctl and struct dm_target_spec, Linux uapi
// linux/dm-ioctl.h version 4. All integers are in the machine's byte order.
const (
	dmHeader       = unix.SizeofDmIoctl
	dmDataSize     = 12
	dmDataStart    = 16
	dmTargetCount  = 20
	dmFlags        = 28
	dmDev          = 40
	dmName         = 48
	dmSpec         = unix.SizeofDmTargetSpec
	dmSpecSectors  = 8
	dmSpecType     = 24
	maxMappingName = unix.DM_NAME_LEN - 1
)

// target is the one target that fills a mapping.
type target struct {
	kind     string // for instance "verity"
	sectors  int64  // of 512 bytes
	params   []byte
	readOnly bool
}

// mapping is a live device-mapper device.
type mapping struct {
	control string
	name    string
	node    string // its block device, /dev/dm-N
	block   string // its name in sysfs, dm-N
	dev     string // MAJOR:MINOR
}

// newMapping makes a device with one target. prefix begins its name; a number
// makes it unique. devtmpfs has made the node when this returns.
func (d *Disks) newMapping(prefix string, t target) (*mapping, error) {
	m, err := d.loadMapping(prefix, t)
	if err != nil {
		return nil, err
	}
	// Resuming is what makes the loaded table live; DM_SUSPEND_FLAG is absent.
	if _, err := m.ioctl(unix.DM_DEV_SUSPEND, 0, nil); err != nil {
		return nil, m.undo(fmt.Errorf("activating %s mapping: %w", t.kind, err))
	}
	return m, nil
}

// loadMapping makes a device and loads its table without making it live.
func (d *Disks) loadMapping(prefix string, t target) (*mapping, error) {
	d.mu.Lock()
	d.mapped++
	n := d.mapped
	d.mu.Unlock()
	m := &mapping{control: filepath.Join(d.cfg.Dev, "mapper/control"), name: fmt.Sprintf("%s.%d", prefix, n)}
	dev, err := m.ioctl(unix.DM_DEV_CREATE, 0, nil)
	if err != nil {
		return nil, fmt.Errorf("creating %s mapping: %w", t.kind, err)
	}
	minor := strconv.FormatUint(uint64(unix.Minor(dev)), 10)
	m.block = "dm-" + minor
	m.dev = strconv.FormatUint(uint64(unix.Major(dev)), 10) + ":" + minor
	m.node = filepath.Join(d.cfg.Dev, m.block)
	var flags uint32
	if t.readOnly {
		flags = unix.DM_READONLY_FLAG
	}
	if _, err := m.ioctl(unix.DM_TABLE_LOAD, flags, &t); err != nil {
		return nil, m.undo(fmt.Errorf("loading %s mapping: %w", t.kind, err))
	}
	return m, nil
}

// undo removes a mapping that did not work out, and returns why it did not.
func (m *mapping) undo(why error) error {
	if err := m.remove(); err != nil {
		return fmt.Errorf("%w (and then %w)", why, err)
	}
	return why
}

// remove takes the device away as soon as nothing has it open.
func (m *mapping) remove() error {
	// An overlay holds the file systems of its layers beyond their unmounting.
	if _, err := m.ioctl(unix.DM_DEV_REMOVE, unix.DM_DEFERRED_REMOVE, nil); err != nil {
		return fmt.Errorf("removing mapping %s: %w", m.name, err)
	}
	return nil
}

// ioctl sends one command and returns the device number that the kernel
// answers with. t is for DM_TABLE_LOAD only. The buffer is wiped afterwards,
// here and in the kernel.
func (m *mapping) ioctl(command uintptr, flags uint32, t *target) (uint64, error) {
	if len(m.name) > maxMappingName {
		return 0, fmt.Errorf("the name %q is too long", m.name)
	}
	size := dmHeader
	if t != nil {
		size += (dmSpec + len(t.params) + 1 + 7) &^ 7
	}
	b := make([]byte, size)
	defer clear(b)
	binary.NativeEndian.PutUint32(b[0:], 4) // version 4.0.0: what every kernel with this layout accepts
	binary.NativeEndian.PutUint32(b[dmDataSize:], uint32(size))
	binary.NativeEndian.PutUint32(b[dmDataStart:], dmHeader)
	binary.NativeEndian.PutUint32(b[dmFlags:], flags|unix.DM_SECURE_DATA_FLAG)
	copy(b[dmName:], m.name)
	if t != nil {
		binary.NativeEndian.PutUint32(b[dmTargetCount:], 1)
		spec := b[dmHeader:]
		binary.NativeEndian.PutUint64(spec[dmSpecSectors:], uint64(t.sectors))
		copy(spec[dmSpecType:dmSpec], t.kind)
		copy(spec[dmSpec:], t.params)
	}
	control, err := os.OpenFile(m.control, os.O_RDWR, 0)
	if err != nil {
		return 0, fmt.Errorf("opening device-mapper: %w", err)
	}
	defer control.Close()
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, control.Fd(), command, uintptr(unsafe.Pointer(&b[0]))); errno != 0 {
		return 0, errno
	}
	return binary.NativeEndian.Uint64(b[dmDev:]), nil
}
