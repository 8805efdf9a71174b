// SPDX-License-Identifier: Apache-2.0

package measure

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/coffer-dev/coffer/tee/snp"
)

// GUIDs of the firmware's footer table, as bytes in memory (OVMF's
// ResetVector, and QEMU's hw/i386/pc_sysfw_ovmf.c).
const (
	guidFooter       = "\xde\x82\xb5\x96\xb2\x1f\xf7\x45\xba\xea\xa3\x66\xc5\x5a\x08\x2d"
	guidResetBlock   = "\xde\x71\xf7\x00\x7e\x1a\xcb\x4f\x89\x0e\x68\xc7\x7e\x2f\xb4\x4e"
	guidKernelHashes = "\x1f\x37\x55\x72\x3b\x3a\x04\x4b\x92\x7b\x1d\xa6\xef\xa8\xd4\x54"
	guidSEVMetadata  = "\x66\x65\x88\xdc\x4a\x98\x98\x47\xa7\x5e\x55\x85\xa7\xbf\x67\xcc"
)

// Bounds of the tables, in bytes and entries.
const (
	footerEnd        = 32 // the reset vector after the table
	footerEntryBase  = 18 // u16 length and GUID
	metadataHeader   = 16
	metadataEntry    = 12
	maxSections      = 64
	maxMeasuredAreas = snp.MaxAreaSize // of all sections together
)

// ErrFirmware is wrapped by every refusal of a firmware image.
var ErrFirmware = errors.New("unusable firmware")

// sectionType is the type of a section in the SEV metadata.
type sectionType uint32

const (
	sectionMemory       sectionType = 1
	sectionSecrets      sectionType = 2
	sectionCPUID        sectionType = 3
	sectionSVSMArea     sectionType = 4
	sectionKernelHashes sectionType = 0x10
)

// section is memory that the firmware wants prepared.
type section struct {
	gpa, size uint32
	typ       sectionType
}

// metadata is what the launch digest needs to know of a firmware image.
type metadata struct {
	// sections are in the firmware's order, which is QEMU's.
	sections []section
	// resetEIP is zero when the firmware has no reset block.
	resetEIP uint32
	// hashesGPA and hashesSize are zero when it takes no kernel hashes.
	hashesGPA, hashesSize uint32
}

// parseFirmware reads the footer table and the SEV metadata of an OVMF image.
func parseFirmware(image []byte) (*metadata, error) {
	if len(image) == 0 || len(image)%snp.PageSize != 0 || len(image) > snp.MaxFirmwareSize {
		return nil, fmt.Errorf("%w: %d bytes, want a multiple of %d up to %d", ErrFirmware, len(image), snp.PageSize, snp.MaxFirmwareSize)
	}
	entries, err := parseFooter(image)
	if err != nil {
		return nil, err
	}
	m := &metadata{}
	le := binary.LittleEndian
	if e, ok := entries[guidResetBlock]; ok {
		if len(e) < 4 {
			return nil, fmt.Errorf("%w: reset block of %d bytes", ErrFirmware, len(e))
		}
		m.resetEIP = le.Uint32(e)
	}
	if e, ok := entries[guidKernelHashes]; ok {
		if len(e) < 8 {
			return nil, fmt.Errorf("%w: kernel hashes entry of %d bytes", ErrFirmware, len(e))
		}
		m.hashesGPA, m.hashesSize = le.Uint32(e), le.Uint32(e[4:])
	}
	e, ok := entries[guidSEVMetadata]
	if !ok || len(e) < 4 {
		return nil, fmt.Errorf("%w: no SEV metadata; is this an OVMF image built for SEV-SNP?", ErrFirmware)
	}
	m.sections, err = parseSections(image, le.Uint32(e))
	return m, err
}

// parseFooter walks the footer table backwards and returns its entries' data
// by GUID bytes.
func parseFooter(image []byte) (map[string][]byte, error) {
	table := image[:len(image)-footerEnd]
	if len(table) < footerEntryBase || string(table[len(table)-16:]) != guidFooter {
		return nil, fmt.Errorf("%w: no footer table", ErrFirmware)
	}
	size := int(binary.LittleEndian.Uint16(table[len(table)-footerEntryBase:]))
	if size < footerEntryBase || size > len(table) {
		return nil, fmt.Errorf("%w: footer table of %d bytes", ErrFirmware, size)
	}
	rest := table[len(table)-size : len(table)-footerEntryBase]
	entries := make(map[string][]byte)
	for len(rest) >= footerEntryBase {
		guid := string(rest[len(rest)-16:])
		size := int(binary.LittleEndian.Uint16(rest[len(rest)-footerEntryBase:]))
		if size < footerEntryBase || size > len(rest) {
			return nil, fmt.Errorf("%w: footer entry of %d bytes", ErrFirmware, size)
		}
		if _, dup := entries[guid]; dup {
			return nil, fmt.Errorf("%w: footer entry %x appears twice", ErrFirmware, guid)
		}
		entries[guid] = rest[len(rest)-size : len(rest)-footerEntryBase]
		rest = rest[:len(rest)-size]
	}
	return entries, nil
}

// parseSections reads the SEV metadata, whose header lies offset bytes before
// the image's end.
func parseSections(image []byte, offset uint32) ([]section, error) {
	if int64(offset) > int64(len(image)) || offset < metadataHeader {
		return nil, fmt.Errorf("%w: SEV metadata %d bytes before the end", ErrFirmware, offset)
	}
	data := image[len(image)-int(offset):]
	le := binary.LittleEndian
	if !bytes.Equal(data[:4], []byte("ASEV")) {
		return nil, fmt.Errorf("%w: SEV metadata without its signature", ErrFirmware)
	}
	size, version, count := le.Uint32(data[4:]), le.Uint32(data[8:]), le.Uint32(data[12:])
	if version != 1 {
		return nil, fmt.Errorf("%w: SEV metadata version %d", ErrFirmware, version)
	}
	if count > maxSections || uint64(size) > uint64(len(data)) || uint64(size) < metadataHeader+metadataEntry*uint64(count) {
		return nil, fmt.Errorf("%w: %d sections in %d bytes of SEV metadata", ErrFirmware, count, size)
	}
	sections := make([]section, count)
	var total uint64
	for i := range sections {
		d := data[metadataHeader+i*metadataEntry:]
		s := section{le.Uint32(d), le.Uint32(d[4:]), sectionType(le.Uint32(d[8:]))}
		if s.gpa%snp.PageSize != 0 || s.size%snp.PageSize != 0 || s.size == 0 {
			return nil, fmt.Errorf("%w: section %d of %#x bytes at %#x is not whole pages", ErrFirmware, i, s.size, s.gpa)
		}
		if total += uint64(s.size); total > maxMeasuredAreas {
			return nil, fmt.Errorf("%w: sections of more than %d bytes", ErrFirmware, maxMeasuredAreas)
		}
		sections[i] = s
	}
	return sections, nil
}
