// SPDX-License-Identifier: Apache-2.0

package attest

import (
	"context"
	"errors"
)

// errClosed is returned for requests after close.
var errClosed = errors.New("the way to the secure processor is closed")

// turn lets one request at a time use a device that may block for ever, while
// callers can leave. A request that its caller left goes on until the device
// answers, and only then is it the next one's turn: answers never get mixed up.
type turn struct {
	busy   chan struct{} // holds one token while a request is under way
	closed chan struct{}
}

func newTurn() turn { return turn{make(chan struct{}, 1), make(chan struct{})} }

type outcome struct {
	report, certs []byte
	err           error
}

// take runs f when it is its turn and returns what f returns, or ctx's error
// if ctx is done first.
func (t turn) take(ctx context.Context, f func() ([]byte, []byte, error)) (report, certs []byte, err error) {
	select {
	case t.busy <- struct{}{}:
	case <-t.closed:
		return nil, nil, errClosed
	case <-ctx.Done():
		return nil, nil, ctx.Err()
	}
	select {
	case <-t.closed:
		<-t.busy
		return nil, nil, errClosed
	default:
	}
	done := make(chan outcome, 1)
	go func() {
		defer func() { <-t.busy }()
		report, certs, err := f()
		done <- outcome{report, certs, err}
	}()
	select {
	case o := <-done:
		return o.report, o.certs, o.err
	case <-ctx.Done():
		return nil, nil, ctx.Err()
	}
}

// end refuses further requests, runs unblock to make a blocked one return, and
// waits for it. It is called once.
func (t turn) end(unblock func() error) error {
	close(t.closed)
	err := unblock()
	t.busy <- struct{}{}
	return err
}
