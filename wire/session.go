// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"io"
	"time"

	"github.com/hashicorp/yamux"
)

// Stream is the raw byte stream of one process's standard file. Close ends
// the writer's direction; the reader sees io.EOF after all that was written.
type Stream interface {
	io.ReadWriteCloser
	// StreamID is the number that Stdio carries.
	StreamID() uint32
}

// sessionConfig is the same on both sides. There is no keep-alive: a guest
// under load may be slow, and a dead peer closes the channel.
func sessionConfig() *yamux.Config {
	return &yamux.Config{
		AcceptBacklog:          MaxStreams,
		EnableKeepAlive:        false,
		KeepAliveInterval:      time.Minute, // must be positive; unused
		ConnectionWriteTimeout: 10 * time.Minute,
		MaxStreamWindowSize:    256 << 10,
		StreamOpenTimeout:      0, // the host opens streams before the guest is up
		StreamCloseTimeout:     time.Minute,
		LogOutput:              io.Discard,
	}
}
