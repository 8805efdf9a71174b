// SPDX-License-Identifier: Apache-2.0

// Package coffer is the root of Coffer, which runs unmodified OCI images inside
// attested, policy-enforcing trusted execution environments. It holds no code:
// the first element of a package's path says who must be trusted with it, and
// the tests here hold the rules that the tree as a whole must keep.
package coffer
