// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
)

const head = "package policy\napi_version := \"0.10.0\"\nframework_version := \"0.2.3\"\n"

func TestParseAccepts(t *testing.T) {
	for name, text := range map[string]string{
		"empty":           "package policy",
		"comments":        "# a\npackage policy # b\n# c\nx := 1 # d\n# e",
		"imports":         "package policy\nimport future.keywords.every\nimport future.keywords.in\nimport future.keywords\n",
		"v1":              "package policy\nimport rego.v1\nx := 1",
		"old names":       "package policy\napi_svn := \"0.1.0\"\nframework_svn := \"0.1.0\"\n",
		"both names":      head + "api_svn := \"0.10.0\"\n",
		"single equals":   "package policy\nx = 1\n",
		"trailing commas": "package policy\nx := [1, 2, ]\ny := {\"a\": 1, }\n",
		"raw":             "package policy\nx := `a\\n\n\"b`\n",
		"numbers":         "package policy\nx := [0, -1, 1.5, 1e3, -2E-1]\n",
		"lines":           "package policy\nx :=\n\n  [\n# c\n1\n,\n2]\n",
		"crlf":            "package policy\r\nx := 1\r\ny := 2\r\n",
		"unknown":         "package policy\nmy_own := {\"a\": [null, true]}\nfoo := data.framework.foo\n",
		"reason":          head + "reason := {\"errors\": data.framework.errors, \"error_objects\": data.framework.error_objects}\n",
		"full reason":     head + "reason := data.framework.reason\n",
		"constants":       head + "create_container := {\"allowed\": true, \"env_list\": [\"A=1\"], \"allow_stdio_access\": true, \"x\": 1}\n",
		"depth":           "package policy\nx := " + strings.Repeat("[", MaxDepth) + strings.Repeat("]", MaxDepth) + "\n",
		"surrogates":      `package policy` + "\n" + `x := "\ud83d\ude00"`,
	} {
		if _, err := Parse([]byte(text)); err != nil {
			t.Errorf("%s: Parse: %v", name, err)
		}
	}
}

func TestParseRefuses(t *testing.T) {
	for _, row := range []struct {
		name, text string
		line, col  int
		msg        string
	}{
		{"nothing", "", 1, 1, "package policy"},
		{"no package", "x := 1", 1, 1, "package policy"},
		{"other package", "package fragment\n", 1, 1, "package fragment"},
		{"package path", "package policy.x\n", 1, 15, "end of the line"},
		{"package on two lines", "package #a\npolicy\n", 1, 1, "same line"},
		{"two packages", "package policy\npackage policy\n", 2, 1, "second package"},
		{"import data", "package policy\nimport data.x\n", 2, 8, "only rego.v1"},
		{"import alias", "package policy\nimport future.keywords.in as y\n", 2, 27, "end of the line"},
		{"both imports", "package policy\nimport rego.v1\nimport future.keywords\n", 3, 8, "both"},
		{"late import", "package policy\nx := 1\nimport rego.v1\n", 3, 1, "before the first"},
		{"rule", "package policy\nallow { true }\n", 2, 7, "only data"},
		{"v1 rule", "package policy\nallow if true\n", 2, 7, "only data"},
		{"set rule", "package policy\ndeny[x] { x := 1 }\n", 2, 5, "only data"},
		{"function", "package policy\nf(x) := 1\n", 2, 2, "only data"},
		{"default", "package policy\ndefault allow := false\n", 2, 1, "default rules"},
		{"rule with value", "package policy\nx := 1 { true }\n", 2, 8, "end of the line"},
		{"else", "package policy\nx := 1\nelse := 2\n", 3, 1, "cannot be defined"},
		{"body on next line", "package policy\nx := 1\n{ true }\n", 3, 1, "want a name"},
		{"comprehension", "package policy\nx := [y | y := 1]\n", 2, 7, "neither"},
		{"array comprehension", "package policy\nx := [1 | true]\n", 2, 9, "want ','"},
		{"set", "package policy\nx := {1, 2}\n", 2, 7, "string as key"},
		{"set of strings", "package policy\nx := {\"a\", \"b\"}\n", 2, 10, "want ':'"},
		{"call", "package policy\nx := concat(\",\", [])\n", 2, 6, "neither"},
		{"arithmetic", "package policy\nx := 1 + 1\n", 2, 8, "end of the line"},
		{"comparison", "package policy\nx == 1\n", 2, 3, "want :="},
		{"var", "package policy\nx := y\n", 2, 6, "neither"},
		{"input", "package policy\nx := input.target\n", 2, 6, "neither"},
		{"policy data", "package policy\nx := data.policy.y\n", 2, 6, "neither"},
		{"deep framework", "package policy\nx := data.framework.x.y\n", 2, 6, "neither"},
		{"indexed framework", "package policy\nx := data.framework.x[0]\n", 2, 22, "end of the line"},
		{"other binding", head + "mount_device := data.framework.get_properties\n", 4, 17, "only be bound"},
		{"nested binding", head + "create_container := {\"allowed\": data.framework.dump_stacks}\n", 4, 33, "part of a value"},
		{"constant without allowed", head + "exec_in_container := {\"env_list\": null}\n", 4, 22, "allowed"},
		{"constant not a bool", head + "mount_device := {\"allowed\": 1}\n", 4, 29, "boolean"},
		{"constant not an object", head + "mount_device := true\n", 4, 17, "an object"},
		{"constant with metadata", head + "mount_device := {\"allowed\": true, \"metadata\": []}\n", 4, 47, "metadata"},
		{"wrong reason", head + "reason := {\"errors\": data.framework.error_objects}\n", 4, 22, "reason.errors"},
		{"constant reason", head + "reason := {\"errors\": []}\n", 4, 22, "reason.errors"},
		{"twice", head + "containers := []\ncontainers := []\n", 5, 1, "twice"},
		{"contradiction", head + "api_svn := \"0.9.0\"\n", 4, 1, "contradicts"},
		{"version number", "package policy\napi_version := 1\n", 2, 16, "a string"},
		{"version text", "package policy\nframework_version := \"0.2\"\n", 2, 22, "MAJOR.MINOR.PATCH"},
		{"version suffix", "package policy\nframework_version := \"0.2.3-rc1\"\n", 2, 22, "MAJOR.MINOR.PATCH"},
		{"version zeros", "package policy\nframework_version := \"00.2.3\"\n", 2, 22, "MAJOR.MINOR.PATCH"},
		{"flag", head + "allow_dump_stacks := \"true\"\n", 4, 22, "boolean"},
		{"containers object", head + "containers := {}\n", 4, 15, "an array"},
		{"container null", head + "containers := [null]\n", 4, 16, "containers[0]"},
		{"command text", head + "containers := [{\"command\": \"sh\"}]\n", 4, 28, "containers[0].command"},
		{"argument number", head + "containers := [{\"command\": [\"a\", 1]}]\n", 4, 34, "containers[0].command[1]"},
		{"elevated text", head + "containers := [{\"allow_elevated\": \"no\"}]\n", 4, 35, "containers[0].allow_elevated"},
		{"signal text", head + "containers := [{\"signals\": [\"9\"]}]\n", 4, 29, "containers[0].signals[0]"},
		{"signal fraction", head + "containers := [{\"signals\": [9.5]}]\n", 4, 29, "whole number"},
		{"rule pattern", head + "containers := [{\"env_rules\": [{\"pattern\": 1, \"strategy\": \"re2\"}]}]\n", 4, 43, "containers[0].env_rules[0].pattern"},
		{"mounts null", head + "containers := [{\"mounts\": null}]\n", 4, 27, "containers[0].mounts"},
		{"key twice", head + "containers := [{\"command\": [\"a\"], \"command\": [\"b\"]}]\n", 4, 35, "twice"},
		{"open string", "package policy\nx := \"a\n", 2, 8, "control character"},
		{"string at the end", "package policy\nx := \"a", 2, 6, "not closed"},
		{"open raw", "package policy\nx := `a\n", 2, 6, "not closed"},
		{"open array", "package policy\nx := [1", 2, 8, "end of the text"},
		{"escape", "package policy\nx := \"\\x41\"\n", 2, 7, "escape"},
		{"half a pair", "package policy\nx := \"\\ud83d\"\n", 2, 7, "escape"},
		{"number", "package policy\nx := 012\n", 2, 6, "number"},
		{"number word", "package policy\nx := 12a\n", 2, 6, "number"},
		{"plus", "package policy\nx := +1\n", 2, 6, "want a value"},
		{"commas", "package policy\nx := [1,,2]\n", 2, 9, "want a value"},
		{"lone comma", "package policy\nx := [,]\n", 2, 7, "want a value"},
		{"two on a line", "package policy\nx := 1 y := 2\n", 2, 8, "end of the line"},
		{"semicolon", "package policy\nx := 1; y := 2\n", 2, 7, "end of the line"},
		{"name apart", "package policy\nx\n:= 1\n", 2, 1, "on the line of x"},
		{"NUL", "package policy\nx := \"a\x00\"\n", 2, 8, "NUL"},
		{"not UTF-8", "package policy\nx := \"\xff\"\n", 2, 7, "UTF-8"},
		{"byte order mark", "\ufeffpackage policy\n", 1, 1, "byte order mark"},
		{"deep", "package policy\nx := " + strings.Repeat("[", MaxDepth+1), 2, 6 + MaxDepth, "deeper"},
		{"JSON", "{\"allow_all\":true,\"containers\":{}}", 1, 1, "package policy"},
	} {
		t.Run(row.name, func(t *testing.T) {
			p, err := Parse([]byte(row.text))
			var syn *SyntaxError
			if p != nil || !errors.As(err, &syn) {
				t.Fatalf("Parse = %v, %v; want a SyntaxError", p, err)
			}
			if syn.Line != row.line || syn.Col != row.col || !strings.Contains(syn.Msg, row.msg) {
				t.Errorf("Parse: %v; want line %d, column %d: ...%s...", err, row.line, row.col, row.msg)
			}
		})
	}
}

func TestParseLimits(t *testing.T) {
	for name, text := range map[string]string{
		"bytes":      "package policy\n#" + strings.Repeat("x", MaxText),
		"values":     "package policy\nx := [" + strings.Repeat("1,", MaxValues) + "]",
		"containers": "package policy\ncontainers := [" + strings.Repeat("{},", MaxContainers+1) + "]",
	} {
		if _, err := Parse([]byte(text)); err == nil {
			t.Errorf("%s: no error above the limit", name)
		}
	}
	if _, err := Parse([]byte("package policy\ncontainers := [" + strings.Repeat("{},", MaxContainers) + "]")); err != nil {
		t.Errorf("containers: at the limit: %v", err)
	}
}

func TestDigest(t *testing.T) {
	// printf 'package policy\n' | sha256sum
	const want = "89d09cb5c2f579afa733a1f68ae0dd5ff13e59efa75b870c64ca9fd62e9ec139"
	text := []byte("package policy\n")
	got := fmt.Sprintf("%x", Digest(text))
	if p := parse(t, text); fmt.Sprintf("%x", p.Digest()) != got {
		t.Errorf("Policy.Digest = %x; want %s", p.Digest(), got)
	}
	if got != want {
		t.Errorf("Digest = %s; want %s", got, want)
	}
}

func TestWarnings(t *testing.T) {
	text := head + "containers := [{\"command\": null}]\nallow_dump_stack := true\nfragments := [{}]\n"
	var got []string
	for _, w := range parse(t, []byte(text)).Warnings() {
		got = append(got, fmt.Sprintf("%d:%d", w.Line, w.Col))
	}
	if want := "5:1 6:1 4:16"; strings.Join(got, " ") != want {
		t.Errorf("warnings at %v; want %s", got, want)
	}
	if w := readPolicy(t, "allow_all.rego").Warnings(); len(w) != 0 {
		t.Errorf("allow-all policy: warnings %v", w)
	}
}

func FuzzParse(f *testing.F) {
	for _, name := range []string{"confcom.rego", "golden.rego", "allow_all.rego", "narrowing.rego"} {
		text, err := os.ReadFile("testdata/" + name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text)
	}
	f.Add([]byte("package policy\nx := `a`\ny := [-1.5e3, \"\\ud83d\\ude00\",]\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		p, err := Parse(text)
		if err != nil {
			var syn *SyntaxError
			if p != nil || !errors.As(err, &syn) || syn.Line < 1 || syn.Col < 1 {
				t.Fatalf("Parse = %v, %#v", p, err)
			}
			return
		}
		s := p.Start()
		for _, req := range webRequests() {
			d, next := s.Decide(req)
			if d.Allowed == (d.Denial != nil) {
				t.Fatalf("%s: %+v", req.Point(), d)
			}
			if !d.Allowed {
				_, _ = d.Denial.Explain(), d.Denial.Error()
				if wire := d.Denial.PolicyDecision(req); len(wire) > MaxDecision {
					t.Fatalf("%s: decision of %d bytes", req.Point(), len(wire))
				}
			}
			s = next
		}
	})
}
