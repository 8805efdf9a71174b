// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"encoding/json"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestDecodeRequestRoundTrip(t *testing.T) {
	reqs := append(webRequests(), GetProperties{}, DumpStacks{}, RuntimeLogging{}, HostNetwork{}, ExecExternal{ArgList: []string{"ls"}})
	for _, req := range reqs {
		input, err := json.Marshal(req)
		if err != nil {
			t.Fatal(err)
		}
		got, err := DecodeRequest(req.Point(), input)
		if err != nil {
			t.Errorf("DecodeRequest(%s, %s): %v", req.Point(), input, err)
			continue
		}
		if diff := cmp.Diff(req, got); diff != "" {
			t.Errorf("DecodeRequest(%s): -want +got\n%s", req.Point(), diff)
		}
	}
}

func TestDecodeRequestStrict(t *testing.T) {
	for _, row := range []struct{ name, point, input, msg string }{
		{"point", "load_fragment", `{}`, "no enforcement point"},
		{"empty", "get_properties", ``, "EOF"},
		{"array", "get_properties", `[]`, "is an array"},
		{"more", "get_properties", `{} {}`, "more after"},
		{"unknown member", "get_properties", `{"a":1}`, `unknown member "a"`},
		{"missing member", "mount_device", `{"target":"/x"}`, `"deviceHash" is missing`},
		{"case", "mount_device", `{"Target":"/x","deviceHash":"a"}`, `unknown member "Target"`},
		{"twice", "mount_device", `{"target":"/x","target":"/y","deviceHash":"a"}`, "twice"},
		{"type", "mount_device", `{"target":1,"deviceHash":"a"}`, "target"},
		{"null text", "mount_device", `{"target":null,"deviceHash":"a"}`, "target is null"},
		{"inner unknown", "exec_in_container", `{"containerID":"c","argList":[],"envList":[],"workingDir":"/","noNewPrivileges":false,"user":{"id":"0","name":"","x":1},"groups":[],"umask":"0022","capabilities":{"bounding":[],"effective":[],"inheritable":[],"permitted":[],"ambient":[]}}`, `unknown member "user.x"`},
		{"inner missing", "exec_in_container", `{"containerID":"c","argList":[],"envList":[],"workingDir":"/","noNewPrivileges":false,"user":{"id":"0","name":""},"groups":[{"id":"1"}],"umask":"0022","capabilities":{"bounding":[],"effective":[],"inheritable":[],"permitted":[],"ambient":[]}}`, `"groups[0].name" is missing`},
		{"null capabilities", "exec_in_container", `{"containerID":"c","argList":[],"envList":[],"workingDir":"/","noNewPrivileges":false,"user":{"id":"0","name":""},"groups":[],"umask":"0022","capabilities":null}`, "capabilities is null"},
		{"not UTF-8", "unmount_device", "{\"unmountTarget\":\"\xff\"}", "UTF-8"},
		{"long", "unmount_device", `{"unmountTarget":"` + strings.Repeat("x", MaxInput) + `"}`, "more than"},
	} {
		t.Run(row.name, func(t *testing.T) {
			got, err := DecodeRequest(row.point, []byte(row.input))
			if got != nil || err == nil || !strings.Contains(err.Error(), row.msg) {
				t.Errorf("DecodeRequest = %v, %v; want an error with %q", got, err, row.msg)
			}
		})
	}
}

func FuzzDecodeRequest(f *testing.F) {
	text, err := os.ReadFile("testdata/narrowing.rego")
	if err != nil {
		f.Fatal(err)
	}
	p := parse(f, text)
	for _, req := range webRequests() {
		input, err := json.Marshal(req)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(req.Point(), input)
	}
	f.Fuzz(func(t *testing.T, point string, input []byte) {
		req, err := DecodeRequest(point, input)
		if err != nil {
			if req != nil {
				t.Fatalf("a request together with %v", err)
			}
			return
		}
		d, _ := p.Start().Decide(req)
		if d.Denial != nil {
			_, _ = d.Denial.Explain(), d.Denial.PolicyDecision(req)
		}
	})
}
