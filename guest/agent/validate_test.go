// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"regexp"
	"strings"
	"testing"
)

// TestNamesMatchTheirForms compares the matchers with the expressions that
// docs/wire.md gives.
func TestNamesMatchTheirForms(t *testing.T) {
	id := regexp.MustCompile(`^[0-9a-f]{64}$`)
	process, volume := regexp.MustCompile(processForm), regexp.MustCompile(volumeForm)
	var names []string
	for c := range 256 {
		names = append(names, string(rune(c)), "a"+string([]byte{byte(c)}), string([]byte{byte(c)})+"a")
	}
	for _, n := range []int{0, 1, 63, 64, 65, 127, 128, 129} {
		names = append(names, strings.Repeat("a", n), strings.Repeat("0", n), strings.Repeat("A", n), strings.Repeat("-", n))
	}
	for _, s := range append(names, strings.Repeat("0", 63)+"g", strings.Repeat("0", 63)+"\n", "../x", "a\n") {
		if got, want := isID(s), id.MatchString(s); got != want {
			t.Errorf("isID(%q) = %v; want %v", s, got, want)
		}
		if got, want := isProcess(s), process.MatchString(s); got != want {
			t.Errorf("isProcess(%q) = %v; want %v", s, got, want)
		}
		if got, want := isVolume(s), volume.MatchString(s); got != want {
			t.Errorf("isVolume(%q) = %v; want %v", s, got, want)
		}
	}
}
