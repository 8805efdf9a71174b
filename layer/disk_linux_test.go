// SPDX-License-Identifier: Apache-2.0

package layer

import (
	"os"
	"syscall"
	"testing"
)

// diskUsage is the space a file takes, in bytes.
func diskUsage(t testing.TB, f *os.File) int64 {
	t.Helper()
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	return info.Sys().(*syscall.Stat_t).Blocks * 512
}
