// SPDX-License-Identifier: Apache-2.0

package layer_test

import (
	"fmt"
	"math/rand/v2"
	"testing"
)

// TestGenerated compares on tars made by chance: many short ones, which mostly succeed, and some long ones.
func TestGenerated(t *testing.T) {
	n := 1500
	if testing.Short() {
		n = 300
	}
	count := make(map[verdict]int)
	for seed := range n {
		rng := rand.New(rand.NewPCG(uint64(seed), 1))
		length := []int{1, 2, 3, 5, 8, 20}[seed%6]
		tar := generate(rng.IntN, length, func() bool { return false })
		v := compare(t, fmt.Sprintf("seed %d", seed), tar)
		count[v]++
		if count[differ] > 10 {
			t.Fatal("too many differences")
		}
	}
	t.Logf("%d tars: %d the same image, %d refused by both, %d skipped", n, count[same], count[bothRefuse], count[skipped])
	if count[same] < n/5 || count[bothRefuse] < n/20 {
		t.Errorf("the generator is lopsided: %v", count)
	}
}

// TestAccumulated compares on tars of many entries, each of which the reference accepts where it stands.
func TestAccumulated(t *testing.T) {
	n := 40
	if testing.Short() {
		n = 10
	}
	count := make(map[verdict]int)
	for seed := range n {
		rng := rand.New(rand.NewPCG(uint64(seed), 3))
		var tar []byte
		for i := range 40 {
			var r raw
			r.Write(tar)
			r.entry(rng.IntN)
			v := compare(t, fmt.Sprintf("seed %d, entry %d", seed, i), append(r.Bytes(), make([]byte, 1024)...))
			count[v]++
			if v == same {
				tar = r.Bytes()
			}
		}
		if t.Failed() {
			return
		}
	}
	t.Logf("%d tars: %v", n, count)
}
