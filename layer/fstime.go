// SPDX-License-Identifier: Apache-2.0

package layer

import "time"

// Times on disk are 34 bits of seconds and 30 bits of nanoseconds above them. The reference converter takes a time
// before 1970 as it is, sign bits and all, so that its nanoseconds are lost; and reads a time from 2038 to 2106 back
// as one before 1970. Both show in the root hash, and are kept.
const (
	secondsBits = 34
	minSeconds  = -1 << 31
	maxSeconds  = 1<<secondsBits - 1<<31 - 1
)

// diskTime encodes t; the zero time is 0.
func diskTime(t time.Time) uint64 {
	s := t.Unix()
	switch {
	case t.IsZero():
		return 0
	case s < minSeconds:
		return 1 << 31
	case s > maxSeconds:
		return maxSeconds
	}
	return uint64(s) | uint64(t.Nanosecond())<<secondsBits
}

// reencode is what becomes of a time on disk that is read back and written again, as happens when a directory is
// created without an entry of its own and when a whiteout is added to its attributes.
func reencode(disk uint64) uint64 {
	if disk == 0 {
		return 0
	}
	s := int64(disk & (1<<secondsBits - 1))
	if s >= 1<<31 && s < 1<<32 {
		s -= 1 << 32
	}
	return diskTime(time.Unix(s, int64(disk>>secondsBits)))
}
