// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/coffer-dev/coffer/host/image"
)

func (a *app) imageCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "image", Short: "Manage images", Aliases: []string{"images"}, Args: usage(cobra.NoArgs),
		RunE: func(c *cobra.Command, _ []string) error { return c.Help() }}
	cmd.AddCommand(a.imagePullCommand(), a.imageListCommand(), a.imageRemoveCommand(), a.imageInspectCommand())
	return cmd
}

const referenceHelp = `IMAGE is written as skopeo and podman write it: a registry reference
(docker://HOST/NAME:TAG, or without docker://), oci:DIR[:TAG],
oci-archive:FILE[:TAG] or docker-archive:FILE[:NAME:TAG].`

func (a *app) imagePullCommand() *cobra.Command {
	var insecure bool
	cmd := &cobra.Command{
		Use: "pull IMAGE", Short: "Pull an image and convert its layers to verified disks", Long: referenceHelp,
		Args: usage(cobra.ExactArgs(1)),
		RunE: func(c *cobra.Command, args []string) error {
			img, err := a.pull(c.Context(), args[0], insecure)
			if err != nil {
				return err
			}
			if a.json {
				return printJSON(a.stdout, img)
			}
			_, err = fmt.Fprintln(a.stdout, img.ID)
			return err
		},
	}
	cmd.Flags().BoolVar(&insecure, "insecure-plain-http", false, "speak HTTP to a registry that is not on this machine")
	cmd.Flags().BoolVar(&a.json, "json", false, "write JSON")
	return cmd
}

// store opens the image store.
func (a *app) store() (*image.Store, error) { return image.Open(a.root) }

// pull pulls with progress on standard error.
func (a *app) pull(ctx context.Context, reference string, insecure bool) (*image.Image, error) {
	ref, err := image.ParseReference(reference)
	if err != nil {
		return nil, err
	}
	s, err := a.store()
	if err != nil {
		return nil, err
	}
	bars := a.newProgress()
	img, err := s.Pull(ctx, ref, image.Options{InsecurePlainHTTP: insecure, Progress: bars.update})
	bars.finish(err)
	if err != nil {
		return nil, advisePull(err, ref)
	}
	return img, nil
}

func advisePull(err error, ref image.Reference) error {
	text := err.Error()
	switch {
	case ref.Transport != image.Docker && strings.Contains(text, "no such file"):
		return hint(err, "the path is relative to the current directory")
	case strings.Contains(text, "UNAUTHORIZED") || strings.Contains(text, "DENIED"):
		return hint(err, "`docker login` or `podman login` to the registry; Coffer reads their credentials")
	case ref.Transport == image.Docker && strings.Contains(text, "connection refused"):
		return hint(err, "for an image on this machine use oci:DIR, oci-archive:FILE or docker-archive:FILE")
	}
	return err
}

func (a *app) imageListCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "ls", Aliases: []string{"list"}, Short: "List images", Args: usage(cobra.NoArgs),
		RunE: func(*cobra.Command, []string) error {
			s, err := a.store()
			if err != nil {
				return err
			}
			images, err := s.List()
			if err != nil {
				return err
			}
			if a.json {
				if images == nil {
					images = []image.Image{}
				}
				return printJSON(a.stdout, images)
			}
			w := tabwriter.NewWriter(a.stdout, 0, 8, 3, ' ', 0)
			fmt.Fprintln(w, "NAME\tIMAGE ID\tLAYERS\tDISK\tPULLED")
			for _, img := range images {
				for _, name := range orNone(img.Names) {
					fmt.Fprintf(w, "%s\t%s\t%d\t%s\t%s\n", image.Familiar(name), shortID(img.ID), len(img.Layers), sizeText(img.Size()), ago(img.Pulled))
				}
			}
			return w.Flush()
		},
	}
	cmd.Flags().BoolVar(&a.json, "json", false, "write JSON")
	return cmd
}

func (a *app) imageRemoveCommand() *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use: "rm IMAGE...", Aliases: []string{"remove"}, Short: "Remove images, and layers that nothing else uses",
		Args: usage(cobra.MinimumNArgs(1)),
		RunE: func(c *cobra.Command, args []string) error {
			s, err := a.store()
			if err != nil {
				return err
			}
			var errs []error
			for _, name := range args {
				r, err := s.Remove(c.Context(), name, force)
				if err != nil {
					errs = append(errs, adviseImage(err))
					continue
				}
				for _, n := range r.Untagged {
					fmt.Fprintln(a.stdout, "Untagged:", image.Familiar(n))
				}
				if r.Deleted != "" {
					fmt.Fprintln(a.stdout, "Deleted:", r.Deleted)
				}
			}
			return errors.Join(errs...)
		},
	}
	cmd.Flags().BoolVarP(&force, "force", "f", false, "remove an ID that has several names")
	return cmd
}

func adviseImage(err error) error {
	if errors.Is(err, image.ErrNotFound) {
		return hint(err, "`coffer image ls` lists the images")
	}
	return err
}

func (a *app) imageInspectCommand() *cobra.Command {
	return &cobra.Command{
		Use: "inspect IMAGE", Short: "Show an image's layers, root hashes and configuration, as JSON",
		Args: usage(cobra.ExactArgs(1)),
		RunE: func(_ *cobra.Command, args []string) error {
			s, err := a.store()
			if err != nil {
				return err
			}
			img, err := s.Lookup(args[0])
			if err != nil {
				return adviseImage(err)
			}
			raw, _, err := s.Config(img)
			if err != nil {
				return err
			}
			return printJSON(a.stdout, struct {
				*image.Image
				Config json.RawMessage `json:"config"`
			}{img, raw})
		},
	}
}

func orNone(names []string) []string {
	if len(names) == 0 {
		return []string{"<none>"}
	}
	return names
}

// shortID is docker's: twelve digits.
func shortID(id string) string {
	id = strings.TrimPrefix(id, "sha256:")
	return id[:min(12, len(id))]
}

// sizeText writes bytes as docker does.
func sizeText(n int64) string {
	const units = "kMGT"
	if n < 1000 {
		return fmt.Sprintf("%dB", n)
	}
	f, i := float64(n)/1000, 0
	for f >= 1000 && i < len(units)-1 {
		f, i = f/1000, i+1
	}
	return fmt.Sprintf("%.3g%cB", f, units[i])
}

// ago writes a time as docker does.
func ago(t time.Time) string {
	d := time.Since(t)
	for _, u := range []struct {
		name string
		unit time.Duration
	}{{"day", 24 * time.Hour}, {"hour", time.Hour}, {"minute", time.Minute}, {"second", time.Second}} {
		if n := int(d / u.unit); n == 1 {
			return "1 " + u.name + " ago"
		} else if n > 1 {
			return fmt.Sprintf("%d %ss ago", n, u.name)
		}
	}
	return "now"
}
