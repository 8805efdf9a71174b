// SPDX-License-Identifier: Apache-2.0

// Package boot brings the guest from the kernel's first process to the point
// where the agent can be served, and ends it. The start is a table of values: to
// read the table is to read the boot. Any step that fails ends the guest; nothing
// is retried, nothing is optional, and there is no shell to fall into.
//
// It runs before any policy is known. It reads the measured initrd, what the
// kernel says, and the names of the devices that the host attached; those are the
// host's word.
package boot

import (
	"errors"
	"fmt"
	"sync"
)

// A Step is one thing that must hold before the agent runs. Do's nil error means
// that it does.
type Step interface {
	Do() error
	fmt.Stringer
}

// Run does the steps in order and returns the first error. There is no undoing:
// the caller's answer is Fatal.
func Run(steps []Step) error {
	for _, s := range steps {
		if err := s.Do(); err != nil {
			return fmt.Errorf("%s: %w", s, err)
		}
	}
	return nil
}

// Start boots: the table and the modules that every guest needs. PID 1 calls it
// once, first.
func Start() (*Modules, error) {
	modules, err := Begin()
	if err != nil {
		return nil, err
	}
	return modules, modules.Ready()
}

// Begin is Start without waiting for the modules of disks, network and overlays:
// it returns when the control channel can be opened, so that the rest overlaps
// with what the host does first. Before a disk is opened or the network set up,
// Modules.Ready must be called; it waits. A failure meanwhile is Fatal.
func Begin() (*Modules, error) {
	if err := Run(early()); err != nil {
		return nil, err
	}
	modules, err := ReadModules(ModuleList)
	if err != nil {
		return nil, err
	}
	var wg sync.WaitGroup
	var tableErr error
	wg.Go(func() {
		defer Guard()
		tableErr = Run(late())
	})
	err = modules.loadChannel()
	wg.Wait()
	if err := errors.Join(err, tableErr); err != nil {
		return nil, err
	}
	go func() { // ends by itself, or the guest with it
		defer Guard()
		if err := modules.Ready(); err != nil {
			Fatal(err)
		}
	}()
	return modules, nil
}
