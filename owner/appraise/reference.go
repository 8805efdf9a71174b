// SPDX-License-Identifier: Apache-2.0

package appraise

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode/utf8"

	"github.com/coffer-dev/coffer/tee"
)

// MaxReferenceSize bounds a reference document, in bytes.
const MaxReferenceSize = 1 << 20

// Bounds within a reference document.
const (
	maxReferenceDigests = 4096
	maxReferenceVCPUs   = 4096
	maxReferenceText    = 64 << 10
)

// ErrReference is wrapped by every refusal of a reference document.
var ErrReference = errors.New("malformed reference document")

// File is one of the files that a guest is launched from.
type File struct {
	// Name is a file name without directories, beside the document.
	Name   string
	SHA256 [32]byte
}

// ReferenceDigest is the launch digest for one configuration.
type ReferenceDigest struct {
	TEE    tee.Kind
	VCPUs  int
	Digest [48]byte
	// CPU is the vCPU type for hardware ("EPYC-Milan"); empty for emulation.
	CPU string
}

// Reference is the content of guest.json: what a guest image is made of and
// the launch digests that follow from it. Whoever writes it decides what a
// reader will trust, so it must reach the reader from a source they trust, not
// from the host.
type Reference struct {
	Kernel File
	Initrd File
	// Firmware is nil when the document names none.
	Firmware *File
	// Append is the kernel command line exactly.
	Append       string
	Measurements []ReferenceDigest
}

type fileDoc struct {
	File   string `json:"file"`
	SHA256 string `json:"sha256"`
}

type digestDoc struct {
	TEE    string `json:"tee"`
	VCPUs  int    `json:"vcpus"`
	CPU    string `json:"cpu,omitempty"`
	Digest string `json:"digest"`
}

type referenceDoc struct {
	Version      int         `json:"version"`
	Kernel       fileDoc     `json:"kernel"`
	Initrd       fileDoc     `json:"initrd"`
	Firmware     *fileDoc    `json:"firmware,omitempty"`
	Append       string      `json:"append"`
	Measurements []digestDoc `json:"measurements"`
}

// ParseReference reads a guest.json of at most MaxReferenceSize bytes. It is
// strict: unknown, repeated or differently spelled members, other versions,
// hex in capitals, two digests for one configuration and data after the
// document are refused.
func ParseReference(data []byte) (Reference, error) {
	r, err := parseReference(data)
	if err != nil {
		return Reference{}, fmt.Errorf("parsing reference: %w", err)
	}
	return r, nil
}

func parseReference(data []byte) (Reference, error) {
	if len(data) > MaxReferenceSize {
		return Reference{}, fmt.Errorf("%w: more than %d bytes", ErrReference, MaxReferenceSize)
	}
	if err := strictMembers(data); err != nil {
		return Reference{}, fmt.Errorf("%w: %w", ErrReference, err)
	}
	var doc referenceDoc
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&doc); err != nil {
		return Reference{}, fmt.Errorf("%w: %w", ErrReference, err)
	}
	if doc.Version != 1 {
		return Reference{}, fmt.Errorf("%w: version %d, want 1", ErrReference, doc.Version)
	}
	r := Reference{Append: doc.Append}
	if doc.Firmware != nil {
		r.Firmware = &File{}
	}
	for _, f := range []struct {
		doc  *fileDoc
		into *File
	}{{&doc.Kernel, &r.Kernel}, {&doc.Initrd, &r.Initrd}, {doc.Firmware, r.Firmware}} {
		if f.doc == nil {
			continue
		}
		f.into.Name = f.doc.File
		if err := fromHex(f.into.SHA256[:], f.doc.SHA256); err != nil {
			return Reference{}, fmt.Errorf("%w: file %.40q: %w", ErrReference, f.doc.File, err)
		}
	}
	for i, d := range doc.Measurements {
		m := ReferenceDigest{TEE: tee.Kind(d.TEE), VCPUs: d.VCPUs, CPU: d.CPU}
		if err := fromHex(m.Digest[:], d.Digest); err != nil {
			return Reference{}, fmt.Errorf("%w: measurement %d: %w", ErrReference, i, err)
		}
		r.Measurements = append(r.Measurements, m)
	}
	return r, r.check()
}

// check holds what ParseReference and Encode both demand.
func (r Reference) check() error {
	files := []File{r.Kernel, r.Initrd}
	if r.Firmware != nil {
		files = append(files, *r.Firmware)
	}
	for _, f := range files {
		if f.Name == "" || f.Name == "." || f.Name == ".." || len(f.Name) > 255 || strings.ContainsAny(f.Name, "/\x00") || !utf8.ValidString(f.Name) {
			return fmt.Errorf("%w: %.40q is not a plain file name", ErrReference, f.Name)
		}
		if f.SHA256 == [32]byte{} {
			return fmt.Errorf("%w: no SHA-256 of %s", ErrReference, f.Name)
		}
	}
	if len(r.Append) > maxReferenceText || strings.ContainsRune(r.Append, 0) || !utf8.ValidString(r.Append) {
		return fmt.Errorf("%w: command line", ErrReference)
	}
	if len(r.Measurements) == 0 || len(r.Measurements) > maxReferenceDigests {
		return fmt.Errorf("%w: %d measurements, want 1 to %d", ErrReference, len(r.Measurements), maxReferenceDigests)
	}
	seen := make(map[ReferenceDigest]bool)
	for i, m := range r.Measurements {
		if !m.TEE.Valid() || m.VCPUs < 1 || m.VCPUs > maxReferenceVCPUs || m.Digest == [48]byte{} || len(m.CPU) > 64 || !utf8.ValidString(m.CPU) {
			return fmt.Errorf("%w: measurement %d (%q, %d vCPUs)", ErrReference, i, string(m.TEE), m.VCPUs)
		}
		if (m.TEE == tee.Emulated) != (m.CPU == "") {
			return fmt.Errorf("%w: measurement %d: a CPU belongs to hardware and only there", ErrReference, i)
		}
		m.Digest = [48]byte{}
		if seen[m] {
			return fmt.Errorf("%w: measurement %d: a second digest for %s with %d vCPUs", ErrReference, i, m.TEE, m.VCPUs)
		}
		seen[m] = true
	}
	return nil
}

// Encode writes the document: indented, members in a fixed order, ending in a
// newline. Equal References give equal bytes.
func (r Reference) Encode() ([]byte, error) {
	if err := r.check(); err != nil {
		return nil, fmt.Errorf("encoding reference: %w", err)
	}
	file := func(f File) fileDoc { return fileDoc{f.Name, hex.EncodeToString(f.SHA256[:])} }
	doc := referenceDoc{Version: 1, Kernel: file(r.Kernel), Initrd: file(r.Initrd), Append: r.Append}
	if r.Firmware != nil {
		f := file(*r.Firmware)
		doc.Firmware = &f
	}
	for _, m := range r.Measurements {
		doc.Measurements = append(doc.Measurements, digestDoc{string(m.TEE), m.VCPUs, m.CPU, hex.EncodeToString(m.Digest[:])})
	}
	var out bytes.Buffer
	enc := json.NewEncoder(&out)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if err := enc.Encode(doc); err != nil {
		return nil, fmt.Errorf("encoding reference: %w", err)
	}
	return out.Bytes(), nil
}

// Expect returns the document's digests for Expected.Measurements.
func (r Reference) Expect() []Measurement {
	out := make([]Measurement, len(r.Measurements))
	for i, m := range r.Measurements {
		label := fmt.Sprintf("%s with %d vCPUs", r.Kernel.Name, m.VCPUs)
		if m.VCPUs == 1 {
			label = r.Kernel.Name + " with 1 vCPU"
		}
		if m.CPU != "" {
			label += " of type " + m.CPU
		}
		out[i] = Measurement{Label: label, TEE: m.TEE, Digest: m.Digest}
	}
	return out
}

// fromHex reads lower-case hex of exactly len(into) bytes.
func fromHex(into []byte, s string) error {
	if len(s) != 2*len(into) || strings.ToLower(s) != s {
		return fmt.Errorf("want %d lower-case hex digits, got %.100q", 2*len(into), s)
	}
	_, err := hex.Decode(into, []byte(s))
	return err
}

// memberNames returns the names of all members of a reference document at any
// level. No name means different things at different levels, so that one set
// and encoding/json's own check of places are enough.
func memberNames() map[string]bool {
	names := make(map[string]bool)
	for _, n := range []string{"version", "kernel", "initrd", "firmware", "append", "measurements", "file", "sha256", "tee", "vcpus", "cpu", "digest"} {
		names[n] = true
	}
	return names
}

// strictMembers refuses what encoding/json lets pass: repeated members, names
// in another case, and data after the document.
func strictMembers(data []byte) error {
	dec := json.NewDecoder(bytes.NewReader(data))
	names := memberNames()
	if err := strictValue(dec, names, 0); err != nil {
		return err
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return errors.New("data after the document")
	}
	return nil
}

// strictValue walks one value.
func strictValue(dec *json.Decoder, names map[string]bool, depth int) error {
	t, err := dec.Token()
	if err != nil {
		return err
	}
	open, ok := t.(json.Delim)
	if !ok {
		if t == nil {
			return errors.New("null is not a value here")
		}
		return nil
	}
	if depth > 3 {
		return errors.New("nested too deeply")
	}
	seen := make(map[string]bool)
	for dec.More() {
		if open == '{' {
			key, err := dec.Token()
			if err != nil {
				return err
			}
			name, _ := key.(string)
			if !names[name] || seen[name] {
				return fmt.Errorf("unknown or repeated member %.40q", name)
			}
			seen[name] = true
		}
		if err := strictValue(dec, names, depth+1); err != nil {
			return err
		}
	}
	_, err = dec.Token()
	return err
}
