// SPDX-License-Identifier: Apache-2.0

package appraise

import (
	"encoding/hex"
	"encoding/json"
	"fmt"

	"github.com/coffer-dev/coffer/tee"
)

// verdictDoc is the JSON form of a Verdict, version 1.
type verdictDoc struct {
	Version  int       `json:"version"`
	Trusted  bool      `json:"trusted"`
	Platform string    `json:"platform"`
	Insecure bool      `json:"insecure"`
	Checks   []Check   `json:"checks"`
	Claims   claimsDoc `json:"claims"`
}

// claimsDoc has the claims in the report's names; bytes are lower-case hex.
type claimsDoc struct {
	ProductLine      string  `json:"product_line"`
	SigningKey       string  `json:"signing_key"`
	RootSHA256       string  `json:"root_sha256"`
	ReportVersion    uint32  `json:"report_version"`
	Measurement      string  `json:"measurement"`
	HostData         string  `json:"host_data"`
	ReportData       string  `json:"report_data"`
	GuestPolicy      string  `json:"guest_policy"`
	Debug            bool    `json:"debug"`
	MigrationAgent   bool    `json:"migration_agent"`
	VMPL             uint32  `json:"vmpl"`
	GuestSVN         uint32  `json:"guest_svn"`
	FamilyID         string  `json:"family_id"`
	ImageID          string  `json:"image_id"`
	IDKeyDigest      string  `json:"id_key_digest"`
	AuthorKeyEnabled bool    `json:"author_key_enabled"`
	AuthorKeyDigest  string  `json:"author_key_digest"`
	ReportID         string  `json:"report_id"`
	ReportIDMA       string  `json:"report_id_ma"`
	ReportedTCB      tee.TCB `json:"reported_tcb"`
	CurrentTCB       tee.TCB `json:"current_tcb"`
	CommittedTCB     tee.TCB `json:"committed_tcb"`
	LaunchTCB        tee.TCB `json:"launch_tcb"`
	PlatformInfo     string  `json:"platform_info"`
	ChipID           string  `json:"chip_id"`
}

// MarshalJSON writes the form that "coffer verify --json" prints; see
// docs/attestation.md.
func (v *Verdict) MarshalJSON() ([]byte, error) {
	c := v.Claims
	if c == nil {
		return nil, fmt.Errorf("encoding verdict: %w", ErrNoClaims)
	}
	h := hex.EncodeToString
	return json.Marshal(verdictDoc{
		Version: 1, Trusted: v.Trusted, Platform: string(c.Kind), Insecure: c.Insecure, Checks: v.Checks,
		Claims: claimsDoc{
			ProductLine: c.ProductLine, SigningKey: string(c.SigningKey), RootSHA256: h(c.RootSHA256[:]),
			ReportVersion: c.ReportVersion, Measurement: h(c.Measurement[:]), HostData: h(c.HostData[:]),
			ReportData: h(c.ReportData[:]), GuestPolicy: fmt.Sprintf("%#x", uint64(c.GuestPolicy)),
			Debug: c.GuestPolicy.Debug(), MigrationAgent: c.GuestPolicy.MigrationAgent(),
			VMPL: c.VMPL, GuestSVN: c.GuestSVN, FamilyID: h(c.FamilyID[:]), ImageID: h(c.ImageID[:]),
			IDKeyDigest: h(c.IDKeyDigest[:]), AuthorKeyEnabled: c.AuthorKeyEnabled, AuthorKeyDigest: h(c.AuthorKeyDigest[:]),
			ReportID: h(c.ReportID[:]), ReportIDMA: h(c.ReportIDMA[:]),
			ReportedTCB: c.ReportedTCB, CurrentTCB: c.CurrentTCB, CommittedTCB: c.CommittedTCB, LaunchTCB: c.LaunchTCB,
			PlatformInfo: fmt.Sprintf("%#x", c.PlatformInfo), ChipID: h(c.ChipID[:]),
		},
	})
}
