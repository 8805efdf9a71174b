// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"encoding/json"

	"github.com/coffer-dev/coffer/tee"
)

// Version is the protocol version. Both sides must name the same one in Hello.
const Version = 1

// Op names a request. The set is closed: a guest answers any other name with
// CodeUnsupported and changes nothing.
type Op string

// The requests, in the order in which a group's life uses them.
const (
	OpHello            Op = "hello"             // Hello -> HelloReply
	OpSetPolicy        Op = "set_policy"        // SetPolicy -> nothing
	OpConfigureNetwork Op = "configure_network" // Network -> nothing
	OpMountDevice      Op = "mount_device"      // MountDevice -> nothing
	OpUnmountDevice    Op = "unmount_device"    // UnmountDevice -> nothing
	OpPrepareScratch   Op = "prepare_scratch"   // PrepareScratch -> nothing
	OpMountOverlay     Op = "mount_overlay"     // MountOverlay -> nothing
	OpUnmountOverlay   Op = "unmount_overlay"   // ContainerRef -> nothing
	OpCreateContainer  Op = "create_container"  // CreateContainer -> nothing
	OpStartContainer   Op = "start_container"   // ContainerRef -> nothing
	OpExec             Op = "exec"              // Exec -> nothing
	OpSignal           Op = "signal"            // Signal -> nothing
	OpResize           Op = "resize"            // Resize -> nothing
	OpStats            Op = "stats"             // ContainerRef -> Stats
	OpDeleteContainer  Op = "delete_container"  // ContainerRef -> nothing
	OpAttest           Op = "attest"            // Attest -> AttestReply
	OpDumpStacks       Op = "dump_stacks"       // nothing -> DumpStacksReply
	OpShutdown         Op = "shutdown"          // nothing -> nothing, then the guest powers off
)

// Limits. Each side refuses what exceeds them before it allocates.
const (
	MaxMessage    = 24 << 20 // bytes of one framed message; room for a 16 MiB policy in base64
	MaxStreams    = 256      // unclaimed and claimed data streams of one session
	MaxDevices    = 1024     // device numbers are 0..MaxDevices-1
	MaxContainers = 256
	MaxProcesses  = 1024 // live processes of one group
	MaxArgs       = 4096 // elements of args, of env, and of mounts
	MaxString     = 128 << 10
	MaxNonce      = 64
)

// Hello is the first request of a session.
type Hello struct {
	Version int `json:"version"`
	// Group is the identity of the container group: 64 lower-case hex digits.
	Group string `json:"group"`
	// Time is the host's clock in nanoseconds since the epoch. The host may
	// lie; nothing in the guest decides by it.
	Time int64 `json:"time,omitempty"`
}

// HelloReply says what answered. The host must not decide anything by it.
type HelloReply struct {
	Version int      `json:"version"`
	Guest   string   `json:"guest"`
	TEE     tee.Kind `json:"tee"`
}

// SetPolicy hands over the policy text. The guest accepts it once, and only
// if its SHA-256 is the HOST_DATA of the guest's own report.
type SetPolicy struct {
	Policy []byte `json:"policy"`
}

// Network describes the group's one network interface. It is not policed: the
// network is untrusted by design.
type Network struct {
	Hostname  string   `json:"hostname"`
	Addresses []string `json:"addresses"` // CIDR; empty: loopback only
	Gateway   string   `json:"gateway,omitempty"`
	DNS       []string `json:"dns,omitempty"`
	Search    []string `json:"search,omitempty"`
	MTU       int      `json:"mtu,omitempty"` // 0: the interface's own
	// Hosts are more lines of /etc/hosts.
	Hosts []HostEntry `json:"hosts,omitempty"`
}

// HostEntry is one line of /etc/hosts.
type HostEntry struct {
	Address string   `json:"address"`
	Names   []string `json:"names"`
}

// MountDevice opens the read-only disk with serial "layer<Device>" by dm-verity.
type MountDevice struct {
	Device int `json:"device"`
	// RootHash is the dm-verity root hash, 64 lower-case hex digits.
	RootHash string `json:"root_hash"`
	// DataBlocks is the number of 4096-byte blocks before the hash area.
	DataBlocks int64 `json:"data_blocks"`
}

// UnmountDevice takes a device away that nothing uses any more.
type UnmountDevice struct {
	Device int `json:"device"`
}

// PrepareScratch says where writable layers and volumes live, once per group.
type PrepareScratch struct {
	// Disk: true uses the disk with serial "scratch" under dm-crypt with
	// integrity and a key that never leaves the guest; false uses memory.
	Disk bool `json:"disk"`
	// SizeBytes bounds memory scratch; 0 is half of the guest's memory.
	SizeBytes int64 `json:"size_bytes,omitempty"`
}

// MountOverlay builds a container's root from mounted devices.
type MountOverlay struct {
	Container string `json:"container"`
	Layers    []int  `json:"layers"` // device numbers, topmost first
}

// ContainerRef names a container.
type ContainerRef struct {
	Container string `json:"container"`
}

// Mount is one mount of a container: exactly one of Volume and Device is set.
type Mount struct {
	Destination string `json:"destination"`
	// Volume is the name of a directory that lives as long as the group.
	Volume string `json:"volume,omitempty"`
	// Device is the number of a mounted device, whose content appears at
	// Destination, read-only.
	Device   *int `json:"device,omitempty"`
	ReadOnly bool `json:"read_only,omitempty"`
	// Seed: an empty volume that no container has yet first gets the image's
	// content at Destination.
	Seed bool `json:"seed,omitempty"`
}

// Stdio names the data streams of a process by their yamux stream IDs; 0 is
// none. The host opens them before it sends the request.
type Stdio struct {
	Stdin  uint32 `json:"stdin,omitempty"`
	Stdout uint32 `json:"stdout,omitempty"`
	Stderr uint32 `json:"stderr,omitempty"`
	// Terminal is the one stream of a process with a terminal, both ways.
	// With it the other three are 0.
	Terminal uint32 `json:"terminal,omitempty"`
	Cols     uint16 `json:"cols,omitempty"`
	Rows     uint16 `json:"rows,omitempty"`
}

// Capabilities are the five sets, as CAP_* names.
type Capabilities struct {
	Bounding    []string `json:"bounding"`
	Effective   []string `json:"effective"`
	Inheritable []string `json:"inheritable"`
	Permitted   []string `json:"permitted"`
	Ambient     []string `json:"ambient"`
}

// CreateContainer is the host's intent. The guest writes the OCI spec itself.
type CreateContainer struct {
	Container string   `json:"container"`
	Args      []string `json:"args"`
	Env       []string `json:"env"`
	Cwd       string   `json:"cwd"`
	// User is user[:group], names or numbers, as docker's; "" is root. Names
	// are looked up in the container's own root.
	User  string `json:"user"`
	Stdio Stdio  `json:"stdio"`

	Mounts       []Mount `json:"mounts,omitempty"`
	ReadOnlyRoot bool    `json:"read_only_root,omitempty"`
	Privileged   bool    `json:"privileged,omitempty"`
	// NoNewPrivileges sets no_new_privs on the process.
	NoNewPrivileges bool `json:"no_new_privileges,omitempty"`
	// Capabilities nil: the default set for Privileged or not.
	Capabilities *Capabilities `json:"capabilities,omitempty"`
	Resources    Resources     `json:"resources"`
}

// Resources limit one container; zero is no limit.
type Resources struct {
	MilliCPUs   int64 `json:"milli_cpus,omitempty"`
	MemoryBytes int64 `json:"memory_bytes,omitempty"`
	Pids        int64 `json:"pids,omitempty"`
}

// Exec starts one more process in a running container, in the container's
// working directory and as its user unless Cwd and User say otherwise.
type Exec struct {
	Container       string        `json:"container"`
	Process         string        `json:"process"`
	Args            []string      `json:"args"`
	Env             []string      `json:"env"`
	Cwd             string        `json:"cwd"`
	User            string        `json:"user"`
	Stdio           Stdio         `json:"stdio"`
	NoNewPrivileges bool          `json:"no_new_privileges,omitempty"`
	Capabilities    *Capabilities `json:"capabilities,omitempty"`
}

// Signal sends a signal to a process; Process "" is the container's init.
type Signal struct {
	Container string `json:"container"`
	Process   string `json:"process,omitempty"`
	Signal    int    `json:"signal"`
}

// Resize sets the size of a process's terminal; Process "" is init.
type Resize struct {
	Container string `json:"container"`
	Process   string `json:"process,omitempty"`
	Cols      uint16 `json:"cols"`
	Rows      uint16 `json:"rows"`
}

// Stats is what a container used, as its cgroup says. The host must treat the
// numbers as the guest's word.
type Stats struct {
	CPUNanos         uint64 `json:"cpu_nanos"`
	MemoryBytes      uint64 `json:"memory_bytes"`
	MemoryLimitBytes uint64 `json:"memory_limit_bytes"` // the guest's memory if there is no limit
	Pids             uint64 `json:"pids"`
	RxBytes          uint64 `json:"rx_bytes"` // of the whole group
	TxBytes          uint64 `json:"tx_bytes"`
	BlockRead        uint64 `json:"block_read_bytes"`
	BlockWrite       uint64 `json:"block_write_bytes"`
	// AgentBytes is the resident memory of the guest's agent itself.
	AgentBytes uint64 `json:"agent_bytes"`
}

// Attest asks for evidence. What is bound is tee.ChallengeBinding(Nonce), so
// that a host can never choose a REPORT_DATA that means something else.
type Attest struct {
	Nonce []byte `json:"nonce"` // 16 to MaxNonce bytes
}

// AttestReply carries the evidence, without the policy, which the host has.
type AttestReply struct {
	Kind         tee.Kind `json:"kind"`
	Report       []byte   `json:"report"`
	Certificates []byte   `json:"certificates"`
}

// DumpStacksReply is the agent's own goroutine dump.
type DumpStacksReply struct {
	Text string `json:"text"`
}

// Code classifies an Error. The enumeration is closed and append-only.
type Code string

// The codes.
const (
	CodeInvalid     Code = "invalid"     // malformed, out of bounds, or of unknown fields
	CodeUnsupported Code = "unsupported" // unknown Op or version
	CodeState       Code = "state"       // not now: no policy yet, unknown or busy ID
	CodeDenied      Code = "denied"      // the policy says no
	CodeFailed      Code = "failed"      // allowed, but it did not work; nothing changed
	CodeNotFound    Code = "not_found"   // command not found in the container: exit status 127
	CodeNotExec     Code = "not_exec"    // command cannot be executed: exit status 126
	CodeFatal       Code = "fatal"       // the guest ends after this answer
)

// Error is the answer to a request that did nothing. Text is written for the
// host's reader and holds no secret.
type Error struct {
	Code Code   `json:"code"`
	Text string `json:"text"`
	// Denial is set with CodeDenied.
	Denial *Denial `json:"denial,omitempty"`
}

func (e *Error) Error() string { return e.Text }

// Denial explains a refusal by the policy.
type Denial struct {
	Point string `json:"point"`
	// Explanation is several lines: what was asked, what is allowed, and the
	// edit that would allow it.
	Explanation string `json:"explanation"`
	// PolicyDecision is the original's policyDecision<...>policyDecision form.
	PolicyDecision string `json:"policy_decision"`
}

// Event names what the guest tells unasked.
type Event string

// The events.
const (
	EventExit  Event = "exit"  // Exit
	EventFatal Event = "fatal" // Fatal; the guest powers off
	EventLog   Event = "log"   // Log; only if the policy allows runtime_logging
)

// Exit says that a process ended; Process "" is the container's init. It is
// sent after all output of the process has been written to its streams.
type Exit struct {
	Container string `json:"container"`
	Process   string `json:"process,omitempty"`
	// Status is the exit status, or 128 + the signal that ended it.
	Status int `json:"status"`
	// OOMKilled: the container's cgroup ran out of memory.
	OOMKilled bool `json:"oom_killed,omitempty"`
}

// Fatal is the guest's last word.
type Fatal struct {
	Text string `json:"text"`
}

// Log is one line of the agent's log.
type Log struct {
	Line string `json:"line"`
}

// request is host -> guest.
type request struct {
	ID   uint64          `json:"id"`
	Op   Op              `json:"op"`
	Body json.RawMessage `json:"body,omitempty"`
}

// message is guest -> host: an answer (ID set) or an event (Event set).
type message struct {
	ID    uint64          `json:"id,omitempty"`
	Event Event           `json:"event,omitempty"`
	Error *Error          `json:"error,omitempty"`
	Body  json.RawMessage `json:"body,omitempty"`
}
