// SPDX-License-Identifier: Apache-2.0

package launch

import (
	"errors"
	"fmt"
	"strings"

	"github.com/coffer-dev/coffer/wire"
)

// Exit statuses of Coffer itself, as docker's.
const (
	StatusFailed   = 125
	StatusNotExec  = 126
	StatusNotFound = 127
)

// Failure is an error that crosses from supervisor to command line.
type Failure struct {
	Text string `json:"text"` // one sentence
	// Lines is the same on several lines, for a person; nil if Text is all.
	Lines []string `json:"lines,omitempty"`
	Hints []string `json:"hints,omitempty"`
	// Status is the exit status that it means for coffer run.
	Status int `json:"status"`
	// Denied: the guest's policy said no.
	Denied bool `json:"denied,omitempty"`
}

func (f *Failure) Error() string { return f.Text }

// maxText bounds what a guest can put into a message, in bytes.
const maxText = 16 << 10

// failure makes err ready to be shown. What the guest wrote is made printable
// and bounded.
func failure(err error) *Failure {
	var f *Failure
	if errors.As(err, &f) {
		return f
	}
	f = &Failure{Text: printable(err.Error(), maxText), Status: StatusFailed}
	var w *wire.Error
	if !errors.As(err, &w) {
		return f
	}
	switch w.Code {
	case wire.CodeNotFound:
		f.Status = StatusNotFound
	case wire.CodeNotExec:
		f.Status = StatusNotExec
	case wire.CodeDenied:
		f.Denied = true
		if d := w.Denial; d != nil {
			if !strings.Contains(f.Text, "denied by policy") {
				f.Text = "denied by policy: " + f.Text
			}
			f.Lines = explanation(d.Explanation)
		}
	}
	return f
}

// maxLines bounds how many lines a guest can say of a denial.
const maxLines = 64

// explanation makes what the guest says of a denial printable. The first line says that it is one.
func explanation(text string) []string {
	var out []string
	for line := range strings.Lines(text) {
		if line = printable(strings.TrimRight(line, " \t\n"), maxText); line != "" && len(out) < maxLines {
			out = append(out, line)
		}
	}
	if len(out) > 0 && !strings.Contains(out[0], "denied by policy") {
		out[0] = "denied by policy: " + out[0]
	}
	return out
}

// withTail adds the last lines of the console to an error that says too little.
func (f *Failure) withTail(c *console) *Failure {
	f.Lines = append([]string{f.Text}, c.lastLines()...)
	return f
}

// printable replaces what a terminal could take for a command, and cuts at max bytes.
func printable(s string, max int) string {
	if len(s) > max {
		s = s[:max] + "..."
	}
	return strings.Map(func(r rune) rune {
		switch {
		case r == '\t' || r == '\n':
			return ' '
		case r < 0x20 || (r >= 0x7f && r < 0xa0):
			return '?'
		}
		return r
	}, strings.ToValidUTF8(s, "?"))
}

// doing adds to an error of the guest what was asked of it.
func doing(what string, err error) error {
	var w *wire.Error
	if errors.As(err, &w) && w.Code == wire.CodeDenied {
		return err // its text says what was asked
	}
	return fmt.Errorf("%s: %w", what, err)
}
