// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"reflect"
	"strings"
	"unicode/utf8"
)

// MaxInput is the longest JSON input of a request that DecodeRequest reads, in bytes.
const MaxInput = 4 << 20

// DecodeRequest reads the input of the named enforcement point from JSON, as in the command files of the original's
// policy simulator. Unknown, missing, repeated and differently capitalised members are errors; optional are only
// mountPathRegex, devices and isSandboxContainer.
func DecodeRequest(name string, input []byte) (Request, error) {
	switch name {
	case "mount_device":
		return decode[MountDevice](input)
	case "unmount_device":
		return decode[UnmountDevice](input)
	case "rw_mount_device":
		return decode[RWMountDevice](input)
	case "rw_unmount_device":
		return decode[RWUnmountDevice](input)
	case "mount_overlay":
		return decode[MountOverlay](input)
	case "unmount_overlay":
		return decode[UnmountOverlay](input)
	case "scratch_mount":
		return decode[ScratchMount](input)
	case "scratch_unmount":
		return decode[ScratchUnmount](input)
	case "create_container":
		return decode[CreateContainer](input)
	case "exec_in_container":
		return decode[ExecInContainer](input)
	case "exec_external":
		return decode[ExecExternal](input)
	case "signal_container_process":
		return decode[SignalContainerProcess](input)
	case "shutdown_container":
		return decode[ShutdownContainer](input)
	case "plan9_mount":
		return decode[Plan9Mount](input)
	case "plan9_unmount":
		return decode[Plan9Unmount](input)
	case "get_properties":
		return decode[GetProperties](input)
	case "runtime_logging":
		return decode[RuntimeLogging](input)
	case "dump_stacks":
		return decode[DumpStacks](input)
	case "host_network":
		return decode[HostNetwork](input)
	}
	return nil, fmt.Errorf("decoding request: no enforcement point %q", clip(name, 60))
}

func decode[R Request](input []byte) (Request, error) {
	var r R
	if err := strictJSON(input, &r); err != nil {
		return nil, fmt.Errorf("decoding input of %s: %w", r.Point(), err)
	}
	return r, nil
}

// strictJSON is json.Unmarshal into a struct, without its leniency.
func strictJSON(input []byte, to any) error {
	if len(input) > MaxInput {
		return fmt.Errorf("%d bytes, more than %d", len(input), MaxInput)
	}
	if !utf8.Valid(input) {
		return errors.New("not UTF-8")
	}
	dec := json.NewDecoder(bytes.NewReader(input))
	if err := checkJSON(dec, reflect.TypeOf(to).Elem(), ""); err != nil {
		return err
	}
	if _, err := dec.Token(); err != io.EOF {
		return errors.New("more after the value")
	}
	return json.Unmarshal(input, to)
}

// checkJSON reads one value and compares its members with the fields of t.
func checkJSON(dec *json.Decoder, t reflect.Type, path string) error {
	tok, err := dec.Token()
	if err != nil {
		return fmt.Errorf("reading %s: %w", named(path), err)
	}
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	switch tok {
	case json.Delim('{'):
		if t.Kind() != reflect.Struct {
			return fmt.Errorf("%s is an object", named(path))
		}
		return checkMembers(dec, t, path)
	case json.Delim('['):
		if t.Kind() != reflect.Slice {
			return fmt.Errorf("%s is an array", named(path))
		}
		for i := 0; dec.More(); i++ {
			if err := checkJSON(dec, t.Elem(), fmt.Sprintf("%s[%d]", path, i)); err != nil {
				return err
			}
		}
		_, err = dec.Token()
		return err
	case nil:
		if t.Kind() != reflect.Slice {
			return fmt.Errorf("%s is null", named(path))
		}
	}
	return nil
}

func named(path string) string {
	if path == "" {
		return "the input"
	}
	return path
}

func checkMembers(dec *json.Decoder, t reflect.Type, path string) error {
	optional := map[string]bool{}
	fields := map[string]reflect.Type{}
	for i := range t.NumField() {
		name, opts, _ := strings.Cut(t.Field(i).Tag.Get("json"), ",")
		fields[name], optional[name] = t.Field(i).Type, opts != ""
	}
	seen := map[string]bool{}
	for dec.More() {
		tok, err := dec.Token()
		if err != nil {
			return err
		}
		name, _ := tok.(string)
		at := strings.TrimPrefix(path+"."+clip(name, 60), ".")
		switch {
		case fields[name] == nil:
			return fmt.Errorf("unknown member %q", at)
		case seen[name]:
			return fmt.Errorf("member %q is there twice", at)
		}
		seen[name] = true
		if err := checkJSON(dec, fields[name], at); err != nil {
			return err
		}
	}
	for name := range fields {
		if !seen[name] && !optional[name] {
			return fmt.Errorf("member %q is missing", strings.TrimPrefix(path+"."+name, "."))
		}
	}
	_, err := dec.Token()
	return err
}
