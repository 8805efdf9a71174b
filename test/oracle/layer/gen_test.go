// SPDX-License-Identifier: Apache-2.0

package layer_test

import (
	"bytes"
	"fmt"
	"strings"
)

// choices decides what a generated tar contains: n is at least 1, the answer is in [0, n).
type choices func(n int) int

// fromBytes takes decisions from b, and 0 when it is used up.
func fromBytes(b []byte) (c choices, empty func() bool) {
	next := func() int {
		if len(b) == 0 {
			return 0
		}
		v := int(b[0])
		b = b[1:]
		return v
	}
	return func(n int) int {
		v := next()
		if n > 256 {
			v = v<<8 | next()
		}
		if n > 1<<16 {
			v = v<<8 | next()
		}
		return v % n
	}, func() bool { return len(b) == 0 }
}

func (c choices) one(s ...string) string { return s[c(len(s))] }

// often is true in one of n cases.
func (c choices) rarely(n int) bool { return c(n) == n-1 }

// raw builds tars byte by byte: archive/tar's writer refuses much of what its reader takes.
type raw struct{ bytes.Buffer }

// header is an entry's 512 bytes. Numbers are written as they are.
type header struct {
	name, link, prefix string
	mode, uid, gid     string
	size, mtime        string
	flag               byte
	magic              string
	major, minor       string
	tail               []byte // from byte 345; over prefix
}

func octal(n int64, width int) string { return fmt.Sprintf("%0*o", width-1, n) }

// base256 is GNU's encoding of numbers that are too large or negative.
func base256(n int64, width int) string {
	b := bytes.Repeat([]byte{byte(n >> 63)}, width)
	for i := width - 1; i >= 0 && i >= width-8; i-- {
		b[i] = byte(n)
		n >>= 8
	}
	b[0] |= 0x80
	return string(b)
}

func (r *raw) header(h header) {
	var b [512]byte
	copy(b[0:100], h.name)
	copy(b[100:108], h.mode)
	copy(b[108:116], h.uid)
	copy(b[116:124], h.gid)
	copy(b[124:136], h.size)
	copy(b[136:148], h.mtime)
	copy(b[148:156], "        ")
	b[156] = h.flag
	copy(b[157:257], h.link)
	copy(b[257:265], h.magic)
	copy(b[329:337], h.major)
	copy(b[337:345], h.minor)
	copy(b[345:500], h.prefix)
	copy(b[345:], h.tail)
	sum := 0
	for _, c := range b {
		sum += int(c)
	}
	copy(b[148:156], fmt.Sprintf("%06o\x00 ", sum))
	r.Write(b[:])
}

func (r *raw) data(b []byte) {
	r.Write(b)
	if n := len(b) % 512; n != 0 {
		r.Write(make([]byte, 512-n))
	}
}

func (r *raw) end() { r.Write(make([]byte, 1024)) }

const (
	ustarMagic = "ustar\x0000"
	gnuMagic   = "ustar  \x00"
)

func plain(name string, flag byte, size int64) header {
	return header{
		name: name, mode: octal(0o644, 8), uid: octal(0, 8), gid: octal(0, 8),
		size: octal(size, 12), mtime: octal(1700000000, 12), flag: flag, magic: ustarMagic,
		major: octal(0, 8), minor: octal(0, 8),
	}
}

// pax writes an extended header; flag is 'x' or 'g'.
func (r *raw) pax(flag byte, records ...string) {
	var b bytes.Buffer
	for i := 0; i+1 < len(records); i += 2 {
		b.WriteString(paxRecord(records[i], records[i+1]))
	}
	name := "PaxHeaders.0/x"
	if flag == 'g' {
		name = "pax_global_header"
	}
	r.header(plain(name, flag, int64(b.Len())))
	r.data(b.Bytes())
}

func paxRecord(key, value string) string {
	n := len(key) + len(value) + 3
	for {
		s := fmt.Sprintf("%d %s=%s\n", n, key, value)
		if len(s) == n {
			return s
		}
		n = len(s)
	}
}

// long writes GNU's header for a long name ('L') or link ('K').
func (r *raw) long(flag byte, s string) {
	h := plain("././@LongLink", flag, int64(len(s)+1))
	h.magic = gnuMagic
	r.header(h)
	r.data([]byte(s + "\x00"))
}

// name makes a path out of few parts, so that entries meet.
func (c choices) name() string {
	var parts []string
	for range 1 + c(4) {
		part := c.one("a", "b", "c", "d", "a", "b", "e", "lost+found", "..", ".", "", `a\b`, "\xff\xfe", "ä", ".wh.")
		if c.rarely(60) {
			part = strings.Repeat(c.one("n", "ü"), 100+c(160))
		}
		parts = append(parts, part)
	}
	if c.rarely(6) {
		parts = append(parts, c.one(".wh.a", ".wh.b", ".wh..wh..opq", ".wh..wh..opq", ".wh.", ".wh..", ".wh...", ".wh..wh.plnk", ".wh.lost+found"))
	}
	s := strings.Join(parts, "/")
	switch c(12) {
	case 0:
		s = "/" + s
	case 1, 2:
		s += "/"
	case 3:
		s = "./" + s
	case 4:
		s = "../" + s
	}
	return s
}

func (c choices) number(width int) string {
	switch c(8) {
	case 0:
		return base256(-int64(c(1<<20)), width)
	case 1:
		return base256(int64(c(1<<20))<<20|int64(c(1<<20)), width)
	case 2:
		return ""
	case 3:
		return octal(int64(c(8)), width)
	default:
		return octal(int64(c(1<<16)), width)
	}
}

func (c choices) time() string {
	return c.one("0", "1700000000", "1700000000.123456789", "-1", "-1.5", "-2147483648", "-2147483649", "-62135596800",
		"2147483647", "2147483648", "4294967295.999999999", "4294967296", "15032385535", "15032385536.5", "99999999999", "1e3", "")
}

func (c choices) xattr() (name, value string) {
	name = c.one("user.", "user.a", "user.b", "security.capability", "security.selinux", "trusted.overlay.opaque", "trusted.x",
		"system.posix_acl_access", "system.posix_acl_default", "system.richacl", "system.data", "system.nfs4", "x", "", "user.a=b",
		"security.capability", "user.ü") + strings.Repeat("q", []int{0, 0, 0, 1, 2, 3, 30, 230, 245, 300}[c(10)])
	n := []int{0, 1, 2, 3, 4, 5, 20, 40, 60, 76, 77, 80, 1000, 2000, 4000, 5000}[c(16)]
	value = strings.Repeat(c.one("v", "\x00", "\xff", "xyz"), n)[:n]
	if c.rarely(20) {
		name = strings.Repeat(name, 1+c(30))
	}
	return name, value
}

func (c choices) records() []string {
	var rec []string
	if c.rarely(2) {
		for range 1 + c(4)*c(5) {
			name, value := c.xattr()
			rec = append(rec, "SCHILY.xattr."+name, value)
		}
	}
	for range c(3) {
		rec = append(rec, c.one("atime", "ctime", "mtime"), c.time())
	}
	switch c(16) {
	case 0:
		rec = append(rec, "path", c.name())
	case 1:
		rec = append(rec, "linkpath", strings.Repeat(c.name(), 1+c(20)))
	case 2:
		rec = append(rec, c.one("uid", "gid"), c.one("0", "65536", "4294967296", "-1", "x", "99999999999999999999"))
	case 3:
		rec = append(rec, "size", c.one("0", "1", "5", "-1", "100000000"))
	case 4:
		rec = append(rec, "comment", "none")
	}
	return rec
}

// content is file data; often short, sometimes with zero blocks.
func (c choices) content() []byte {
	n := []int{0, 0, 1, 5, 511, 512, 513, 4095, 4096, 4097, 9000, 40000, 300000}[c(13)]
	b := bytes.Repeat([]byte{byte(c(256))}, n)
	for i := 0; i < n; i += 512 {
		b[i] = byte(c(4))
	}
	return b
}

// entry adds something to a tar.
func (r *raw) entry(c choices) {
	name := c.name()
	if c.rarely(4) {
		r.pax('x', c.records()...)
	}
	if c.rarely(40) {
		r.pax('g', c.records()...)
	}
	flag := byte(c.one("0", "0", "0", "5", "5", "5", "2", "2", "1", "1", "3", "4", "6", "\x00", "7", "S", "X", "V", "M", "s")[0])
	h := plain(name, flag, 0)
	h.link = c.name()
	if len(name) > 100 || c.rarely(20) {
		r.long('L', name)
		h.magic = gnuMagic
	}
	if c.rarely(20) {
		r.long('K', strings.Repeat(h.link, 1+c(200)))
	}
	if c.rarely(3) {
		h.mode, h.uid, h.gid = c.number(8), c.number(8), c.number(8)
		h.mtime, h.major, h.minor = c.number(12), c.number(8), c.number(8)
	}
	switch c(30) {
	case 0:
		h.magic = c.one(gnuMagic, "", "ustar\x00xx")
	case 1:
		h.prefix = c.name()
	case 2:
		h.magic = gnuMagic
		h.tail = []byte(c.number(12) + c.number(12))
	case 3:
		h.tail = append(make([]byte, 0, 167), strings.Repeat("\x00", 131)+octal(5, 12)+"\x00"+octal(6, 12)+"\x00"+strings.Repeat("\x00", 6)+"tar\x00"...)
		h.magic = "ustar\x0000"
	}
	if flag == 'S' {
		r.gnuSparse(c, h)
		return
	}
	if flag == '0' && c.rarely(12) {
		r.paxSparse(c, h)
		return
	}
	b := c.content()
	switch flag {
	case '1', '2', '3', '4', '5', '6':
		if h.size = octal(0, 12); c.rarely(8) {
			h.size = octal(int64(c(600)), 12)
		}
		b = nil
	default:
		h.size = octal(int64(len(b)), 12)
	}
	r.header(h)
	r.data(b)
}

// gnuSparse writes GNU's old sparse format.
func (r *raw) gnuSparse(c choices, h header) {
	tail := make([]byte, 512-345)
	h.magic = gnuMagic
	at, total := int64(0), 0
	for i := range c(5) {
		at += int64(c(20000))
		n := 512 * c(8)
		copy(tail[41+i*24:], octal(at, 12))
		copy(tail[53+i*24:], octal(int64(n), 12))
		at += int64(n)
		total += n
	}
	size := at + int64(c(3))*5000
	if c.rarely(10) {
		size -= 100
	}
	copy(tail[138:], octal(size, 12))
	if c.rarely(10) {
		tail[137] = 1
	}
	h.tail = tail
	h.size = octal(int64(total), 12)
	r.header(h)
	if tail[137] == 1 {
		r.Write(make([]byte, 512))
	}
	r.data(bytes.Repeat([]byte{'s'}, total))
}

// paxSparse writes one of GNU's sparse formats in PAX headers.
func (r *raw) paxSparse(c choices, h header) {
	var pairs []string
	at, total := 0, 0
	for range c(6) {
		at += c(20000)
		n := c(5000)
		pairs = append(pairs, fmt.Sprint(at), fmt.Sprint(n))
		at += n
		total += n
	}
	size := at + c(3)*5000
	if c.rarely(10) {
		size += 3 - c(7)
	}
	data := bytes.Repeat([]byte{'p'}, total)
	count := fmt.Sprint(len(pairs) / 2)
	switch c(3) {
	case 0:
		rec := []string{"GNU.sparse.size", fmt.Sprint(size), "GNU.sparse.numblocks", count}
		for i := 0; i < len(pairs); i += 2 {
			rec = append(rec, "GNU.sparse.offset", pairs[i], "GNU.sparse.numbytes", pairs[i+1])
		}
		r.pax('x', rec...)
	case 1:
		r.pax('x', "GNU.sparse.size", fmt.Sprint(size), "GNU.sparse.numblocks", count, "GNU.sparse.map", strings.Join(pairs, ","), "GNU.sparse.name", h.name)
	case 2:
		r.pax('x', "GNU.sparse.major", "1", "GNU.sparse.minor", "0", "GNU.sparse.realsize", fmt.Sprint(size), "GNU.sparse.name", h.name)
		m := count + "\n" + strings.Join(append(pairs, ""), "\n")
		data = append([]byte(m+strings.Repeat("\x00", (512-len(m)%512)%512)), data...)
	}
	if c.rarely(10) {
		data = append(data, 'x')
	}
	h.size = octal(int64(len(data)), 12)
	r.header(h)
	r.data(data)
}

// generate makes a tar of at most n entries; often it is cut off.
func generate(c choices, n int, done func() bool) []byte {
	var r raw
	for i := 0; i < n && !done(); i++ {
		r.entry(c)
	}
	if !c.rarely(10) {
		r.end()
	}
	b := r.Bytes()
	if c.rarely(30) {
		b = b[:c(len(b)+1)]
	}
	return b
}
