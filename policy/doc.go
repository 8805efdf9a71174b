// SPDX-License-Identifier: Apache-2.0

// Package policy reads an execution policy and decides what the host may ask of the guest.
//
// The policy is the text that Azure calls a CCE policy: a Rego module that holds only data and bindings to the
// framework. The framework's rules are implemented here, in Go; no Rego is ever evaluated. A text with rules of its
// own is refused by line and column.
//
// The package promises: a request that the policy does not name is denied, in whatever order requests come; a request
// that is denied changes nothing; an allowed request changes only the State that is returned, never one that the
// caller still holds. It reads no clock, no file and no network, and never panics on any input.
//
// It runs in the guest and is part of what must be trusted there. Policy texts and requests are both given by the
// host: the text is trusted only after the caller compared its Digest with what the hardware measured, requests never.
package policy
