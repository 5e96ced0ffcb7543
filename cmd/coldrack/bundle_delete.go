package main

import (
	"context"
	"fmt"
	"net/url"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/cli"
	"coldrack.dev/internal/cli/exit"
	"coldrack.dev/internal/cli/objects"
	"coldrack.dev/internal/cli/request"
	"coldrack.dev/internal/content/bundle"
	"coldrack.dev/internal/server/peopleapi/peoplewire"
)

func (a *app) bundleDeleteCommand() *cobra.Command {
	var yes, force bool
	var output string
	cmd := &cobra.Command{
		Use:   "delete NAME",
		Short: "Delete an imported bundle and free its space",
		Long: `Delete an imported bundle from the server, with all files that no other bundle has. Machines that are
installed, and nodes that run, need nothing of it; installs that are under way may fail.

What an older bundle also has is taken from there from then on; it is named before anything is deleted. A bundle that a Profile,
a Machine or a Cluster still needs is kept, unless --force is given.`,
		Example: `  coldrack bundle delete default
  coldrack bundle delete kubernetes-1.36 --yes`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.deleteBundle(cmd.Context(), args[0], force, yes, output)
		},
		ValidArgsFunction: a.completeBundles,
	}
	a.addConnectionFlag(cmd)
	addOutputFlag(cmd, &output, "json", "yaml")
	cmd.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask for confirmation; required without a terminal")
	cmd.Flags().BoolVar(&force, "force", false, "delete it although something needs it")
	return cmd
}

func (a *app) deleteBundle(ctx context.Context, name string, force, yes bool, output string) error {
	c, err := a.client()
	if err != nil {
		return err
	}
	var (
		bundles  v1alpha1.BundleList
		profiles v1alpha1.ProfileList
		machines v1alpha1.MachineList
		clusters v1alpha1.ClusterList
	)
	for _, list := range []client.ObjectList{&bundles, &profiles, &machines, &clusters} {
		if err := c.List(ctx, list); err != nil {
			return fmt.Errorf("see who needs the bundle: %w", err)
		}
	}
	i := slices.IndexFunc(bundles.Items, func(b v1alpha1.Bundle) bool { return b.Name == name })
	if i < 0 {
		return exit.NotFoundf("there is no bundle %s; see: coldrack bundle list", name)
	}
	doomed := &bundles.Items[i]
	use := cli.UseOf(doomed, bundles.Items)
	users := use.Users(profiles.Items, machines.Items, clusters.Items)
	if len(users) > 0 && !force {
		return exit.Refusedf("bundle %s is needed, and nothing was deleted:\n  %s\nImport what replaces it first, or add --force", name, strings.Join(users, "\n  "))
	}
	for _, older := range use.Older {
		fmt.Fprintf(a.err, "from now on: %s\n", older)
	}
	for _, user := range users {
		fmt.Fprintf(a.err, "cannot be carried out any more: %s\n", user)
	}
	if !yes {
		if err := cli.Confirm(ctx, a.in, a.err, fmt.Sprintf("Delete bundle %s? Type yes: ", name), "yes", "nothing was deleted"); err != nil {
			return err
		}
	}
	config, err := a.connect()
	if err != nil {
		return err
	}
	var removed bundle.Removal
	if err := request.Delete(ctx, config, "delete bundle "+name, url.Values{"digest": {doomed.Spec.Digest}}, &removed, peoplewire.PathBundles); err != nil {
		return err
	}
	// The object of a bundle outlives content that was lost; this one was not lost.
	if err := client.IgnoreNotFound(c.Delete(ctx, doomed)); err != nil {
		return fmt.Errorf("the files of bundle %s are deleted, its object is not; delete it with: coldrack delete bundle %s: %w", name, name, err)
	}
	if done, err := a.printStructured(output, removed); done {
		return err
	}
	fmt.Fprintf(a.out, "bundle %s is deleted; %s are free again\n", name, cli.Bytes(removed.Freed))
	if removed.Kept != "" {
		fmt.Fprintf(a.err, "not all files were deleted: %s\n", removed.Kept)
	}
	return nil
}

func (a *app) completeBundles(cmd *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
	c, err := a.client()
	if err != nil || len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), objects.CompletionTimeout)
	defer cancel()
	var list v1alpha1.BundleList
	if err := c.List(ctx, &list); err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var names []string
	for i := range list.Items {
		if strings.HasPrefix(list.Items[i].Name, prefix) {
			names = append(names, list.Items[i].Name)
		}
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}
