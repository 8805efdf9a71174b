// SPDX-License-Identifier: Apache-2.0

package guestimage

// CommandLine is the kernel's command line, the same for every guest and measured
// with it. docs/guest-image.md has the reason for each word.
const CommandLine = "console=ttyS0 quiet loglevel=4 panic=-1 oops=panic" + // one console; a guest that is broken ends
	" random.trust_cpu=on random.trust_bootloader=off cgroup_no_v1=all" + // no entropy from the host; one cgroup hierarchy
	" cryptomgr.notests tsc=reliable no_timer_check 8250.nr_uarts=1 i8042.noaux i8042.nokbd" // a quicker boot
