// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/coffer-dev/coffer/owner/author"
	"github.com/coffer-dev/coffer/policy"
	"github.com/coffer-dev/coffer/tee"
)

func (a *app) policyCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "policy", Short: "Write and hash execution policies", Args: usage(cobra.NoArgs),
		RunE: func(c *cobra.Command, _ []string) error { return c.Help() }}
	cmd.AddCommand(a.policyGenerateCommand(), a.policyHashCommand())
	return cmd
}

func (a *app) policyGenerateCommand() *cobra.Command {
	var w workload
	var output string
	var insecureHTTP bool
	cmd := &cobra.Command{
		Use:   "generate [flags] IMAGE [COMMAND...]",
		Short: "Write the policy that allows one run of an image, and nothing else",
		Long: `Writes the policy that ` + "`coffer run`" + ` with the same flags would write. Give it to
` + "`coffer run --policy`" + ` and to whoever verifies. The image is pulled if it is not here.

` + referenceHelp,
		Args: usage(cobra.MinimumNArgs(1)),
		RunE: func(c *cobra.Command, args []string) error {
			w.entrypointSet = c.Flags().Changed("entrypoint")
			img, err := a.pull(c.Context(), args[0], insecureHTTP)
			if err != nil {
				return err
			}
			s, err := a.store()
			if err != nil {
				return err
			}
			container, disks, err := a.container(c.Context(), s, img, &w, args[1:])
			if err != nil {
				return err
			}
			closeDisks(disks)
			text, err := author.Generate(author.Spec{Containers: []author.Container{*container}})
			if err != nil {
				return err
			}
			if err := a.writeFile(output, text); err != nil {
				return err
			}
			_, err = fmt.Fprintf(a.stderr, "policy sha256 %x\n", policy.Digest(text))
			return err
		},
	}
	flags := cmd.Flags()
	flags.SetInterspersed(false)
	w.register(flags)
	flags.StringVarP(&output, "output", "o", "", "`file` to write to (default: standard output)")
	flags.BoolVar(&insecureHTTP, "insecure-plain-http", false, "speak HTTP to a registry that is not on this machine")
	return cmd
}

func (a *app) policyHashCommand() *cobra.Command {
	return &cobra.Command{
		Use: "hash FILE", Short: "Print a policy's SHA-256, which is HOST_DATA, if it is one",
		Args: usage(cobra.ExactArgs(1)),
		RunE: func(_ *cobra.Command, args []string) error {
			text, err := readFile(args[0], tee.MaxPolicySize)
			if err != nil {
				return err
			}
			if _, err := policy.Parse(text); err != nil {
				var syntax *policy.SyntaxError
				if errors.As(err, &syntax) {
					return hint(fmt.Errorf("%s:%d:%d: %s", args[0], syntax.Line, syntax.Col, syntax.Msg),
						"a guest would refuse it; docs/policy.md says what a policy holds")
				}
				return fmt.Errorf("%s: %w", args[0], err)
			}
			_, err = fmt.Fprintf(a.stdout, "%x\n", policy.Digest(text))
			return err
		},
	}
}
