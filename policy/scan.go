// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"fmt"
	"strconv"
	"strings"
	"unicode/utf16"
	"unicode/utf8"
)

// Limits of what Parse reads.
const (
	// MaxText is the longest policy text, in bytes.
	MaxText = 16 << 20
	// MaxDepth is the deepest nesting of arrays and objects.
	MaxDepth = 32
	// MaxValues is the largest number of values in a text, arrays and objects included.
	MaxValues = 1 << 20
	// MaxContainers is the largest number of containers, counted after platform_rules multiplied them.
	MaxContainers = 10000

	maxNumber = 64 // bytes of one number
	maxIdent  = 256
)

// SyntaxError says why Parse refused a text and where. Line and Col count from 1; Col counts bytes.
type SyntaxError struct {
	Line, Col int
	Msg       string
}

// Error gives "line L, column C: message".
func (e *SyntaxError) Error() string {
	return fmt.Sprintf("line %d, column %d: %s", e.Line, e.Col, e.Msg)
}

// scanner walks over the bytes of a text that is known to be UTF-8.
type scanner struct {
	src string
	pos int
}

func (s *scanner) errorAt(pos int, format string, args ...any) error {
	if pos > len(s.src) {
		pos = len(s.src)
	}
	before := s.src[:pos]
	return &SyntaxError{
		Line: 1 + strings.Count(before, "\n"),
		Col:  pos - strings.LastIndexByte(before, '\n'),
		Msg:  fmt.Sprintf(format, args...),
	}
}

// skip passes white space and comments and says whether a line ended on the way.
func (s *scanner) skip() (newline bool) {
	for s.pos < len(s.src) {
		switch s.src[s.pos] {
		case '\n':
			newline = true
			s.pos++
		case ' ', '\t', '\r':
			s.pos++
		case '#':
			end := strings.IndexByte(s.src[s.pos:], '\n')
			if end < 0 {
				s.pos = len(s.src)
				return newline
			}
			s.pos += end
		default:
			return newline
		}
	}
	return newline
}

func (s *scanner) peek() byte {
	if s.pos < len(s.src) {
		return s.src[s.pos]
	}
	return 0
}

func (s *scanner) eof() bool { return s.pos >= len(s.src) }

// found describes what stands at the position, for messages.
func (s *scanner) found() string {
	if s.eof() {
		return "the end of the text"
	}
	if id := s.identAt(s.pos); id != "" {
		if len(id) > 40 {
			id = id[:40] + "..."
		}
		return strconv.Quote(id)
	}
	r, _ := utf8.DecodeRuneInString(s.src[s.pos:])
	return strconv.QuoteRune(r)
}

func identByte(c byte, first bool) bool {
	return c == '_' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || !first && c >= '0' && c <= '9'
}

// identAt returns the identifier that starts at pos, "" if none does.
func (s *scanner) identAt(pos int) string {
	end := pos
	for end < len(s.src) && identByte(s.src[end], end == pos) {
		end++
	}
	return s.src[pos:end]
}

// ident reads an identifier, "" if none is here.
func (s *scanner) ident() string {
	id := s.identAt(s.pos)
	s.pos += len(id)
	return id
}

// number reads a JSON number (RFC 8259 section 6) and returns its text.
func (s *scanner) number() (string, error) {
	start := s.pos
	digits := func() int {
		from := s.pos
		for s.peek() >= '0' && s.peek() <= '9' {
			s.pos++
		}
		return s.pos - from
	}
	if s.peek() == '-' {
		s.pos++
	}
	leading := s.pos
	if n := digits(); n == 0 || n > 1 && s.src[leading] == '0' {
		return "", s.errorAt(start, "malformed number")
	}
	if s.peek() == '.' {
		s.pos++
		if digits() == 0 {
			return "", s.errorAt(start, "malformed number")
		}
	}
	if c := s.peek(); c == 'e' || c == 'E' {
		s.pos++
		if c := s.peek(); c == '+' || c == '-' {
			s.pos++
		}
		if n := digits(); n == 0 || n > 3 {
			return "", s.errorAt(start, "malformed number")
		}
	}
	if !s.eof() && (identByte(s.peek(), false) || s.peek() == '.') || s.pos-start > maxNumber {
		return "", s.errorAt(start, "malformed number")
	}
	return s.src[start:s.pos], nil
}

// rawString reads a string in backticks: no escapes, newlines allowed.
func (s *scanner) rawString() (string, error) {
	start := s.pos
	end := strings.IndexByte(s.src[start+1:], '`')
	if end < 0 {
		return "", s.errorAt(start, "raw string is not closed")
	}
	s.pos = start + 1 + end + 1
	return s.src[start+1 : s.pos-1], nil
}

// quoted reads a JSON string.
func (s *scanner) quoted() (string, error) {
	start := s.pos
	for i := start + 1; i < len(s.src); i++ {
		switch c := s.src[i]; {
		case c == '"':
			s.pos = i + 1
			return s.src[start+1 : i], nil
		case c == '\\':
			return s.escaped(start, i)
		case c < 0x20:
			return "", s.errorAt(i, "control character %#02x in a string", c)
		}
	}
	return "", s.errorAt(start, "string is not closed")
}

// escaped reads the rest of a string whose first backslash is at i.
func (s *scanner) escaped(start, i int) (string, error) {
	var b strings.Builder
	b.WriteString(s.src[start+1 : i])
	for i < len(s.src) {
		c := s.src[i]
		switch {
		case c == '"':
			s.pos = i + 1
			return b.String(), nil
		case c < 0x20:
			return "", s.errorAt(i, "control character %#02x in a string", c)
		case c != '\\':
			b.WriteByte(c)
			i++
		default:
			r, n := s.escape(i)
			if n == 0 {
				return "", s.errorAt(i, "unknown escape in a string")
			}
			b.WriteRune(r)
			i += n
		}
	}
	return "", s.errorAt(start, "string is not closed")
}

// escape decodes the escape at i and returns its length, 0 if it is none. Half a surrogate pair is none: it has no
// meaning in UTF-8.
func (s *scanner) escape(i int) (rune, int) {
	if i+1 >= len(s.src) {
		return 0, 0
	}
	switch s.src[i+1] {
	case '"', '\\', '/':
		return rune(s.src[i+1]), 2
	case 'b':
		return '\b', 2
	case 'f':
		return '\f', 2
	case 'n':
		return '\n', 2
	case 'r':
		return '\r', 2
	case 't':
		return '\t', 2
	case 'u':
		r, ok := s.hex4(i + 2)
		if !ok {
			return 0, 0
		}
		if !utf16.IsSurrogate(r) {
			return r, 6
		}
		if i+7 >= len(s.src) || s.src[i+6] != '\\' || s.src[i+7] != 'u' {
			return 0, 0
		}
		low, ok := s.hex4(i + 8)
		if r = utf16.DecodeRune(r, low); !ok || r == utf8.RuneError {
			return 0, 0
		}
		return r, 12
	}
	return 0, 0
}

func (s *scanner) hex4(i int) (rune, bool) {
	if i+4 > len(s.src) {
		return 0, false
	}
	v, err := strconv.ParseUint(s.src[i:i+4], 16, 32)
	return rune(v), err == nil
}
