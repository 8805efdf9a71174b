// SPDX-License-Identifier: Apache-2.0

package snp

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// This file is the wire between a guest and its emulated secure processor, one
// ordered byte channel of its own (docs/attestation.md, "Emulated secure
// processor channel"). Each side takes the other for hostile: requests have
// one fixed size, a reply says its size within a fixed bound before it comes.

// Sizes of the channel's frames, in bytes.
const (
	ChannelRequestSize     = 88
	channelReplyHeaderSize = 24
	// MaxChannelBody is the largest body of a reply.
	MaxChannelBody = MaxCertificateTable
)

const (
	channelMagic   = "CSP1"
	channelVersion = 1
)

// RequestType is what a guest asks its emulated processor for.
type RequestType uint16

const (
	// GetReport asks for a report over Data for VMPL.
	GetReport RequestType = 1
	// GetCertificates asks for the certificate table. Data and VMPL are zero.
	GetCertificates RequestType = 2
)

// Status is the processor's answer to a request (the ABI, STATUS of
// MSG_REPORT_RSP and MSG_KEY_RSP).
type Status uint32

// Values of Status.
const (
	StatusOK               Status = 0
	StatusInvalidParameter Status = 0x16
	StatusInvalidKey       Status = 0x27
)

// ErrChannel is wrapped by every refusal of a frame. After it the channel is
// out of step and must be closed.
var ErrChannel = errors.New("malformed secure processor frame")

// ChannelRequest is what a guest sends.
type ChannelRequest struct {
	Type RequestType
	// Sequence comes back in the reply.
	Sequence uint64
	VMPL     uint32
	Data     [64]byte
}

// Encode returns the frame.
func (r ChannelRequest) Encode() [ChannelRequestSize]byte {
	var f [ChannelRequestSize]byte
	le := binary.LittleEndian
	copy(f[:], channelMagic)
	le.PutUint16(f[4:], channelVersion)
	le.PutUint16(f[6:], uint16(r.Type))
	le.PutUint64(f[8:], r.Sequence)
	le.PutUint32(f[16:], r.VMPL)
	copy(f[24:], r.Data[:])
	return f
}

// DecodeChannelRequest reads a frame that a hostile guest may have sent. It
// lets any VMPL pass; the processor answers StatusInvalidParameter to one that
// it does not know.
func DecodeChannelRequest(f [ChannelRequestSize]byte) (ChannelRequest, error) {
	le := binary.LittleEndian
	r := ChannelRequest{
		Type:     RequestType(le.Uint16(f[6:])),
		Sequence: le.Uint64(f[8:]),
		VMPL:     le.Uint32(f[16:]),
		Data:     [64]byte(f[24:]),
	}
	switch {
	case string(f[:4]) != channelMagic:
		return ChannelRequest{}, fmt.Errorf("%w: no magic", ErrChannel)
	case le.Uint16(f[4:]) != channelVersion:
		return ChannelRequest{}, fmt.Errorf("%w: version %d", ErrChannel, le.Uint16(f[4:]))
	case r.Type != GetReport && r.Type != GetCertificates:
		return ChannelRequest{}, fmt.Errorf("%w: request type %d", ErrChannel, r.Type)
	case le.Uint32(f[20:]) != 0:
		return ChannelRequest{}, fmt.Errorf("%w: reserved bytes", ErrChannel)
	case r.Type == GetCertificates && (r.VMPL != 0 || r.Data != [64]byte{}):
		return ChannelRequest{}, fmt.Errorf("%w: parameters for certificates", ErrChannel)
	}
	return r, nil
}

// ChannelReply is what the processor answers. Body is empty unless Status is
// StatusOK; otherwise it is a report of ReportSize bytes or a certificate
// table.
type ChannelReply struct {
	Type     RequestType
	Sequence uint64
	Status   Status
	Body     []byte
}

// check holds the rules for both sides.
func (r ChannelReply) check(bodySize uint32) error {
	switch {
	case r.Type != GetReport && r.Type != GetCertificates:
		return fmt.Errorf("%w: reply type %d", ErrChannel, r.Type)
	case bodySize > MaxChannelBody:
		return fmt.Errorf("%w: body of %d bytes, at most %d", ErrChannel, bodySize, MaxChannelBody)
	case r.Status != StatusOK && bodySize != 0:
		return fmt.Errorf("%w: body with status %#x", ErrChannel, uint32(r.Status))
	case r.Status == StatusOK && r.Type == GetReport && bodySize != ReportSize:
		return fmt.Errorf("%w: report of %d bytes", ErrChannel, bodySize)
	}
	return nil
}

// Encode returns the frame.
func (r ChannelReply) Encode() ([]byte, error) {
	if len(r.Body) > MaxChannelBody {
		return nil, fmt.Errorf("%w: body of %d bytes, at most %d", ErrChannel, len(r.Body), MaxChannelBody)
	}
	if err := r.check(uint32(len(r.Body))); err != nil {
		return nil, err
	}
	f := make([]byte, channelReplyHeaderSize, channelReplyHeaderSize+len(r.Body))
	le := binary.LittleEndian
	copy(f, channelMagic)
	le.PutUint16(f[4:], channelVersion)
	le.PutUint16(f[6:], uint16(r.Type))
	le.PutUint64(f[8:], r.Sequence)
	le.PutUint32(f[16:], uint32(r.Status))
	le.PutUint32(f[20:], uint32(len(r.Body)))
	return append(f, r.Body...), nil
}

// ReadChannelReply reads one frame from a host that may lie. It reads nothing
// past the frame and allocates at most MaxChannelBody bytes. io.EOF means that
// the channel ended before the frame began.
func ReadChannelReply(from io.Reader) (ChannelReply, error) {
	var h [channelReplyHeaderSize]byte
	if _, err := io.ReadFull(from, h[:]); err != nil {
		return ChannelReply{}, err
	}
	le := binary.LittleEndian
	r := ChannelReply{
		Type:     RequestType(le.Uint16(h[6:])),
		Sequence: le.Uint64(h[8:]),
		Status:   Status(le.Uint32(h[16:])),
	}
	size := le.Uint32(h[20:])
	if !bytes.Equal(h[:4], []byte(channelMagic)) || le.Uint16(h[4:]) != channelVersion {
		return ChannelReply{}, fmt.Errorf("%w: no magic or another version", ErrChannel)
	}
	if err := r.check(size); err != nil {
		return ChannelReply{}, err
	}
	r.Body = make([]byte, size)
	if _, err := io.ReadFull(from, r.Body); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return ChannelReply{}, err
	}
	return r, nil
}
