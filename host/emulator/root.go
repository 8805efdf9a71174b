// SPDX-License-Identifier: Apache-2.0

package emulator

import (
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/coffer-dev/coffer/tee/snp"
)

// Root is this installation's emulated chain, ARK -> ASK -> VCEK, and the key
// of the one chip it has. The private keys of ARK and ASK are not kept: nothing
// else is ever to be signed by them.
type Root struct {
	ark, ask, vcek []byte // DER
	vcekKey        *ecdsa.PrivateKey
	chipID         [64]byte
}

// rootFile holds the whole root as PEM: ARK, ASK, VCEK, the VCEK's key. It is
// not trusted by anybody; a verifier that pins this root reads its own copy of
// the certificate.
const (
	rootFile    = "root.pem"
	lockFile    = "root.lock"
	tempPattern = "root.new-*"
	maxRootFile = 64 << 10
)

const (
	pemCertificate = "CERTIFICATE"
	pemKey         = "PRIVATE KEY"
)

// ARK returns the root certificate in DER, for verifiers that pin it.
func (r *Root) ARK() []byte { return append([]byte(nil), r.ark...) }

// LoadOrCreate returns the root kept in dir and makes it if there is none:
// once per installation, seconds of work. dir is created if needed. Processes
// that call it at the same time get the same root, and a crash leaves either
// the whole root or none.
//
// progress, if not nil, is called with a line for the user before and after
// the slow step, and not at all when the root exists.
func LoadOrCreate(dir string, progress func(string)) (*Root, error) {
	if progress == nil {
		progress = func(string) {}
	}
	r, err := load(dir)
	if errors.Is(err, fs.ErrNotExist) {
		r, err = createLocked(dir, progress)
	}
	if err != nil {
		return nil, fmt.Errorf("opening the emulated processor's root: %w", err)
	}
	return r, nil
}

// createLocked makes the root unless another process has just done so.
func createLocked(dir string, progress func(string)) (*Root, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	lock, err := os.OpenFile(filepath.Join(dir, lockFile), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	defer lock.Close() // and with it unlock
	if err := flock(lock); err != nil {
		return nil, err
	}
	if r, err := load(dir); !errors.Is(err, fs.ErrNotExist) {
		return r, err
	}
	if err := removeLeftovers(dir); err != nil {
		return nil, err
	}
	progress("making this installation's emulated SEV-SNP keys (RSA 4096, once)")
	r, err := generate(time.Now())
	if err != nil {
		return nil, err
	}
	if err := r.save(dir); err != nil {
		return nil, err
	}
	progress("emulated SEV-SNP keys are ready")
	return r, nil
}

// removeLeftovers removes what a crash left. The caller holds the lock.
func removeLeftovers(dir string) error {
	names, err := filepath.Glob(filepath.Join(dir, tempPattern))
	for _, name := range names {
		err = errors.Join(err, os.Remove(name))
	}
	return err
}

func flock(f *os.File) error {
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX)
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// save writes the root so that a reader sees all of it or nothing.
func (r *Root) save(dir string) (err error) {
	key, err := x509.MarshalPKCS8PrivateKey(r.vcekKey)
	if err != nil {
		return err
	}
	// CreateTemp makes files of mode 0600.
	f, err := os.CreateTemp(dir, tempPattern)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(f.Name()))
		}
	}()
	for _, b := range []pem.Block{
		{Type: pemCertificate, Bytes: r.ark}, {Type: pemCertificate, Bytes: r.ask},
		{Type: pemCertificate, Bytes: r.vcek}, {Type: pemKey, Bytes: key},
	} {
		if err := pem.Encode(f, &b); err != nil {
			return errors.Join(err, f.Close())
		}
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), filepath.Join(dir, rootFile)); err != nil {
		return err
	}
	return syncDir(dir)
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// load reads the root in dir; fs.ErrNotExist if there is none.
func load(dir string) (*Root, error) {
	name := filepath.Join(dir, rootFile)
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("%s has mode %v, want 0600: others could use its key", name, info.Mode().Perm())
	}
	data, err := io.ReadAll(io.LimitReader(f, maxRootFile))
	if err != nil {
		return nil, err
	}
	r, err := parseRoot(data)
	if err != nil {
		return nil, fmt.Errorf("%s is damaged, remove it to make a new root: %w", name, err)
	}
	return r, nil
}

// parseRoot reads what save writes.
func parseRoot(data []byte) (*Root, error) {
	r := &Root{}
	var key []byte
	for _, want := range []struct {
		typ  string
		into *[]byte
	}{{pemCertificate, &r.ark}, {pemCertificate, &r.ask}, {pemCertificate, &r.vcek}, {pemKey, &key}} {
		var b *pem.Block
		if b, data = pem.Decode(data); b == nil || b.Type != want.typ {
			return nil, fmt.Errorf("missing %s block", want.typ)
		}
		*want.into = b.Bytes
	}
	parsed, err := x509.ParsePKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(r.vcek)
	if err != nil {
		return nil, err
	}
	var ok bool
	if r.vcekKey, ok = parsed.(*ecdsa.PrivateKey); !ok || !r.vcekKey.PublicKey.Equal(cert.PublicKey) {
		return nil, errors.New("key does not fit the VCEK certificate")
	}
	for _, e := range cert.Extensions {
		if e.Id.Equal(oidHWID()) && len(e.Value) == len(r.chipID) {
			copy(r.chipID[:], e.Value)
			return r, nil
		}
	}
	return nil, errors.New("VCEK certificate has no hardware ID")
}

// certificateTable returns the table of the extended report.
func (r *Root) certificateTable() ([]byte, error) {
	var certs []snp.Certificate
	for _, c := range []struct {
		kind snp.CertificateKind
		der  []byte
	}{{snp.CertVCEK, r.vcek}, {snp.CertASK, r.ask}, {snp.CertARK, r.ark}} {
		guid, err := snp.ParseGUID(string(c.kind))
		if err != nil {
			return nil, err
		}
		certs = append(certs, snp.Certificate{GUID: guid, Data: c.der})
	}
	return snp.EncodeCertificateTable(certs)
}
