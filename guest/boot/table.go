// SPDX-License-Identifier: Apache-2.0

package boot

import "golang.org/x/sys/unix"

const guarded = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC

// Table is the boot of a real guest, up to its modules. Nothing in it comes from
// the host.
func Table() []Step { return append(early(), late()...) }

// early is what modules need.
func early() []Step {
	return []Step{
		Umask(0o022),
		Root{}, // so that runc can pivot_root
		Mount{"devtmpfs", "/dev", "devtmpfs", unix.MS_NOSUID | unix.MS_NOEXEC, "mode=0755"},
		Mount{"proc", "/proc", "proc", guarded, ""},
	}
}

// late is the rest, done while modules are loaded.
func late() []Step {
	return []Step{
		Mount{"sysfs", "/sys", "sysfs", guarded, ""},
		Mount{"cgroup2", "/sys/fs/cgroup", "cgroup2", guarded, ""},
		Controllers{"/sys/fs/cgroup"},
		Dir{"/dev/pts", 0o755},
		Dir{"/dev/shm", 0o755},
		Dir{"/dev/mqueue", 0o755},
		Mount{"devpts", "/dev/pts", "devpts", unix.MS_NOSUID | unix.MS_NOEXEC, "mode=0620,gid=5,ptmxmode=0666"},
		Mount{"tmpfs", "/dev/shm", "tmpfs", guarded, "mode=1777"},
		Mount{"mqueue", "/dev/mqueue", "mqueue", guarded, ""},
		Symlink{"/proc/self/fd", "/dev/fd"},
		// The containers' roots and volumes are mounted below /run.
		Mount{"tmpfs", "/run", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, "mode=0755"},
		Mount{"tmpfs", "/tmp", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, "mode=1777"},
		Hostname("coffer"),
		Link("lo"),

		// What docker's hosts have, as far as a container may notice it.
		File{"/proc/sys/kernel/pid_max", "4194304"},
		File{"/proc/sys/fs/file-max", "9223372036854775807"},
		File{"/proc/sys/fs/nr_open", "1073741816"},
		Limit{unix.RLIMIT_NOFILE, 1 << 20},
		File{"/proc/sys/vm/max_map_count", "262144"},
		File{"/proc/sys/net/ipv4/ip_unprivileged_port_start", "0"},
		File{"/proc/sys/net/ipv4/ping_group_range", "0 2147483647"},
		// What a distribution's init sets.
		File{"/proc/sys/fs/protected_hardlinks", "1"},
		File{"/proc/sys/fs/protected_symlinks", "1"},
		File{"/proc/sys/fs/protected_fifos", "1"},
		File{"/proc/sys/fs/protected_regular", "2"},
		File{"/proc/sys/kernel/dmesg_restrict", "1"},
		File{"/proc/sys/kernel/kptr_restrict", "2"},
		// Whoever is root in a container must not replace the measured kernel.
		File{"/proc/sys/kernel/kexec_load_disabled", "1"},
		File{"/proc/sys/kernel/sysrq", "0"},
		// A guest that has oopsed has lost its word.
		File{"/proc/sys/kernel/panic_on_oops", "1"},
		File{"/proc/sys/kernel/panic", "-1"},
	}
}
