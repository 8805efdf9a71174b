// SPDX-License-Identifier: Apache-2.0

// Package wire is the language between host and guest: messages, frames and
// limits, as docs/wire.md specifies them.
//
// One ordered byte channel carries a yamux session. Its first stream, opened by
// the host, is the control stream: length-prefixed JSON, requests from the host,
// answers and events from the guest. Every other stream is the standard input,
// output or terminal of one process and carries raw bytes under yamux's flow
// control, so that a noisy output never delays a kill.
//
// Each side treats the other as hostile: lengths are checked before memory is
// spent, unknown fields are errors, and nothing here panics on any input. The
// package promises no more than that: who may ask what is decided by the guest's
// policy, and nothing that the guest says proves anything (see package tee).
package wire
