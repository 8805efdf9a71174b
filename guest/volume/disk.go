// SPDX-License-Identifier: Apache-2.0

package volume

import (
	"bytes"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// maxSerial is the longest serial of a virtio-blk disk in bytes: virtio 1.2,
// 5.2.6.1, VIRTIO_BLK_T_GET_ID.
const maxSerial = 20

// disk is a virtio-blk disk. All of it is the host's word.
type disk struct {
	serial string
	name   string // vda
	node   string // /dev/vda
	dev    string // MAJOR:MINOR
	size   int64  // bytes
}

// find returns the one virtio-blk disk with this serial.
func (d *Disks) find(serial string) (disk, error) {
	names, err := d.named(serial)
	if err != nil {
		return disk{}, err
	}
	switch len(names) {
	case 0:
		return disk{}, fmt.Errorf("no disk with serial %s is attached", serial)
	case 1:
	default:
		return disk{}, fmt.Errorf("%d disks with serial %s are attached: %s", len(names), serial, strings.Join(names, ", "))
	}
	found := disk{serial: serial, name: names[0], node: filepath.Join(d.cfg.Dev, names[0])}
	dev, err := os.ReadFile(d.queue(found.name, "dev"))
	if err != nil {
		return disk{}, fmt.Errorf("reading the number of disk %s: %w", serial, err)
	}
	found.dev = string(bytes.TrimSpace(dev))
	size, err := os.ReadFile(d.queue(found.name, "size"))
	if err != nil {
		return disk{}, fmt.Errorf("reading the size of disk %s: %w", serial, err)
	}
	sectors, err := strconv.ParseInt(string(bytes.TrimSpace(size)), 10, 64)
	if err != nil || sectors < 0 || sectors > math.MaxInt64/sectorSize {
		return disk{}, fmt.Errorf("reading the size of disk %s: %q", serial, size)
	}
	found.size = sectors * sectorSize
	return found, nil
}

// named returns the names of the disks with this serial. Asking for a serial
// is a request to the host, and hundreds of disks may be attached: they are
// all asked once, and again only if one is missing.
func (d *Disks) named(serial string) ([]string, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if names := d.serials[serial]; len(names) > 0 {
		return names, nil
	}
	paths, err := filepath.Glob(d.queue("vd*", "serial"))
	if err != nil {
		return nil, fmt.Errorf("listing disks: %w", err)
	}
	d.serials = make(map[string][]string, len(paths))
	for _, p := range paths {
		b, err := os.ReadFile(p)
		if err != nil {
			continue // a disk that does not say its serial is none of ours
		}
		if s := strings.TrimRight(string(b), "\x00\n"); s != "" && len(s) <= maxSerial {
			d.serials[s] = append(d.serials[s], filepath.Base(filepath.Dir(p)))
		}
	}
	return d.serials[serial], nil
}

// queue is the path of an attribute of a block device.
func (d *Disks) queue(name, attribute string) string {
	return filepath.Join(d.cfg.Sys, "block", name, attribute)
}

// setReadAhead sets how far the kernel reads ahead of a sequential reader.
func (d *Disks) setReadAhead(name string, bytes int64) error {
	err := os.WriteFile(d.queue(name, "queue/read_ahead_kb"), strconv.AppendInt(nil, bytes>>10, 10), 0)
	if err != nil {
		return fmt.Errorf("setting the read-ahead of %s: %w", name, err)
	}
	return nil
}
