// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/hashicorp/yamux"
)

// ErrClosed means that the session ended before the answer came.
var ErrClosed = errors.New("the guest closed the session")

// Client is the host's end of a session. The guest is hostile to it: what
// arrives is bounded, and an answer nobody asked for ends the session.
type Client struct {
	session *yamux.Session
	control *yamux.Stream
	onEvent func(Event, json.RawMessage)
	done    chan struct{} // closed when the read loop has ended

	writing sync.Mutex // guards writes to control

	mu      sync.Mutex // guards the fields below
	next    uint64
	waiting map[uint64]chan message
	err     error
}

// Dial starts a session over conn and takes conn over. The guest need not be
// listening yet. onEvent is called for each event in order, from one
// goroutine; it must not block and must not call Call. It may be nil.
func Dial(conn io.ReadWriteCloser, onEvent func(Event, json.RawMessage)) (*Client, error) {
	session, err := yamux.Client(conn, sessionConfig())
	if err != nil {
		return nil, fmt.Errorf("starting a session: %w", err)
	}
	control, err := session.OpenStream()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("opening the control stream: %w", err), session.Close())
	}
	if onEvent == nil {
		onEvent = func(Event, json.RawMessage) {}
	}
	c := &Client{session: session, control: control, onEvent: onEvent,
		done: make(chan struct{}), waiting: make(map[uint64]chan message)}
	go c.read() // ends with the session; Close waits for it
	return c, nil
}

// Call sends a request and waits for its answer. in may be nil; out may be
// nil. The guest's refusal is returned as *Error. Calls may be made
// concurrently; the guest handles them one at a time, in order of arrival.
// When ctx ends first, Call returns its error and a late answer is dropped:
// the guest may still have done what was asked.
func (c *Client) Call(ctx context.Context, op Op, in, out any) error {
	body, err := marshalBody(in)
	if err != nil {
		return fmt.Errorf("encoding %s: %w", op, err)
	}
	id, answer, err := c.register()
	if err != nil {
		return fmt.Errorf("asking the guest for %s: %w", op, err)
	}
	c.writing.Lock()
	err = writeFrame(c.control, request{ID: id, Op: op, Body: body})
	c.writing.Unlock()
	if err != nil {
		c.forget(id)
		if errors.Is(err, ErrTooLarge) {
			return fmt.Errorf("asking the guest for %s: %w", op, err)
		}
		return fmt.Errorf("asking the guest for %s: %w", op, ErrClosed)
	}
	select {
	case m, ok := <-answer:
		if !ok {
			return fmt.Errorf("asking the guest for %s: %w", op, c.Err())
		}
		if m.Error != nil {
			return m.Error
		}
		if out == nil {
			return nil
		}
		return Decode(m.Body, out)
	case <-ctx.Done():
		c.forget(id)
		return fmt.Errorf("asking the guest for %s: %w", op, context.Cause(ctx))
	}
}

func marshalBody(in any) (json.RawMessage, error) {
	if in == nil {
		return nil, nil
	}
	return json.Marshal(in)
}

func (c *Client) register() (uint64, chan message, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return 0, nil, c.err
	}
	c.next++
	answer := make(chan message, 1)
	c.waiting[c.next] = answer
	return c.next, answer, nil
}

// forget keeps the number known, so that its late answer is no surprise.
func (c *Client) forget(id uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, ok := c.waiting[id]; ok {
		c.waiting[id] = nil
	}
}

// OpenStream opens a data stream, to be named in a Stdio.
func (c *Client) OpenStream() (Stream, error) {
	s, err := c.session.OpenStream()
	if err != nil {
		return nil, fmt.Errorf("opening a data stream: %w", err)
	}
	return s, nil
}

// Done is closed when the session has ended; Err then says why.
func (c *Client) Done() <-chan struct{} { return c.done }

// Err is nil while the session lives.
func (c *Client) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// Close ends the session and waits until no event can come any more.
func (c *Client) Close() error {
	err := c.session.Close()
	<-c.done
	return err
}

func (c *Client) read() {
	defer close(c.done)
	err := c.readAll()
	if errors.Is(err, io.EOF) || errors.Is(err, yamux.ErrSessionShutdown) {
		err = ErrClosed
	}
	c.mu.Lock()
	c.err = err
	for id, answer := range c.waiting {
		if answer != nil {
			close(answer)
		}
		delete(c.waiting, id)
	}
	c.mu.Unlock()
	_ = c.session.Close() // an error here has no reader; err says what happened
}

func (c *Client) readAll() error {
	for {
		b, err := readFrame(c.control, MaxMessage)
		if err != nil {
			return err
		}
		var m message
		if err := Decode(b, &m); err != nil {
			return err
		}
		if m.Event != "" {
			c.onEvent(m.Event, m.Body)
			continue
		}
		c.mu.Lock()
		answer, ok := c.waiting[m.ID]
		delete(c.waiting, m.ID)
		c.mu.Unlock()
		if !ok {
			return fmt.Errorf("reading from the guest: an answer to request %d, which was not asked", m.ID)
		}
		if answer != nil {
			answer <- m
		}
	}
}
