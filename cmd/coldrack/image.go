package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"coldrack.dev/internal/cli"
	"coldrack.dev/internal/cli/exit"
	"coldrack.dev/internal/cli/objects"
	"coldrack.dev/internal/cli/request"
	"coldrack.dev/internal/cli/upload"
	"coldrack.dev/internal/content/bundle"
	"coldrack.dev/internal/content/imagefile"
	"coldrack.dev/internal/server/peopleapi/peoplewire"
)

func (a *app) imageCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "image",
		Short: "Load, list and remove container images that no bundle has",
		Long: `Container images come to nodes from this server: from imported bundles, from archives that were loaded
here, and, where --registry-upstreams allows it, from other registries through a cache.`,
		RunE: group,
	}
	cmd.AddCommand(a.imageLoadCommand(), a.imageListCommand(), a.imagePruneCommand(), a.imagePinCommand(true), a.imagePinCommand(false))
	return cmd
}

func (a *app) imageLoadCommand() *cobra.Command {
	var name, output string
	cmd := &cobra.Command{
		Use:   "load FILE|FOLDER",
		Short: "Load container images from an archive into the server",
		Long: `Load the images of an archive of "docker save" or "skopeo copy" (docker-archive, oci-archive), or of a folder
in OCI image layout, for one platform or several. Every byte is checked by its digest. What the server already has is not sent
again. An image appears when all of it has come.

Nodes get it under its full name. An image of an imported bundle keeps its name: what is loaded does not take its place.`,
		Example: `  coldrack image load app.tar
  coldrack image load app.tar --name registry.example.org/team/app:1.4`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.loadImages(cmd.Context(), args[0], name, output)
		},
	}
	a.addConnectionFlag(cmd)
	addOutputFlag(cmd, &output, "json", "yaml")
	cmd.Flags().StringVar(&name, "name", "", "full name with registry and tag, instead of the one in the file")
	return cmd
}

// loaded is what became of one image of a file.
type loaded struct {
	Name   string `json:"name"`
	Digest string `json:"digest"`
	Size   int64  `json:"size"`
	// Sent bytes; the server had the others.
	Sent int64 `json:"sentBytes"`
	// Absent are platforms that the file does not have.
	Absent []string `json:"absent,omitempty"`
}

func (a *app) loadImages(ctx context.Context, path, name, output string) error {
	file, err := imagefile.Read(path)
	if err != nil {
		return err
	}
	defer file.Close()
	if name != "" {
		if len(file.Images) != 1 {
			return exit.Usagef("%s has %d images, and --name is for one", path, len(file.Images))
		}
		file.Images[0].Name = name
	}
	for n, i := range file.Images {
		if i.Name == "" {
			return exit.Usagef("image %d of %s has no full name; give one with --name, such as registry.example.org/team/app:1.4", n+1, path)
		}
		if err := bundle.CheckReference(i.Name); err != nil {
			return exit.Usagef("image %d of %s: %w", n+1, path, err)
		}
	}
	if err := a.namesAreFree(ctx, file.Images); err != nil {
		return err
	}
	config, err := a.connect()
	if err != nil {
		return err
	}
	sender, err := upload.NewImageSender(config, a.err, a.now)
	if err != nil {
		return err
	}
	done := []loaded{}
	for _, i := range file.Images {
		sent, err := sender.Send(ctx, i, i.Name)
		if err != nil {
			return fmt.Errorf("load %s: %w", i.Name, err)
		}
		done = append(done, loaded{i.Name, i.Digest, i.Size(), sent, i.Absent})
		if output == "" {
			fmt.Fprintf(a.out, "%s is loaded (%s, %s, %s sent)\n", i.Name, i.Digest, cli.Bytes(i.Size()), cli.Bytes(sent))
		}
		if len(i.Absent) > 0 {
			fmt.Fprintf(a.err, "warning: %s is not in the file for %s\n", i.Name, strings.Join(i.Absent, ", "))
		}
	}
	_, err = a.printStructured(output, done)
	return err
}

// namesAreFree says which names bundles have for other images, before anything is sent.
func (a *app) namesAreFree(ctx context.Context, images []imagefile.Image) error {
	list, err := a.images(ctx)
	if err != nil {
		return err
	}
	for _, i := range images {
		for _, have := range list.Images {
			if have.Source == peoplewire.SourceBundle && have.Name == i.Name && have.Digest != i.Digest {
				return exit.Refusedf("%s is in bundle %s, as %s; an image that is loaded does not take its place. Give it another name with --name", i.Name, have.Bundle, have.Digest)
			}
		}
	}
	return nil
}

func (a *app) imageListCommand() *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List the container images that nodes can get here",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			list, err := a.images(cmd.Context())
			if err != nil {
				return err
			}
			if done, err := a.printStructured(output, list); done {
				return err
			}
			return a.printImages(list)
		},
	}
	a.addConnectionFlag(cmd)
	addOutputFlag(cmd, &output, "json", "yaml")
	return cmd
}

func (a *app) images(ctx context.Context) (list peoplewire.ImageList, err error) {
	config, err := a.connect()
	if err != nil {
		return list, err
	}
	return list, request.Get(ctx, config, "list images", &list, peoplewire.PathImages)
}

func (a *app) printImages(list peoplewire.ImageList) error {
	table := &cli.Table{Header: []string{"NAME", "DIGEST", "SIZE", "PLATFORM", "FROM", "PINNED", "LAST USED"}}
	for _, i := range list.Images {
		from, pinned, used := i.Source, "", ""
		if i.Bundle != "" {
			from += " " + i.Bundle
		}
		if i.Pinned {
			pinned = "yes"
		}
		if !i.LastUsed.IsZero() {
			used = cli.Age(a.now().Sub(i.LastUsed)) + " ago"
		}
		table.Add(i.Name, shortDigest(i.Digest), cli.Bytes(i.Size), strings.Join(i.Platforms, ","), from, pinned, used)
	}
	if len(table.Rows) > 0 {
		if err := table.Print(a.out, true); err != nil {
			return err
		}
	} else {
		fmt.Fprintln(a.err, "there are no images: coldrack bundle import FILE, or coldrack image load FILE")
	}
	fmt.Fprintf(a.err, "loaded images have %s of %s\n", cli.Bytes(list.LoadedBytes), cli.Bytes(list.LoadedLimit))
	if list.CacheLimit > 0 {
		fmt.Fprintf(a.err, "images of other registries have %s of %s\n", cli.Bytes(list.CacheBytes), cli.Bytes(list.CacheLimit))
	}
	return nil
}

// shortDigest is as much of a digest as a table needs.
func shortDigest(digest string) string { return digest[:min(len(digest), len("sha256:")+12)] }

func (a *app) imagePruneCommand() *cobra.Command {
	var output string
	var yes bool
	var unused time.Duration
	cmd := &cobra.Command{
		Use:   "prune",
		Short: "Remove images that nothing needs",
		Long: `Remove loaded images and images of the cache that nothing needs. Without --yes nothing is removed: what would be is shown.

Kept are images of bundles, pinned images, those that a cluster or an add-on needs, those that anything in a running cluster
names (pods, and what makes pods), and those that were used lately. When a running cluster does not answer, nothing is removed.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if unused < 0 {
				return exit.Usagef("--unused-for is %s, want 0 or more", unused)
			}
			config, err := a.connect()
			if err != nil {
				return err
			}
			var pruned peoplewire.ImagesPruned
			ask := peoplewire.ImagePrune{Yes: yes, UnusedFor: int64(unused.Seconds())}
			if err := request.Post(cmd.Context(), config, "prune images", ask, &pruned, peoplewire.PathImages, "prune"); err != nil {
				return err
			}
			if done, err := a.printStructured(output, pruned); done {
				return err
			}
			return a.printPruned(pruned)
		},
	}
	a.addConnectionFlag(cmd)
	addOutputFlag(cmd, &output, "json", "yaml")
	cmd.Flags().BoolVarP(&yes, "yes", "y", false, "remove them")
	cmd.Flags().DurationVar(&unused, "unused-for", 24*time.Hour, "keep images that were fetched or loaded within that time")
	return cmd
}

func (a *app) printPruned(pruned peoplewire.ImagesPruned) error {
	table := &cli.Table{Header: []string{"NAME", "SIZE", "FROM", "KEPT BECAUSE"}}
	for _, p := range pruned.Images {
		why := p.Kept
		if why == "" {
			why = "- (to be removed)"
			if pruned.Removed {
				why = "- (removed)"
			}
		}
		table.Add(p.Name, cli.Bytes(p.Size), p.Source, why)
	}
	if len(table.Rows) > 0 {
		if err := table.Print(a.out, true); err != nil {
			return err
		}
	}
	if pruned.Removed {
		fmt.Fprintf(a.out, "%s are free again\n", cli.Bytes(pruned.Freed))
		return nil
	}
	fmt.Fprintf(a.out, "nothing was removed; --yes would free %s\n", cli.Bytes(pruned.Freed))
	return nil
}

func (a *app) imagePinCommand(pin bool) *cobra.Command {
	use, short, done := "pin NAME", "Keep an image from being removed", "is pinned"
	if !pin {
		use, short, done = "unpin NAME", "Let an image be removed again", "is not pinned any more"
	}
	cmd := &cobra.Command{
		Use:   use,
		Short: short,
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			config, err := a.connect()
			if err != nil {
				return err
			}
			var answer peoplewire.ImagePin
			ask := peoplewire.ImagePin{Name: args[0], Pinned: pin}
			if err := request.Post(cmd.Context(), config, "pin image", ask, &answer, peoplewire.PathImages, "pin"); err != nil {
				return err
			}
			fmt.Fprintf(a.out, "%s %s\n", args[0], done)
			return nil
		},
		ValidArgsFunction: a.completeImages,
	}
	a.addConnectionFlag(cmd)
	return cmd
}

func (a *app) completeImages(cmd *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
	ctx, cancel := context.WithTimeout(cmd.Context(), objects.CompletionTimeout)
	defer cancel()
	list, err := a.images(ctx)
	if err != nil || len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var names []string
	for _, i := range list.Images {
		if strings.HasPrefix(i.Name, prefix) {
			names = append(names, i.Name)
		}
	}
	return slices.Compact(names), cobra.ShellCompDirectiveNoFileComp
}
