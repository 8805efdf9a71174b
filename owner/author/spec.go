// SPDX-License-Identifier: Apache-2.0

package author

import (
	"errors"
	"fmt"
	"path"
	"regexp"
	"slices"
	"strings"
	"unicode/utf8"
)

// Spec is a container group.
type Spec struct {
	Containers []Container
}

// Container is one container: its image and what the user wants otherwise. Zero values are the strict ones.
type Container struct {
	// Name is what denials and people call it.
	Name string
	// ID says where the image comes from; it has no effect.
	ID string
	// Layers are the dm-verity root hashes of the image's layers, bottom to top, 64 lower-case hex digits each.
	Layers []string
	Image  Image

	// Entrypoint replaces the image's, and drops its Cmd, unless it is nil.
	Entrypoint []string
	// Command replaces the image's Cmd unless it is nil.
	Command []string
	// Env are NAME=VALUE, replacing the image's of the same name.
	Env []string
	// EnvPatterns are RE2 patterns of whole NAME=VALUE texts that the host may add.
	EnvPatterns []string
	// User is USER or USER:GROUP, names or numbers; "" is the image's.
	User string
	// WorkingDir is an absolute path; "" is the image's.
	WorkingDir string
	// Volumes are mounted besides, or instead of, the image's.
	Volumes []Volume
	// Exec are commands that may be executed in the running container, besides the image's health check.
	Exec []Exec
	// Signals may be sent to the first process, besides 2, 9, 15 and the image's stop signal.
	Signals []int
	// Privileged gives all capabilities and writable /sys.
	Privileged      bool
	NoNewPrivileges bool
	// Terminal gives TERM to the process.
	Terminal bool
	// AllowStdio lets the host see and write the standard streams.
	AllowStdio bool
}

// Image is what an image's configuration says, in the terms of the OCI image specification.
type Image struct {
	Entrypoint, Cmd []string
	Env             []string
	User            string
	WorkingDir      string
	Volumes         []string // destinations
	StopSignal      string
	Healthcheck     []string // Test: NONE, CMD ARG... or CMD-SHELL TEXT
}

// Volume is a mount. Exactly one of Name and RootHash is set.
type Volume struct {
	Destination string
	// Name of a directory that lives as long as the group.
	Name string
	// RootHash of one more read-only disk that holds the files.
	RootHash string
	// ReadOnly is implied by RootHash.
	ReadOnly bool
	// Anonymous marks the volumes that Resolve found in the image.
	Anonymous bool
}

// Exec is a command that may be executed, and the signals it may be sent; nil is 2, 9 and 15.
type Exec struct {
	Command []string
	Signals []int
}

// Process is what to ask the guest for, so that the policy of the same container allows it.
type Process struct {
	Args       []string
	Env        []string
	WorkingDir string
	User       string
	Volumes    []Volume // sorted by destination
	Exec       []Exec   // the health check, if there is one, first
	Signals    []int    // sorted; the stop signal is StopSignal
	StopSignal int
}

const defaultPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// Resolve merges a container's image and wishes by docker's rules.
func (c *Container) Resolve() (*Process, error) {
	p := &Process{User: c.User, WorkingDir: c.WorkingDir}
	if p.User == "" {
		p.User = c.Image.User
	}
	if p.WorkingDir == "" {
		p.WorkingDir = c.Image.WorkingDir
	}
	if p.WorkingDir == "" {
		p.WorkingDir = "/"
	}
	p.Args = c.args()
	var errs []error
	if len(p.Args) == 0 || p.Args[0] == "" {
		errs = append(errs, errors.New("neither image nor user names a command"))
	}
	if !path.IsAbs(p.WorkingDir) {
		errs = append(errs, fmt.Errorf("working directory %q is not absolute", p.WorkingDir))
	}
	var err error
	if p.Env, err = mergeEnv(c.Image.Env, c.Env); err != nil {
		errs = append(errs, err)
	}
	if !hasName(p.Env, "PATH") {
		p.Env = append(p.Env, defaultPath)
	}
	if c.Terminal && !hasName(p.Env, "TERM") {
		p.Env = append(p.Env, "TERM=xterm")
	}
	if p.Volumes, err = c.volumes(); err != nil {
		errs = append(errs, err)
	}
	if err := c.signals(p); err != nil {
		errs = append(errs, err)
	}
	if p.Exec, err = c.execs(); err != nil {
		errs = append(errs, err)
	}
	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("resolving container %q: %w", c.Name, err)
	}
	return p, nil
}

// args combines entrypoint and command: an entrypoint of the user's drops the image's command.
func (c *Container) args() []string {
	entrypoint, command := c.Image.Entrypoint, c.Image.Cmd
	if c.Entrypoint != nil {
		entrypoint, command = c.Entrypoint, nil
	}
	if c.Command != nil {
		command = c.Command
	}
	return append(slices.Clone(entrypoint), command...)
}

// mergeEnv puts the user's variables over the image's, each in its place, each name once.
func mergeEnv(image, user []string) ([]string, error) {
	var out []string
	at := map[string]int{}
	for _, env := range append(slices.Clone(image), user...) {
		name, _, ok := strings.Cut(env, "=")
		if !ok || name == "" {
			return nil, fmt.Errorf("variable %q is not NAME=VALUE", name)
		}
		if i, ok := at[name]; ok {
			out[i] = env
			continue
		}
		at[name] = len(out)
		out = append(out, env)
	}
	return out, nil
}

func hasName(envs []string, name string) bool {
	return slices.ContainsFunc(envs, func(env string) bool { return strings.HasPrefix(env, name+"=") })
}

var (
	volumeName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]{0,127}$`)
	rootHash   = regexp.MustCompile(`^[0-9a-f]{64}$`)
)

// volumes are the user's, and anonymous ones where the image wants one and the user named none.
func (c *Container) volumes() ([]Volume, error) {
	out := slices.Clone(c.Volumes)
	for _, dst := range c.Image.Volumes {
		dst = path.Clean("/" + dst)
		if !slices.ContainsFunc(out, func(v Volume) bool { return v.Destination == dst }) {
			out = append(out, Volume{Destination: dst, Name: VolumeName(c.Name, dst), Anonymous: true})
		}
	}
	slices.SortStableFunc(out, func(a, b Volume) int { return strings.Compare(a.Destination, b.Destination) })
	for i := range out {
		v := &out[i]
		v.ReadOnly = v.ReadOnly || v.RootHash != ""
		switch {
		case !path.IsAbs(v.Destination) || path.Clean(v.Destination) != v.Destination || v.Destination == "/":
			return nil, fmt.Errorf("volume destination %q is not a clean absolute path below /", v.Destination)
		case i > 0 && out[i-1].Destination == v.Destination:
			return nil, fmt.Errorf("two volumes at %s", v.Destination)
		case (v.Name == "") == (v.RootHash == ""):
			return nil, fmt.Errorf("volume at %s needs either a name or a root hash", v.Destination)
		case v.Name != "" && !volumeName.MatchString(v.Name):
			return nil, fmt.Errorf("volume name %q does not match %s", v.Name, volumeName)
		case v.RootHash != "" && !rootHash.MatchString(v.RootHash):
			return nil, fmt.Errorf("root hash %q of the volume at %s is not 64 lower-case hex digits", v.RootHash, v.Destination)
		}
	}
	return out, nil
}

func (c *Container) signals(p *Process) error {
	p.StopSignal = sigTerm
	if c.Image.StopSignal != "" {
		n, err := parseSignal(c.Image.StopSignal)
		if err != nil {
			return err
		}
		p.StopSignal = n
	}
	p.Signals = sortedInts(append([]int{sigInt, sigKill, sigTerm, p.StopSignal}, c.Signals...))
	for _, n := range p.Signals {
		if n < 1 || n > maxSignal {
			return fmt.Errorf("signal %d is outside 1 to %d", n, maxSignal)
		}
	}
	return nil
}

// execs are the health check and the user's commands, each once.
func (c *Container) execs() ([]Exec, error) {
	var out []Exec
	if test := c.Image.Healthcheck; len(test) > 0 {
		switch {
		case test[0] == "NONE":
		case test[0] == "CMD" && len(test) > 1:
			out = append(out, Exec{Command: test[1:], Signals: []int{sigKill}})
		case test[0] == "CMD-SHELL" && len(test) == 2:
			out = append(out, Exec{Command: []string{"/bin/sh", "-c", test[1]}, Signals: []int{sigKill}})
		default:
			return nil, fmt.Errorf("health check %q is neither NONE, CMD nor CMD-SHELL", test)
		}
	}
	for _, e := range c.Exec {
		if len(e.Command) == 0 || e.Command[0] == "" {
			return nil, errors.New("a command to execute is empty")
		}
		if e.Signals == nil {
			e.Signals = []int{sigInt, sigKill, sigTerm}
		}
		e.Signals = sortedInts(slices.Clone(e.Signals))
		same := func(o Exec) bool { return slices.Equal(o.Command, e.Command) }
		if i := slices.IndexFunc(out, same); i >= 0 {
			out[i].Signals = sortedInts(append(out[i].Signals, e.Signals...))
			continue
		}
		out = append(out, e)
	}
	return out, nil
}

func sortedInts(list []int) []int {
	slices.Sort(list)
	return slices.Compact(list)
}

// check refuses what no policy can say.
func (c *Container) check() error {
	if c.Name == "" {
		return errors.New("container has no name")
	}
	if len(c.Layers) == 0 {
		return fmt.Errorf("container %q has no layers", c.Name)
	}
	for _, hash := range c.Layers {
		if !rootHash.MatchString(hash) {
			return fmt.Errorf("root hash %q of container %q is not 64 lower-case hex digits", hash, c.Name)
		}
	}
	for _, pattern := range c.EnvPatterns {
		if _, err := regexp.Compile(pattern); err != nil {
			return fmt.Errorf("environment pattern of container %q: %w", c.Name, err)
		}
	}
	return nil
}

// VolumeName names the anonymous volume of a container at a path. Different containers and paths have different
// names; all match the pattern of volume names.
func VolumeName(container, path string) string {
	name := escape(container) + escape(path)
	if name == "" || name[0] == '.' || name[0] == '_' || name[0] == '-' {
		name = "v_." + name // no escaped name has "_."
	}
	if len(name) > 128 {
		name = name[:60] + "_.." + digest(name)
	}
	return name
}

// escape writes "/" as "." and every other byte that is not a letter, digit or "-" as "_" and two hex digits.
func escape(s string) string {
	var b strings.Builder
	for i := range len(s) {
		switch c := s[i]; {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '-':
			b.WriteByte(c)
		case c == '/':
			b.WriteByte('.')
		default:
			fmt.Fprintf(&b, "_%02x", c)
		}
	}
	return b.String()
}

// valid says whether every text is UTF-8 without NUL, which is all a policy can hold.
func valid(texts ...string) bool {
	return !slices.ContainsFunc(texts, func(s string) bool { return !utf8.ValidString(s) || strings.ContainsRune(s, 0) })
}
