// SPDX-License-Identifier: Apache-2.0

package volume

import (
	"context"
	"fmt"

	"golang.org/x/sys/unix"
)

// Scratch mounts a writable file system at target, which exists, for the rest
// of the guest's life: memory, or the disk with serial "scratch".
//
// Memory is a tmpfs of at most size bytes, of half of the guest's memory if
// size is 0. size means nothing for a disk.
func (d *Disks) Scratch(ctx context.Context, disk bool, size int64, target string) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("preparing scratch: %w", err)
	}
	if size < 0 {
		return fmt.Errorf("preparing scratch: %d bytes", size)
	}
	if disk {
		return d.scratchDisk(ctx, target)
	}
	options := "mode=0711"
	if size > 0 {
		options += fmt.Sprintf(",size=%d", size)
	}
	if err := unix.Mount("scratch", target, "tmpfs", 0, options); err != nil {
		return fmt.Errorf("mounting scratch memory at %s: %w", target, err)
	}
	return nil
}
