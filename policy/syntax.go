// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"strings"
	"unicode/utf8"
)

type kind uint8

const (
	kindNull kind = iota
	kindBool
	kindNumber
	kindString
	kindArray
	kindObject
	kindRef // data.framework.NAME; str holds NAME
)

func (k kind) String() string {
	return [...]string{"null", "a boolean", "a number", "a string", "an array", "an object", "a reference"}[k]
}

// node is one value of the text.
type node struct {
	kind kind
	b    bool
	off  int    // where it starts
	str  string // string, number as written, or name of a reference
	list []node // elements of an array, values of an object
	keys []string
}

// get returns the member of an object, nil if there is none.
func (n *node) get(key string) *node {
	for i, k := range n.keys {
		if k == key {
			return &n.list[i]
		}
	}
	return nil
}

// statement is one "name := value".
type statement struct {
	name  string
	off   int
	value node
}

// module is a parsed text.
type module struct {
	pkg        string
	statements []statement
}

// keyword tells the words that Rego v0 or v1 reserves, and the two roots; none may be the name of a definition.
func keyword(word string) bool {
	switch word {
	case "as", "contains", "data", "default", "else", "every", "false", "if", "import", "in", "input", "not", "null",
		"package", "set", "some", "true", "with":
		return true
	}
	return false
}

const onlyData = "a policy holds only data and bindings to data.framework; "

type parser struct {
	scanner
	values int
}

// parseModule reads a whole text.
func parseModule(text []byte) (*module, *parser, error) {
	p := &parser{}
	if len(text) > MaxText {
		p.src = string(text[:1])
		return nil, p, p.errorAt(0, "the text has %d bytes, more than %d", len(text), MaxText)
	}
	p.src = string(text)
	if err := p.checkBytes(); err != nil {
		return nil, p, err
	}
	m := &module{}
	if err := p.packageClause(m); err != nil {
		return nil, p, err
	}
	if err := p.imports(); err != nil {
		return nil, p, err
	}
	return m, p, p.statements(m)
}

func (p *parser) checkBytes() error {
	if i := strings.IndexByte(p.src, 0); i >= 0 {
		return p.errorAt(i, "NUL byte")
	}
	if i := strings.Index(p.src, "\uFEFF"); i >= 0 {
		return p.errorAt(i, "byte order mark")
	}
	if utf8.ValidString(p.src) {
		return nil
	}
	for i := 0; i < len(p.src); {
		r, n := utf8.DecodeRuneInString(p.src[i:])
		if r == utf8.RuneError && n == 1 {
			return p.errorAt(i, "byte %#02x is not UTF-8", p.src[i])
		}
		i += n
	}
	return nil
}

// packageClause reads "package NAME". Name and keyword stand on one line, nothing else does.
func (p *parser) packageClause(m *module) error {
	p.skip()
	at := p.pos
	if p.ident() != "package" {
		return p.errorAt(at, "want \"package policy\" first")
	}
	if p.skip() {
		return p.errorAt(at, "the name of the package must follow on the same line")
	}
	at = p.pos
	if m.pkg = p.ident(); m.pkg == "" || keyword(m.pkg) || len(m.pkg) > maxIdent {
		return p.errorAt(at, "want the name of the package, have %s", p.found())
	}
	return p.endOfLine("the name of the package")
}

// endOfLine demands that what was read is the last thing on its line.
func (p *parser) endOfLine(after string) error {
	if !p.skip() && !p.eof() {
		return p.errorAt(p.pos, "want the end of the line after %s, have %s", after, p.found())
	}
	return nil
}

// imports reads the imports of keywords, which have no meaning for data.
func (p *parser) imports() error {
	v1, future := false, false
	for p.identAt(p.pos) == "import" {
		at := p.pos
		p.pos += len("import")
		if p.skip() {
			return p.errorAt(at, "malformed import")
		}
		at = p.pos
		path := p.path()
		switch path {
		case "rego.v1":
			v1 = true
		case "future.keywords", "future.keywords.contains", "future.keywords.every", "future.keywords.if",
			"future.keywords.in":
			future = true
		default:
			return p.errorAt(at, "only rego.v1 and future.keywords may be imported, not %q", clip(path, 60))
		}
		if v1 && future {
			return p.errorAt(at, "rego.v1 and future.keywords cannot both be imported")
		}
		if err := p.endOfLine("an import"); err != nil {
			return err
		}
	}
	return nil
}

// path reads identifiers joined by dots without space between them.
func (p *parser) path() string {
	start := p.pos
	for p.ident() != "" && p.peek() == '.' {
		p.pos++
	}
	return p.src[start:p.pos]
}

func (p *parser) statements(m *module) error {
	seen := map[string]bool{}
	for !p.eof() {
		at := p.pos
		name := p.ident()
		switch {
		case name == "import":
			return p.errorAt(at, "imports must stand before the first definition")
		case name == "default":
			return p.errorAt(at, onlyData+"default rules are not supported")
		case name == "package":
			return p.errorAt(at, "second package clause")
		case name == "":
			return p.errorAt(at, "want a name, have %s", p.found())
		case keyword(name) || len(name) > maxIdent:
			return p.errorAt(at, "%q cannot be defined", clip(name, 60))
		}
		if p.skip() {
			return p.errorAt(at, onlyData+"want := on the line of %s", name)
		}
		if err := p.assign(); err != nil {
			return err
		}
		if seen[name] {
			return p.errorAt(at, "%s is defined twice", name)
		}
		seen[name] = true
		st := statement{name: name, off: at}
		p.skip()
		if err := p.value(&st.value, 1); err != nil {
			return err
		}
		if err := p.endOfLine("the definition of " + name); err != nil {
			return err
		}
		m.statements = append(m.statements, st)
	}
	return nil
}

func (p *parser) assign() error {
	switch {
	case strings.HasPrefix(p.src[p.pos:], ":="):
		p.pos += 2
	case p.peek() == '=' && !strings.HasPrefix(p.src[p.pos:], "=="):
		p.pos++
	default:
		return p.errorAt(p.pos, onlyData+"want := , have %s", p.found())
	}
	return nil
}

// value reads one term into n.
func (p *parser) value(n *node, depth int) (err error) {
	if depth > MaxDepth {
		return p.errorAt(p.pos, "values nest deeper than %d", MaxDepth)
	}
	if p.values++; p.values > MaxValues {
		return p.errorAt(p.pos, "more than %d values", MaxValues)
	}
	n.off = p.pos
	switch c := p.peek(); {
	case c == '"':
		n.kind = kindString
		n.str, err = p.quoted()
	case c == '`':
		n.kind = kindString
		n.str, err = p.rawString()
	case c == '-' || c >= '0' && c <= '9':
		n.kind = kindNumber
		n.str, err = p.number()
	case c == '[':
		n.kind = kindArray
		err = p.array(n, depth)
	case c == '{':
		n.kind = kindObject
		err = p.object(n, depth)
	default:
		err = p.word(n)
	}
	return err
}

func (p *parser) word(n *node) error {
	switch word := p.path(); {
	case word == "":
		return p.errorAt(n.off, "want a value, have %s", p.found())
	case word == "null":
	case word == "true" || word == "false":
		n.kind, n.b = kindBool, word == "true"
	case strings.HasPrefix(word, "data.framework.") && p.identAt(n.off+15) == word[15:] && word[15:] != "" && !keyword(word[15:]):
		n.kind, n.str = kindRef, word[15:]
	default:
		return p.errorAt(n.off, onlyData+"%q is neither", clip(word, 60))
	}
	return nil
}

// array reads "[...]". A comma may follow the last element.
func (p *parser) array(n *node, depth int) error {
	p.pos++
	for {
		p.skip()
		if p.peek() == ']' {
			p.pos++
			return nil
		}
		n.list = append(n.list, node{})
		if err := p.value(&n.list[len(n.list)-1], depth+1); err != nil {
			return err
		}
		if err := p.comma(']'); err != nil {
			return err
		}
	}
}

// comma reads the comma after an element, which may be missing before the closing bracket.
func (p *parser) comma(closing byte) error {
	p.skip()
	switch p.peek() {
	case ',':
		p.pos++
	case closing:
	default:
		return p.errorAt(p.pos, "want ',' or '%c', have %s", closing, p.found())
	}
	return nil
}

// object reads "{...}" with string keys. A key that is there twice is refused: which one counts would be unclear.
func (p *parser) object(n *node, depth int) error {
	p.pos++
	var seen map[string]bool // only for large objects
	for {
		p.skip()
		if p.peek() == '}' {
			p.pos++
			return nil
		}
		at := p.pos
		key, err := p.key()
		if err != nil {
			return err
		}
		if len(n.keys) == 16 {
			seen = make(map[string]bool)
			for _, k := range n.keys {
				seen[k] = true
			}
		}
		if seen == nil && n.get(key) != nil || seen[key] {
			return p.errorAt(at, "key %q is there twice", clip(key, 60))
		}
		if seen != nil {
			seen[key] = true
		}
		p.skip()
		if p.peek() != ':' {
			return p.errorAt(p.pos, "want ':', have %s", p.found())
		}
		p.pos++
		p.skip()
		n.keys = append(n.keys, key)
		n.list = append(n.list, node{})
		if err := p.value(&n.list[len(n.list)-1], depth+1); err != nil {
			return err
		}
		if err := p.comma('}'); err != nil {
			return err
		}
	}
}

func (p *parser) key() (string, error) {
	switch p.peek() {
	case '"':
		return p.quoted()
	case '`':
		return p.rawString()
	}
	return "", p.errorAt(p.pos, onlyData+"want a string as key, have %s", p.found())
}

// clip shortens s to n bytes for a message.
func clip(s string, n int) string {
	if len(s) <= n {
		return s
	}
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n] + "..."
}
