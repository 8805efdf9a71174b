// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sync/errgroup"
)

// handlerFunc lets a test write its guest inline.
type handlerFunc func(ctx context.Context, op Op, body []byte) (any, *Error)

func (f handlerFunc) Handle(ctx context.Context, op Op, body []byte) (any, *Error) {
	return f(ctx, op, body)
}

// pair runs a guest with handler make(server) and returns the host's client.
func pair(t *testing.T, onEvent func(Event, json.RawMessage), mk func(*Server) Handler) (*Client, func() error) {
	t.Helper()
	hostEnd, guestEnd := net.Pipe()
	var guest errgroup.Group
	guest.Go(func() error {
		s, err := Accept(guestEnd)
		if err != nil {
			return err
		}
		return s.Serve(context.Background(), mk(s))
	})
	c, err := Dial(hostEnd, onEvent)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		c.Close()
		hostEnd.Close()
		_ = guest.Wait()
	})
	return c, guest.Wait
}

func TestCallAnswersAndRefuses(t *testing.T) {
	c, _ := pair(t, nil, func(*Server) Handler {
		return handlerFunc(func(_ context.Context, op Op, body []byte) (any, *Error) {
			switch op {
			case OpHello:
				var in Hello
				if err := Decode(body, &in); err != nil {
					return nil, &Error{Code: CodeInvalid, Text: err.Error()}
				}
				return HelloReply{Version: in.Version, Guest: "test"}, nil
			case OpShutdown:
				return nil, nil
			default:
				return nil, &Error{Code: CodeDenied, Text: "no", Denial: &Denial{Point: string(op)}}
			}
		})
	})
	ctx := context.Background()
	var reply HelloReply
	if err := c.Call(ctx, OpHello, Hello{Version: 7}, &reply); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(HelloReply{Version: 7, Guest: "test"}, reply); diff != "" {
		t.Errorf("hello: (-want +got)\n%s", diff)
	}
	err := c.Call(ctx, OpExec, Exec{}, nil)
	var refusal *Error
	if !errors.As(err, &refusal) || refusal.Code != CodeDenied || refusal.Denial.Point != "exec" {
		t.Errorf("Call(exec) = %#v; want a denial of exec", err)
	}
	if err := c.Call(ctx, OpShutdown, nil, nil); err != nil {
		t.Errorf("Call(shutdown) = %v; want nil", err)
	}
	<-c.Done() // the guest ends the session by itself
}

func TestRequestsAreHandledOneAtATime(t *testing.T) {
	var mu sync.Mutex
	busy, most := 0, 0
	c, _ := pair(t, nil, func(*Server) Handler {
		return handlerFunc(func(context.Context, Op, []byte) (any, *Error) {
			mu.Lock()
			busy++
			most = max(most, busy)
			mu.Unlock()
			mu.Lock()
			busy--
			mu.Unlock()
			return nil, nil
		})
	})
	var calls errgroup.Group
	for range 100 {
		calls.Go(func() error { return c.Call(context.Background(), OpStats, nil, nil) })
	}
	if err := calls.Wait(); err != nil {
		t.Fatal(err)
	}
	if most != 1 {
		t.Errorf("%d requests were handled at once; want 1", most)
	}
}

func TestStreamsCarryDataBothWaysWhileAnotherIsStuck(t *testing.T) {
	c, _ := pair(t, nil, func(s *Server) Handler {
		return handlerFunc(func(ctx context.Context, op Op, body []byte) (any, *Error) {
			var in CreateContainer
			if err := Decode(body, &in); err != nil {
				return nil, &Error{Code: CodeInvalid, Text: err.Error()}
			}
			noisy, err := s.Claim(ctx, in.Stdio.Stdout)
			if err != nil {
				return nil, &Error{Code: CodeInvalid, Text: err.Error()}
			}
			go func() { // nobody reads this one: it fills its window and stays there
				_, _ = noisy.Write(make([]byte, 4<<20))
			}()
			echo, err := s.Claim(ctx, in.Stdio.Terminal)
			if err != nil {
				return nil, &Error{Code: CodeInvalid, Text: err.Error()}
			}
			go func() {
				_, _ = io.Copy(echo, echo)
				echo.Close()
			}()
			return nil, nil
		})
	})
	stuck, err := c.OpenStream()
	if err != nil {
		t.Fatal(err)
	}
	tty, err := c.OpenStream()
	if err != nil {
		t.Fatal(err)
	}
	in := CreateContainer{Stdio: Stdio{Stdout: stuck.StreamID(), Terminal: tty.StreamID()}}
	if err := c.Call(context.Background(), OpCreateContainer, in, nil); err != nil {
		t.Fatal(err)
	}
	want := bytes.Repeat([]byte("coffer"), 200_000)
	go func() {
		_, _ = tty.Write(want)
		tty.Close()
	}()
	got, err := io.ReadAll(tty)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("read %d bytes, err %v; want %d bytes and nil", len(got), err, len(want))
	}
}

func TestClaimRefusesWhatWasNeverOpened(t *testing.T) {
	c, _ := pair(t, nil, func(s *Server) Handler {
		return handlerFunc(func(ctx context.Context, _ Op, _ []byte) (any, *Error) {
			ctx, cancel := context.WithCancel(ctx)
			cancel()
			if _, err := s.Claim(ctx, 99); err != nil {
				return nil, &Error{Code: CodeInvalid, Text: err.Error()}
			}
			return nil, nil
		})
	})
	err := c.Call(context.Background(), OpExec, nil, nil)
	if err == nil || !strings.Contains(err.Error(), "did not open it") {
		t.Errorf("Call = %v; want a refusal that says the stream was not opened", err)
	}
}

func TestEventsArriveInOrderBeforeTheSessionEnds(t *testing.T) {
	got := make(chan int, 10)
	c, _ := pair(t, func(e Event, body json.RawMessage) {
		var x Exit
		if e == EventExit && Decode(body, &x) == nil {
			got <- x.Status
		}
	}, func(s *Server) Handler {
		return handlerFunc(func(context.Context, Op, []byte) (any, *Error) {
			for i := range 3 {
				if err := s.Send(EventExit, Exit{Container: "c", Status: i}); err != nil {
					return nil, &Error{Code: CodeFatal, Text: err.Error()}
				}
			}
			return nil, &Error{Code: CodeFatal, Text: "the end"}
		})
	})
	err := c.Call(context.Background(), OpSignal, nil, nil)
	var fatal *Error
	if !errors.As(err, &fatal) || fatal.Code != CodeFatal {
		t.Errorf("Call = %v; want the fatal answer", err)
	}
	<-c.Done()
	for want := range 3 {
		if s := <-got; s != want {
			t.Errorf("event %d has status %d", want, s)
		}
	}
	if err := c.Call(context.Background(), OpSignal, nil, nil); !errors.Is(err, ErrClosed) {
		t.Errorf("Call after the end = %v; want ErrClosed", err)
	}
}

func TestFrameLimits(t *testing.T) {
	big := make([]byte, 4)
	binary.BigEndian.PutUint32(big, 1<<31)
	if _, err := readFrame(bytes.NewReader(big), MaxMessage); !errors.Is(err, ErrTooLarge) {
		t.Errorf("readFrame(2 GiB) = %v; want ErrTooLarge", err)
	}
	cut := []byte{0, 0, 0, 9, '{'}
	if _, err := readFrame(bytes.NewReader(cut), MaxMessage); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("readFrame(cut) = %v; want unexpected EOF", err)
	}
	if err := writeFrame(io.Discard, strings.Repeat("x", MaxMessage)); !errors.Is(err, ErrTooLarge) {
		t.Errorf("writeFrame(too large) = %v; want ErrTooLarge", err)
	}
}

func TestDecodeIsStrict(t *testing.T) {
	for _, c := range []struct {
		in string
		ok bool
	}{
		{`{"container":"a"}`, true},
		{``, true},
		{`{"container":"a","more":1}`, false},
		{`{"container":"a"} {}`, false},
		{`{"container":1}`, false},
		{`[]`, false},
	} {
		var v ContainerRef
		if err := Decode([]byte(c.in), &v); (err == nil) != c.ok {
			t.Errorf("Decode(%q) = %v; want ok %v", c.in, err, c.ok)
		}
	}
}

// FuzzServer feeds arbitrary bytes to a guest's end as a hostile host would.
func FuzzServer(f *testing.F) {
	f.Add([]byte{0, 1, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, raw []byte) {
		hostEnd, guestEnd := net.Pipe()
		var g errgroup.Group
		g.Go(func() error {
			s, err := Accept(guestEnd)
			if err != nil {
				return err
			}
			return s.Serve(context.Background(), handlerFunc(func(context.Context, Op, []byte) (any, *Error) { return nil, nil }))
		})
		g.Go(func() error { _, err := io.Copy(io.Discard, hostEnd); return err })
		_, _ = hostEnd.Write(raw)
		hostEnd.Close()
		_ = g.Wait()
	})
}

// FuzzFrame feeds arbitrary control-stream bytes to both message decoders.
func FuzzFrame(f *testing.F) {
	f.Add([]byte("\x00\x00\x00\x02{}"))
	f.Add([]byte("\x00\x00\x00\x1f{\"id\":1,\"op\":\"hello\",\"body\":{}}"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		r := bytes.NewReader(raw)
		for {
			b, err := readFrame(r, 1<<16)
			if err != nil {
				return
			}
			var req request
			_ = Decode(b, &req)
			var m message
			_ = Decode(b, &m)
			for _, v := range []any{&Hello{}, &SetPolicy{}, &Network{}, &CreateContainer{}, &Exec{}, &Exit{}, &Stats{}} {
				_ = Decode(req.Body, v)
			}
		}
	})
}
