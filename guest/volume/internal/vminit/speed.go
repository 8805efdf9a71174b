// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"time"
)

// speed reads layer 0 through the file system and from the raw disk, and
// writes to and reads from the scratch disk. Figures are in MB/s.
func (g *guest) speed() error {
	if err := g.open(0); err != nil {
		return err
	}
	for range 3 {
		raw, err := readSpeed("/dev/vda")
		if err != nil {
			return err
		}
		verified, err := readSpeed(layerDir(0) + "/big")
		if err != nil {
			return err
		}
		fmt.Printf("INFO raw %.0f verified %.0f\n", raw, verified)
	}
	if err := mkdirs("/run/scratch"); err != nil {
		return err
	}
	began := time.Now()
	if err := g.disks.Scratch(context.Background(), true, 0, "/run/scratch"); err != nil {
		return err
	}
	fmt.Printf("INFO scratch_s %.2f\n", time.Since(began).Seconds())
	began = time.Now()
	const size = 32 << 20
	if err := first(os.WriteFile(file, make([]byte, size), 0o600), dropCaches()); err != nil {
		return err
	}
	write := size / 1e6 / time.Since(began).Seconds()
	read, err := readSpeed(file)
	if err != nil {
		return err
	}
	fmt.Printf("INFO write %.0f read %.0f\n", write, read)
	return nil
}

func readSpeed(path string) (float64, error) {
	if err := dropCaches(); err != nil {
		return 0, err
	}
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	began := time.Now()
	n, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{f}, make([]byte, 1<<20))
	return float64(n) / 1e6 / time.Since(began).Seconds(), err
}
