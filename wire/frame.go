// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// ErrTooLarge means that the peer announced a message over MaxMessage.
var ErrTooLarge = errors.New("message exceeds the limit")

// readFrame reads one length-prefixed message. Memory grows with what really
// arrives, not with what the length announces.
func readFrame(r io.Reader, limit int) ([]byte, error) {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, err
	}
	size := binary.BigEndian.Uint32(head[:])
	if uint64(size) > uint64(limit) {
		return nil, fmt.Errorf("reading a message of %d bytes: %w of %d", size, ErrTooLarge, limit)
	}
	var buf bytes.Buffer
	n, err := io.CopyN(&buf, r, int64(size))
	if err != nil {
		return nil, fmt.Errorf("reading %d of %d bytes of a message: %w", n, size, noEOF(err))
	}
	return buf.Bytes(), nil
}

// noEOF keeps a cut message from looking like an orderly end.
func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// writeFrame writes v as one message in a single write.
func writeFrame(w io.Writer, v any) error {
	var buf bytes.Buffer
	buf.Write(make([]byte, 4))
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return fmt.Errorf("encoding a message: %w", err)
	}
	b := buf.Bytes()
	if len(b)-4 > MaxMessage {
		return fmt.Errorf("writing a message of %d bytes: %w of %d", len(b)-4, ErrTooLarge, MaxMessage)
	}
	binary.BigEndian.PutUint32(b, uint32(len(b)-4))
	_, err := w.Write(b)
	return err
}

// Decode reads one JSON value strictly: unknown fields and trailing data are
// errors. An empty body decodes as an empty object.
func Decode(body []byte, into any) error {
	if len(body) == 0 {
		body = []byte("{}")
	}
	dec := json.NewDecoder(bytes.NewReader(body))
	dec.DisallowUnknownFields()
	if err := dec.Decode(into); err != nil {
		return fmt.Errorf("decoding a message: %w", err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return errors.New("decoding a message: data after the value")
	}
	return nil
}
