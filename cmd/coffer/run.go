// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/coffer-dev/coffer/host/image"
	"github.com/coffer-dev/coffer/host/launch"
	"github.com/coffer-dev/coffer/host/state"
)

// runFlags are the flags of `run` that do not change the policy.
type runFlags struct {
	workload
	name                        string
	command                     []string // what follows the image
	detach, interactive, remove bool
	ports                       []string
	hostname                    string
	cpus                        float64
	memory, scratch             string
	policy, tee, network        string
	insecureHTTP                bool
}

func (r *runFlags) register(f *pflag.FlagSet) {
	r.workload.register(f)
	f.BoolVarP(&r.detach, "detach", "d", false, "run in the background and print the container's ID")
	f.BoolVarP(&r.interactive, "interactive", "i", false, "pass standard input on to the container")
	f.BoolVar(&r.remove, "rm", false, "remove the container's record when it has ended")
	f.StringVar(&r.name, "name", "", "name of the container")
	f.StringArrayVarP(&r.ports, "publish", "p", nil, "publish a port: `[[IP:]PORT:]PORT[/udp]` (may be repeated)")
	f.StringVar(&r.hostname, "hostname", "", "host name in the container (default: its short ID)")
	f.Float64Var(&r.cpus, "cpus", 0, "`number` of CPUs the container may use; the VM has as many, rounded up")
	f.StringVarP(&r.memory, "memory", "m", "", "most memory the container may use, as `512m` or 2g; the VM has that and what the guest itself needs")
	f.StringVar(&r.scratch, "scratch-size", "", "keep what the container writes on an encrypted disk of this `size` instead of in memory")
	f.StringVar(&r.policy, "policy", "", "policy `file` instead of one written for this run")
	f.StringVar(&r.tee, "tee", "auto", "auto, emulated or sev-snp")
	f.StringVar(&r.network, "network", "user", "user or none")
	f.BoolVar(&r.insecureHTTP, "insecure-plain-http", false, "speak HTTP to a registry that is not on this machine")
}

func (a *app) runCommand() *cobra.Command {
	var r runFlags
	cmd := &cobra.Command{
		Use:   "run [flags] IMAGE [COMMAND...]",
		Short: "Run an image in a VM of its own, under a policy that allows this run and nothing else",
		Long: `Pulls the image if it is not here, writes a policy that allows exactly this run (or
takes --policy), starts a VM in the TEE with the policy's digest as HOST_DATA, and
runs the container. The exit status is the container's; 125 is Coffer's own failure,
126 a command that cannot be executed, 127 one that does not exist.

In the foreground with -t, ctrl-p ctrl-q detaches.

` + referenceHelp,
		Args: usage(cobra.MinimumNArgs(1)),
		RunE: func(c *cobra.Command, args []string) error {
			r.entrypointSet = c.Flags().Changed("entrypoint")
			if err := r.check(); err != nil {
				return usageError(c, err)
			}
			return a.runGroup(c.Context(), &r, args[0], args[1:])
		},
	}
	cmd.Flags().SetInterspersed(false)
	r.register(cmd.Flags())
	return cmd
}

func (r *runFlags) check() error {
	switch {
	case r.tee != "auto" && r.tee != "emulated" && r.tee != "sev-snp":
		return fmt.Errorf("--tee %q: it is auto, emulated or sev-snp", r.tee)
	case r.network != "user" && r.network != "none":
		return fmt.Errorf("--network %q: it is user or none", r.network)
	case r.network == "none" && len(r.ports) > 0:
		return errors.New("--publish needs --network user")
	case r.cpus < 0 || r.cpus > maxCPUs:
		return fmt.Errorf("--cpus %g: it is between 0 and %d", r.cpus, maxCPUs)
	case r.detach && r.interactive && !r.terminal:
		r.interactive = true // docker keeps standard input open; so do we
	}
	_, err := r.environment()
	return err
}

// runGroup is `run` after its flags were understood. Its errors are Coffer's own.
func (a *app) runGroup(ctx context.Context, r *runFlags, reference string, args []string) error {
	code, err := a.startAndFollow(ctx, r, reference, args)
	if err != nil {
		return runError(err)
	}
	if code != 0 {
		return &statusError{code: code}
	}
	return nil
}

// runError gives an error the status that docker would, and its hints.
func runError(err error) error {
	var f *launch.Failure
	if errors.As(err, &f) {
		return &statusError{f.Status, failed(f)}
	}
	var s *statusError
	if errors.As(err, &s) {
		return err
	}
	return &statusError{exitRun, err}
}

func (a *app) startAndFollow(ctx context.Context, r *runFlags, reference string, args []string) (int, error) {
	g, err := a.prepare(ctx, r, reference, args)
	if err != nil {
		return 0, err
	}
	defer g.close()
	self, err := os.Executable()
	if err != nil {
		return 0, fmt.Errorf("finding this program: %w", err)
	}
	id := g.handle.Group.ID
	started, err := launch.Spawn(ctx, g.handle, launch.Launch{
		Command: []string{self, "--root", a.root, "supervise"}, Attach: !r.detach, Keep: g.files})
	if err != nil {
		return 0, err
	}
	g.started = true
	if r.detach {
		_, err := fmt.Fprintln(a.stdout, id)
		return 0, err
	}
	return a.foreground(ctx, r, g, started)
}

// foreground shows the container until it ends or the user detaches.
func (a *app) foreground(ctx context.Context, r *runFlags, g *prepared, started *launch.Started) (int, error) {
	// From here on signals are the container's.
	ctx = context.WithoutCancel(ctx)
	exit, err := a.talk(ctx, started.First, conversation{
		dir: g.handle.Path(), terminal: r.terminal, stdin: r.interactive, signals: true})
	if errors.Is(err, errDetached) {
		return 0, nil
	}
	if err != nil {
		started.Wait()
		return 0, a.lastError(g.handle.Group.ID, err)
	}
	started.Wait()
	if r.remove && g.hasDirs {
		if s, err := a.store(); err == nil {
			_ = s.Collect(ctx) // the next removal does it, if not this one
		}
	}
	if exit.Error != "" {
		return 0, &launch.Failure{Text: exit.Error, Status: launch.StatusFailed}
	}
	if exit.OOM {
		fmt.Fprintln(a.stderr, "coffer: the container met its memory limit and was killed")
	}
	return exit.Status, nil
}

// lastError looks in the record for why a connection ended.
func (a *app) lastError(id string, err error) error {
	d, derr := a.groups()
	if derr != nil {
		return err
	}
	if g, ferr := d.Find(id); ferr == nil && g.Error != "" {
		return &launch.Failure{Text: g.Error, Status: launch.StatusFailed}
	}
	return err
}

// localImage finds the image without asking a registry, or pulls it.
func (a *app) localImage(ctx context.Context, s *image.Store, reference string, insecure bool) (*image.Image, error) {
	ref, err := image.ParseReference(reference)
	if err == nil && ref.Transport != image.Docker {
		// A directory or file may have changed; reading it again is quick.
		bars := a.newProgress()
		img, err := s.Pull(ctx, ref, image.Options{Progress: quietly(bars.update)})
		bars.finish(err)
		if err != nil {
			return nil, advisePull(err, ref)
		}
		return img, nil
	}
	img, lerr := s.Lookup(reference)
	if lerr == nil {
		return img, nil
	}
	if !errors.Is(lerr, image.ErrNotFound) || err != nil {
		return nil, errors.Join(lerr, err)
	}
	fmt.Fprintf(a.stderr, "pulling %s\n", ref.Familiar())
	return a.pull(ctx, reference, insecure)
}

// quietly leaves out layers that are there already.
func quietly(f func(image.Progress)) func(image.Progress) {
	return func(p image.Progress) {
		if p.Stage != image.Exists {
			f(p)
		}
	}
}

// superviseCommand is the process that watches one group. `run` starts it.
func (a *app) superviseCommand() *cobra.Command {
	return &cobra.Command{
		Use: "supervise DIR", Hidden: true, Args: usage(cobra.ExactArgs(1)),
		RunE: func(c *cobra.Command, args []string) error {
			return launch.Supervise(context.WithoutCancel(c.Context()), args[0])
		},
	}
}

// groups opens the records, and settles what crashes left.
func (a *app) groups() (*state.Dir, error) { return state.Open(a.root + "/groups") }

// find returns the group of that name and its directory.
func (a *app) find(name string) (*state.Dir, state.Group, error) {
	d, err := a.groups()
	if err != nil {
		return nil, state.Group{}, err
	}
	g, err := d.Find(name)
	if errors.Is(err, state.ErrNotFound) {
		err = hint(err, "`coffer ps -a` lists the containers")
	}
	return d, g, err
}

// eachGroup does the same to several containers and goes on after errors, as docker does.
func (a *app) eachGroup(names []string, f func(d *state.Dir, g state.Group) error) error {
	var errs []string
	var last error
	for _, name := range names {
		d, g, err := a.find(name)
		if err == nil {
			err = f(d, g)
		}
		if err != nil {
			errs, last = append(errs, err.Error()), err
		}
	}
	if len(errs) <= 1 {
		return last
	}
	return errors.New(strings.Join(errs, "; "))
}
