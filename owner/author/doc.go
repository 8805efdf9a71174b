// SPDX-License-Identifier: Apache-2.0

// Package author writes the execution policy of a container group from plain data: what the images say and what the
// user asked for. The text has the shape that Azure's tools write (api 0.10.0, framework 0.2.3), and it allows the
// run it was written for and nothing else.
//
// The same input gives the same bytes, so that anyone who has the input can check the digest. The package runs at the
// data owner's and trusts its input: whoever chooses root hashes and commands chooses what may run.
package author
