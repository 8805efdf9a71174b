// SPDX-License-Identifier: Apache-2.0

// Package container runs processes in their namespaces, cgroup and root, by
// runc. It decides nothing: guest/agent has asked the policy before it calls.
// It writes the OCI spec itself from plain values, so that nothing the host
// sends reaches runc in the host's own form. Image content (passwd files,
// symbolic links, programs) is bound by dm-verity but not trusted to be kind:
// it is read inside the container's root only, and bounded.
package container
