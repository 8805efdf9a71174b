// SPDX-License-Identifier: Apache-2.0

package image

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// errBusy means that another process holds a lock.
var errBusy = errors.New("locked by another process")

// lockPoll is how often a waiting process asks again for a lock.
const lockPoll = 20 * time.Millisecond

// tryLock takes or fails with errBusy. how is unix.LOCK_EX or unix.LOCK_SH.
func tryLock(f *os.File, how int) error {
	for {
		err := unix.Flock(int(f.Fd()), how|unix.LOCK_NB)
		switch {
		case err == nil:
			return nil
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.EWOULDBLOCK):
			return errBusy
		}
		return fmt.Errorf("locking %s: %w", f.Name(), err)
	}
}

// lock waits until it has the lock or ctx is done.
func lock(ctx context.Context, f *os.File, how int) error {
	t := time.NewTicker(lockPoll)
	defer t.Stop()
	for {
		err := tryLock(f, how)
		if !errors.Is(err, errBusy) {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-t.C:
		}
	}
}

// same reports whether name still is the file that f has open: a lock on a
// file that was removed or renamed meanwhile protects nothing.
func same(f *os.File, name string) bool {
	a, err := f.Stat()
	if err != nil {
		return false
	}
	b, err := os.Stat(name)
	return err == nil && os.SameFile(a, b)
}
