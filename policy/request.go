// SPDX-License-Identifier: Apache-2.0

package policy

// Request is one thing the host asks for. Its concrete types are the request structs of this package, by value;
// anything else is denied. The JSON names are those of the enforcement point's input.
type Request interface {
	// Point is the name of the enforcement point, as the policy spells it.
	Point() string
}

// MountDevice asks to mount a read-only disk. DeviceHash is the root hash, in lower-case hex, that the guest's
// dm-verity device was opened with. MountPathRegex is the guest's own; the target must match it unless it is empty.
type MountDevice struct {
	Target         string `json:"target"`
	DeviceHash     string `json:"deviceHash"`
	MountPathRegex string `json:"mountPathRegex,omitempty"`
}

// UnmountDevice asks to unmount a read-only disk.
type UnmountDevice struct {
	UnmountTarget string `json:"unmountTarget"`
}

// RWMountDevice asks to mount a writable disk.
type RWMountDevice struct {
	Target           string `json:"target"`
	Encrypted        bool   `json:"encrypted"`
	EnsureFilesystem bool   `json:"ensureFilesystem"`
	Filesystem       string `json:"filesystem"`
	MountPathRegex   string `json:"mountPathRegex,omitempty"`
}

// RWUnmountDevice asks to unmount a writable disk.
type RWUnmountDevice struct {
	UnmountTarget string `json:"unmountTarget"`
}

// MountOverlay asks to make a root file system of mounted layers, given from top to bottom.
type MountOverlay struct {
	ContainerID string   `json:"containerID"`
	LayerPaths  []string `json:"layerPaths"`
	Target      string   `json:"target"`
}

// UnmountOverlay asks to unmount a root file system.
type UnmountOverlay struct {
	UnmountTarget string `json:"unmountTarget"`
}

// ScratchMount asks to use a writable layer. Encrypted is what the guest knows of it, not what the host says.
type ScratchMount struct {
	Target    string `json:"target"`
	Encrypted bool   `json:"encrypted"`
}

// ScratchUnmount asks to give up a writable layer.
type ScratchUnmount struct {
	UnmountTarget string `json:"unmountTarget"`
}

// IDName is a user or group as the guest finds it in the container's own files; Name is "" if there is no name.
type IDName struct {
	ID   string `json:"id"`
	Name string `json:"name"`
}

// Mount is a mount as the OCI runtime will make it. No options and an empty list of options are the same.
type Mount struct {
	Destination string   `json:"destination"`
	Source      string   `json:"source"`
	Options     []string `json:"options"`
	Type        string   `json:"type"`
}

// Capabilities are the five sets of a process.
type Capabilities struct {
	Bounding    []string `json:"bounding"`
	Effective   []string `json:"effective"`
	Inheritable []string `json:"inheritable"`
	Permitted   []string `json:"permitted"`
	Ambient     []string `json:"ambient"`
}

// Device is a device node that the host asks for. No policy allows any yet.
type Device struct {
	Path     string `json:"path"`
	Type     string `json:"type"`
	Major    int64  `json:"major"`
	Minor    int64  `json:"minor"`
	FileMode uint32 `json:"fileMode,omitempty"`
	UID      uint32 `json:"uid,omitempty"`
	GID      uint32 `json:"gid,omitempty"`
}

// CreateContainer asks to start a container on an overlay that was mounted for ContainerID. SandboxDir and
// HugePagesDir are the guest's directories that sandbox:// and hugepages:// stand for; sources in Mounts already
// hold them. A nil Capabilities is denied.
type CreateContainer struct {
	ContainerID          string        `json:"containerID"`
	ArgList              []string      `json:"argList"`
	EnvList              []string      `json:"envList"`
	WorkingDir           string        `json:"workingDir"`
	SandboxDir           string        `json:"sandboxDir"`
	HugePagesDir         string        `json:"hugePagesDir"`
	Mounts               []Mount       `json:"mounts"`
	Privileged           bool          `json:"privileged"`
	NoNewPrivileges      bool          `json:"noNewPrivileges"`
	User                 IDName        `json:"user"`
	Groups               []IDName      `json:"groups"`
	Umask                string        `json:"umask"`
	Capabilities         *Capabilities `json:"capabilities"`
	SeccompProfileSHA256 string        `json:"seccompProfileSHA256"`
	Devices              []Device      `json:"devices,omitempty"`
	IsSandboxContainer   bool          `json:"isSandboxContainer,omitempty"`
}

// ExecInContainer asks to start one more process in a started container. A nil Capabilities is denied.
type ExecInContainer struct {
	ContainerID     string        `json:"containerID"`
	ArgList         []string      `json:"argList"`
	EnvList         []string      `json:"envList"`
	WorkingDir      string        `json:"workingDir"`
	NoNewPrivileges bool          `json:"noNewPrivileges"`
	User            IDName        `json:"user"`
	Groups          []IDName      `json:"groups"`
	Umask           string        `json:"umask"`
	Capabilities    *Capabilities `json:"capabilities"`
}

// ExecExternal asks to run a process in the guest outside any container.
type ExecExternal struct {
	ArgList    []string `json:"argList"`
	EnvList    []string `json:"envList"`
	WorkingDir string   `json:"workingDir"`
}

// SignalContainerProcess asks to send a signal. ArgList is what the process was started with; it counts only if it is
// not the container's first process.
type SignalContainerProcess struct {
	ContainerID   string   `json:"containerID"`
	Signal        int      `json:"signal"`
	IsInitProcess bool     `json:"isInitProcess"`
	ArgList       []string `json:"argList"`
}

// ShutdownContainer asks to end a container.
type ShutdownContainer struct {
	ContainerID string `json:"containerID"`
}

// Plan9Mount asks to mount a directory of the host. Prefixes are the guest's own: the target must be
// RootPrefix/ID followed by something that MountPathPrefix, a regular expression, matches, for an ID whose overlay
// is mounted.
type Plan9Mount struct {
	RootPrefix      string `json:"rootPrefix"`
	MountPathPrefix string `json:"mountPathPrefix"`
	Target          string `json:"target"`
}

// Plan9Unmount asks to unmount a directory of the host.
type Plan9Unmount struct {
	UnmountTarget string `json:"unmountTarget"`
}

// GetProperties asks for statistics and properties of containers and processes.
type GetProperties struct{}

// RuntimeLogging asks to send the guest's log to the host.
type RuntimeLogging struct{}

// DumpStacks asks for the stacks of the guest agent.
type DumpStacks struct{}

// HostNetwork asks to run a container in the guest's own network namespace.
type HostNetwork struct{}

func (MountDevice) Point() string            { return "mount_device" }             // Point implements Request.
func (UnmountDevice) Point() string          { return "unmount_device" }           // Point implements Request.
func (RWMountDevice) Point() string          { return "rw_mount_device" }          // Point implements Request.
func (RWUnmountDevice) Point() string        { return "rw_unmount_device" }        // Point implements Request.
func (MountOverlay) Point() string           { return "mount_overlay" }            // Point implements Request.
func (UnmountOverlay) Point() string         { return "unmount_overlay" }          // Point implements Request.
func (ScratchMount) Point() string           { return "scratch_mount" }            // Point implements Request.
func (ScratchUnmount) Point() string         { return "scratch_unmount" }          // Point implements Request.
func (CreateContainer) Point() string        { return "create_container" }         // Point implements Request.
func (ExecInContainer) Point() string        { return "exec_in_container" }        // Point implements Request.
func (ExecExternal) Point() string           { return "exec_external" }            // Point implements Request.
func (SignalContainerProcess) Point() string { return "signal_container_process" } // Point implements Request.
func (ShutdownContainer) Point() string      { return "shutdown_container" }       // Point implements Request.
func (Plan9Mount) Point() string             { return "plan9_mount" }              // Point implements Request.
func (Plan9Unmount) Point() string           { return "plan9_unmount" }            // Point implements Request.
func (GetProperties) Point() string          { return "get_properties" }           // Point implements Request.
func (RuntimeLogging) Point() string         { return "runtime_logging" }          // Point implements Request.
func (DumpStacks) Point() string             { return "dump_stacks" }              // Point implements Request.
func (HostNetwork) Point() string            { return "host_network" }             // Point implements Request.
