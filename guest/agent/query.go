// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/coffer-dev/coffer/policy"
	"github.com/coffer-dev/coffer/tee"
	"github.com/coffer-dev/coffer/wire"
)

func (a *Agent) stats(in wire.ContainerRef) (any, error) {
	if _, err := a.running(in.Container); err != nil {
		return nil, err
	}
	if _, _, err := a.decide(policy.GetProperties{}); err != nil {
		return nil, err
	}
	s, err := a.cfg.Runtime.Stats(in.Container)
	if err != nil {
		return nil, err
	}
	if s.MemoryLimitBytes == 0 {
		var info unix.Sysinfo_t
		if err := unix.Sysinfo(&info); err != nil {
			return nil, fmt.Errorf("reading statistics: %w", err)
		}
		s.MemoryLimitBytes = info.Totalram * uint64(info.Unit)
	}
	rx, tx := traffic("/sys/class/net")
	return wire.Stats{CPUNanos: s.CPUNanos, MemoryBytes: s.MemoryBytes, MemoryLimitBytes: s.MemoryLimitBytes,
		Pids: s.Pids, BlockRead: s.BlockRead, BlockWrite: s.BlockWrite, RxBytes: rx, TxBytes: tx, AgentBytes: resident()}, nil
}

// resident is this process's resident memory.
func resident() uint64 {
	b, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		return 0
	}
	if f := strings.Fields(string(b)); len(f) > 1 {
		if pages, err := strconv.ParseUint(f[1], 10, 64); err == nil {
			return pages * uint64(os.Getpagesize())
		}
	}
	return 0
}

// traffic sums the bytes of all interfaces but the loopback.
func traffic(dir string) (rx, tx uint64) {
	interfaces, err := os.ReadDir(dir)
	if err != nil {
		return 0, 0
	}
	for _, i := range interfaces {
		if i.Name() == "lo" {
			continue
		}
		rx += counter(filepath.Join(dir, i.Name(), "statistics/rx_bytes"))
		tx += counter(filepath.Join(dir, i.Name(), "statistics/tx_bytes"))
	}
	return rx, tx
}

func counter(path string) uint64 {
	b, err := os.ReadFile(path)
	if err != nil {
		return 0
	}
	n, err := strconv.ParseUint(strings.TrimSpace(string(b)), 10, 64)
	if err != nil {
		return 0
	}
	return n
}

// attest answers a challenge that the host relays. What is signed is bound to
// the challenge's domain, never the host's bytes themselves.
func (a *Agent) attest(ctx context.Context, in wire.Attest) (any, error) {
	b, err := tee.ChallengeBinding(in.Nonce)
	if err != nil {
		return nil, refuse(wire.CodeInvalid, "%v", err)
	}
	e, err := a.cfg.Attester.Attest(ctx, b)
	if err != nil {
		return nil, fmt.Errorf("getting evidence: %w", err)
	}
	return wire.AttestReply{Kind: e.Kind, Report: e.Report, Certificates: e.Certificates}, nil
}

// maxStacks bounds a dump, in bytes.
const maxStacks = 1 << 20

func (a *Agent) dumpStacks() (any, error) {
	if _, _, err := a.decide(policy.DumpStacks{}); err != nil {
		return nil, err
	}
	buf := make([]byte, maxStacks)
	return wire.DumpStacksReply{Text: string(buf[:runtime.Stack(buf, true)])}, nil
}
