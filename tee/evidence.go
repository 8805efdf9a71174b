// SPDX-License-Identifier: Apache-2.0

package tee

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// Limits of an evidence document, in bytes. Certificates is the largest table
// that Linux accepts for SEV-SNP (SEV_FW_BLOB_MAX_SIZE).
const (
	MaxReportSize       = 16 << 10
	MaxCertificatesSize = 16 << 10
	MaxPolicySize       = 16 << 20
	MaxEvidenceSize     = 24 << 20
)

// ErrEvidence is wrapped by every refusal to encode or decode evidence.
var ErrEvidence = errors.New("malformed evidence")

// Evidence is what an Attester returned, as it crosses untrusted hands.
type Evidence struct {
	// Kind says which Verifier the evidence is meant for. It is a claim of
	// whoever wrote the evidence and proves nothing.
	Kind Kind
	// Report is the signed report as the secure processor made it: 1,184
	// bytes for both kinds known today.
	Report []byte
	// Certificates is the certificate table of the SEV-SNP extended report
	// (GUID form, see package snp). Nil or empty when there is none.
	Certificates []byte
	// Policy is the text of the execution policy, so that a reader can hash
	// it and compare with HOST_DATA. Nil when it does not travel along.
	Policy []byte
}

// evidenceVersion is the only version of the document.
const evidenceVersion = 1

// evidenceDoc fixes the names and the order of the document's members.
type evidenceDoc struct {
	Version      int     `json:"version"`
	Platform     string  `json:"platform"`
	Report       string  `json:"report"`
	Certificates *string `json:"certificates,omitempty"`
	Policy       *string `json:"policy,omitempty"`
}

// check holds the limits that Encode and DecodeEvidence share.
func (e Evidence) check() error {
	switch {
	case !e.Kind.Valid():
		return fmt.Errorf("%w: unknown platform %q", ErrEvidence, string(e.Kind))
	case len(e.Report) == 0:
		return fmt.Errorf("%w: no report", ErrEvidence)
	case len(e.Report) > MaxReportSize:
		return fmt.Errorf("%w: report of %d bytes, at most %d", ErrEvidence, len(e.Report), MaxReportSize)
	case len(e.Certificates) > MaxCertificatesSize:
		return fmt.Errorf("%w: certificates of %d bytes, at most %d", ErrEvidence, len(e.Certificates), MaxCertificatesSize)
	case len(e.Policy) > MaxPolicySize:
		return fmt.Errorf("%w: policy of %d bytes, at most %d", ErrEvidence, len(e.Policy), MaxPolicySize)
	}
	return nil
}

// Encode writes the evidence as one JSON document, ending in a newline
// (docs/attestation.md, "Evidence document"). An emulated TEE shows as
// "platform":"emulated".
func (e Evidence) Encode() ([]byte, error) {
	if err := e.check(); err != nil {
		return nil, fmt.Errorf("encoding evidence: %w", err)
	}
	doc := evidenceDoc{
		Version:  evidenceVersion,
		Platform: string(e.Kind),
		Report:   base64.StdEncoding.EncodeToString(e.Report),
	}
	if len(e.Certificates) > 0 {
		s := base64.StdEncoding.EncodeToString(e.Certificates)
		doc.Certificates = &s
	}
	if e.Policy != nil {
		s := base64.StdEncoding.EncodeToString(e.Policy)
		doc.Policy = &s
	}
	out, err := json.Marshal(doc)
	if err != nil {
		return nil, fmt.Errorf("encoding evidence: %w", err)
	}
	return append(out, '\n'), nil
}

// DecodeEvidence reads a document that Encode writes. It is strict: unknown,
// repeated, missing or differently spelled members, other versions, other
// base64 than the standard padded one, and anything after the document are
// refused. A document longer than MaxEvidenceSize is refused unread; read at
// most MaxEvidenceSize+1 bytes from a hostile source. A nil error says nothing
// about truth.
func DecodeEvidence(data []byte) (Evidence, error) {
	e, err := decodeEvidence(data)
	if err != nil {
		return Evidence{}, fmt.Errorf("decoding evidence: %w", err)
	}
	return e, nil
}

func decodeEvidence(data []byte) (Evidence, error) {
	if len(data) > MaxEvidenceSize {
		return Evidence{}, fmt.Errorf("%w: document of %d bytes, at most %d", ErrEvidence, len(data), MaxEvidenceSize)
	}
	members, err := evidenceMembers(data)
	if err != nil {
		return Evidence{}, err
	}
	var version int
	if err := json.Unmarshal(members["version"], &version); err != nil || version != evidenceVersion {
		return Evidence{}, fmt.Errorf("%w: version is not %d", ErrEvidence, evidenceVersion)
	}
	var e Evidence
	platform, ok := members["platform"]
	if !ok || platform[0] != '"' || json.Unmarshal(platform, (*string)(&e.Kind)) != nil {
		return Evidence{}, fmt.Errorf("%w: platform is not a string", ErrEvidence)
	}
	for _, f := range []struct {
		name     string
		into     *[]byte
		required bool
	}{
		{"report", &e.Report, true},
		{"certificates", &e.Certificates, false},
		{"policy", &e.Policy, false},
	} {
		raw, ok := members[f.name]
		if !ok && !f.required {
			continue
		}
		if *f.into, err = decodeBase64(raw); err != nil {
			return Evidence{}, fmt.Errorf("%w: member %q: %w", ErrEvidence, f.name, err)
		}
	}
	if c, ok := members["certificates"]; ok && len(e.Certificates) == 0 {
		return Evidence{}, fmt.Errorf("%w: certificates are %s, leave them out instead", ErrEvidence, c)
	}
	return e, e.check()
}

// evidenceMembers splits the one JSON object in data into its members.
// encoding/json alone would take repeated members, other spellings of their
// names and trailing data.
func evidenceMembers(data []byte) (map[string]json.RawMessage, error) {
	dec := json.NewDecoder(bytes.NewReader(data))
	if t, err := dec.Token(); err != nil || t != json.Delim('{') {
		return nil, fmt.Errorf("%w: not a JSON object", ErrEvidence)
	}
	members := make(map[string]json.RawMessage)
	for dec.More() {
		t, err := dec.Token()
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrEvidence, err)
		}
		name, _ := t.(string)
		switch name {
		case "version", "platform", "report", "certificates", "policy":
		default:
			return nil, fmt.Errorf("%w: unknown member %.40q", ErrEvidence, name)
		}
		if _, dup := members[name]; dup {
			return nil, fmt.Errorf("%w: member %q appears twice", ErrEvidence, name)
		}
		var v json.RawMessage
		if err := dec.Decode(&v); err != nil {
			return nil, fmt.Errorf("%w: member %q: %w", ErrEvidence, name, err)
		}
		members[name] = v
	}
	if _, err := dec.Token(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrEvidence, err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("%w: data after the document", ErrEvidence)
	}
	return members, nil
}

// decodeBase64 reads a JSON string of standard, padded, canonical base64
// without line breaks.
func decodeBase64(raw json.RawMessage) ([]byte, error) {
	if len(raw) < 2 || raw[0] != '"' {
		return nil, errors.New("not a string")
	}
	text := raw[1 : len(raw)-1]
	// Base64 needs no JSON escape; Go's decoder skips line breaks, but a JSON
	// string cannot hold them unescaped.
	if bytes.IndexByte(text, '\\') >= 0 {
		return nil, errors.New("escape in base64")
	}
	out := make([]byte, base64.StdEncoding.DecodedLen(len(text)))
	n, err := base64.StdEncoding.Strict().Decode(out, text)
	if err != nil {
		return nil, err
	}
	return out[:n:n], nil
}
