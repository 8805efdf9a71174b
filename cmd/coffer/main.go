// SPDX-License-Identifier: Apache-2.0

// Command coffer runs OCI images in attested, policy-enforcing VMs, and checks
// the evidence that they give of themselves. Results go to standard output and
// talk to standard error; see docs/cli.md.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
)

// version is set by the build.
var version = "unknown"

func main() {
	// The first signal ends what can be ended in order; commands in the
	// foreground of a container take signals over themselves.
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// app is what all commands share.
type app struct {
	stdin          io.Reader
	stdout, stderr io.Writer

	root     string // --root
	guestDir string // --guest
	json     bool   // --json, where a command has it
}

// Exit statuses that are not a container's own.
const (
	exitFailure = 1   // a command failed
	exitUsage   = 2   // the command line is wrong
	exitRun     = 125 // `run` itself failed, as docker's
)

// run is the whole program.
func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	a := &app{stdin: stdin, stdout: stdout, stderr: stderr}
	cmd := a.command()
	cmd.SetArgs(args)
	cmd.SetIn(stdin)
	cmd.SetOut(stdout)
	cmd.SetErr(stderr)
	ran, err := cmd.ExecuteContextC(ctx)
	if err == nil {
		return 0
	}
	if strings.HasPrefix(err.Error(), "required flag") { // cobra has no type for it
		err = usageError(ran, err)
	}
	var status *statusError
	if errors.As(err, &status) && status.err == nil {
		return status.code
	}
	fmt.Fprintf(stderr, "coffer: error: %s\n", strings.Join(lines(err), "\n"))
	for _, h := range hints(err) {
		fmt.Fprintf(stderr, "coffer: hint: %s\n", h)
	}
	if status != nil {
		return status.code
	}
	return exitFailure
}

func (a *app) command() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "coffer",
		Short: "Run container images in attested, policy-enforcing VMs",
		Long: `Coffer runs unmodified OCI container images inside attested, policy-enforcing
trusted execution environments.

On a machine without SEV-SNP the TEE is emulated: all code runs, nothing is
protected, and everything that comes out of it says so.`,
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          usage(cobra.NoArgs),
		PersistentPreRunE: func(*cobra.Command, []string) (err error) {
			a.root, err = filepath.Abs(a.root) // supervisors run elsewhere
			return err
		},
		RunE: func(cmd *cobra.Command, _ []string) error {
			return cmd.Help()
		},
	}
	cmd.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return usageError(c, err)
	})
	flags := cmd.PersistentFlags()
	flags.StringVar(&a.root, "root", defaultRoot(), "`directory` of images, groups and settings")
	flags.StringVar(&a.guestDir, "guest", "", "`directory` of the guest image (default: build/guest of the source tree, or where it was installed)")
	cmd.AddCommand(a.commands()...)
	return cmd
}

// commands is the list of all commands.
func (a *app) commands() []*cobra.Command {
	return append([]*cobra.Command{
		a.imageCommand(), a.policyCommand(), a.guestCommand(), a.verifyCommand(), a.doctorCommand(), a.versionCommand(),
	}, a.groupCommands()...)
}

// defaultRoot is $XDG_STATE_HOME/coffer, by default below the home directory.
func defaultRoot() string {
	if dir := os.Getenv("XDG_STATE_HOME"); filepath.IsAbs(dir) {
		return filepath.Join(dir, "coffer")
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return filepath.Join(os.TempDir(), fmt.Sprintf("coffer-%d", os.Getuid()))
	}
	return filepath.Join(home, ".local", "state", "coffer")
}

// guest finds the directory of the guest image.
func (a *app) guest() (string, error) {
	var tried []string
	for _, dir := range a.guestDirs() {
		if _, err := os.Stat(filepath.Join(dir, "guest.json")); err == nil {
			return filepath.Abs(dir)
		}
		tried = append(tried, dir)
	}
	return "", hint(fmt.Errorf("finding the guest image: no guest.json in %v", tried),
		"in the source tree, `make guest` builds it; elsewhere, name its directory with --guest")
}

func (a *app) guestDirs() []string {
	if a.guestDir != "" {
		return []string{a.guestDir}
	}
	var dirs []string
	if self, err := os.Executable(); err == nil {
		dirs = append(dirs, filepath.Join(filepath.Dir(filepath.Dir(self)), "build", "guest"))
	}
	if dir := os.Getenv("XDG_DATA_HOME"); filepath.IsAbs(dir) {
		dirs = append(dirs, filepath.Join(dir, "coffer", "guest"))
	} else if home, err := os.UserHomeDir(); err == nil {
		dirs = append(dirs, filepath.Join(home, ".local", "share", "coffer", "guest"))
	}
	return append(dirs, "/usr/lib/coffer/guest")
}
