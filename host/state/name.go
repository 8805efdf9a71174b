// SPDX-License-Identifier: Apache-2.0

package state

import (
	"crypto/rand"
	"encoding/binary"
)

// randomName is an adjective and a kind of box: quiet-casket.
func randomName() string {
	adjectives := []string{"amber", "brave", "calm", "clever", "deep", "eager", "fair", "firm", "gentle", "glad", "grand", "hidden",
		"honest", "iron", "keen", "kind", "light", "lucky", "mellow", "modest", "noble", "oaken", "patient", "plain", "proud",
		"quick", "quiet", "ready", "secret", "sober", "solid", "steady", "still", "strong", "subtle", "sunny", "sure", "swift",
		"tidy", "trusty", "upright", "warm", "wary", "wise"}
	boxes := []string{"ark", "barrel", "basket", "bin", "bureau", "cabinet", "capsule", "carton", "case", "casket", "cask", "cellar",
		"chest", "cist", "closet", "coffer", "crate", "crypt", "cupboard", "drawer", "hamper", "hutch", "keep", "kist", "larder",
		"locker", "lodge", "pouch", "press", "pyx", "reliquary", "safe", "shrine", "strongbox", "tin", "tower", "trunk", "urn",
		"vault", "wallet"}
	var b [8]byte
	rand.Read(b[:])
	a, c := binary.LittleEndian.Uint32(b[:4]), binary.LittleEndian.Uint32(b[4:])
	return adjectives[int(a%uint32(len(adjectives)))] + "-" + boxes[int(c%uint32(len(boxes)))]
}
