// SPDX-License-Identifier: Apache-2.0

package attest

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/coffer-dev/coffer/tee/snp"
)

// tsmFS is the part of a file system that configfs-tsm needs. Names are
// relative to the report directory.
type tsmFS interface {
	mkdir(name string) error
	remove(name string) error
	write(name string, data []byte) error
	read(name string, limit int64) ([]byte, error)
}

// configFS is the way through configfs-tsm (Linux 6.7 and later,
// Documentation/ABI/testing/configfs-tsm).
type configFS struct {
	turn
	fs tsmFS
}

func newConfigFS(fs tsmFS) *configFS { return &configFS{newTurn(), fs} }

func (c *configFS) close() error { return c.end(func() error { return nil }) }

func (c *configFS) report(ctx context.Context, data [64]byte, vmpl uint32) ([]byte, []byte, error) {
	return c.take(ctx, func() ([]byte, []byte, error) {
		var id [8]byte
		if _, err := rand.Read(id[:]); err != nil {
			return nil, nil, err
		}
		entry := "coffer-" + hex.EncodeToString(id[:])
		if err := c.fs.mkdir(entry); err != nil {
			return nil, nil, fmt.Errorf("making a configfs-tsm entry: %w", err)
		}
		report, certs, err := c.ask(entry, data, vmpl)
		return report, certs, errors.Join(err, c.fs.remove(entry))
	})
}

// ask fills in the entry, reads the answer and checks that nobody else wrote
// to the entry meanwhile.
func (c *configFS) ask(entry string, data [64]byte, vmpl uint32) (report, certs []byte, err error) {
	attribute := func(name string) string { return filepath.Join(entry, name) }
	provider, err := c.fs.read(attribute("provider"), pageSize)
	if err != nil {
		return nil, nil, err
	}
	if got := strings.TrimSpace(string(provider)); got != "sev_guest" {
		return nil, nil, fmt.Errorf("%w: configfs-tsm provider is %.40q", ErrNoTEE, got)
	}
	before, err := c.generation(entry)
	if err != nil {
		return nil, nil, err
	}
	if err := c.fs.write(attribute("privlevel"), strconv.AppendUint(nil, uint64(vmpl), 10)); err != nil {
		return nil, nil, err
	}
	if err := c.fs.write(attribute("inblob"), data[:]); err != nil {
		return nil, nil, err
	}
	if report, err = c.fs.read(attribute("outblob"), snp.ReportSize+1); err != nil {
		return nil, nil, err
	}
	certs, err = c.fs.read(attribute("auxblob"), snp.MaxCertificateTable+1)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, nil, err
	}
	after, err := c.generation(entry)
	if err != nil {
		return nil, nil, err
	}
	if after != before+2 {
		return nil, nil, fmt.Errorf("%w: somebody else wrote to the configfs-tsm entry", ErrAnswer)
	}
	return report, trimTable(certs), nil
}

func (c *configFS) generation(entry string) (uint64, error) {
	text, err := c.fs.read(filepath.Join(entry, "generation"), pageSize)
	if err != nil {
		return 0, err
	}
	n, err := strconv.ParseUint(strings.TrimSpace(string(text)), 10, 32)
	if err != nil {
		return 0, fmt.Errorf("reading configfs-tsm generation: %w", err)
	}
	return n, nil
}

// osFS is the real configfs below dir.
type osFS struct{ dir string }

func (f osFS) mkdir(name string) error  { return os.Mkdir(filepath.Join(f.dir, name), 0o700) }
func (f osFS) remove(name string) error { return os.Remove(filepath.Join(f.dir, name)) }

// write writes data at once, as configfs demands.
func (f osFS) write(name string, data []byte) error {
	file, err := os.OpenFile(filepath.Join(f.dir, name), os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = file.Write(data)
	return errors.Join(err, file.Close())
}

func (f osFS) read(name string, limit int64) ([]byte, error) {
	file, err := os.Open(filepath.Join(f.dir, name))
	if err != nil {
		return nil, err
	}
	defer file.Close()
	return io.ReadAll(io.LimitReader(file, limit))
}
