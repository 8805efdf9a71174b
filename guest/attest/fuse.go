// SPDX-License-Identifier: Apache-2.0

package attest

import (
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// The part of the FUSE protocol that a character device needs (Linux,
// include/uapi/linux/fuse.h, version 7.31). Requests come from the guest's own
// kernel; what an ioctl carries comes from a container.
const (
	fuseMajor = 7
	fuseMinor = 31

	opOpen      = 14
	opRelease   = 18
	opInterrupt = 36
	opDestroy   = 38
	opIoctl     = 39
	opCUSEInit  = 4096

	inHeaderSize   = 40
	outHeaderSize  = 16
	ioctlInSize    = 32
	ioctlOutSize   = 16
	iovecSize      = 16
	initInSize     = 16
	initOutSize    = 72
	openOutSize    = 16
	interruptSize  = 8
	maxRequestSize = 64 << 10 // the kernel wants at least 8 KiB

	ioctlCompat = 1 << 0
	ioctlRetry  = 1 << 2

	cuseUnrestrictedIoctl = 1 << 0
	openDirectIO          = 1 << 0
)

// errFUSE is wrapped by every refusal of a request.
var errFUSE = errors.New("malformed FUSE request")

// request is one request of the kernel.
type request struct {
	opcode uint32
	unique uint64
	body   []byte
}

func parseRequest(data []byte) (request, error) {
	if len(data) < inHeaderSize {
		return request{}, fmt.Errorf("%w: %d bytes", errFUSE, len(data))
	}
	le := binary.LittleEndian
	if n := le.Uint32(data); uint64(n) != uint64(len(data)) {
		return request{}, fmt.Errorf("%w: %d bytes say they are %d", errFUSE, len(data), n)
	}
	return request{le.Uint32(data[4:]), le.Uint64(data[8:]), data[inHeaderSize:]}, nil
}

// parseIoctl reads the body of an ioctl. A compat caller has another struct;
// the kernel's driver does not serve it either.
func parseIoctl(body []byte) (c call, compat bool, err error) {
	if len(body) < ioctlInSize {
		return call{}, false, fmt.Errorf("%w: ioctl of %d bytes", errFUSE, len(body))
	}
	le := binary.LittleEndian
	c = call{command: le.Uint32(body[12:]), arg: le.Uint64(body[16:]), outSize: le.Uint32(body[28:]), in: body[ioctlInSize:]}
	if n := le.Uint32(body[24:]); uint64(n) != uint64(len(c.in)) {
		return call{}, false, fmt.Errorf("%w: ioctl with %d of %d bytes", errFUSE, len(c.in), n)
	}
	return c, le.Uint32(body[8:])&ioctlCompat != 0, nil
}

// reply packs a reply: errno is zero or positive.
func reply(unique uint64, errno unix.Errno, body []byte) []byte {
	out := make([]byte, outHeaderSize, outHeaderSize+len(body))
	le := binary.LittleEndian
	le.PutUint32(out, uint32(outHeaderSize+len(body)))
	le.PutUint32(out[4:], uint32(-int32(errno)))
	le.PutUint64(out[8:], unique)
	return append(out, body...)
}

// ioctlReply packs an answer without work. An error of the ioctl goes into its
// result, not into the header, since the kernel would drop the data then.
func ioctlReply(unique uint64, a answer) []byte {
	le := binary.LittleEndian
	body := make([]byte, ioctlOutSize)
	if len(a.in) == 0 {
		le.PutUint32(body, uint32(a.result))
		return reply(unique, 0, append(body, a.data...))
	}
	le.PutUint32(body[4:], ioctlRetry)
	le.PutUint32(body[8:], uint32(len(a.in)))
	le.PutUint32(body[12:], uint32(len(a.out)))
	for _, list := range [][]memory{a.in, a.out} {
		for _, m := range list {
			body = le.AppendUint64(body, m.base)
			body = le.AppendUint64(body, m.size)
		}
	}
	return reply(unique, 0, body)
}

// initReply answers CUSE_INIT: the kernel then makes the device.
func initReply(r request, name string, major, minor uint32) ([]byte, error) {
	le := binary.LittleEndian
	if len(r.body) < initInSize || r.opcode != opCUSEInit {
		return nil, fmt.Errorf("%w: no CUSE_INIT", errFUSE)
	}
	if m, n := le.Uint32(r.body), le.Uint32(r.body[4:]); m != fuseMajor || n < fuseMinor {
		return nil, fmt.Errorf("%w: kernel speaks FUSE %d.%d, want %d.%d or later", errFUSE, m, n, fuseMajor, fuseMinor)
	}
	if le.Uint32(r.body[12:])&cuseUnrestrictedIoctl == 0 {
		return nil, fmt.Errorf("%w: kernel offers no unrestricted ioctls", errFUSE)
	}
	body := make([]byte, initOutSize)
	le.PutUint32(body[0:], fuseMajor)
	le.PutUint32(body[4:], fuseMinor)
	le.PutUint32(body[12:], cuseUnrestrictedIoctl)
	le.PutUint32(body[16:], pageSize) // max_read
	le.PutUint32(body[20:], pageSize) // max_write
	le.PutUint32(body[24:], major)
	le.PutUint32(body[28:], minor)
	return reply(r.unique, 0, append(body, "DEVNAME="+name+"\x00"...)), nil
}

func le64(b []byte) uint64 { return binary.LittleEndian.Uint64(b) }
