// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"

	"github.com/coffer-dev/coffer/host/image"
	"github.com/coffer-dev/coffer/owner/author"
)

// workload is what a user wants of a container: the flags that `run` and
// `policy generate` share, so that the same words give the same policy.
type workload struct {
	env, envFiles   []string
	workdir, user   string
	volumes         []string
	entrypoint      string
	entrypointSet   bool
	readOnly        bool
	terminal        bool
	privileged      bool
	noNewPrivileges bool
	noStdio         bool
	allowExec       []string
	allowSignal     []string
}

// policyName is what a policy calls its one container: the same whatever the
// group is called, so that `policy generate` and `run` write the same text.
const policyName = "container"

func (w *workload) register(f *pflag.FlagSet) {
	f.StringArrayVarP(&w.env, "env", "e", nil, "set `NAME=VALUE`, or pass NAME on from here")
	f.StringArrayVar(&w.envFiles, "env-file", nil, "`file` with a NAME=VALUE a line")
	f.StringVarP(&w.workdir, "workdir", "w", "", "working `directory` in the container")
	f.StringVarP(&w.user, "user", "u", "", "`user[:group]`, names or numbers")
	f.StringArrayVarP(&w.volumes, "volume", "v", nil, "`NAME:/path[:ro]` for a volume that lives as long as the group, DIR:/path:ro for a host directory")
	f.StringVar(&w.entrypoint, "entrypoint", "", "`command` to run instead of the image's ENTRYPOINT; \"\" is none")
	f.BoolVar(&w.readOnly, "read-only", false, "make the container's root read-only")
	f.BoolVarP(&w.terminal, "tty", "t", false, "give the container a terminal")
	f.BoolVar(&w.privileged, "privileged", false, "all capabilities, within the VM")
	f.BoolVar(&w.noNewPrivileges, "no-new-privileges", false, "setuid programs and file capabilities give nothing")
	f.BoolVar(&w.noStdio, "no-stdio", false, "the policy keeps the container's output and input from the host")
	f.StringArrayVar(&w.allowExec, "allow-exec", nil, "allow this `'COMMAND ARGS'` for `coffer exec` in the policy (may be repeated)")
	f.StringArrayVar(&w.allowSignal, "allow-signal", nil, "allow this `signal` for `coffer kill` in the policy (may be repeated)")
}

// volumeDisk is a host directory that became a disk.
type volumeDisk struct {
	image.Layer
	Destination string
	// File holds the disk as in use until it is closed.
	File *os.File
}

// container combines an image with a user's wishes. args are the command line
// after the image. The caller closes the disks' files.
func (a *app) container(ctx context.Context, s *image.Store, img *image.Image, w *workload, args []string) (*author.Container, []volumeDisk, error) {
	_, cfg, err := s.Config(img)
	if err != nil {
		return nil, nil, err
	}
	c := &author.Container{Name: policyName, ID: img.ID, Image: imageOf(cfg), WorkingDir: w.workdir, User: w.user,
		Privileged: w.privileged, NoNewPrivileges: w.noNewPrivileges, Terminal: w.terminal, AllowStdio: !w.noStdio}
	for _, l := range img.Layers {
		c.Layers = append(c.Layers, l.RootHash)
	}
	if w.entrypointSet {
		c.Entrypoint = []string{}
		if w.entrypoint != "" {
			c.Entrypoint = []string{w.entrypoint}
		}
	}
	if len(args) > 0 {
		c.Command = args
	}
	if c.Env, err = w.environment(); err != nil {
		return nil, nil, err
	}
	for _, e := range w.allowExec {
		words, err := splitCommand(e)
		if err != nil {
			return nil, nil, fmt.Errorf("--allow-exec %q: %w", e, err)
		}
		c.Exec = append(c.Exec, author.Exec{Command: words})
	}
	for _, name := range w.allowSignal {
		n, err := parseSignal(name)
		if err != nil {
			return nil, nil, fmt.Errorf("--allow-signal: %w", err)
		}
		c.Signals = append(c.Signals, int(n))
	}
	disks, err := a.mountVolumes(ctx, s, w.volumes, c)
	if err != nil {
		closeDisks(disks)
		return nil, nil, err
	}
	return c, disks, nil
}

func closeDisks(disks []volumeDisk) {
	for _, d := range disks {
		d.File.Close()
	}
}

func imageOf(cfg *v1.ConfigFile) author.Image {
	out := author.Image{Entrypoint: cfg.Config.Entrypoint, Cmd: cfg.Config.Cmd, Env: cfg.Config.Env, User: cfg.Config.User,
		WorkingDir: cfg.Config.WorkingDir, StopSignal: cfg.Config.StopSignal, Volumes: sortedKeys(cfg.Config.Volumes)}
	if h := cfg.Config.Healthcheck; h != nil {
		out.Healthcheck = h.Test
	}
	return out
}

// environment is what --env-file and --env set, later ones over earlier ones.
func (w *workload) environment() ([]string, error) {
	var out []string
	for _, path := range w.envFiles {
		text, err := readFile(path, 4<<20)
		if err != nil {
			return nil, err
		}
		scan := bufio.NewScanner(bytes.NewReader(text))
		for n := 1; scan.Scan(); n++ {
			line := strings.TrimLeft(scan.Text(), " \t")
			if line == "" || line[0] == '#' {
				continue
			}
			if strings.HasPrefix(line, "=") {
				return nil, fmt.Errorf("%s:%d: a variable without a name", path, n)
			}
			out = appendVariable(out, line)
		}
		if err := scan.Err(); err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
	}
	for _, e := range w.env {
		if e == "" || e[0] == '=' {
			return nil, fmt.Errorf("--env %q: a variable without a name", e)
		}
		out = appendVariable(out, e)
	}
	return out, nil
}

// appendVariable adds NAME=VALUE; a bare NAME is passed on if it is set here.
func appendVariable(list []string, v string) []string {
	if strings.Contains(v, "=") {
		return append(list, v)
	}
	if value, ok := os.LookupEnv(v); ok {
		return append(list, v+"="+value)
	}
	return list
}

// mountVolumes adds -v to the container, and makes disks of host directories.
func (a *app) mountVolumes(ctx context.Context, s *image.Store, volumes []string, c *author.Container) ([]volumeDisk, error) {
	var disks []volumeDisk
	for _, v := range volumes {
		source, destination, readOnly, err := splitVolume(v)
		if err != nil {
			return disks, err
		}
		mount := author.Volume{Destination: destination, ReadOnly: readOnly}
		if !strings.ContainsRune(source, '/') && source != "." && source != ".." {
			mount.Name = source
			c.Volumes = append(c.Volumes, mount)
			continue
		}
		if !readOnly {
			return disks, hint(fmt.Errorf("--volume %s: a host directory cannot be writable: what the guest writes there would leave the TEE, and what it reads would be the host's word", v),
				fmt.Sprintf("add :ro to give it to the container as a verified disk, or use a named volume (NAME:%s) or --scratch-size", destination))
		}
		dir, err := filepath.Abs(source)
		if err != nil {
			return disks, err
		}
		fmt.Fprintf(a.stderr, "packing %s\n", dir)
		layer, file, err := s.AddDir(ctx, dir)
		if err != nil {
			return disks, fmt.Errorf("--volume %s: %w", v, err)
		}
		disks = append(disks, volumeDisk{Layer: layer, Destination: destination, File: file})
		mount.RootHash = layer.RootHash
		c.Volumes = append(c.Volumes, mount)
	}
	return disks, nil
}

func splitVolume(v string) (source, destination string, readOnly bool, err error) {
	parts := strings.Split(v, ":")
	bad := func(why string) (string, string, bool, error) {
		return "", "", false, hint(fmt.Errorf("--volume %q: %s", v, why), "the forms are NAME:/path[:ro] and DIR:/path:ro")
	}
	if len(parts) == 3 {
		switch parts[2] {
		case "ro":
			readOnly = true
		case "rw":
		default:
			return bad(fmt.Sprintf("unknown option %q", parts[2]))
		}
		parts = parts[:2]
	}
	if len(parts) != 2 || parts[0] == "" {
		return bad("it names no volume or no path")
	}
	if !path.IsAbs(parts[1]) || path.Clean(parts[1]) == "/" {
		return bad("the path in the container must be absolute and not /")
	}
	return parts[0], path.Clean(parts[1]), readOnly, nil
}

// splitCommand splits words as a shell does, with quotes and backslashes, and
// nothing else that a shell does.
func splitCommand(s string) ([]string, error) {
	var words []string
	var word strings.Builder
	started, quote := false, rune(0)
	escaped := false
	for _, r := range s {
		switch {
		case escaped:
			word.WriteRune(r)
			escaped = false
		case r == '\\' && quote != '\'':
			started, escaped = true, true
		case quote != 0:
			if r == quote {
				quote = 0
			} else {
				word.WriteRune(r)
			}
		case r == '\'' || r == '"':
			started, quote = true, r
		case r == ' ' || r == '\t' || r == '\n':
			if started {
				words = append(words, word.String())
				word.Reset()
				started = false
			}
		default:
			started = true
			word.WriteRune(r)
		}
	}
	if quote != 0 || escaped {
		return nil, errors.New("a quote or backslash is not ended")
	}
	if started {
		words = append(words, word.String())
	}
	if len(words) == 0 {
		return nil, errors.New("it is empty")
	}
	return words, nil
}

// parseSignal reads TERM, SIGTERM or 15.
func parseSignal(s string) (unix.Signal, error) {
	if n, err := strconv.Atoi(s); err == nil && n > 0 && n <= 64 {
		return unix.Signal(n), nil
	}
	name := strings.ToUpper(s)
	if !strings.HasPrefix(name, "SIG") {
		name = "SIG" + name
	}
	if n := unix.SignalNum(name); n != 0 {
		return n, nil
	}
	return 0, fmt.Errorf("no signal is called %q", s)
}
