// SPDX-License-Identifier: Apache-2.0

package container

import (
	"fmt"
	"os"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// Config is what the policy allowed for one container.
type Config struct {
	ID   string
	Root string // the mounted overlay
	// Process is the init process.
	Process Process
	// Mounts are all mounts, in order, with sources that exist.
	Mounts       []Mount
	ReadOnlyRoot bool
	Privileged   bool
	Hostname     string
	Resources    Resources
	// Devices are paths of the guest's character devices that the container
	// gets under the same path.
	Devices []string
}

// Process is what to run.
type Process struct {
	Args            []string
	Env             []string
	Cwd             string
	User            User
	Umask           uint32
	Terminal        bool
	NoNewPrivileges bool
	Capabilities    Capabilities
}

// Mount is one mount in the OCI runtime's terms.
type Mount struct {
	Destination, Type, Source string
	Options                   []string
}

// Capabilities are the five sets, as CAP_* names.
type Capabilities struct {
	Bounding, Effective, Inheritable, Permitted, Ambient []string
}

// Resources limit the container; zero is no limit.
type Resources struct {
	MilliCPUs   int64
	MemoryBytes int64
	Pids        int64
}

// openFiles is docker's default limit.
const openFiles = 1 << 20

// cpuPeriod is the kernel's default, in microseconds.
const cpuPeriod = 100_000

func (c *Config) spec() (*specs.Spec, error) {
	devices, rules, err := deviceNodes(c.Devices)
	if err != nil {
		return nil, err
	}
	s := &specs.Spec{
		Version:  specs.Version,
		Root:     &specs.Root{Path: c.Root, Readonly: c.ReadOnlyRoot},
		Hostname: c.Hostname,
		Process:  c.Process.spec(),
		Linux: &specs.Linux{
			// Network and IPC are the group's, which are the guest's own.
			Namespaces: []specs.LinuxNamespace{
				{Type: specs.PIDNamespace}, {Type: specs.MountNamespace},
				{Type: specs.UTSNamespace}, {Type: specs.CgroupNamespace},
			},
			CgroupsPath: cgroupPath(c.ID),
			Devices:     devices,
			Resources:   c.Resources.spec(rules),
		},
	}
	for _, m := range c.Mounts {
		s.Mounts = append(s.Mounts, specs.Mount{Destination: m.Destination, Type: m.Type, Source: m.Source, Options: m.Options})
	}
	if !c.Privileged {
		s.Linux.MaskedPaths = maskedPaths()
		s.Linux.ReadonlyPaths = readonlyPaths()
	}
	return s, nil
}

func (p *Process) spec() *specs.Process {
	umask := p.Umask
	return &specs.Process{
		Terminal: p.Terminal,
		Args:     p.Args,
		Env:      p.Env,
		Cwd:      p.Cwd,
		User: specs.User{UID: p.User.UID, GID: p.User.GID, AdditionalGids: p.User.Groups,
			Umask: &umask},
		NoNewPrivileges: p.NoNewPrivileges,
		Capabilities: &specs.LinuxCapabilities{
			Bounding: p.Capabilities.Bounding, Effective: p.Capabilities.Effective,
			Inheritable: p.Capabilities.Inheritable, Permitted: p.Capabilities.Permitted,
			Ambient: p.Capabilities.Ambient,
		},
		Rlimits: []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Hard: openFiles, Soft: openFiles}},
	}
}

func (r *Resources) spec(devices []specs.LinuxDeviceCgroup) *specs.LinuxResources {
	out := &specs.LinuxResources{Devices: devices}
	if r.MemoryBytes > 0 {
		limit := r.MemoryBytes
		out.Memory = &specs.LinuxMemory{Limit: &limit}
	}
	if r.MilliCPUs > 0 {
		quota, period := r.MilliCPUs*cpuPeriod/1000, uint64(cpuPeriod)
		out.CPU = &specs.LinuxCPU{Quota: &quota, Period: &period}
	}
	if r.Pids > 0 {
		limit := r.Pids
		out.Pids = &specs.LinuxPids{Limit: &limit}
	}
	return out
}

// deviceNodes describes the guest's own device nodes for the container, and
// the rules that deny all others. runc adds the harmless standard ones.
func deviceNodes(paths []string) ([]specs.LinuxDevice, []specs.LinuxDeviceCgroup, error) {
	rules := []specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}}
	var nodes []specs.LinuxDevice
	for _, path := range paths {
		var st unix.Stat_t
		if err := unix.Stat(path, &st); err != nil {
			return nil, nil, &os.PathError{Op: "describing device", Path: path, Err: err}
		}
		if st.Mode&unix.S_IFMT != unix.S_IFCHR {
			return nil, nil, fmt.Errorf("describing device %s: not a character device", path)
		}
		major, minor := int64(unix.Major(st.Rdev)), int64(unix.Minor(st.Rdev))
		mode, owner := os.FileMode(0o666), uint32(0)
		nodes = append(nodes, specs.LinuxDevice{Path: path, Type: "c", Major: major, Minor: minor,
			FileMode: &mode, UID: &owner, GID: &owner})
		rules = append(rules, specs.LinuxDeviceCgroup{Allow: true, Type: "c", Major: &major, Minor: &minor, Access: "rwm"})
	}
	return nodes, rules, nil
}

// maskedPaths and readonlyPaths are docker's defaults.
func maskedPaths() []string {
	return []string{"/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
		"/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware",
		"/sys/devices/virtual/powercap"}
}

func readonlyPaths() []string {
	return []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}
}
