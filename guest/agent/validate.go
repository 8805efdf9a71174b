// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"encoding/hex"
	"path"
	"regexp"
	"strings"

	"github.com/coffer-dev/coffer/wire"
)

// The names that the host may use (docs/wire.md, Names).
var (
	idPattern      = regexp.MustCompile(`^[0-9a-f]{64}$`)
	processPattern = regexp.MustCompile(`^[a-z0-9][a-z0-9_.-]{0,63}$`)
	volumePattern  = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]{0,127}$`)
)

func checkID(what, id string) error {
	if !idPattern.MatchString(id) {
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
	if !idPattern.MatchString(s) {
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
		case m.Volume != "" && !volumePattern.MatchString(m.Volume):
			return refuse(wire.CodeInvalid, "a volume's name must match %s", volumePattern)
		case m.Device != nil && !m.ReadOnly:
			return refuse(wire.CodeInvalid, "a device can only be mounted read-only")
		}
	}
	return nil
}
