// SPDX-License-Identifier: Apache-2.0

package launch

import (
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/coffer-dev/coffer/wire"
)

// client is one attached command line.
type client struct {
	conn net.Conn
	mu   sync.Mutex // guards writes to conn
	gone bool       // guarded by mu
}

// send writes a frame; after an error the client is gone.
func (c *client) send(k kind, b []byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.gone {
		return net.ErrClosed
	}
	err := writeFrame(c.conn, k, b)
	c.gone = err != nil
	return err
}

func (c *client) sendJSON(k kind, v any) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.gone {
		return net.ErrClosed
	}
	err := writeJSON(c.conn, k, v)
	c.gone = err != nil
	return err
}

// output is one output stream of a process.
type output struct {
	kind kind
	r    io.ReadCloser
}

// process is one process in the guest, as its clients see it.
type process struct {
	name  string // "" is init
	stdio wire.Stdio
	outs  []output       // output streams, read once flow is called
	input io.Closer      // the stream behind stdin; nil: none
	stdin io.WriteCloser // nil: none, or ended; guarded by inMu once clients are served
	log   *record        // nil: output is not kept
	pumps sync.WaitGroup

	moved   atomic.Int64 // bytes of output so far
	sending atomic.Int32 // pumps that wait for a client

	inMu sync.Mutex // guards writes to stdin, and its close

	mu      sync.Mutex // guards clients and exit
	clients map[*client]bool
	exit    *Exit
	exited  chan struct{} // closed when exit is set
	drained chan struct{} // closed when all output has gone to the clients
}

func newProcess(name string, log *record) *process {
	return &process{name: name, log: log, clients: map[*client]bool{}, exited: make(chan struct{}), drained: make(chan struct{})}
}

// open opens the streams that the guest will be told of.
func (p *process) open(c *wire.Client, terminal, stdin bool, s size) error {
	if terminal {
		t, err := c.OpenStream()
		if err != nil {
			return err
		}
		p.stdio = wire.Stdio{Terminal: t.StreamID(), Cols: s.Cols, Rows: s.Rows}
		if stdin {
			p.stdin, p.input = t, t
		}
		p.outs = append(p.outs, output{kindStdout, t})
		return nil
	}
	if stdin {
		in, err := c.OpenStream()
		if err != nil {
			return err
		}
		p.stdio.Stdin, p.stdin, p.input = in.StreamID(), in, in
	}
	for _, f := range []struct {
		k  kind
		id *uint32
	}{{kindStdout, &p.stdio.Stdout}, {kindStderr, &p.stdio.Stderr}} {
		out, err := c.OpenStream()
		if err != nil {
			return err
		}
		*f.id = out.StreamID()
		p.outs = append(p.outs, output{f.k, out})
	}
	return nil
}

// flow starts to hand output on. Who is attached by then misses nothing; until
// then the streams' windows hold it.
func (p *process) flow() {
	for _, o := range p.outs {
		p.pump(o.kind, o.r)
	}
}

// pump hands on one output stream until it ends. A client that does not read
// holds the stream up, and with it its writer in the guest; nothing else.
func (p *process) pump(k kind, r io.ReadCloser) {
	p.pumps.Go(func() {
		defer r.Close()
		stream := "stdout"
		if k == kindStderr {
			stream = "stderr"
		}
		b := make([]byte, maxData)
		for {
			n, err := r.Read(b)
			if n > 0 {
				if p.log != nil {
					_ = p.log.write(stream, b[:n]) // a full disk costs the log, not the container
				}
				p.moved.Add(int64(n))
				p.sending.Add(1)
				for _, c := range p.attached() {
					if c.send(k, b[:n]) != nil {
						p.detach(c)
					}
				}
				p.sending.Add(-1)
			}
			if err != nil {
				return
			}
		}
	})
}

func (p *process) attached() []*client {
	p.mu.Lock()
	defer p.mu.Unlock()
	out := make([]*client, 0, len(p.clients))
	for c := range p.clients {
		out = append(out, c)
	}
	return out
}

func (p *process) attach(c *client) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.clients[c] = true
}

func (p *process) detach(c *client) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.clients, c)
}

// write is a client's input; none is end of file.
func (p *process) write(b []byte) {
	p.inMu.Lock()
	defer p.inMu.Unlock()
	if p.stdin == nil {
		return
	}
	if len(b) > 0 {
		if _, err := p.stdin.Write(b); err != nil {
			p.stdin = nil // the process does not read any more
		}
		return
	}
	if p.stdio.Terminal != 0 {
		return // a terminal has no end of file but ctrl-d
	}
	_ = p.stdin.Close() // if it fails, the session has ended
	p.stdin = nil
}

// end records how the process ended; only the first word counts.
func (p *process) end(e Exit) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.exit != nil {
		return
	}
	p.exit = &e
	close(p.exited)
}

// idleTime is how long an ended process's output may stay open with nothing in it.
const idleTime = 5 * time.Second

// drain waits for the output's end. A client may take as long as it likes, but
// a guest that said the process has ended has written all there is: if nothing
// comes for idleTime, it lied, and nobody waits for it.
func (p *process) drain() {
	done := make(chan struct{})
	go func() {
		defer close(done)
		p.pumps.Wait()
	}()
	t := time.NewTicker(idleTime)
	defer t.Stop()
	for last := p.moved.Load(); ; {
		select {
		case <-done:
			return
		case <-t.C:
		}
		now := p.moved.Load()
		if now == last && p.sending.Load() == 0 {
			return
		}
		last = now
	}
}

// finish waits for the output to drain and tells the clients.
func (p *process) finish() {
	p.drain()
	p.mu.Lock()
	exit := *p.exit
	p.mu.Unlock()
	for _, c := range p.attached() {
		_ = c.sendJSON(kindExit, exit) // a client that has gone needs no word
	}
	if p.input != nil {
		_ = p.input.Close() // frees a client's write that waits for a reader
	}
	close(p.drained)
}

// serve reads a client's input and sizes until it goes.
func (p *process) serve(c *client, resize func(size), stdin bool) error {
	for {
		k, b, err := readFrame(c.conn)
		if err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		switch k {
		case kindStdin:
			if stdin {
				p.write(b)
			}
		case kindResize:
			if s, ok := parseSize(b); ok {
				resize(s)
			}
		default:
			return errors.New("reading client: unexpected frame")
		}
	}
}

// closeStreams ends the streams of a process that never was.
func (p *process) closeStreams() {
	for _, o := range p.outs {
		_ = o.r.Close() // if it fails, the session has ended
	}
	if p.input != nil {
		_ = p.input.Close()
	}
}

// running reports whether the process has not ended.
func (p *process) running() bool {
	select {
	case <-p.exited:
		return false
	default:
		return true
	}
}
