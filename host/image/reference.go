// SPDX-License-Identifier: Apache-2.0

package image

import (
	"fmt"
	"net"
	"path/filepath"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
)

// Transport says where an image comes from, in skopeo's words.
type Transport string

// The transports.
const (
	Docker        Transport = "docker"         // a registry
	OCI           Transport = "oci"            // an OCI layout directory
	OCIArchive    Transport = "oci-archive"    // the same as a tar
	DockerArchive Transport = "docker-archive" // what docker save writes
)

// maxReference bounds a reference's length in bytes.
const maxReference = 4096

// Reference is a parsed image reference.
type Reference struct {
	Transport Transport
	// Path is the absolute path of the directory or file; "" for Docker.
	Path string
	// Tag selects an image in Path; "" is the only one there.
	Tag string
	// remote is set for Docker only.
	remote name.Reference
}

// ParseReference reads a reference as skopeo spells it. Without a transport
// it is a registry reference with docker's defaults.
func ParseReference(s string) (Reference, error) {
	if s == "" {
		return Reference{}, fmt.Errorf("parsing image reference: empty")
	}
	if len(s) > maxReference {
		return Reference{}, fmt.Errorf("parsing image reference: longer than %d bytes", maxReference)
	}
	if rest, ok := strings.CutPrefix(s, "docker://"); ok {
		return parseRemote(rest)
	}
	for _, t := range []Transport{OCI, OCIArchive, DockerArchive} {
		if rest, ok := strings.CutPrefix(s, string(t)+":"); ok {
			return parseLocal(t, rest)
		}
	}
	return parseRemote(s)
}

func parseRemote(s string) (Reference, error) {
	ref, err := name.ParseReference(s, name.WeakValidation)
	if err != nil {
		return Reference{}, fmt.Errorf("parsing image reference %q: %w", s, err)
	}
	return Reference{Transport: Docker, remote: ref}, nil
}

func parseLocal(t Transport, s string) (Reference, error) {
	path, tag := s, ""
	if i := strings.LastIndexByte(s, ':'); i >= 0 && !strings.Contains(s[i:], "/") {
		path, tag = s[:i], s[i+1:]
		if tag == "" {
			return Reference{}, fmt.Errorf("parsing image reference %q: empty tag", s)
		}
	} else if t == DockerArchive {
		// A tag of a docker archive may itself be a repository name: FILE:repo/name:tag.
		path, tag = splitDockerArchive(s)
	}
	if t == DockerArchive && strings.Contains(path, ":") {
		path, tag = splitDockerArchive(s)
	}
	if path == "" {
		return Reference{}, fmt.Errorf("parsing image reference %q: empty path", s)
	}
	abs, err := filepath.Abs(path)
	if err != nil {
		return Reference{}, fmt.Errorf("parsing image reference %q: %w", s, err)
	}
	return Reference{Transport: t, Path: abs, Tag: tag}, nil
}

// splitDockerArchive splits FILE[:NAME[:TAG]] at the first colon, as skopeo does.
func splitDockerArchive(s string) (path, tag string) {
	path, tag, _ = strings.Cut(s, ":")
	return path, tag
}

// Name is the name that the store keeps the image under, in full.
func (r Reference) Name() string {
	if r.Transport == Docker {
		return r.remote.Name()
	}
	s := string(r.Transport) + ":" + r.Path
	if r.Tag != "" {
		s += ":" + r.Tag
	}
	return s
}

// Familiar is [Reference.Name] as a person writes it: busybox:latest.
func (r Reference) Familiar() string { return Familiar(r.Name()) }

// Familiar shortens a full name as docker does.
func Familiar(full string) string {
	s := strings.TrimPrefix(full, "index.docker.io/")
	if s != full {
		s = strings.TrimPrefix(s, "library/")
	}
	return s
}

// loopback reports whether host[:port] is this machine, for which plain HTTP
// is no weaker than the machine itself.
func loopback(hostport string) bool {
	host := hostport
	if h, _, err := net.SplitHostPort(hostport); err == nil {
		host = h
	}
	host = strings.Trim(host, "[]")
	if host == "localhost" {
		return true
	}
	ip := net.ParseIP(host)
	return ip != nil && ip.IsLoopback()
}
