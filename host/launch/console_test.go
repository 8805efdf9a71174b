// SPDX-License-Identifier: Apache-2.0

package launch

import (
	"os"
	"strings"
	"testing"
)

func TestCorruptionNamesTheDisk(t *testing.T) {
	disks := []Disk{{Label: "lower"}, {Label: "middle"}, {Label: "upper"}}
	for _, tt := range []struct {
		numbers string
		scratch bool
		want    string
	}{
		{"254:0", false, "layer 0 (lower) is corrupted"},
		{"254:32", false, "layer 2 (upper) is corrupted"},
		{"254:32", true, "layer 1 (middle) is corrupted"},
		{"254:0", true, "a disk is corrupted"},
		{"254:48", false, "a disk is corrupted"},
		{"254:9999", false, "a disk is corrupted"},
	} {
		c, err := newConsole(os.DevNull, disks, tt.scratch)
		if err != nil {
			t.Fatal(err)
		}
		c.read(strings.NewReader("[  1.0] device-mapper: verity: " + tt.numbers + ": data block 7 is corrupted\n"))
		if got := c.lastWords(); !strings.HasPrefix(got, tt.want) {
			t.Errorf("%s, scratch %t: %q; want %q", tt.numbers, tt.scratch, got, tt.want)
		}
	}
}
