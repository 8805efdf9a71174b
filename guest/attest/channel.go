// SPDX-License-Identifier: Apache-2.0

package attest

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/coffer-dev/coffer/tee/snp"
)

// channel is the way to the host's emulated secure processor. The host may
// lie, stall or close it.
type channel struct {
	turn
	port io.ReadWriteCloser

	// Owned by whoever has the turn.
	sequence uint64
	certs    []byte // the table, nil until it has been read
	broken   error  // set once the channel is out of step
}

func newChannel(port io.ReadWriteCloser) *channel { return &channel{turn: newTurn(), port: port} }

func (c *channel) close() error { return c.end(c.port.Close) }

func (c *channel) report(ctx context.Context, data [64]byte, vmpl uint32) ([]byte, []byte, error) {
	return c.take(ctx, func() ([]byte, []byte, error) { return c.fetch(data, vmpl) })
}

// fetch gets a report, and the certificates if they are not known yet.
func (c *channel) fetch(data [64]byte, vmpl uint32) (report, certs []byte, err error) {
	if report, err = c.ask(snp.ChannelRequest{Type: snp.GetReport, VMPL: vmpl, Data: data}); err != nil {
		return nil, nil, err
	}
	if c.certs == nil {
		if c.certs, err = c.ask(snp.ChannelRequest{Type: snp.GetCertificates}); err != nil {
			return nil, nil, err
		}
	}
	return report, c.certs, nil
}

// ask sends one request and reads its reply. After an error other than a
// refusal the two sides may be out of step, so the channel is given up.
func (c *channel) ask(r snp.ChannelRequest) ([]byte, error) {
	if c.broken != nil {
		return nil, c.broken
	}
	c.sequence++
	r.Sequence = c.sequence
	body, err := c.exchange(r)
	var refused *StatusError
	if err != nil && !errors.As(err, &refused) {
		c.broken = fmt.Errorf("asking the emulated secure processor: %w", err)
		return nil, c.broken
	}
	return body, err
}

func (c *channel) exchange(r snp.ChannelRequest) ([]byte, error) {
	frame := r.Encode()
	if _, err := c.port.Write(frame[:]); err != nil {
		return nil, err
	}
	reply, err := snp.ReadChannelReply(c.port)
	if err != nil {
		return nil, err
	}
	if reply.Type != r.Type || reply.Sequence != r.Sequence {
		return nil, fmt.Errorf("%w: reply to another request", ErrAnswer)
	}
	if reply.Status != snp.StatusOK {
		return nil, &StatusError{reply.Status}
	}
	return reply.Body, nil
}
