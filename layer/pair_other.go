// SPDX-License-Identifier: Apache-2.0

//go:build !amd64

package layer

func canPair() bool { return false }

func (h *hasher) sumPair(a, b, p, q []byte) {
	h.sum(a, p)
	h.sum(b, q)
}
