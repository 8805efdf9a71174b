// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"encoding/hex"
	"path"
	"strings"

	"github.com/coffer-dev/coffer/wire"
)

// The names that the host may use (docs/wire.md, Names). They are matched by
// hand: compiling expressions takes a tenth of the agent's start.
const (
	processForm = "^[a-z0-9][a-z0-9_.-]{0,63}$"
	volumeForm  = "^[A-Za-z0-9][A-Za-z0-9_.-]{0,127}$"
)

func isID(s string) bool {
	return len(s) == 64 && strings.Trim(s, "0123456789abcdef") == ""
}

func isProcess(s string) bool {
	return isName(s, 64) && strings.ToLower(s) == s
}

func isVolume(s string) bool { return isName(s, 128) }

// isName is a letter or digit, then letters, digits, "_", "." and "-".
func isName(s string, longest int) bool {
	if s == "" || len(s) > longest || strings.ContainsRune("_.-", rune(s[0])) {
		return false
	}
	for i := range len(s) {
		c := s[i]
		if (c < '0' || c > '9') && (c < 'A' || c > 'Z') && (c < 'a' || c > 'z') && c != '_' && c != '.' && c != '-' {
			return false
		}
	}
	return true
}

func checkID(what, id string) error {
	if !isID(id) {
		return refuse(wire.CodeInvalid, "%s must be 64 lower-case hexadecimal digits", what)
	}
	return nil
}

func checkDevice(n int) error {
	if n < 0 || n >= wire.MaxDevices {
		return refuse(wire.CodeInvalid, "device %d is outside 0 to %d", n, wire.MaxDevices-1)
	}
	return nil
}

func parseRootHash(s string) ([32]byte, error) {
	var root [32]byte
	if !isID(s) {
		return root, refuse(wire.CodeInvalid, "root_hash must be 64 lower-case hexadecimal digits")
	}
	_, err := hex.Decode(root[:], []byte(s))
	return root, err
}

// checkProgram checks what both create_container and exec bring.
func checkProgram(args, env []string, cwd, user string) error {
	if len(args) == 0 {
		return refuse(wire.CodeInvalid, "args is empty: there is no command to run")
	}
	if len(args) > wire.MaxArgs || len(env) > wire.MaxArgs {
		return refuse(wire.CodeInvalid, "args or env has more than %d elements", wire.MaxArgs)
	}
	for _, list := range [][]string{args, env, {cwd, user}} {
		for _, s := range list {
			if len(s) > wire.MaxString || strings.ContainsRune(s, 0) {
				return refuse(wire.CodeInvalid, "a string of args, env, cwd or user is over %d bytes or holds a zero byte", wire.MaxString)
			}
		}
	}
	if args[0] == "" {
		return refuse(wire.CodeInvalid, "the command is empty")
	}
	for _, e := range env {
		if strings.IndexByte(e, '=') <= 0 {
			return refuse(wire.CodeInvalid, "an element of env is not of the form NAME=VALUE")
		}
	}
	if cwd != "" && !path.IsAbs(cwd) {
		return refuse(wire.CodeInvalid, "cwd must be an absolute path")
	}
	return nil
}

func checkStdio(s wire.Stdio) error {
	if s.Terminal != 0 && (s.Stdin != 0 || s.Stdout != 0 || s.Stderr != 0) {
		return refuse(wire.CodeInvalid, "a process with a terminal has no other standard files")
	}
	return nil
}

func checkMounts(mounts []wire.Mount) error {
	if len(mounts) > wire.MaxArgs {
		return refuse(wire.CodeInvalid, "more than %d mounts", wire.MaxArgs)
	}
	for _, m := range mounts {
		if !path.IsAbs(m.Destination) || path.Clean(m.Destination) != m.Destination || m.Destination == "/" ||
			len(m.Destination) > 4096 || strings.ContainsRune(m.Destination, 0) {
			return refuse(wire.CodeInvalid, "a mount's destination must be a clean absolute path below /")
		}
		switch {
		case (m.Volume == "") == (m.Device == nil):
			return refuse(wire.CodeInvalid, "a mount must name a volume or a device, and not both")
		case m.Volume != "" && !isVolume(m.Volume):
			return refuse(wire.CodeInvalid, "a volume's name must match %s", volumeForm)
		case m.Device != nil && !m.ReadOnly:
			return refuse(wire.CodeInvalid, "a device can only be mounted read-only")
		}
	}
	return nil
}
