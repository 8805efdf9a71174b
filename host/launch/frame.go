// SPDX-License-Identifier: Apache-2.0

package launch

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
)

// kind is the first byte of a frame between command line and supervisor:
//
//	kind, 1 byte | length, 4 bytes big-endian | length bytes
//
// A connection is one request: the client sends kindRequest, the supervisor
// answers kindReply, and for attach, exec and follow frames of data follow.
type kind byte

const (
	kindRequest kind = 'q' // JSON request
	kindReply   kind = 'r' // JSON reply
	kindStdin   kind = 'i' // bytes; none is end of file
	kindStdout  kind = 'o'
	kindStderr  kind = 'e'
	kindResize  kind = 'w' // JSON size
	kindExit    kind = 'x' // JSON exit, the last frame
)

// maxFrame bounds a frame's content, in bytes.
const maxFrame = 1 << 20

// maxData is how much data one frame carries.
const maxData = 32 << 10

func writeFrame(w io.Writer, k kind, b []byte) error {
	if len(b) > maxFrame {
		return fmt.Errorf("writing frame: %d bytes, more than %d", len(b), maxFrame)
	}
	head := make([]byte, 5, 5+len(b))
	head[0] = byte(k)
	binary.BigEndian.PutUint32(head[1:], uint32(len(b)))
	_, err := w.Write(append(head, b...))
	return err
}

func writeJSON(w io.Writer, k kind, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("writing frame: %w", err)
	}
	return writeFrame(w, k, b)
}

func readFrame(r io.Reader) (kind, []byte, error) {
	var head [5]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, nil, err
	}
	n := binary.BigEndian.Uint32(head[1:])
	if n > maxFrame {
		return 0, nil, fmt.Errorf("reading frame: %d bytes, more than %d", n, maxFrame)
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(r, b); err != nil {
		return 0, nil, fmt.Errorf("reading frame: %w", err)
	}
	return kind(head[0]), b, nil
}

// readJSON reads one frame that must be of kind k.
func readJSON(r io.Reader, k kind, v any) error {
	got, b, err := readFrame(r)
	if err != nil {
		return err
	}
	if got != k {
		return fmt.Errorf("reading frame: got kind %q, want %q", got, k)
	}
	if err := json.Unmarshal(b, v); err != nil {
		return fmt.Errorf("reading frame: %w", err)
	}
	return nil
}

// op names what a client wants.
type op string

const (
	opAttach op = "attach"
	opExec   op = "exec"
	opKill   op = "kill"
	opStop   op = "stop"
	opWait   op = "wait"
	opStats  op = "stats"
	opAttest op = "attest"
	opFollow op = "follow" // a frame of kindStdout without content whenever the log grew
)

// request is the first frame of a connection.
type request struct {
	Op      op       `json:"op"`
	Signal  int      `json:"signal,omitempty"`
	Timeout float64  `json:"timeout,omitempty"` // seconds
	Nonce   []byte   `json:"nonce,omitempty"`
	NoStdin bool     `json:"no_stdin,omitempty"`
	Exec    *Program `json:"exec,omitempty"`
}

// Program is a process to exec.
type Program struct {
	Args     []string `json:"args"`
	Env      []string `json:"env,omitempty"`
	Cwd      string   `json:"cwd,omitempty"`
	User     string   `json:"user,omitempty"`
	Terminal bool     `json:"terminal,omitempty"`
	Stdin    bool     `json:"stdin,omitempty"`
	// Detach: the process gets no standard files and nobody waits for it.
	Detach bool   `json:"detach,omitempty"`
	Cols   uint16 `json:"cols,omitempty"`
	Rows   uint16 `json:"rows,omitempty"`
}

// reply is the supervisor's answer: an error, or the result.
type reply struct {
	Error  *Failure        `json:"error,omitempty"`
	Result json.RawMessage `json:"result,omitempty"`
}

// size of a terminal.
type size struct {
	Cols uint16 `json:"cols"`
	Rows uint16 `json:"rows"`
}

// Exit is how a process ended.
type Exit struct {
	Status int `json:"status"`
	// OOM: the container's memory limit was met.
	OOM bool `json:"oom_killed,omitempty"`
	// Error is set when it was not the process that ended but the group.
	Error string `json:"error,omitempty"`
}
