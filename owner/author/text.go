// SPDX-License-Identifier: Apache-2.0

package author

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"unicode/utf16"
)

const header = `package policy

import future.keywords.every
import future.keywords.in

api_version := "0.10.0"
framework_version := "0.2.3"

fragments := []

`

const trailer = `
allow_properties_access := true
allow_dump_stacks := false
allow_runtime_logging := false
allow_environment_variable_dropping := true
allow_unencrypted_scratch := false
allow_capability_dropping := true

mount_device := data.framework.mount_device
unmount_device := data.framework.unmount_device
mount_overlay := data.framework.mount_overlay
unmount_overlay := data.framework.unmount_overlay
create_container := data.framework.create_container
exec_in_container := data.framework.exec_in_container
exec_external := data.framework.exec_external
shutdown_container := data.framework.shutdown_container
signal_container_process := data.framework.signal_container_process
plan9_mount := data.framework.plan9_mount
plan9_unmount := data.framework.plan9_unmount
get_properties := data.framework.get_properties
dump_stacks := data.framework.dump_stacks
runtime_logging := data.framework.runtime_logging
load_fragment := data.framework.load_fragment
scratch_mount := data.framework.scratch_mount
scratch_unmount := data.framework.scratch_unmount

reason := {"errors": data.framework.errors}
`

// object is a JSON object of null, booleans, texts, lists of texts, numbers or objects, and objects.
type object map[string]any

// line writes the object on one line with sorted keys, all ASCII, as Python's json does.
func (o object) line() string {
	var b strings.Builder
	o.write(&b)
	return b.String()
}

func (o object) write(b *strings.Builder) {
	b.WriteByte('{')
	for i, key := range slices.Sorted(maps.Keys(o)) {
		if i > 0 {
			b.WriteByte(',')
		}
		quote(b, key)
		b.WriteByte(':')
		switch v := o[key].(type) {
		case nil:
			b.WriteString("null")
		case bool:
			b.WriteString(strconv.FormatBool(v))
		case string:
			quote(b, v)
		case object:
			v.write(b)
		case []string:
			list(b, v, quote)
		case []int:
			list(b, v, func(b *strings.Builder, n int) { b.WriteString(strconv.Itoa(n)) })
		case []object:
			list(b, v, func(b *strings.Builder, o object) { o.write(b) })
		}
	}
	b.WriteByte('}')
}

func list[T any](b *strings.Builder, elements []T, write func(*strings.Builder, T)) {
	b.WriteByte('[')
	for i, e := range elements {
		if i > 0 {
			b.WriteByte(',')
		}
		write(b, e)
	}
	b.WriteByte(']')
}

// quote writes a JSON string.
func quote(b *strings.Builder, s string) {
	b.WriteByte('"')
	for _, r := range s {
		switch {
		case r == '"' || r == '\\':
			b.WriteByte('\\')
			b.WriteRune(r)
		case r == '\n':
			b.WriteString(`\n`)
		case r == '\r':
			b.WriteString(`\r`)
		case r == '\t':
			b.WriteString(`\t`)
		case r == '\b':
			b.WriteString(`\b`)
		case r == '\f':
			b.WriteString(`\f`)
		case r >= ' ' && r <= '~':
			b.WriteRune(r)
		case r > 0xffff:
			hi, lo := utf16.EncodeRune(r)
			fmt.Fprintf(b, `\u%04x\u%04x`, hi, lo)
		default:
			fmt.Fprintf(b, `\u%04x`, r)
		}
	}
	b.WriteByte('"')
}

// valid says whether every text of the object can stand in a policy.
func (o object) valid() bool {
	for _, v := range o {
		ok := true
		switch v := v.(type) {
		case string:
			ok = valid(v)
		case []string:
			ok = valid(v...)
		case object:
			ok = v.valid()
		case []object:
			ok = !slices.ContainsFunc(v, func(o object) bool { return !o.valid() })
		}
		if !ok {
			return false
		}
	}
	return true
}
