// SPDX-License-Identifier: Apache-2.0

package author

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	sigInt    = 2
	sigKill   = 9
	sigTerm   = 15
	sigRTMin  = 34
	maxSignal = 64
)

// parseSignal reads a number or a name, with or without SIG, in any case; RTMIN+N and RTMAX-N too.
func parseSignal(s string) (int, error) {
	name := strings.TrimPrefix(strings.ToUpper(s), "SIG")
	n, err := strconv.Atoi(s)
	switch {
	case err == nil:
	case strings.HasPrefix(name, "RTMIN"):
		n, err = offset(name[len("RTMIN"):], "+", sigRTMin, 1)
	case strings.HasPrefix(name, "RTMAX"):
		n, err = offset(name[len("RTMAX"):], "-", maxSignal, -1)
	default:
		n, err = int(unix.SignalNum("SIG"+name)), nil
	}
	if err != nil || n < 1 || n > maxSignal {
		return 0, fmt.Errorf("%q is no signal", s)
	}
	return n, nil
}

func offset(s, sign string, from, step int) (int, error) {
	if s == "" {
		return from, nil
	}
	digits, ok := strings.CutPrefix(s, sign)
	n, err := strconv.ParseUint(digits, 10, 8)
	if !ok || err != nil || n > maxSignal-sigRTMin {
		return 0, fmt.Errorf("malformed offset %q", s)
	}
	return from + step*int(n), nil
}

func digest(s string) string {
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:16])
}
