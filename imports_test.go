// SPDX-License-Identifier: Apache-2.0

package coffer_test

import (
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const module = "github.com/coffer-dev/coffer"

// zones says what each zone may import of this module: DESIGN, section 1. To
// the host a policy is opaque bytes; the shared vocabulary knows of nobody.
var zones = map[string][]string{
	"":        {},
	"tee":     {"tee"},
	"policy":  {"policy"},
	"layer":   {"layer"},
	"wire":    {"wire", "tee"},
	"host":    {"host", "wire", "tee", "layer"},
	"guest":   {"guest", "wire", "tee", "policy"},
	"sidecar": {"sidecar", "tee"},
	"owner":   {"owner", "wire", "tee", "policy", "layer"},
	"cmd":     {"*"},
	"test":    {"*"},
}

// notInGuest says what the guest's PID 1 must not link, and why. All it links is
// measured and trusted, and much of it reads bytes that the host sends.
var notInGuest = map[string]string{
	module + "/host":                         "the host's code is not trusted",
	module + "/owner":                        "the owner decides elsewhere",
	module + "/layer":                        "layers are converted by the host and checked by the kernel",
	"net/http":                               "the guest speaks wire and nothing else",
	"net/rpc":                                "the guest speaks wire and nothing else",
	"crypto/tls":                             "keys and channels belong to the workload",
	"encoding/gob":                           "allocates as the sender says",
	"encoding/xml":                           "nothing the guest reads is XML",
	"text/template":                          "calls methods by name, so that the linker can drop none",
	"html/template":                          "calls methods by name, so that the linker can drop none",
	"plugin":                                 "code that was not measured",
	"testing":                                "tests are not part of the guest",
	"database/sql":                           "the guest stores nothing",
	"github.com/google/go-sev-guest":         "reports are verified by the owner; asking for one is a single ioctl",
	"github.com/google/go-containerregistry": "images are pulled by the host",
	"github.com/open-policy-agent":           "policies are decided natively",
	"github.com/opencontainers/runc":         "runc is a program of its own",
	"github.com/klauspost/compress":          "nothing compressed reaches the guest",
	"github.com/pierrec/lz4":                 "nothing compressed reaches the guest",
	"github.com/spf13":                       "PID 1 has no command line",
	"github.com/sirupsen/logrus":             "slog is enough",
	"github.com/golang/protobuf":             "wire's messages need no reflection",
	"google.golang.org/protobuf":             "wire's messages need no reflection",
	"google.golang.org/grpc":                 "brings net/http",
	"github.com/google/go-cmp":               "panics by design; for tests only",
	"github.com/rogpeppe/go-internal":        "for tests only",
}

const (
	maxLines     = 800
	maxTestLines = 1500
)

func tree(t *testing.T, root string) []source {
	t.Helper()
	sources, err := parseTree(root)
	if err != nil {
		t.Fatalf("parseTree(%q): %v", root, err)
	}
	if len(sources) == 0 {
		t.Fatalf("parseTree(%q) found no Go file", root)
	}
	return sources
}

func report(t *testing.T, problems []string) {
	t.Helper()
	for _, p := range problems {
		t.Error(p)
	}
}

func TestImportTable(t *testing.T) { report(t, checkImports(tree(t, "."), module, zones)) }

func TestLicences(t *testing.T) { report(t, checkLicences(tree(t, "."))) }

func TestPackageComments(t *testing.T) { report(t, checkPackageComments(tree(t, "."))) }

func TestBudgets(t *testing.T) { report(t, checkBudgets(tree(t, "."), maxLines, maxTestLines)) }

// TestGuestLinks holds the list of what is trusted inside the TEE.
func TestGuestLinks(t *testing.T) {
	tree(t, ".") // so that the test cache knows of every file
	for _, name := range []string{"go.mod", "go.sum"} {
		if _, err := os.ReadFile(name); err != nil {
			t.Fatal(err)
		}
	}
	problems, err := checkLinked(".", "cmd/coffer-guest", notInGuest)
	if err != nil {
		t.Fatal(err)
	}
	report(t, problems)
}

// sound is a small tree that keeps every rule. Each case below breaks one.
var sound = map[string]string{
	"go.mod":                   "module " + module + "\n\ngo 1.26\n",
	"doc.go":                   spdx + "\n\n// Package coffer is the root.\npackage coffer\n",
	"tee/tee.go":               spdx + "\n\n// Package tee has words.\npackage tee\n",
	"tee/more.go":              spdx + "\n\npackage tee\n",
	"policy/policy.go":         spdx + "\n\n// Package policy decides.\npackage policy\n",
	"wire/wire.go":             spdx + "\n\n// Package wire talks.\npackage wire\n\nimport _ \"" + module + "/tee\"\n",
	"guest/agent/agent.go":     spdx + "\n\n// Package agent says yes.\npackage agent\n\nimport (\n\t_ \"" + module + "/policy\"\n\t_ \"" + module + "/wire\"\n\t_ \"strings\"\n)\n",
	"host/launch/launch.go":    spdx + "\n\n// Package launch starts.\npackage launch\n\nimport _ \"net/http\"\n",
	"cmd/coffer/main.go":       spdx + "\n\n// Coffer is the command line.\npackage main\n\nimport _ \"" + module + "/host/launch\"\n\nfunc main() {}\n",
	"cmd/coffer-guest/main.go": spdx + "\n\n// Coffer-guest is PID 1.\npackage main\n\nimport _ \"" + module + "/guest/agent\"\n\nfunc main() {}\n",
	"tools/go.mod":             "module tools\n",
	"tools/tools.go":           spdx + "\n\n// Package tools is another module.\npackage tools\n\nimport _ \"" + module + "/guest/agent\"\n",
	"host/testdata/bad.go":     "this is not Go",
	"build/out.go":             "nor this",
}

// check runs all checks over a tree.
func check(t *testing.T, files map[string]string) []string {
	t.Helper()
	root := t.TempDir()
	for name, text := range files {
		name = filepath.Join(root, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	sources := tree(t, root)
	problems := checkImports(sources, module, zones)
	problems = append(problems, checkLicences(sources)...)
	problems = append(problems, checkPackageComments(sources)...)
	problems = append(problems, checkBudgets(sources, maxLines, maxTestLines)...)
	linked, err := checkLinked(root, "cmd/coffer-guest", notInGuest)
	if err != nil {
		linked = []string{err.Error()}
	}
	return append(problems, linked...)
}

// TestChecks plants one violation at a time: a check that cannot fail is none.
func TestChecks(t *testing.T) {
	header := spdx + "\n\n"
	imports := func(pkg, path string) string {
		return header + "package " + pkg + "\n\nimport _ \"" + path + "\"\n"
	}
	tests := []struct {
		name string
		path string // of the file added or replaced
		text string // empty: the file is removed
		want string // in one of the problems; empty: no problem
	}{
		{name: "sound", path: "tee/more.go", text: sound["tee/more.go"]},
		{name: "host imports policy", path: "host/launch/p.go", text: imports("launch", module+"/policy"), want: "host/launch/p.go: imports " + module + "/policy"},
		{name: "host imports a package below policy", path: "host/launch/p.go", text: imports("launch", module+"/policy/x"), want: "host/launch/p.go: imports"},
		{name: "host imports wire", path: "host/launch/p.go", text: imports("launch", module+"/wire")},
		{name: "a test of host imports guest", path: "host/launch/p_test.go", text: imports("launch", module+"/guest/agent"), want: "host/launch/p_test.go: imports"},
		{name: "another operating system's file", path: "host/launch/p_windows.go", text: imports("launch", module+"/owner/x"), want: "host/launch/p_windows.go: imports"},
		{name: "tee imports wire", path: "tee/w_test.go", text: imports("tee", module+"/wire"), want: "tee/w_test.go: imports"},
		{name: "policy imports tee", path: "policy/t.go", text: imports("policy", module+"/tee"), want: "policy/t.go: imports"},
		{name: "the root", path: "host/launch/p.go", text: imports("launch", module), want: "host/launch/p.go: imports " + module},
		{name: "a name that only begins like ours", path: "host/launch/p.go", text: imports("launch", module+"x/policy")},
		{name: "no zone", path: "util/u.go", text: header + "// Package util is everything.\npackage util\n", want: `"util" is no zone`},
		{name: "no licence", path: "tee/more.go", text: "package tee\n", want: "tee/more.go: the first line"},
		{name: "another licence", path: "tee/more.go", text: "// SPDX-License-Identifier: MIT\n\npackage tee\n", want: "tee/more.go: the first line"},
		{name: "no licence in another module", path: "tools/x.go", text: "package tools\n", want: "tools/x.go: the first line"},
		{name: "no package comment", path: "tee/tee.go", text: header + "package tee\n", want: "package tee has 0 package comments"},
		{name: "two package comments", path: "tee/more.go", text: header + "// Package tee again.\npackage tee\n", want: "package tee has 2 package comments"},
		{name: "a command without comment", path: "cmd/coffer/main.go", text: header + "package main\n\nfunc main() {}\n", want: "package main has 0 package comments"},
		{name: "a comment about something else", path: "tee/tee.go", text: header + "// Words.\npackage tee\n", want: "does not begin with"},
		{name: "a file of 800 lines", path: "tee/more.go", text: header + "package tee\n" + strings.Repeat("\n", maxLines-3)},
		{name: "a file of 801 lines", path: "tee/more.go", text: header + "package tee\n" + strings.Repeat("\n", maxLines-2), want: "tee/more.go: 801 lines; at most 800"},
		{name: "a test of 1500 lines", path: "tee/x_test.go", text: header + "package tee\n" + strings.Repeat("\n", maxTestLines-3)},
		{name: "a test of 1501 lines", path: "tee/x_test.go", text: header + "package tee\n" + strings.Repeat("\n", maxTestLines-2), want: "tee/x_test.go: 1501 lines; at most 1500"},
		{name: "the guest links encoding/gob by way of tee", path: "tee/more.go", text: imports("tee", "encoding/gob"),
			want: "encoding/gob: allocates as the sender says (" + module + "/cmd/coffer-guest -> " + module + "/guest/agent -> " + module + "/wire -> " + module + "/tee -> encoding/gob)"},
		{name: "the guest links the host", path: "cmd/coffer-guest/h.go", text: imports("main", module+"/layer"), want: "layer: layers are converted by the host"},
		{name: "a test of the guest imports net/http", path: "guest/agent/x_test.go", text: imports("agent", "net/http")},
		{name: "no guest", path: "cmd/coffer-guest/main.go", want: "finding the command"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			files := maps.Clone(sound)
			files[tt.path] = tt.text
			if tt.text == "" {
				delete(files, tt.path)
			}
			if strings.HasPrefix(tt.want, "layer") {
				files["layer/layer.go"] = header + "// Package layer converts.\npackage layer\n"
			}
			problems := check(t, files)
			if tt.want == "" {
				report(t, problems)
				return
			}
			// One violation may break two rules, and the go command may refuse it too.
			found := false
			for _, p := range problems {
				found = found || strings.Contains(p, tt.want)
			}
			if !found {
				t.Errorf("check with %s = %q; want a problem with %q", tt.path, problems, tt.want)
			}
		})
	}
}
