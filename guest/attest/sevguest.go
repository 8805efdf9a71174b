// SPDX-License-Identifier: Apache-2.0

package attest

import (
	"encoding/binary"

	"golang.org/x/sys/unix"

	"github.com/coffer-dev/coffer/tee/snp"
)

// This file is what /dev/sev-guest does with one ioctl, as a function of the
// memory that CUSE has fetched from the caller so far. The caller is a
// container and hostile. CUSE fetches memory in rounds: each answer either
// finishes the call or names the memory to fetch, and to write to, in the next
// round. Between rounds the caller may change its memory; every round starts
// from what arrives in it, and nothing is kept.
//
// Unlike the kernel's driver, a caller that changes its pointers meanwhile has
// the answer written where the pointers of the round before led, which is its
// own memory in any case.

// memory is an area of the caller's address space.
type memory struct{ base, size uint64 }

// call is one round of an ioctl.
type call struct {
	command uint32
	arg     uint64 // the caller's pointer to struct snp_guest_request_ioctl
	in      []byte // memory fetched, in the order asked for
	outSize uint32 // total size of the memory that may be written
}

// answer is what one round leads to: exactly one of its parts is used.
type answer struct {
	// in and out, if in is not empty, are the memory for the next round.
	in, out []memory

	// work, if not nil, is what to ask the secure processor for.
	work *work

	// result and data finish the call: data goes to the out memory in order.
	result int32
	data   []byte
}

// work is a report to fetch. The call ends with work.done.
type work struct {
	data     [64]byte
	vmpl     uint32
	certsLen uint32 // room for certificates, 0 if none are wanted
}

func fail(errno unix.Errno) answer { return answer{result: -int32(errno)} }

// Offsets in struct snp_guest_request_ioctl and struct snp_ext_report_req.
const (
	offReq, offResp, offExitinfo = 8, 16, 24
	offVMPL                      = 64
	offCerts, offCertsLen        = 96, 104
)

// exitinfoUnset is what the driver sets exitinfo2 to before it does anything.
const exitinfoUnset = 0xFF

// next decides one round. certsSize is the size of the certificate table.
func next(c call, certsSize uint32) answer {
	if len(c.in) == 0 {
		return answer{in: []memory{{c.arg, argSize}}}
	}
	if len(c.in) < argSize {
		return fail(unix.EFAULT)
	}
	arg := c.in[:argSize]
	if arg[0] == 0 { // msg_version
		return fail(unix.EINVAL)
	}
	var reqSize, respSize uint64
	switch c.command {
	case ioctlGetReport:
		reqSize, respSize = reportReqSize, reportRespSize
	case ioctlGetDerivedKey:
		reqSize, respSize = derivedKeyReqSize, derivedKeyResp
	case ioctlGetExtReport:
		reqSize, respSize = extReportReqSize, reportRespSize
	default:
		if len(c.in) != argSize {
			return fail(unix.EFAULT)
		}
		return c.failWith(unix.ENOTTY, exitinfoUnset, nil)
	}
	fetched := uint64(len(c.in)) == argSize+reqSize
	if !fetched && len(c.in) != argSize {
		return fail(unix.EFAULT)
	}
	req := memory{binary.LittleEndian.Uint64(arg[offReq:]), reqSize}
	resp := memory{binary.LittleEndian.Uint64(arg[offResp:]), respSize}
	if req.base == 0 || resp.base == 0 {
		if fetched {
			return fail(unix.EFAULT) // it changed meanwhile
		}
		return c.failWith(unix.EINVAL, exitinfoUnset, nil)
	}
	if !fetched {
		a := answer{in: []memory{{c.arg, argSize}, req}}
		if c.command != ioctlGetExtReport { // whose answers differ in what they write
			a.out = []memory{resp}
		}
		return a
	}
	switch c.command {
	case ioctlGetDerivedKey:
		return c.derivedKey(req, resp)
	case ioctlGetExtReport:
		return c.extReport(req, resp, certsSize)
	}
	return c.getReport(req, resp, memory{})
}

// failWith finishes with an error after writing the argument back with
// exitinfo2 set, and before it prefix to the memory first. It takes one more
// round to get leave to write.
func (c call) failWith(errno unix.Errno, exitinfo2 uint64, first *memory) answer {
	out := []memory{{c.arg, argSize}}
	data := make([]byte, 0, argSize+extReportReqSize)
	if first != nil {
		out = []memory{*first, {c.arg, argSize}}
		data = append(data, c.in[argSize:]...)
	}
	data = append(data, c.in[:argSize]...)
	if c.outSize != uint32(len(data)) {
		return answer{in: c.fetched(), out: out}
	}
	binary.LittleEndian.PutUint64(data[len(data)-argSize+offExitinfo:], exitinfo2)
	return answer{result: -int32(errno), data: data}
}

// fetched returns the memory that c.in came from, to ask for it again.
func (c call) fetched() []memory {
	in := []memory{{c.arg, argSize}}
	if n := uint64(len(c.in)) - argSize; n > 0 {
		in = append(in, memory{binary.LittleEndian.Uint64(c.in[offReq:]), n})
	}
	return in
}

// getReport asks for leave to write the response, and the certificates if
// there is room for them, and then for the report.
func (c call) getReport(req, resp, certs memory) answer {
	out := []memory{resp}
	if certs.size > 0 {
		out = append(out, certs)
	}
	if uint64(c.outSize) != resp.size+certs.size {
		return answer{in: []memory{{c.arg, argSize}, req}, out: out}
	}
	w := &work{certsLen: uint32(certs.size), vmpl: binary.LittleEndian.Uint32(c.in[argSize+offVMPL:])}
	copy(w.data[:], c.in[argSize:])
	return answer{work: w}
}

// extReport checks the room for certificates as the driver and the host do.
func (c call) extReport(req, resp memory, certsSize uint32) answer {
	body := c.in[argSize:]
	certs := memory{binary.LittleEndian.Uint64(body[offCerts:]), uint64(binary.LittleEndian.Uint32(body[offCertsLen:]))}
	if certs.base == 0 || certs.size == 0 {
		certs = memory{} // no certificates wanted
	}
	if certs.size > maxCertsLen || certs.size%pageSize != 0 {
		return c.failWith(unix.EINVAL, exitinfoUnset, nil)
	}
	if certs.size < uint64(certsSize) {
		// The host wants more room: tell how much, in whole pages.
		need := (certsSize + pageSize - 1) / pageSize * pageSize
		c.in = append([]byte(nil), c.in...)
		binary.LittleEndian.PutUint32(c.in[argSize+offCertsLen:], need)
		return c.failWith(unix.EIO, vmmErrorInvalid<<32, &req)
	}
	return c.getReport(req, resp, certs)
}

// derivedKey refuses as firmware does that has no such key: a key that the
// host could compute would only pretend to be sealed to the guest.
func (c call) derivedKey(req, resp memory) answer {
	if uint64(c.outSize) != resp.size {
		return answer{in: []memory{{c.arg, argSize}, req}, out: []memory{resp}}
	}
	data := make([]byte, resp.size)
	binary.LittleEndian.PutUint32(data, uint32(snp.StatusInvalidKey))
	return answer{data: data}
}

// done finishes a call with the secure processor's answer: a report and its
// certificates, or a refusal.
func (w *work) done(report, certs []byte, refused *StatusError) answer {
	data := make([]byte, reportRespSize+w.certsLen)
	if refused != nil {
		binary.LittleEndian.PutUint32(data, uint32(refused.Status))
		return answer{data: data[:reportRespSize]}
	}
	binary.LittleEndian.PutUint32(data[4:], uint32(len(report)))
	copy(data[respHeaderSize:reportRespSize], report)
	copy(data[reportRespSize:], certs)
	return answer{data: data}
}
