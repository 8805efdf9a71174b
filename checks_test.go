// SPDX-License-Identifier: Apache-2.0

package coffer_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// source is one Go file of a tree.
type source struct {
	path   string // slash-separated, from the tree's root
	text   []byte
	file   *ast.File
	nested bool // in another module below the root
}

func (s source) isTest() bool { return strings.HasSuffix(s.path, "_test.go") }

// zone is the first element of the path; "" is the root itself.
func (s source) zone() string {
	dir := path.Dir(s.path)
	if dir == "." {
		return ""
	}
	first, _, _ := strings.Cut(dir, "/")
	return first
}

// parseTree reads and parses every Go file below root in this process, so that
// the test cache knows of each. Like the go command it passes over testdata
// and names that begin with a dot or an underscore; build and bin are output.
func parseTree(root string) ([]source, error) {
	var sources []source
	nested := map[string]bool{}
	fset := token.NewFileSet()
	err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, p)
		if err != nil {
			return err
		}
		rel = filepath.ToSlash(rel)
		if d.IsDir() {
			if rel == "." {
				return nil
			}
			if name := d.Name(); name == "testdata" || strings.ContainsAny(name[:1], "._") || rel == "build" || rel == "bin" {
				return fs.SkipDir
			}
			_, err := os.Stat(filepath.Join(p, "go.mod"))
			nested[rel] = err == nil || nested[path.Dir(rel)]
			return nil
		}
		if !strings.HasSuffix(rel, ".go") {
			return nil
		}
		text, err := os.ReadFile(p)
		if err != nil {
			return err
		}
		file, err := parser.ParseFile(fset, rel, text, parser.ParseComments|parser.SkipObjectResolution)
		if err != nil {
			return fmt.Errorf("parsing %s: %w", rel, err)
		}
		sources = append(sources, source{path: rel, text: text, file: file, nested: nested[path.Dir(rel)]})
		return nil
	})
	return sources, err
}

// checkImports reports imports within the module that table does not allow.
// table maps a zone to the zones it may import.
func checkImports(sources []source, module string, table map[string][]string) []string {
	var problems []string
	for _, s := range sources {
		if s.nested {
			continue
		}
		allowed, ok := table[s.zone()]
		if !ok {
			problems = append(problems, fmt.Sprintf("%s: %q is no zone of the import table", s.path, s.zone()))
			continue
		}
		for _, spec := range s.file.Imports {
			imported, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				problems = append(problems, fmt.Sprintf("%s: import %s: %v", s.path, spec.Path.Value, err))
				continue
			}
			rest, ours := strings.CutPrefix(imported+"/", module+"/")
			if !ours {
				continue
			}
			zone, _, _ := strings.Cut(rest, "/")
			if !slices.Contains(allowed, zone) && !slices.Contains(allowed, "*") {
				problems = append(problems, fmt.Sprintf("%s: imports %s; %q may import of ours only %q",
					s.path, imported, s.zone(), allowed))
			}
		}
	}
	return problems
}

const spdx = "// SPDX-License-Identifier: Apache-2.0"

// checkLicences reports files whose first line is not the SPDX line alone.
func checkLicences(sources []source) []string {
	var problems []string
	for _, s := range sources {
		first, rest, _ := bytes.Cut(s.text, []byte("\n"))
		if string(first) != spdx {
			problems = append(problems, fmt.Sprintf("%s: the first line is not %q", s.path, spdx))
		} else if !bytes.HasPrefix(rest, []byte("\n")) {
			// A comment next to the package clause is the package's comment.
			problems = append(problems, fmt.Sprintf("%s: no empty line after the SPDX line", s.path))
		}
	}
	return problems
}

// checkPackageComments reports packages without exactly one package comment.
func checkPackageComments(sources []source) []string {
	type pkg struct{ dir, name string }
	comments := map[pkg][]string{}
	var problems []string
	for _, s := range sources {
		if s.isTest() {
			continue
		}
		p := pkg{path.Dir(s.path), s.file.Name.Name}
		comments[p] = append(comments[p], nil...)
		if s.file.Doc == nil {
			continue
		}
		comments[p] = append(comments[p], s.path)
		if want := "Package " + p.name + " "; p.name != "main" && !strings.HasPrefix(s.file.Doc.Text(), want) {
			problems = append(problems, fmt.Sprintf("%s: the package comment does not begin with %q", s.path, want))
		}
	}
	for p, files := range comments {
		if len(files) != 1 {
			problems = append(problems, fmt.Sprintf("%s: package %s has %d package comments %q; want 1", p.dir, p.name, len(files), files))
		}
	}
	slices.Sort(problems)
	return problems
}

// checkBudgets reports files that are too long.
func checkBudgets(sources []source, lines, testLines int) []string {
	var problems []string
	for _, s := range sources {
		limit := lines
		if s.isTest() {
			limit = testLines
		}
		if n := bytes.Count(s.text, []byte("\n")); n > limit {
			problems = append(problems, fmt.Sprintf("%s: %d lines; at most %d", s.path, n, limit))
		}
	}
	return problems
}

// checkLinked reports packages that the command in dir links although banned
// maps them, or a path above them, to a reason why not. Each comes with the
// chain of imports that brings it in. root has a go.mod.
func checkLinked(root, dir string, banned map[string]string) ([]string, error) {
	if _, err := os.Stat(filepath.Join(root, dir)); err != nil {
		return nil, fmt.Errorf("finding the command: %w", err)
	}
	imports, main, err := listDeps(root, dir)
	if err != nil {
		return nil, err
	}
	var problems []string
	from := map[string]string{main: ""}
	for queue := []string{main}; len(queue) > 0; queue = queue[1:] {
		for _, p := range imports[queue[0]] {
			if _, seen := from[p]; !seen {
				from[p] = queue[0]
				queue = append(queue, p)
			}
		}
	}
	for _, p := range slices.Sorted(maps.Keys(from)) {
		for ban, why := range banned {
			if p != ban && !strings.HasPrefix(p, ban+"/") {
				continue
			}
			chain := p
			for up := from[p]; up != ""; up = from[up] {
				chain = up + " -> " + chain
			}
			problems = append(problems, fmt.Sprintf("%s: %s (%s)", p, why, chain))
		}
	}
	slices.Sort(problems)
	return problems, nil
}

// listDeps asks the go command what ./dir links on Linux without cgo: for each
// package its imports. The test cache does not see what the go command reads;
// it notices a change because parseTree has read the same files.
func listDeps(root, dir string) (imports map[string][]string, main string, err error) {
	var stderr bytes.Buffer
	cmd := exec.Command("go", "list", "-deps", "-json=ImportPath,Imports,ImportMap", "./"+dir)
	cmd.Dir = root
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOWORK=off")
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, "", fmt.Errorf("listing %s: %w: %s", dir, err, stderr.Bytes())
	}
	imports = map[string][]string{}
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var p struct {
			ImportPath string
			Imports    []string
			ImportMap  map[string]string
		}
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return imports, main, nil
		} else if err != nil {
			return nil, "", fmt.Errorf("reading the list of %s: %w", dir, err)
		}
		for i, imp := range p.Imports {
			if mapped, ok := p.ImportMap[imp]; ok {
				p.Imports[i] = mapped
			}
		}
		imports[p.ImportPath] = p.Imports
		main = p.ImportPath // a package comes after all that it imports
	}
}
