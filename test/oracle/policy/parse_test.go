// SPDX-License-Identifier: Apache-2.0

//go:build rego

package oracle

import (
	"math/rand/v2"
	"os"
	"strings"
	"testing"

	"github.com/open-policy-agent/opa/ast"

	"github.com/coffer-dev/coffer/policy"
)

// seeds are texts to mutate.
func seeds(t *testing.T) []string {
	confcom, err := os.ReadFile("../../../policy/testdata/confcom.rego")
	if err != nil {
		t.Fatal(err)
	}
	return []string{
		string(confcom)[:1000],
		"package policy\n\nimport rego.v1\nx := 1\ny = \"a\\u00e9\\n\"\nz := `raw\n\"x\"`\n",
		"# head\npackage policy # tail\nimport future.keywords\n\na :=\n  [1, 2,\n   # in\n   3,]\nb := {\"k\": {}, `l`: [], }\n",
		"package policy\nmount_device := data.framework.mount_device\nreason := {\"errors\": data.framework.errors}\n" +
			"n := [-1, 0, 0.5, 1e3, -2.5E-1, null, true, false]\n",
		"package policy\r\napi_version := \"0.10.0\"\r\nframework_version := \"0.2.3\"\r\ncontainers := []\r\nallow_dump_stacks := true",
	}
}

// TestParseAgainstOPA changes texts at random: whatever Parse accepts, OPA must accept too, with the same
// definitions, and every value must be one that OPA holds to be ground or a reference into data.framework.
func TestParseAgainstOPA(t *testing.T) {
	from, to := runs(t, 4000)
	texts := seeds(t)
	accepted := 0
	for seed := from; seed < to; seed++ {
		r := rand.New(rand.NewPCG(seed, 99))
		text := texts[r.IntN(len(texts))]
		for range r.IntN(4) {
			text = scramble(r, text)
		}
		if _, err := policy.Parse([]byte(text)); err != nil {
			continue
		}
		accepted++
		m, err := ast.ParseModuleWithOpts("policy.rego", text, ast.ParserOptions{RegoVersion: ast.RegoV0})
		if err != nil {
			t.Fatalf("seed %d: OPA refuses what Parse accepts: %v\n%q", seed, err, text)
		}
		if got := m.Package.Path.String(); got != "data.policy" {
			t.Fatalf("seed %d: package is %s\n%q", seed, got, text)
		}
		for _, rule := range m.Rules {
			body := rule.Body.String()
			if rule.Default || rule.Else != nil || len(rule.Head.Args) > 0 || rule.Head.Key != nil || body != "true" {
				t.Fatalf("seed %d: a rule that is no definition: %v\n%q", seed, rule, text)
			}
			if err := onlyGround(rule.Head.Value); err != "" {
				t.Fatalf("seed %d: %s in %v\n%q", seed, err, rule, text)
			}
		}
	}
	t.Logf("%d of %d texts accepted", accepted, to-from)
	if accepted < int(to-from)/20 {
		t.Errorf("only %d of %d texts accepted: the test tests nothing", accepted, to-from)
	}
}

func onlyGround(v *ast.Term) (why string) {
	ast.WalkTerms(v, func(t *ast.Term) bool {
		switch x := t.Value.(type) {
		case ast.Null, ast.Boolean, ast.Number, ast.String, *ast.Array, ast.Object:
		case ast.Ref:
			if !strings.HasPrefix(x.String(), "data.framework.") || len(x) != 3 {
				why = "reference " + x.String()
			}
			return true
		default:
			why = "term " + t.String()
		}
		return false
	})
	return why
}

// scramble makes one small change.
func scramble(r *rand.Rand, text string) string {
	pieces := []string{"\n", " ", ",", ":=", "=", "[", "]", "{", "}", "\"", "`", "#", "\\", "data.framework.x", "x := 1\n", "1", "-",
		"null", "true", "import rego.v1\n", "package policy\n", "if", "else", "default ", ".", "\\u0041", "é", ";", "|", "{}", "\t", "\r", "e5", "in", "contains",
		"import future.keywords.in\n", "[\"a\"]", "set()", "\x0b", "\uFEFF", "a b", "_", "2"}
	piece := pieces[r.IntN(len(pieces))]
	i := r.IntN(len(text) + 1)
	switch r.IntN(3) {
	case 0:
		return text[:i] + piece + text[i:]
	case 1:
		j := min(len(text), i+1+r.IntN(3))
		return text[:i] + text[j:]
	}
	j := min(len(text), i+1)
	return text[:i] + piece + text[j:]
}

// TestValuesAgainstOPA compares the values themselves: a string of a policy must be the string that OPA reads, which
// shows in what a request must be to match it.
func TestValuesAgainstOPA(t *testing.T) {
	for _, literal := range []string{`"plain"`, `"a\"b\\c\/d\b\f\n\r\t"`, `"\u00e9\u20ac"`, `"\ud83d\ude00"`, "`raw \\n \"x\"`", "`two\nlines`", `"é€😀"`, `""`, "`a\r\nb`"} {
		text := strings.Replace(string(small(func(c object) { c["command"] = []string{"/pause", "PLACEHOLDER"} })), `"PLACEHOLDER"`, literal, 1)
		m, err := ast.ParseModuleWithOpts("policy.rego", text, ast.ParserOptions{RegoVersion: ast.RegoV0})
		if err != nil {
			t.Fatalf("OPA: %s: %v", literal, err)
		}
		want := ""
		for _, rule := range m.Rules {
			if rule.Head.Name == "containers" {
				term, err := rule.Head.Value.Value.Find(ast.Ref{ast.IntNumberTerm(0), ast.StringTerm("command"), ast.IntNumberTerm(1)})
				if err != nil {
					t.Fatal(err)
				}
				want = string(term.(ast.String))
			}
		}
		ours, err := newNative([]byte(text))
		if err != nil {
			t.Fatalf("Parse: %s: %v", literal, err)
		}
		ours.decide(policy.MountDevice{Target: "/m0", DeviceHash: "aa11"})
		ours.decide(policy.MountOverlay{ContainerID: "c", LayerPaths: []string{"/m0"}, Target: "/c"})
		r := run("A=1")
		r.ArgList = []string{"/pause", want}
		if got := ours.decide(r); !got.Allowed {
			t.Errorf("%s: the command with OPA's value %q is denied: %q", literal, want, got.Errors)
		}
	}
}
