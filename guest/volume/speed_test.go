// SPDX-License-Identifier: Apache-2.0

package volume_test

import (
	"archive/tar"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// BenchmarkDisks measures one machine once: verity_read_ratio is sequential
// reading of a file of a layer over reading the raw disk, in the same guest.
func BenchmarkDisks(b *testing.B) {
	l := newLab(b)
	l.addMke2fs(b)
	const size = 128 << 20
	info, layer := l.layer(b, 0, []tar.Header{{Name: "big"}}, map[string]string{"big": strings.Repeat("0123456789abcdef", size/16)})
	scratch := filepath.Join(b.TempDir(), "scratch")
	if err := os.WriteFile(scratch, nil, 0o600); err != nil {
		b.Fatal(err)
	}
	if err := os.Truncate(scratch, scratchSize); err != nil {
		b.Fatal(err)
	}
	m := l.start(b, scenario{"speed", []layerInfo{info}}, []drive{layer, {path: scratch, serial: "scratch", writable: true}})
	m.report(b, "speed")
	var ratios []float64
	for _, line := range m.lines {
		var raw, verified float64
		if _, err := fmt.Sscanf(line, "INFO raw %f verified %f", &raw, &verified); err == nil {
			ratios = append(ratios, verified/raw)
		}
	}
	if len(ratios) == 0 {
		b.Fatal("nothing was measured")
	}
	slices.Sort(ratios)
	b.ReportMetric(ratios[len(ratios)/2], "verity_read_ratio")
	b.ReportMetric(0, "ns/op")
}
