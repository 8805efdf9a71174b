// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/coffer-dev/coffer/host/launch"
	"github.com/coffer-dev/coffer/host/state"
	"github.com/coffer-dev/coffer/policy"
)

// groupCommands are all commands about containers.
func (a *app) groupCommands() []*cobra.Command {
	return []*cobra.Command{
		a.runCommand(), a.psCommand(), a.logsCommand(), a.execCommand(), a.attachCommand(), a.stopCommand(), a.killCommand(),
		a.waitCommand(), a.rmCommand(), a.inspectCommand(), a.statsCommand(), a.attestCommand(), a.superviseCommand(),
	}
}

func (a *app) psCommand() *cobra.Command {
	var all, quiet, whole bool
	cmd := &cobra.Command{
		Use: "ps", Short: "List containers", Args: usage(cobra.NoArgs),
		RunE: func(*cobra.Command, []string) error {
			d, err := a.groups()
			if err != nil {
				return err
			}
			list, err := d.List()
			if err != nil {
				return err
			}
			shown := []state.Group{}
			for _, g := range list {
				if all || g.Status != state.Exited {
					shown = append(shown, g)
				}
			}
			if a.json {
				return printJSON(a.stdout, shown)
			}
			return a.printGroups(shown, quiet, whole)
		},
	}
	cmd.Flags().BoolVarP(&all, "all", "a", false, "list those that have ended too")
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "only IDs")
	cmd.Flags().BoolVar(&whole, "no-trunc", false, "whole IDs and commands")
	cmd.Flags().BoolVar(&a.json, "json", false, "write JSON")
	return cmd
}

func (a *app) printGroups(list []state.Group, quiet, whole bool) error {
	w := tabwriter.NewWriter(a.stdout, 0, 8, 3, ' ', 0)
	if !quiet {
		fmt.Fprintln(w, "CONTAINER ID\tIMAGE\tCOMMAND\tCREATED\tSTATUS\tTEE\tPORTS\tNAMES")
	}
	for _, g := range list {
		id, command := g.ShortID(), strings.Join(g.Command, " ")
		if whole {
			id = g.ID
		} else if r := []rune(command); len(r) > 20 {
			command = string(r[:19]) + "…"
		}
		if quiet {
			fmt.Fprintln(w, id)
			continue
		}
		fmt.Fprintf(w, "%s\t%s\t%q\t%s\t%s\t%s\t%s\t%s\n", id, g.Image, command, ago(g.Created), statusText(&g), g.TEE,
			strings.Join(g.Ports, ", "), g.Name)
	}
	return w.Flush()
}

// statusText is docker's: Up 2 minutes, Exited (0) 3 seconds ago.
func statusText(g *state.Group) string {
	switch g.Status {
	case state.Running:
		return "Up " + strings.TrimSuffix(ago(g.Started), " ago")
	case state.Exited:
		return fmt.Sprintf("Exited (%d) %s", g.ExitCode, ago(g.Finished))
	}
	return "Created"
}

func (a *app) stopCommand() *cobra.Command {
	var seconds float64
	cmd := &cobra.Command{
		Use: "stop NAME...", Short: "End containers: the image's stop signal, then SIGKILL", Args: usage(cobra.MinimumNArgs(1)),
		RunE: func(c *cobra.Command, args []string) error {
			if seconds < 0 {
				return usageError(c, errors.New("--time is negative"))
			}
			return a.eachGroup(args, func(d *state.Dir, g state.Group) error {
				if g.Status != state.Exited {
					_, err := launch.Stop(c.Context(), d.Path(g.ID), time.Duration(seconds*float64(time.Second)))
					if err != nil && !errors.Is(err, launch.ErrNotRunning) {
						return groupError(err)
					}
					if err := d.AwaitEnd(c.Context(), g.ID); err != nil {
						return err
					}
				}
				_, err := fmt.Fprintln(a.stdout, g.Name)
				return err
			})
		},
	}
	cmd.Flags().Float64VarP(&seconds, "time", "t", 10, "`seconds` to wait before SIGKILL")
	return cmd
}

func (a *app) killCommand() *cobra.Command {
	var name string
	cmd := &cobra.Command{
		Use: "kill NAME...", Short: "Send a signal to containers", Args: usage(cobra.MinimumNArgs(1)),
		RunE: func(c *cobra.Command, args []string) error {
			sig, err := parseSignal(name)
			if err != nil {
				return usageError(c, err)
			}
			return a.eachGroup(args, func(d *state.Dir, g state.Group) error {
				if err := launch.Kill(c.Context(), d.Path(g.ID), int(sig)); err != nil {
					return groupError(err)
				}
				_, err := fmt.Fprintln(a.stdout, g.Name)
				return err
			})
		},
	}
	cmd.Flags().StringVarP(&name, "signal", "s", unix.SignalName(unix.SIGKILL), "`signal` to send")
	return cmd
}

// groupError makes a supervisor's error an error of the command line.
func groupError(err error) error {
	var f *launch.Failure
	if !errors.As(err, &f) {
		return err
	}
	return failed(f)
}

func (a *app) waitCommand() *cobra.Command {
	return &cobra.Command{
		Use: "wait NAME...", Short: "Wait until containers have ended and print their exit statuses", Args: usage(cobra.MinimumNArgs(1)),
		RunE: func(c *cobra.Command, args []string) error {
			return a.eachGroup(args, func(d *state.Dir, g state.Group) error {
				code := g.ExitCode
				if g.Status != state.Exited {
					e, err := launch.Wait(c.Context(), d.Path(g.ID))
					if errors.Is(err, launch.ErrNotRunning) {
						if g, err = d.Find(g.ID); err == nil {
							e.Status = g.ExitCode
						}
					}
					if err != nil {
						return err
					}
					code = e.Status
					if err := d.AwaitEnd(c.Context(), g.ID); err != nil {
						return err
					}
				}
				_, err := fmt.Fprintln(a.stdout, code)
				return err
			})
		},
	}
}

func (a *app) rmCommand() *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use: "rm NAME...", Short: "Remove containers that have ended", Args: usage(cobra.MinimumNArgs(1)),
		RunE: func(c *cobra.Command, args []string) error {
			err := a.eachGroup(args, func(d *state.Dir, g state.Group) error { return a.remove(c.Context(), d, g, force) })
			s, serr := a.store()
			if serr != nil {
				return errors.Join(err, serr)
			}
			return errors.Join(err, s.Collect(c.Context())) // directories given as volumes
		},
	}
	cmd.Flags().BoolVarP(&force, "force", "f", false, "kill it first if it runs")
	return cmd
}

func (a *app) remove(ctx context.Context, d *state.Dir, g state.Group, force bool) error {
	if force && d.Live(g.ID) {
		if _, err := launch.Stop(ctx, d.Path(g.ID), 0); err != nil && !errors.Is(err, launch.ErrNotRunning) {
			return err
		}
		if err := d.AwaitEnd(ctx, g.ID); err != nil {
			return err
		}
	}
	err := d.Remove(g.ID)
	if errors.Is(err, state.ErrRunning) {
		return hint(err, "`coffer stop` it first, or `coffer rm -f`")
	}
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(a.stdout, g.Name)
	return err
}

func (a *app) inspectCommand() *cobra.Command {
	return &cobra.Command{
		Use: "inspect NAME...", Short: "Show all that is known of containers, as JSON", Args: usage(cobra.MinimumNArgs(1)),
		RunE: func(_ *cobra.Command, args []string) error {
			type record struct {
				state.Group
				PolicySHA256 string       `json:"policy_sha256"`
				PolicyFile   string       `json:"policy_file"`
				ConsoleFile  string       `json:"console_file"`
				Spec         *launch.Spec `json:"spec"`
			}
			out := []record{}
			err := a.eachGroup(args, func(d *state.Dir, g state.Group) error {
				dir := d.Path(g.ID)
				spec, err := launch.ReadSpec(dir)
				if err != nil {
					return err
				}
				text, err := os.ReadFile(launch.PolicyFile(dir))
				if err != nil {
					return err
				}
				out = append(out, record{g, fmt.Sprintf("%x", policy.Digest(text)), launch.PolicyFile(dir), launch.ConsoleFile(dir), spec})
				return nil
			})
			return errors.Join(err, printJSON(a.stdout, out))
		},
	}
}

func (a *app) statsCommand() *cobra.Command {
	var once bool
	cmd := &cobra.Command{
		Use: "stats [NAME...]", Short: "Show what containers use, as their guests say", Args: usage(cobra.ArbitraryArgs),
		RunE: func(c *cobra.Command, args []string) error {
			for {
				if err := a.printStats(c.Context(), args); err != nil || once || a.json {
					return err
				}
				select {
				case <-c.Context().Done():
					return nil
				case <-time.After(time.Second):
				}
			}
		},
	}
	cmd.Flags().BoolVar(&once, "no-stream", false, "once, not every second")
	cmd.Flags().BoolVar(&a.json, "json", false, "write JSON, once")
	return cmd
}

func (a *app) printStats(ctx context.Context, names []string) error {
	if len(names) == 0 {
		d, err := a.groups()
		if err != nil {
			return err
		}
		list, err := d.List()
		if err != nil {
			return err
		}
		for _, g := range list {
			if g.Status == state.Running {
				names = append(names, g.ID)
			}
		}
	}
	var rows []map[string]any
	w := tabwriter.NewWriter(a.stdout, 0, 8, 3, ' ', 0)
	fmt.Fprintln(w, "CONTAINER ID\tNAME\tCPU TIME\tMEM USAGE / LIMIT\tNET I/O\tBLOCK I/O\tPIDS")
	err := a.eachGroup(names, func(d *state.Dir, g state.Group) error {
		s, err := launch.Stats(ctx, d.Path(g.ID))
		if err != nil {
			return groupError(err)
		}
		rows = append(rows, map[string]any{"id": g.ID, "name": g.Name, "stats": s})
		fmt.Fprintf(w, "%s\t%s\t%s\t%s / %s\t%s / %s\t%s / %s\t%d\n", g.ShortID(), g.Name,
			time.Duration(s.CPUNanos).Round(time.Millisecond), sizeText(int64(s.MemoryBytes)), sizeText(int64(s.MemoryLimitBytes)),
			sizeText(int64(s.RxBytes)), sizeText(int64(s.TxBytes)), sizeText(int64(s.BlockRead)), sizeText(int64(s.BlockWrite)), s.Pids)
		return nil
	})
	if a.json {
		return errors.Join(err, json.NewEncoder(a.stdout).Encode(rows))
	}
	return errors.Join(err, w.Flush())
}
