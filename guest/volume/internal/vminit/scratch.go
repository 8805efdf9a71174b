// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// fileBlocks is the size of the file that the test tampers with, in blocks of
// 4096 bytes. Each begins with a mark that must never be seen on the disk.
const (
	fileBlocks = 1024
	mark       = "coffer plain text "
	file       = "/run/scratch/file"
)

func (g *guest) scratchChecks() []check {
	return []check{
		{"prepare", g.prepare},
		{"write and read", g.writeAndRead},
		{"many files", g.manyFiles},
		{"nothing was read before it was written", func() error { return quietKernel() }},
		{"key is not shown", g.hiddenKey},
		{"tampering", g.tampering},
	}
}

func (g *guest) prepare() error {
	if err := mkdirs("/run/scratch"); err != nil {
		return err
	}
	began := time.Now()
	if err := g.disks.Scratch(context.Background(), true, 0, "/run/scratch"); err != nil {
		return err
	}
	fmt.Printf("INFO scratch disk ready in %v\n", time.Since(began))
	info, err := os.Stat("/run/scratch")
	if err != nil || info.Mode().Perm() != 0o711 {
		return fmt.Errorf("scratch has mode %v, %v; want 0711", info.Mode(), fmt.Sprint(err))
	}
	fmt.Println("READY before")
	_, err = g.input.ReadString('\n')
	return err
}

func block(i int) []byte {
	b := bytes.Repeat([]byte{byte(i), byte(i >> 8), 0x55}, 4096/3+1)[:4096]
	copy(b, fmt.Sprintf("%s%d", mark, i))
	return b
}

func (g *guest) writeAndRead() error {
	var all bytes.Buffer
	for i := range fileBlocks {
		all.Write(block(i))
	}
	began := time.Now()
	if err := first(os.WriteFile(file, all.Bytes(), 0o600), dropCaches()); err != nil {
		return err
	}
	wrote := time.Since(began)
	began = time.Now()
	got, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	fmt.Printf("INFO scratch: %d MiB written in %v, read in %v\n", all.Len()>>20, wrote, time.Since(began))
	if !bytes.Equal(got, all.Bytes()) {
		return errors.New("what was read is not what was written")
	}
	return nil
}

// manyFiles does all that file systems do, in an order that is always the same.
func (g *guest) manyFiles() error {
	const n = 400
	r := rand.New(rand.NewPCG(1, 2))
	dir := "/run/scratch/files"
	for i := range n {
		d := fmt.Sprintf("%s/%d", dir, i%37)
		name := fmt.Sprintf("%s/%d", d, i)
		if err := first(mkdirs(d), os.WriteFile(name, bytes.Repeat([]byte{byte(i)}, r.IntN(9000)), 0o600)); err != nil {
			return err
		}
		if i%5 == 0 {
			if err := os.Rename(name, name+"r"); err != nil {
				return err
			}
		}
		if i%7 == 0 {
			if err := first(os.Symlink(name, name+"s"), unix.Setxattr(d, fmt.Sprintf("user.x%d", i), []byte("v"), 0)); err != nil {
				return err
			}
		}
	}
	// A hole, a part of a block, and space that is reserved but not written.
	f, err := os.Create(dir + "/sparse")
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte("end"), 10<<20+5); err != nil {
		return err
	}
	if err := first(unix.Fallocate(int(f.Fd()), 0, 20<<20, 1<<20), f.Sync(), dropCaches()); err != nil {
		return err
	}
	count := 0
	err = filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			count++
			_, err = os.ReadFile(path)
		}
		return err
	})
	if err != nil || count != n+1 {
		return fmt.Errorf("found %d files, %v; want %d", count, fmt.Sprint(err), n+1)
	}
	return first(os.RemoveAll(dir), dropCaches())
}

// quietKernel holds the kernel to have complained of nothing.
func quietKernel() error {
	b := make([]byte, 1<<20)
	n, err := unix.Klogctl(3, b) // SYSLOG_ACTION_READ_ALL
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(b[:n])) {
		for _, bad := range []string{"INTEGRITY", "I/O error", "EXT4-fs error", "WARNING", "Buffer I/O"} {
			if strings.Contains(line, bad) {
				return fmt.Errorf("the kernel said %q", line)
			}
		}
	}
	return nil
}

// hiddenKey: whoever may look at /proc/keys finds no key that is still alive.
func (g *guest) hiddenKey() error {
	b, err := os.ReadFile("/proc/keys")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); strings.Contains(line, "coffer:scratch") && !strings.Contains(f[1], "R") {
			return fmt.Errorf("the key is there: %q", line)
		}
	}
	return nil
}

// tampering lets the host change the disk, and then reads. A block is right or
// it is an I/O error.
func (g *guest) tampering() error {
	fmt.Println("READY tamper")
	line, err := g.input.ReadString('\n')
	if err != nil {
		return err
	}
	var changed int
	if _, err := fmt.Sscanf(line, "changed %d", &changed); err != nil {
		return fmt.Errorf("the test says %q: %w", line, err)
	}
	if err := dropCaches(); err != nil {
		return err
	}
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_RANDOM); err != nil {
		return err
	}
	failed := 0
	b := make([]byte, 4096)
	for i := range fileBlocks {
		_, err := f.ReadAt(b, int64(i)*4096)
		switch {
		case errors.Is(err, unix.EIO):
			failed++
		case err != nil && !errors.Is(err, io.EOF):
			return err
		case !bytes.Equal(b, block(i)):
			return fmt.Errorf("block %d is wrong and was not noticed: %.80q", i, b)
		}
	}
	if failed != changed {
		return fmt.Errorf("%d blocks of the file were I/O errors; want the %d that were changed", failed, changed)
	}
	return nil
}
