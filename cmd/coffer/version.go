// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"

	"github.com/spf13/cobra"

	"github.com/coffer-dev/coffer/owner/appraise"
	"github.com/coffer-dev/coffer/wire"
)

func (a *app) versionCommand() *cobra.Command {
	var measurements bool
	cmd := &cobra.Command{
		Use: "version", Short: "Show the version, and what the guest image measures to",
		Args: usage(cobra.NoArgs),
		RunE: func(*cobra.Command, []string) error { return a.version(measurements) },
	}
	cmd.Flags().BoolVar(&a.json, "json", false, "write JSON")
	cmd.Flags().BoolVar(&measurements, "measurements", false, "list the guest image's launch digests too")
	return cmd
}

// versionDoc is what `version --json` writes.
type versionDoc struct {
	Version  string    `json:"version"`
	Go       string    `json:"go"`
	Protocol int       `json:"wire_protocol"`
	Guest    *guestDoc `json:"guest,omitempty"`
}

type guestDoc struct {
	Directory    string            `json:"directory"`
	Kernel       string            `json:"kernel_sha256"`
	Initrd       string            `json:"initrd_sha256"`
	Measurements map[string]string `json:"measurements,omitempty"`
}

func (a *app) version(measurements bool) error {
	doc := versionDoc{Version: version, Go: runtime.Version(), Protocol: wire.Version}
	if dir, err := a.guest(); err == nil {
		ref, err := readReference(filepath.Join(dir, "guest.json"))
		if err != nil {
			return err
		}
		doc.Guest = &guestDoc{Directory: dir, Kernel: fmt.Sprintf("%x", ref.Kernel.SHA256), Initrd: fmt.Sprintf("%x", ref.Initrd.SHA256)}
		if measurements {
			doc.Guest.Measurements = make(map[string]string)
			for _, m := range ref.Expect() {
				doc.Guest.Measurements[m.Label] = fmt.Sprintf("%x", m.Digest)
			}
		}
	}
	if a.json {
		return printJSON(a.stdout, doc)
	}
	fmt.Fprintf(a.stdout, "coffer %s (%s, wire protocol %d)\n", doc.Version, doc.Go, doc.Protocol)
	if doc.Guest == nil {
		fmt.Fprintln(a.stdout, "guest  none found")
		return nil
	}
	fmt.Fprintf(a.stdout, "guest  %s\n  kernel  %s\n  initrd  %s\n", doc.Guest.Directory, doc.Guest.Kernel, doc.Guest.Initrd)
	for _, label := range sortedKeys(doc.Guest.Measurements) {
		fmt.Fprintf(a.stdout, "  %s  %s\n", doc.Guest.Measurements[label], label)
	}
	return nil
}

// readReference reads a guest.json.
func readReference(path string) (appraise.Reference, error) {
	text, err := readFile(path, appraise.MaxReferenceSize)
	if err != nil {
		return appraise.Reference{}, err
	}
	ref, err := appraise.ParseReference(text)
	if err != nil {
		return appraise.Reference{}, fmt.Errorf("%s: %w", path, err)
	}
	return ref, nil
}

// readFile reads a file of at most max bytes; "-" is standard input.
func readFile(path string, limit int64) ([]byte, error) {
	f := os.Stdin
	if path != "-" {
		var err error
		if f, err = os.Open(path); err != nil {
			return nil, err
		}
		defer f.Close()
	}
	return readAll(f, path, limit)
}
