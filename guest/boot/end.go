// SPDX-License-Identifier: Apache-2.0

package boot

import (
	"fmt"
	"os"
	"runtime/debug"
	"strings"
	"unicode"

	"golang.org/x/sys/unix"
)

// FatalPrefix starts the one line that tells on the console why a guest ended.
const FatalPrefix = "coffer-guest: fatal: "

// maxFatal bounds that line, in bytes.
const maxFatal = 1000

// Fatal says on the console and in the kernel's log why the guest ends, and
// powers it off. It never returns.
func Fatal(err error) {
	line := FatalLine(err)
	if c, cerr := os.OpenFile("/dev/console", os.O_WRONLY|unix.O_NOCTTY, 0); cerr == nil {
		// The newline in front ends what may stand there without one.
		_, _ = c.WriteString("\n" + line + "\n")
		// Power-off does not wait for the serial line's buffer; TCSBRK with an
		// argument that is not zero does.
		_ = unix.IoctlSetInt(int(c.Fd()), unix.TCSBRK, 1)
	} else {
		_, _ = os.Stderr.WriteString(line + "\n")
	}
	// At a level that is not shown on the console, where it stands already.
	if k, kerr := os.OpenFile("/dev/kmsg", os.O_WRONLY, 0); kerr == nil {
		_, _ = k.WriteString("<6>" + line)
	}
	PowerOff()
}

// FatalLine is the line that Fatal prints, without a newline: one line of
// printable text of bounded length, whatever err holds.
func FatalLine(err error) string {
	text := "no reason given"
	if err != nil {
		text = err.Error()
	}
	if len(text) > maxFatal {
		text = text[:maxFatal] + "..."
	}
	text = strings.Map(func(r rune) rune {
		switch {
		case r == '\n' || r == '\t' || r == '\r':
			return ' '
		case !unicode.IsPrint(r):
			return '?'
		}
		return r
	}, text)
	return FatalPrefix + strings.Join(strings.Fields(text), " ")
}

// Guard is deferred at the top of every goroutine: a panic becomes Fatal, so that
// it too is told in one line. (A panic outside of it still ends the guest: the
// runtime prints "panic: ..." and the kernel panics for its init is gone.)
func Guard() {
	if p := recover(); p != nil {
		_, _ = os.Stderr.Write(debug.Stack())
		Fatal(fmt.Errorf("panic: %v", p))
	}
}

// PowerOff writes back file systems and switches the machine off. It never
// returns.
func PowerOff() {
	unix.Sync()
	err := unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	// Not reached in a guest. Ending PID 1 makes the kernel panic, which ends
	// the machine as well.
	_, _ = fmt.Fprintln(os.Stderr, FatalPrefix+"powering off:", err)
	os.Exit(1)
}
