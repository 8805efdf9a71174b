// SPDX-License-Identifier: Apache-2.0

package policy

// point is what the API says of an enforcement point.
type point struct {
	since     version
	allowed   bool // the answer for policies of an older api_version that do not define the point
	framework bool // for those, the framework's rule decides instead
}

// pointInfo is the table of enforcement points that are decided here.
func pointInfo(name string) (point, bool) {
	switch name {
	case "mount_device", "mount_overlay", "create_container":
		return point{since: version{0, 1, 0}}, true
	case "unmount_device", "exec_in_container":
		return point{since: version{0, 2, 0}, allowed: true}, true
	case "exec_external":
		return point{since: version{0, 3, 0}, allowed: true}, true
	case "shutdown_container":
		return point{since: version{0, 4, 0}, allowed: true}, true
	case "signal_container_process":
		return point{since: version{0, 5, 0}, allowed: true}, true
	case "unmount_overlay", "plan9_mount", "plan9_unmount":
		return point{since: version{0, 6, 0}, allowed: true}, true
	case "get_properties", "dump_stacks":
		return point{since: version{0, 7, 0}, allowed: true}, true
	case "runtime_logging":
		return point{since: version{0, 8, 0}, allowed: true}, true
	case "scratch_mount", "scratch_unmount":
		return point{since: version{0, 10, 0}, allowed: true}, true
	case "rw_mount_device", "rw_unmount_device":
		return point{since: version{0, 11, 0}, framework: true}, true
	case "host_network":
		return point{since: version{0, 12, 0}}, true
	}
	return point{}, false
}

func isPoint(name string) bool {
	_, ok := pointInfo(name)
	return ok
}

// otherPoint tells the enforcement points that policies may name and that are never asked here: fragments, block
// devices and what exists on Windows only.
func otherPoint(name string) bool {
	switch name {
	case "load_fragment", "load_transparency_trust_list", "mount_blockdev", "unmount_blockdev", "mount_cims",
		"unmount_cims", "registry_changes", "log_provider", "mapped_directory_mount", "mapped_directory_unmount":
		return true
	}
	return false
}
