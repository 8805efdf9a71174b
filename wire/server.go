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

// Handler does what a request asks. The returned value becomes the answer's
// body (nil: none). An *Error of CodeFatal ends Serve after it was sent.
type Handler interface {
	Handle(ctx context.Context, op Op, body []byte) (any, *Error)
}

// Server is the guest's end of a session. The host is hostile to it.
type Server struct {
	session *yamux.Session
	control *yamux.Stream

	writing sync.Mutex // guards writes to control

	mu      sync.Mutex // guards the fields below
	arrived *sync.Cond // signalled when streams or ended change
	streams map[uint32]*yamux.Stream
	ended   bool
}

// Accept waits for the host on conn and takes conn over.
func Accept(conn io.ReadWriteCloser) (*Server, error) {
	session, err := yamux.Server(conn, sessionConfig())
	if err != nil {
		return nil, fmt.Errorf("starting a session: %w", err)
	}
	control, err := session.AcceptStream()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("accepting the control stream: %w", err), session.Close())
	}
	s := &Server{session: session, control: control, streams: make(map[uint32]*yamux.Stream)}
	s.arrived = sync.NewCond(&s.mu)
	return s, nil
}

// Serve handles requests one at a time, in order, until the host closes the
// session or has had OpShutdown done (nil), a fatal answer was sent, or the host
// breaks the protocol.
func (s *Server) Serve(ctx context.Context, h Handler) error {
	defer s.session.Close()
	go s.acceptStreams() // ends with the session
	for {
		b, err := readFrame(s.control, MaxMessage)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("reading a request: %w", err)
		}
		var req request
		if err := Decode(b, &req); err != nil {
			return fmt.Errorf("reading a request: %w", err)
		}
		done, err := s.answer(ctx, h, req)
		if err != nil || done && req.Op == OpShutdown {
			return err
		}
	}
}

// answer reports whether the handler did what was asked.
func (s *Server) answer(ctx context.Context, h Handler, req request) (bool, error) {
	m := message{ID: req.ID}
	v, refusal := h.Handle(ctx, req.Op, req.Body)
	if refusal != nil {
		m.Error = refusal
	} else if v != nil {
		body, err := json.Marshal(v)
		if err != nil {
			return false, fmt.Errorf("encoding the answer to %s: %w", req.Op, err)
		}
		m.Body = body
	}
	if err := s.write(m); err != nil {
		return false, fmt.Errorf("answering %s: %w", req.Op, err)
	}
	if refusal != nil && refusal.Code == CodeFatal {
		return false, refusal
	}
	return refusal == nil, nil
}

// Send tells the host an event. It may be called from any goroutine.
func (s *Server) Send(e Event, body any) error {
	b, err := marshalBody(body)
	if err != nil {
		return fmt.Errorf("encoding event %s: %w", e, err)
	}
	return s.write(message{Event: e, Body: b})
}

func (s *Server) write(m message) error {
	s.writing.Lock()
	defer s.writing.Unlock()
	return writeFrame(s.control, m)
}

// acceptStreams keeps streams until a request claims them. Over MaxStreams the
// newest is closed at once: the host harms only itself.
func (s *Server) acceptStreams() {
	for {
		stream, err := s.session.AcceptStream()
		s.mu.Lock()
		switch {
		case err != nil:
			s.ended = true
		case len(s.streams) >= MaxStreams:
			_ = stream.Close() // refused; nobody waits for it
		default:
			s.streams[stream.StreamID()] = stream
		}
		s.arrived.Broadcast()
		s.mu.Unlock()
		if err != nil {
			return
		}
	}
}

// Claim takes the data stream with this number over. A stream can be claimed
// once. Its opening precedes on the channel the request that names it, so it
// is there or about to be; a number that the host never opened is waited for
// until ctx ends.
func (s *Server) Claim(ctx context.Context, id uint32) (Stream, error) {
	stop := context.AfterFunc(ctx, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.arrived.Broadcast()
	})
	defer stop()
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		if stream, ok := s.streams[id]; ok {
			delete(s.streams, id)
			return stream, nil
		}
		if s.ended {
			return nil, fmt.Errorf("claiming stream %d: %w", id, io.ErrClosedPipe)
		}
		if ctx.Err() != nil {
			return nil, fmt.Errorf("claiming stream %d: the host did not open it: %w", id, ctx.Err())
		}
		s.arrived.Wait()
	}
}

// Close ends the session.
func (s *Server) Close() error { return s.session.Close() }
