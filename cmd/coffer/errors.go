// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/spf13/cobra"

	"github.com/coffer-dev/coffer/host/launch"
)

// statusError ends the program with a status. Without err nothing is printed.
type statusError struct {
	code int
	err  error
}

func (e *statusError) Error() string {
	if e.err == nil {
		return fmt.Sprintf("exit status %d", e.code)
	}
	return e.err.Error()
}

func (e *statusError) Unwrap() error { return e.err }

// hinted is an error with advice, which is printed after it.
type hinted struct {
	error
	advice string
}

func (e *hinted) Unwrap() error { return e.error }

// explained is an error that takes several lines; the first is its own.
type explained struct {
	error
	lines []string
}

func (e *explained) Unwrap() error { return e.error }

// lines is an error as it is shown: one line, mostly.
func lines(err error) []string {
	var e *explained
	if errors.As(err, &e) {
		return e.lines
	}
	return []string{err.Error()}
}

// failed makes a supervisor's error one of the command line.
func failed(f *launch.Failure) error {
	err := errors.New(f.Text)
	if len(f.Lines) > 0 {
		err = &explained{err, f.Lines}
	}
	for _, h := range slices.Backward(f.Hints) {
		err = hint(err, h)
	}
	return err
}

// hint adds what to do about an error.
func hint(err error, advice string) error { return &hinted{err, advice} }

// hints collects the advice of an error, outermost first.
func hints(err error) []string {
	var out []string
	for err != nil {
		var h *hinted
		if !errors.As(err, &h) {
			break
		}
		out = append(out, h.advice)
		err = h.error
	}
	return out
}

// usageError is a mistake in the command line.
func usageError(c *cobra.Command, err error) error {
	return &statusError{exitUsage, hint(err, fmt.Sprintf("`%s --help` lists what it takes", c.CommandPath()))}
}

// usage makes a cobra argument check end with the usage status.
func usage(check cobra.PositionalArgs) cobra.PositionalArgs {
	return func(c *cobra.Command, args []string) error {
		if err := check(c, args); err != nil {
			return usageError(c, err)
		}
		return nil
	}
}

// printJSON writes v for machines.
func printJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	return e.Encode(v)
}
