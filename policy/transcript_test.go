// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"encoding/base64"
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write the transcripts in testdata anew")

// TestTranscripts replays testdata/*.txt. A line is a comment, "policy FILE", "let NAME {json}", "state", "wire" (the
// last denial as tools see it), or a request: POINT {json}, or POINT NAME {json} with members changed. Lines that
// begin with two spaces are the answers; -update writes them.
func TestTranscripts(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) < 3 {
		t.Fatalf("transcripts: %v, %v", files, err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			got := replay(t, string(text))
			if *update {
				if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			if diff := cmp.Diff(string(text), got); diff != "" && !*update {
				t.Errorf("%s: -file +replayed\n%s", file, diff)
			}
		})
	}
}

type transcript struct {
	state  State
	lets   map[string]map[string]json.RawMessage
	denial *Denial
	req    Request
	out    strings.Builder
}

func replay(t *testing.T, text string) string {
	tr := &transcript{lets: map[string]map[string]json.RawMessage{}}
	for line := range strings.Lines(text) {
		if strings.HasPrefix(line, "  ") {
			continue
		}
		tr.out.WriteString(line)
		line = strings.TrimSpace(line)
		word, rest, _ := strings.Cut(line, " ")
		switch {
		case line == "" || word[0] == '#':
		case word == "policy":
			tr.state = readPolicy(t, rest).Start()
		case word == "let":
			name, value, _ := strings.Cut(rest, " ")
			tr.lets[name] = members(t, value)
		case word == "state":
			tr.print(tr.state.String())
		case word == "wire":
			tr.print(unwrap(t, tr.denial.PolicyDecision(tr.req)))
		default:
			tr.request(t, word, rest)
		}
	}
	return tr.out.String()
}

func (tr *transcript) print(text string) {
	for line := range strings.Lines(text) {
		tr.out.WriteString("  " + strings.TrimRight(line, "\n") + "\n")
	}
}

func members(t *testing.T, text string) map[string]json.RawMessage {
	t.Helper()
	var m map[string]json.RawMessage
	if err := json.Unmarshal([]byte(text), &m); err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	return m
}

func (tr *transcript) request(t *testing.T, point, rest string) {
	t.Helper()
	input := map[string]json.RawMessage{}
	if name, changes, ok := strings.Cut(rest, " "); ok && tr.lets[name] != nil {
		maps.Copy(input, tr.lets[name])
		rest = changes
	}
	maps.Copy(input, members(t, rest))
	text, err := json.Marshal(input)
	if err != nil {
		t.Fatal(err)
	}
	caps, err := json.Marshal(DefaultCapabilities())
	if err != nil {
		t.Fatal(err)
	}
	text = []byte(strings.ReplaceAll(string(text), `"DEFAULT"`, string(caps)))
	req, err := DecodeRequest(point, text)
	if err != nil {
		t.Fatalf("%s %s: %v", point, text, err)
	}
	d, next := tr.state.Decide(req)
	tr.req, tr.denial = req, d.Denial
	if !d.Allowed {
		if before := tr.state.String(); next.String() != before {
			t.Errorf("%s was denied, but the state changed from\n%sto\n%s", point, before, next)
		}
		tr.print("deny: " + d.Denial.Error() + "\n" + afterFirstLine(d.Denial.Explain()))
		return
	}
	tr.state = next
	tr.print("allow" + granted(d))
}

func afterFirstLine(text string) string {
	_, rest, _ := strings.Cut(text, "\n")
	return rest
}

func granted(d Decision) string {
	var b strings.Builder
	if d.Env != nil {
		fmt.Fprintf(&b, " env=%q stdio=%t", d.Env, d.AllowStdio)
	}
	if c := d.Capabilities; c != nil {
		switch {
		case c.equal(DefaultCapabilities()):
			b.WriteString(" caps=default")
		default:
			for i, set := range c.sets() {
				fmt.Fprintf(&b, " %s=%s", capNames()[i], *set)
			}
		}
	}
	return b.String()
}

// unwrap takes the JSON out of the wire form of a denial.
func unwrap(t *testing.T, wire string) string {
	t.Helper()
	text, ok := strings.CutPrefix(wire, decisionOpen)
	text, ok2 := strings.CutSuffix(text, decisionClose)
	raw, err := base64.StdEncoding.DecodeString(text)
	if !ok || !ok2 || err != nil {
		t.Fatalf("malformed decision %q: %v", wire, err)
	}
	return string(raw)
}

// TestStatesAreValues: a state that the caller still holds answers as before, whatever was decided from it since.
func TestStatesAreValues(t *testing.T) {
	s := readPolicy(t, "narrowing.rego").Start()
	reqs := []Request{
		MountDevice{Target: "/m0", DeviceHash: "aa"}, MountDevice{Target: "/m1", DeviceHash: "bb"},
		MountOverlay{ContainerID: "c", LayerPaths: []string{"/m1", "/m0"}, Target: "/c"},
		ScratchMount{Target: "/s", Encrypted: true}, UnmountDevice{UnmountTarget: "/m0"},
	}
	var states []State
	var texts []string
	for _, req := range reqs {
		states, texts = append(states, s), append(texts, s.String())
		d, next := s.Decide(req)
		if !d.Allowed {
			t.Fatalf("%s: %v", req.Point(), d.Denial)
		}
		s = next
	}
	for i, old := range states {
		if old.String() != texts[i] {
			t.Errorf("state %d is now\n%swas\n%s", i, old, texts[i])
		}
		if d, _ := old.Decide(reqs[i]); !d.Allowed {
			t.Errorf("state %d: %s is denied the second time: %v", i, reqs[i].Point(), d.Denial)
		}
	}
	if slices.Contains(texts, s.String()) {
		t.Error("the last state is the same as an earlier one")
	}
}
