// SPDX-License-Identifier: Apache-2.0

package container

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

const cgroupRoot = "/sys/fs/cgroup"

func cgroupPath(id string) string { return "/containers/" + id }

// Stats is what a container has used, as its cgroup says.
type Stats struct {
	CPUNanos, MemoryBytes, MemoryLimitBytes, Pids, BlockRead, BlockWrite uint64
}

// ReadStats reads a container's cgroup. MemoryLimitBytes is 0 without a limit.
func ReadStats(id string) (Stats, error) {
	dir := filepath.Join(cgroupRoot, cgroupPath(id))
	var s Stats
	cpu, err := os.ReadFile(filepath.Join(dir, "cpu.stat"))
	if err != nil {
		return Stats{}, fmt.Errorf("reading statistics: %w", err)
	}
	s.CPUNanos = field(string(cpu), "usage_usec") * 1000
	for name, into := range map[string]*uint64{"memory.current": &s.MemoryBytes, "memory.max": &s.MemoryLimitBytes, "pids.current": &s.Pids} {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			return Stats{}, fmt.Errorf("reading statistics: %w", err)
		}
		*into = number(strings.TrimSpace(string(b)))
	}
	io, err := os.ReadFile(filepath.Join(dir, "io.stat"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return Stats{}, fmt.Errorf("reading statistics: %w", err)
	}
	for word := range strings.FieldsSeq(string(io)) {
		if v, ok := strings.CutPrefix(word, "rbytes="); ok {
			s.BlockRead += number(v)
		} else if v, ok := strings.CutPrefix(word, "wbytes="); ok {
			s.BlockWrite += number(v)
		}
	}
	return s, nil
}

// OOMKilled reports whether the kernel killed a process of the container for
// lack of memory.
func OOMKilled(id string) bool {
	b, err := os.ReadFile(filepath.Join(cgroupRoot, cgroupPath(id), "memory.events"))
	return err == nil && field(string(b), "oom_kill") > 0
}

// field finds "name value" among lines.
func field(text, name string) uint64 {
	for line := range strings.Lines(text) {
		if v, ok := strings.CutPrefix(line, name+" "); ok {
			return number(strings.TrimSpace(v))
		}
	}
	return 0
}

// number is 0 for "max" and for anything the kernel does not write.
func number(s string) uint64 {
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil {
		return 0
	}
	return n
}
