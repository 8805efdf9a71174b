// SPDX-License-Identifier: Apache-2.0

package snp

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
)

// GUID is a GUID's 16 bytes in the order of its text form, as certificate
// tables have it.
type GUID [16]byte

// ParseGUID reads the text form with four hyphens.
func ParseGUID(s string) (GUID, error) {
	var g GUID
	if len(s) != 36 || s[8] != '-' || s[13] != '-' || s[18] != '-' || s[23] != '-' {
		return GUID{}, fmt.Errorf("parsing GUID: malformed %.40q", s)
	}
	n, err := hex.Decode(g[:], []byte(strings.ReplaceAll(s, "-", "")))
	if err != nil || n != len(g) {
		return GUID{}, fmt.Errorf("parsing GUID: malformed %.40q", s)
	}
	return g, nil
}

// String returns the text form.
func (g GUID) String() string {
	return fmt.Sprintf("%x-%x-%x-%x-%x", g[0:4], g[4:6], g[6:8], g[8:10], g[10:])
}

// CertificateKind is what a table's entry holds.
type CertificateKind string

// Kinds of entry (AMD 56421, GHCB specification, table of certificate GUIDs).
const (
	CertVCEK CertificateKind = "63da758d-e664-4564-adc5-f4b93be8accd"
	CertVLEK CertificateKind = "a8074bc2-a25a-483e-aae6-39c045a0b8a1"
	CertASK  CertificateKind = "4ab7b379-bbac-4fe4-a02f-05aef327c782" // or ASVK
	CertARK  CertificateKind = "c0b406a4-a803-4952-9743-3fb6014cd0ae"
)

// Limits of a certificate table. The size is Linux's SEV_FW_BLOB_MAX_SIZE.
const (
	MaxCertificateTable   = 0x4000
	maxCertificateEntries = 32
	certificateEntrySize  = 24
)

// ErrCertificateTable is wrapped by every refusal to read or write a table.
var ErrCertificateTable = errors.New("malformed certificate table")

// Certificate is one entry of a certificate table. Data is DER for the kinds
// named above.
type Certificate struct {
	GUID GUID
	Data []byte
}

// ParseCertificateTable reads the table of an extended report: at most
// MaxCertificateTable bytes. An empty table is fine. It refuses entries that
// repeat a GUID, are empty, overlap the header or leave the table, since those
// have no honest use. The entries' data alias data.
func ParseCertificateTable(data []byte) ([]Certificate, error) {
	if len(data) == 0 {
		return nil, nil
	}
	if len(data) > MaxCertificateTable {
		return nil, fmt.Errorf("%w: %d bytes, at most %d", ErrCertificateTable, len(data), MaxCertificateTable)
	}
	type span struct{ at, size uint32 }
	var (
		certs []Certificate
		spans []span
		end   int
	)
	for {
		if len(data)-end < certificateEntrySize {
			return nil, fmt.Errorf("%w: no end of the entries", ErrCertificateTable)
		}
		entry := data[end : end+certificateEntrySize]
		end += certificateEntrySize
		if bytes.Equal(entry, make([]byte, certificateEntrySize)) {
			break
		}
		if len(certs) == maxCertificateEntries {
			return nil, fmt.Errorf("%w: more than %d entries", ErrCertificateTable, maxCertificateEntries)
		}
		c := Certificate{GUID: GUID(entry[:16])}
		for _, other := range certs {
			if other.GUID == c.GUID {
				return nil, fmt.Errorf("%w: entry %s appears twice", ErrCertificateTable, c.GUID)
			}
		}
		certs = append(certs, c)
		spans = append(spans, span{binary.LittleEndian.Uint32(entry[16:]), binary.LittleEndian.Uint32(entry[20:])})
	}
	for i, s := range spans {
		if s.size == 0 || int64(s.at) < int64(end) || int64(s.at)+int64(s.size) > int64(len(data)) {
			return nil, fmt.Errorf("%w: entry %s has %d bytes at %d of %d", ErrCertificateTable, certs[i].GUID, s.size, s.at, len(data))
		}
		certs[i].Data = data[s.at : s.at+s.size : s.at+s.size]
	}
	return certs, nil
}

// FindCertificate returns the data of the entry of kind k, nil if there is
// none.
func FindCertificate(certs []Certificate, k CertificateKind) []byte {
	for _, c := range certs {
		if c.GUID.String() == string(k) {
			return c.Data
		}
	}
	return nil
}

// EncodeCertificateTable writes a table: the entries, their end, then the
// data in the same order, without padding. It refuses what
// ParseCertificateTable would refuse.
func EncodeCertificateTable(certs []Certificate) ([]byte, error) {
	at := (len(certs) + 1) * certificateEntrySize
	table := make([]byte, at)
	for i, c := range certs {
		entry := table[i*certificateEntrySize:]
		copy(entry, c.GUID[:])
		binary.LittleEndian.PutUint32(entry[16:], uint32(at))
		binary.LittleEndian.PutUint32(entry[20:], uint32(len(c.Data)))
		at += len(c.Data)
		if at > MaxCertificateTable {
			return nil, fmt.Errorf("%w: more than %d bytes", ErrCertificateTable, MaxCertificateTable)
		}
	}
	for _, c := range certs {
		table = append(table, c.Data...)
	}
	if _, err := ParseCertificateTable(table); err != nil {
		return nil, err
	}
	return table, nil
}
