// SPDX-License-Identifier: Apache-2.0

package attest

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/coffer-dev/coffer/tee/snp"
)

// The driver's interface (Linux, include/uapi/linux/sev-guest.h).
const (
	ioctlGetReport     = 0xC0205300 // SNP_GET_REPORT
	ioctlGetDerivedKey = 0xC0205301 // SNP_GET_DERIVED_KEY
	ioctlGetExtReport  = 0xC0205302 // SNP_GET_EXT_REPORT

	argSize           = 32   // struct snp_guest_request_ioctl
	reportReqSize     = 96   // struct snp_report_req
	extReportReqSize  = 112  // struct snp_ext_report_req
	reportRespSize    = 4000 // struct snp_report_resp
	derivedKeyReqSize = 32   // struct snp_derived_key_req
	derivedKeyResp    = 64   // struct snp_derived_key_resp

	respHeaderSize  = 0x20 // before the report in snp_report_resp
	vmmErrorInvalid = 1    // SNP_GUEST_VMM_ERR_INVALID_LEN, in the high half of exitinfo2
	maxCertsLen     = 0x4000
	pageSize        = 4096
)

// guestRequest is struct snp_guest_request_ioctl.
type guestRequest struct {
	version   uint8
	_         [7]byte
	req, resp unsafe.Pointer
	exitinfo2 uint64
}

// extRequest is struct snp_ext_report_req.
type extRequest struct {
	data     [64]byte
	vmpl     uint32
	_        [28]byte
	certs    unsafe.Pointer
	certsLen uint32
	_        uint32
}

// device is the kernel's /dev/sev-guest on hardware.
type device struct {
	turn
	file *os.File
}

func newDevice(f *os.File) *device { return &device{newTurn(), f} }

func (d *device) close() error { return d.end(d.file.Close) }

func (d *device) report(ctx context.Context, data [64]byte, vmpl uint32) ([]byte, []byte, error) {
	return d.take(ctx, func() ([]byte, []byte, error) {
		report, certs, err := d.extended(data, vmpl)
		var refused *StatusError
		if err == nil || errors.As(err, &refused) {
			return report, certs, err
		}
		// The host may have no certificates to give, or more than fit.
		report, plainErr := d.plain(data, vmpl)
		if plainErr != nil {
			return nil, nil, errors.Join(err, plainErr)
		}
		return report, nil, nil
	})
}

// extended asks for a report and the host's certificate table.
func (d *device) extended(data [64]byte, vmpl uint32) (report, certs []byte, err error) {
	certs = make([]byte, maxCertsLen)
	req := &extRequest{data: data, vmpl: vmpl, certs: unsafe.Pointer(&certs[0]), certsLen: maxCertsLen}
	resp, err := d.ioctl(ioctlGetExtReport, unsafe.Pointer(req))
	runtime.KeepAlive(certs)
	if err != nil {
		return nil, nil, fmt.Errorf("asking for an extended report: %w", err)
	}
	if report, err = reportIn(resp); err != nil {
		return nil, nil, err
	}
	return report, trimTable(certs), nil
}

// plain asks for a report only.
func (d *device) plain(data [64]byte, vmpl uint32) ([]byte, error) {
	var req [reportReqSize]byte
	copy(req[:], data[:])
	binary.LittleEndian.PutUint32(req[64:], vmpl)
	resp, err := d.ioctl(ioctlGetReport, unsafe.Pointer(&req))
	if err != nil {
		return nil, fmt.Errorf("asking for a report: %w", err)
	}
	return reportIn(resp)
}

// ioctl runs one command and returns the response, of reportRespSize bytes.
func (d *device) ioctl(command uintptr, req unsafe.Pointer) ([]byte, error) {
	resp := new([reportRespSize]byte)
	arg := &guestRequest{version: 1, req: req, resp: unsafe.Pointer(resp)}
	var pinner runtime.Pinner
	defer pinner.Unpin()
	pinner.Pin(req)
	pinner.Pin(resp)
	pinner.Pin(arg)
	conn, err := d.file.SyscallConn()
	if err != nil {
		return nil, err
	}
	var errno unix.Errno
	err = conn.Control(func(fd uintptr) {
		_, _, errno = unix.Syscall(unix.SYS_IOCTL, fd, command, uintptr(unsafe.Pointer(arg)))
	})
	if err != nil {
		return nil, err
	}
	if errno != 0 {
		return nil, fmt.Errorf("%w (firmware error %#x, VMM error %#x)", errno, uint32(arg.exitinfo2), arg.exitinfo2>>32)
	}
	return resp[:], nil
}

// reportIn takes the report out of struct snp_report_resp.
func reportIn(resp []byte) ([]byte, error) {
	if status := binary.LittleEndian.Uint32(resp); status != 0 {
		return nil, &StatusError{snp.Status(status)}
	}
	if size := binary.LittleEndian.Uint32(resp[4:]); size != snp.ReportSize {
		return nil, fmt.Errorf("%w: report of %d bytes", ErrAnswer, size)
	}
	return bytes.Clone(resp[respHeaderSize : respHeaderSize+snp.ReportSize]), nil
}

// trimTable returns nil for pages that the host left empty.
func trimTable(certs []byte) []byte {
	if bytes.Equal(certs, make([]byte, len(certs))) {
		return nil
	}
	return certs
}
