// SPDX-License-Identifier: Apache-2.0

package policy

// table is an immutable ordered map: setting a key makes a new table that shares most of the old one (a treap with
// path copying). The zero table is empty.
type table[V any] struct{ root *entry[V] }

type entry[V any] struct {
	key         string
	rank        uint64
	value       V
	left, right *entry[V]
}

func (t table[V]) get(key string) (v V, ok bool) {
	for e := t.root; e != nil; {
		switch {
		case key == e.key:
			return e.value, true
		case key < e.key:
			e = e.left
		default:
			e = e.right
		}
	}
	return v, false
}

func (t table[V]) has(key string) bool {
	_, ok := t.get(key)
	return ok
}

// with returns a table in which key has the value v.
func (t table[V]) with(key string, v V) table[V] {
	left, right := t.root.split(key)
	return table[V]{join(join(left, &entry[V]{key: key, rank: rank(key), value: v}), right)}
}

// without returns a table without key.
func (t table[V]) without(key string) table[V] {
	left, right := t.root.split(key)
	return table[V]{join(left, right)}
}

// all calls f in the order of the keys until it returns false.
func (t table[V]) all(f func(key string, v V) bool) { t.root.walk(f) }

func (e *entry[V]) walk(f func(string, V) bool) bool {
	return e == nil || e.left.walk(f) && f(e.key, e.value) && e.right.walk(f)
}

// split gives the entries below key and those above; key itself is in neither.
func (e *entry[V]) split(key string) (less, more *entry[V]) {
	if e == nil {
		return nil, nil
	}
	if e.key == key {
		return e.left, e.right
	}
	c := *e
	if key < e.key {
		less, c.left = e.left.split(key)
		return less, &c
	}
	c.right, more = e.right.split(key)
	return &c, more
}

// join makes one tree of two, all of whose keys are in order.
func join[V any](a, b *entry[V]) *entry[V] {
	switch {
	case a == nil:
		return b
	case b == nil:
		return a
	case a.rank > b.rank:
		c := *a
		c.right = join(a.right, b)
		return &c
	}
	c := *b
	c.left = join(a, b.left)
	return &c
}

// rank is FNV-1a, mixed once more so that similar keys get unrelated ranks.
func rank(key string) uint64 {
	h := uint64(14695981039346656037)
	for i := range len(key) {
		h = (h ^ uint64(key[i])) * 1099511628211
	}
	h ^= h >> 32
	return h * 0x9E3779B97F4A7C15
}
