// SPDX-License-Identifier: Apache-2.0

// Package oracle compares package policy with the engine it must agree with: the framework of Azure's guest, run by
// Open Policy Agent. Nothing of it is part of the product. Build it with -tags rego.
package oracle
