// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"slices"
	"strconv"
	"strings"
)

// Denial says why a request was denied, in words for the person who wrote the policy. It may be shown to the host:
// values of environment variables are not in it, only their names.
type Denial struct {
	// Point is the enforcement point, "" if the request is of no known type.
	Point string
	// Errors are the original's error strings, sorted. Some denials have none.
	Errors []string
	// PolicyError is set if the policy itself cannot answer.
	PolicyError string
	// Container names the container of the policy that comes nearest, "" if none does.
	Container string
	// Fields are what differs from that container, or from what the state demands.
	Fields []FieldDiff
	// Edit is what to change in the policy to allow the request, "" if no edit would.
	Edit string

	reason reasonKind
}

// FieldDiff is one field that differs: what was asked and what is allowed.
type FieldDiff struct {
	Field, Asked, Allowed string
}

// maxShown is the longest text of one value in a denial, in bytes.
const maxShown = 512

func (d *Denial) sortErrors() {
	slices.Sort(d.Errors)
	d.Errors = slices.Compact(d.Errors)
}

func (d *Denial) addEdit(edit string) {
	switch {
	case d.Edit == "":
		d.Edit = edit
	case len(d.Edit) < 4*maxShown:
		d.Edit += "; " + edit
	}
}

// Error is one sentence.
func (d *Denial) Error() string {
	var b strings.Builder
	if d.Point != "" {
		b.WriteString(d.Point + " ")
	}
	b.WriteString("denied by policy")
	if d.Container != "" {
		b.WriteString(" (nearest container " + quote(d.Container) + ")")
	}
	sep := ": "
	for _, part := range d.because() {
		b.WriteString(sep + part)
		sep = "; "
	}
	return b.String()
}

func (d *Denial) because() []string {
	if d.PolicyError != "" {
		return []string{d.PolicyError}
	}
	var parts []string
	for _, f := range d.Fields {
		parts = append(parts, f.Field+": asked "+f.Asked+", allowed "+f.Allowed)
	}
	if len(parts) == 0 {
		return d.Errors
	}
	return parts
}

// Explain is the whole denial on several lines, the last one ended.
func (d *Denial) Explain() string {
	var b strings.Builder
	point := d.Point
	if point == "" {
		point = "request"
	}
	b.WriteString(point + " denied by policy\n")
	line := func(name, text string) {
		b.WriteString("  " + name + strings.Repeat(" ", max(1, 20-len(name))) + text + "\n")
	}
	if d.PolicyError != "" {
		line("policy error", d.PolicyError)
	}
	if d.Container != "" {
		line("nearest container", quote(d.Container))
	}
	for _, f := range d.Fields {
		line(f.Field, "asked   "+f.Asked)
		line("", "allowed "+f.Allowed)
	}
	if len(d.Errors) > 0 {
		line("errors", quotes(d.Errors))
	}
	if d.Edit != "" {
		line("to allow it", d.Edit)
	}
	return b.String()
}

// quote shows a string of the host or the policy: on one line, without control characters, not too long.
func quote(s string) string { return strconv.Quote(clip(s, maxShown)) }

// quotes shows a list likewise.
func quotes(list []string) string { return listed(list, quote) }

// listed shows a list whose elements show makes fit to be seen.
func listed[T any](list []T, show func(T) string) string {
	var b strings.Builder
	b.WriteByte('[')
	for i, s := range list {
		if i > 0 {
			b.WriteString(", ")
		}
		if b.Len() > maxShown {
			b.WriteString("... " + strconv.Itoa(len(list)-i) + " more")
			break
		}
		b.WriteString(show(s))
	}
	b.WriteByte(']')
	return b.String()
}
