// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/coffer-dev/coffer/host/launch"
	"github.com/coffer-dev/coffer/host/state"
	"github.com/coffer-dev/coffer/tee"
)

func (a *app) execCommand() *cobra.Command {
	var p launch.Program
	var w workload
	cmd := &cobra.Command{
		Use: "exec [flags] NAME COMMAND...", Short: "Run a command in a container, if its policy allows it",
		Long: `Runs one more process in a running container. The policy must name the command:
` + "`coffer run --allow-exec 'COMMAND ARGS'`" + ` puts it there. The exit status is the process's.`,
		Args: usage(cobra.MinimumNArgs(2)),
		RunE: func(c *cobra.Command, args []string) error {
			d, g, err := a.find(args[0])
			if err != nil {
				return err
			}
			if p.Env, err = w.environment(); err != nil {
				return usageError(c, err)
			}
			if p.Args = args[1:]; p.Detach {
				p.Stdin, p.Terminal = false, false
			}
			p.Cols, p.Rows = a.windowSize()
			ctx := context.WithoutCancel(c.Context())
			s, err := launch.Exec(c.Context(), d.Path(g.ID), p)
			if err != nil {
				return runError(err)
			}
			if p.Detach {
				return s.Close()
			}
			exit, err := a.talk(ctx, s, conversation{dir: d.Path(g.ID), terminal: p.Terminal, stdin: p.Stdin})
			return ended(exit, err)
		},
	}
	f := cmd.Flags()
	f.SetInterspersed(false)
	f.BoolVarP(&p.Stdin, "interactive", "i", false, "pass standard input on")
	f.BoolVarP(&p.Detach, "detach", "d", false, "start it and do not wait")
	f.BoolVarP(&p.Terminal, "tty", "t", false, "give the process a terminal")
	f.StringArrayVarP(&w.env, "env", "e", nil, "set `NAME=VALUE` too")
	f.StringVarP(&p.Cwd, "workdir", "w", "", "working `directory`")
	f.StringVarP(&p.User, "user", "u", "", "`user[:group]`")
	return cmd
}

// ended turns a process's end into this one's.
func ended(exit launch.Exit, err error) error {
	switch {
	case errors.Is(err, errDetached):
		return nil
	case err != nil:
		return runError(err)
	case exit.Error != "":
		return runError(&launch.Failure{Text: exit.Error, Status: launch.StatusFailed})
	case exit.Status != 0:
		return &statusError{code: exit.Status}
	}
	return nil
}

func (a *app) attachCommand() *cobra.Command {
	var noStdin bool
	cmd := &cobra.Command{
		Use: "attach NAME", Short: "Connect to a running container's standard files", Args: usage(cobra.ExactArgs(1)),
		RunE: func(c *cobra.Command, args []string) error {
			d, g, err := a.find(args[0])
			if err != nil {
				return err
			}
			s, err := launch.Attach(c.Context(), d.Path(g.ID), !noStdin)
			if err != nil {
				return runError(err)
			}
			exit, err := a.talk(context.WithoutCancel(c.Context()), s,
				conversation{dir: d.Path(g.ID), terminal: g.Terminal, stdin: !noStdin, signals: true})
			if err == nil {
				err = d.AwaitEnd(context.WithoutCancel(c.Context()), g.ID) // the next command sees it ended
			}
			return ended(exit, err)
		},
	}
	cmd.Flags().BoolVar(&noStdin, "no-stdin", false, "do not pass standard input on")
	return cmd
}

func (a *app) logsCommand() *cobra.Command {
	var follow, times bool
	var tail int
	cmd := &cobra.Command{
		Use: "logs NAME", Short: "Show what a container has written", Args: usage(cobra.ExactArgs(1)),
		RunE: func(c *cobra.Command, args []string) error {
			d, g, err := a.find(args[0])
			if err != nil {
				return err
			}
			return a.showLog(c.Context(), d.Path(g.ID), logOptions{follow: follow, times: times, tail: tail})
		},
	}
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on until the container ends")
	cmd.Flags().BoolVarP(&times, "timestamps", "t", false, "show when each line was written")
	cmd.Flags().IntVarP(&tail, "tail", "n", -1, "only the last `lines`")
	return cmd
}

type logOptions struct {
	follow, times bool
	tail          int // negative: all
}

func (a *app) showLog(ctx context.Context, dir string, o logOptions) error {
	l, err := launch.OpenLog(dir)
	if err != nil {
		return err
	}
	defer l.Close()
	if o.tail >= 0 {
		if err := a.showTail(l, o); err != nil {
			return err
		}
	}
	rest := func() error {
		for {
			e, err := l.Next()
			if errors.Is(err, io.EOF) {
				return nil
			}
			if err != nil {
				return err
			}
			if err := a.showEntry(e, o); err != nil {
				return err
			}
		}
	}
	if err := rest(); err != nil || !o.follow {
		return err
	}
	if err := launch.Follow(ctx, dir, rest); err != nil && !errors.Is(err, launch.ErrNotRunning) && ctx.Err() == nil {
		return err
	}
	return rest()
}

// maxTail bounds how many lines --tail keeps in memory.
const maxTail = 1 << 20

func (a *app) showTail(l *launch.LogReader, o logOptions) error {
	var last []*launch.Entry
	for {
		e, err := l.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		last = append(last, e)
		if over := len(last) - min(o.tail, maxTail); over > 0 {
			last = last[over:]
		}
	}
	for _, e := range last {
		if err := a.showEntry(e, o); err != nil {
			return err
		}
	}
	return nil
}

func (a *app) showEntry(e *launch.Entry, o logOptions) error {
	w := a.stdout
	if e.Stream == "stderr" {
		w = a.stderr
	}
	if o.times {
		if _, err := fmt.Fprint(w, e.Time.Format(time.RFC3339Nano), " "); err != nil {
			return err
		}
	}
	_, err := w.Write(e.Data())
	return err
}

func (a *app) attestCommand() *cobra.Command {
	var nonceHex, output string
	var withPolicy bool
	cmd := &cobra.Command{
		Use: "attest NAME", Short: "Ask a running group for evidence of itself",
		Long: `Gets evidence that answers a nonce, for ` + "`coffer verify`" + `. Whoever verifies must
choose the nonce; without --nonce a random one is used and printed.`,
		Args: usage(cobra.ExactArgs(1)),
		RunE: func(c *cobra.Command, args []string) error {
			nonce, err := a.nonce(nonceHex)
			if err != nil {
				return usageError(c, err)
			}
			d, g, err := a.find(args[0])
			if err != nil {
				return err
			}
			evidence, err := attest(c.Context(), d, g, nonce, withPolicy)
			if err != nil {
				return groupError(err)
			}
			return a.writeFile(output, evidence)
		},
	}
	cmd.Flags().StringVar(&nonceHex, "nonce", "", "16 to 64 bytes in `hex`, chosen by whoever verifies")
	cmd.Flags().StringVarP(&output, "output", "o", "", "`file` to write to (default: standard output)")
	cmd.Flags().BoolVar(&withPolicy, "with-policy", false, "put the policy's text into the evidence")
	return cmd
}

func (a *app) nonce(text string) ([]byte, error) {
	if text == "" {
		nonce := make([]byte, 32)
		rand.Read(nonce)
		fmt.Fprintf(a.stderr, "nonce %x\n", nonce)
		return nonce, nil
	}
	nonce, err := hex.DecodeString(text)
	if err != nil || len(nonce) < tee.MinNonceSize || len(nonce) > tee.MaxNonceSize {
		return nil, fmt.Errorf("--nonce %q: it is %d to %d bytes in hex", text, tee.MinNonceSize, tee.MaxNonceSize)
	}
	return nonce, nil
}

func attest(ctx context.Context, d *state.Dir, g state.Group, nonce []byte, withPolicy bool) ([]byte, error) {
	raw, err := launch.Attest(ctx, d.Path(g.ID), nonce)
	if err != nil {
		return nil, err
	}
	e, err := tee.DecodeEvidence(raw)
	if err != nil {
		return nil, err
	}
	if withPolicy {
		if e.Policy, err = os.ReadFile(launch.PolicyFile(d.Path(g.ID))); err != nil {
			return nil, err
		}
	}
	out, err := e.Encode()
	if err != nil {
		return nil, err
	}
	return append(out, '\n'), nil
}
