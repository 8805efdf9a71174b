// SPDX-License-Identifier: Apache-2.0

package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// layerInfo returns what is known of a converted layer; an error of
// fs.ErrNotExist's kind means that it is not here.
func (s *Store) layerInfo(diffID string) (Layer, error) {
	dir := filepath.Join(s.layersDir(), hexOf(diffID))
	raw, err := os.ReadFile(filepath.Join(dir, "info.json"))
	if err != nil {
		return Layer{}, fmt.Errorf("reading layer info: %w", err)
	}
	var l Layer
	if err := json.Unmarshal(raw, &l); err != nil {
		return Layer{}, fmt.Errorf("parsing layer info: %w", err)
	}
	st, err := os.Stat(filepath.Join(dir, "image"))
	if err != nil {
		return Layer{}, fmt.Errorf("reading layer: %w", err)
	}
	if st.Size() != l.Size || l.DiffID != diffID {
		return Layer{}, fmt.Errorf("reading layer %s: it was changed: %w", diffID, fs.ErrNotExist)
	}
	return l, nil
}

// work is a directory in which a layer is converted, under a lock.
type work struct {
	dir  string
	lock *os.File
}

// begin waits for the work directory of that name and empties it.
func (s *Store) begin(ctx context.Context, name string) (*work, error) {
	dir := filepath.Join(s.layersDir(), name+partial)
	for {
		if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return nil, fmt.Errorf("starting a conversion: %w", err)
		}
		d, err := os.Open(dir)
		if errors.Is(err, fs.ErrNotExist) {
			continue // another process has just finished with it
		}
		if err != nil {
			return nil, fmt.Errorf("starting a conversion: %w", err)
		}
		if err := lock(ctx, d, unix.LOCK_EX); err != nil {
			d.Close()
			return nil, fmt.Errorf("waiting for a conversion by another process: %w", err)
		}
		if !same(d, dir) {
			d.Close()
			continue
		}
		for _, f := range []string{"image", "info.json"} {
			if err := os.Remove(filepath.Join(dir, f)); err != nil && !errors.Is(err, fs.ErrNotExist) {
				d.Close()
				return nil, fmt.Errorf("starting a conversion: %w", err)
			}
		}
		return &work{dir: dir, lock: d}, nil
	}
}

// abandon removes the work directory. It is right after commit too.
func (w *work) abandon() {
	if same(w.lock, w.dir) {
		os.RemoveAll(w.dir) // what stays is cleared by the next Open
	}
	w.lock.Close()
}

// commit makes the converted disk f the layer l of the store.
func (s *Store) commit(w *work, f *os.File, l Layer) error {
	raw, err := json.Marshal(l)
	if err != nil {
		return fmt.Errorf("encoding layer info: %w", err)
	}
	if err := f.Sync(); err != nil {
		return fmt.Errorf("syncing layer: %w", err)
	}
	if err := writeFile(filepath.Join(w.dir, "info.json"), raw); err != nil {
		return err
	}
	to := filepath.Join(s.layersDir(), hexOf(l.DiffID))
	if _, err := s.layerInfo(l.DiffID); err == nil {
		return nil // the same content came from elsewhere meanwhile
	}
	// What is there is no complete layer: a damaged one may go.
	if err := os.RemoveAll(to); err != nil {
		return fmt.Errorf("replacing a damaged layer: %w", err)
	}
	if err := os.Rename(w.dir, to); err != nil {
		if _, again := s.layerInfo(l.DiffID); again == nil {
			return nil
		}
		return fmt.Errorf("keeping layer: %w", err)
	}
	return syncDir(s.layersDir())
}

// clearPartial removes work directories that nobody holds, and files that
// writeFile did not finish.
func (s *Store) clearPartial() error {
	entries, err := os.ReadDir(s.layersDir())
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), partial) {
			continue
		}
		dir := filepath.Join(s.layersDir(), e.Name())
		d, err := os.Open(dir)
		if err != nil {
			continue // finished meanwhile
		}
		if tryLock(d, unix.LOCK_EX) == nil && same(d, dir) {
			err = os.RemoveAll(dir)
		}
		d.Close()
		if err != nil {
			return err
		}
	}
	return nil
}
