// SPDX-License-Identifier: Apache-2.0

// Package launch runs container groups: one supervisor process starts and
// watches one virtual machine, tells the guest what to do, and serves the
// command line over a socket in the group's directory.
//
// It promises that no process and no lock outlives a group, that a group's end
// always has a readable reason, and that a guest can neither fill the disk nor
// block a kill. It decides nothing about trust: a policy is bytes to it. It
// runs in the host zone, so nobody has to trust it; the guest is hostile to
// it, and what the guest sends is bounded.
package launch
