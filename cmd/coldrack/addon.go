package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/base/termtext"
	"coldrack.dev/internal/cli"
	"coldrack.dev/internal/cli/exit"
	"coldrack.dev/internal/cli/objects"
	"coldrack.dev/internal/cli/request"
	"coldrack.dev/internal/cluster/addon"
	"coldrack.dev/internal/cluster/kube"
	"coldrack.dev/internal/contract/manifest"
	"coldrack.dev/internal/server/peopleapi/peoplewire"
)

func (a *app) addonCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "addon",
		Aliases: []string{"addons"},
		Short:   "Give clusters folders of manifests, and keep them there",
		Long: `Give a cluster a folder of manifests. The server keeps it, applies it in the right order, says which object is not healthy and why, puts back
what somebody changes, and removes what the folder has no more. All of this needs role admin, since it is done with all rights in the
cluster.

  coldrack addon diff metallb --cluster lab -f metallb/
  coldrack addon apply metallb --cluster lab -f metallb/ --wait
  coldrack addon list
  coldrack addon status metallb
  coldrack addon delete metallb`,
		RunE: group,
	}
	cmd.AddCommand(a.addonApplyCommand(), a.addonDiffCommand(), a.addonListCommand(), a.addonStatusCommand(), a.addonDeleteCommand())
	return cmd
}

// addonOptions are what `addon apply` and `addon diff` are told.
type addonOptions struct {
	files              []string
	cluster            string
	version, namespace string
	order              int32
	takeOver, report   bool
	removeData         bool
}

func (o *addonOptions) flags(a *app, cmd *cobra.Command) {
	a.addConnectionFlag(cmd)
	f := cmd.Flags()
	f.StringArrayVarP(&o.files, "filename", "f", nil, "file or folder (all of its .yaml, .yml and .json files); may be repeated")
	f.StringVar(&o.cluster, "cluster", "", "the cluster that gets the objects; needed for a new add-on")
	f.StringVar(&o.version, "version", "", "what you call this version")
	f.StringVarP(&o.namespace, "namespace", "n", "", "namespace of objects that name none (default default)")
	f.Int32Var(&o.order, "order", 0, "place among the cluster's add-ons: those with a lower number are ready before this one is applied for the first time")
	f.BoolVar(&o.takeOver, "take-over", false, "have objects that are in the cluster already and somebody else's")
	f.BoolVar(&o.report, "report-changes", false, "only tell when somebody changes an object in the cluster, instead of changing it back")
	f.BoolVar(&o.removeData, "remove-data", false, "also remove Namespaces, definitions of kinds, volumes and claims that the folder has no more")
	_ = cmd.RegisterFlagCompletionFunc("cluster", func(cmd *cobra.Command, _ []string, prefix string) ([]string, cobra.ShellCompDirective) {
		return a.completeClusters(cmd, nil, prefix)
	})
}

// proposed is the Addon as it would be written, and the one that there is, or nil. Flags that are not given leave what is.
func (a *app) proposed(cmd *cobra.Command, c client.Client, name string, o *addonOptions) (next, was *v1alpha1.Addon, err error) {
	if len(o.files) == 0 {
		return nil, nil, exit.Usagef("name the manifests with -f FOLDER or -f FILE")
	}
	next = &v1alpha1.Addon{}
	switch err := c.Get(cmd.Context(), client.ObjectKey{Name: name}, next); {
	case apierrors.IsNotFound(err):
		next.Name = name
	case err != nil:
		return nil, nil, fmt.Errorf("get add-on %s: %w", name, err)
	case next.DeletionTimestamp != nil:
		return nil, nil, exit.Refusedf("add-on %s is being deleted; wait until it is gone: coldrack addon status %s", name, name)
	default:
		was = next.DeepCopy()
	}
	next.TypeMeta = v1alpha1.AddonTypeMeta()
	switch {
	case was != nil && o.cluster != "" && o.cluster != was.Spec.Cluster:
		return nil, nil, exit.Refusedf("add-on %s is cluster %s's; for cluster %s, give it another name", name, was.Spec.Cluster, o.cluster)
	case was == nil && o.cluster == "":
		return nil, nil, exit.Usagef("--cluster is missing: the cluster that gets add-on %s", name)
	case was == nil:
		next.Spec.Cluster = o.cluster
	}
	set := func(flag string, to func()) {
		if cmd.Flags().Changed(flag) {
			to()
		}
	}
	spec := &next.Spec
	set("version", func() { spec.Version = o.version })
	set("namespace", func() { spec.Namespace = o.namespace })
	set("order", func() { spec.Order = o.order })
	set("take-over", func() { spec.TakeOver = o.takeOver })
	set("remove-data", func() { spec.RemoveData = o.removeData })
	set("report-changes", func() {
		spec.WhenChanged = v1alpha1.DriftRestore
		if o.report {
			spec.WhenChanged = v1alpha1.DriftReport
		}
	})
	if spec.Files, err = addonFiles(o.files); err != nil {
		return nil, nil, err
	}
	cluster, err := getCluster(cmd.Context(), c, spec.Cluster)
	if err != nil {
		return nil, nil, err
	}
	if errs := v1alpha1.ValidateAddon(next); len(errs) > 0 {
		return nil, nil, exit.Usagef("add-on %s: %w", name, errs.ToAggregate())
	}
	if _, err := addon.ObjectsOf(next, addon.FactsOf(cluster)); err != nil {
		return nil, nil, exit.Usagef("%w", err)
	}
	return next, was, nil
}

// addonFiles reads folders and files. They are stored as they are where that is possible.
func addonFiles(names []string) ([]v1alpha1.AddonFile, error) {
	var files []v1alpha1.AddonFile
	size := 0
	for _, name := range names {
		if name == "-" {
			return nil, exit.Usagef("an add-on is made of files; standard input has no name")
		}
		found, err := manifest.Files(name)
		if err != nil {
			return nil, err
		}
		if len(found) == 0 {
			return nil, exit.Usagef("no manifests in %s; a folder holds them in .yaml, .yml or .json files", name)
		}
		for _, path := range found {
			text, err := os.ReadFile(path)
			if err != nil {
				return nil, err
			}
			called, err := filepath.Rel(name, path)
			if err != nil || called == "." {
				called = filepath.Base(path)
			}
			if i := slices.IndexFunc(files, func(f v1alpha1.AddonFile) bool { return f.Name == called }); i >= 0 {
				return nil, exit.Usagef("two files are called %s; an add-on's files have different names", called)
			}
			size += len(text)
			files = append(files, v1alpha1.AddonFile{Name: called, Content: string(text)})
		}
	}
	if size > v1alpha1.MaxAddonText {
		for i := range files {
			files[i] = v1alpha1.PackedAddonFile(files[i].Name, files[i].Content)
		}
	}
	return files, nil
}

func (a *app) askAddonDiff(ctx context.Context, proposed *v1alpha1.Addon, remove bool) (peoplewire.AddonDiffResponse, error) {
	var answer peoplewire.AddonDiffResponse
	config, err := a.connect()
	if err != nil {
		return answer, err
	}
	encoded, err := json.Marshal(proposed)
	if err != nil {
		return answer, err
	}
	err = request.Post(ctx, config, "compare add-on "+proposed.Name, peoplewire.AddonDiffRequest{Addon: encoded, Remove: remove}, &answer,
		peoplewire.PathClusters, url.PathEscape(proposed.Spec.Cluster), "addons", "diff")
	return answer, err
}

// refusedObjects are those that the cluster's API would not take.
func refusedObjects(answer peoplewire.AddonDiffResponse) []string {
	var refused []string
	for _, c := range answer.Changes {
		if c.Change == "refused" {
			refused = append(refused, c.Diff)
		}
	}
	return refused
}

func (a *app) printAddonDiff(answer peoplewire.AddonDiffResponse, details bool) {
	signs := map[kube.Change]string{kube.Added: "+", kube.Changed: "~", kube.Removed: "-", "left": " ", "refused": "!"}
	for _, c := range answer.Changes {
		switch {
		case c.Change == "left":
			fmt.Fprintf(a.out, "  %s stays in the cluster: %s\n", c.Object, termtext.Line(c.Diff, 300))
		case c.Change == "refused":
			fmt.Fprintf(a.out, "! %s\n", termtext.Line(c.Diff, 1000))
		default:
			fmt.Fprintf(a.out, "%s %s\n", signs[c.Change], c.Object)
			if details || c.Change == kube.Changed {
				for line := range strings.Lines(c.Diff) {
					fmt.Fprintf(a.out, "    %s\n", termtext.Line(strings.TrimRight(line, "\n"), 300))
				}
			}
		}
	}
	if len(answer.Changes) == 0 {
		fmt.Fprintln(a.out, "nothing would change")
	}
	for _, image := range answer.MissingImages {
		fmt.Fprintf(a.out, "! image %s is in no bundle of the server, and no registry of the cluster (spec.registries) may have it\n", image)
	}
}

func (a *app) addonDiffCommand() *cobra.Command {
	o := addonOptions{}
	var output string
	var details bool
	cmd := &cobra.Command{
		Use:   "diff NAME -f FOLDER",
		Short: "Show what would become of the cluster, and change nothing",
		Long: `Show which objects an add-on would add, change and remove, by dry runs of the cluster's own API, and which images no bundle has. The exit code is
0 when nothing would change, 6 when something would, 5 when the API would refuse an object.`,
		Example: `  coldrack addon diff metallb --cluster lab -f metallb/`,
		Args:    cobra.ExactArgs(1), ValidArgsFunction: a.completeAddons,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			next, _, err := a.proposed(cmd, c, args[0], &o)
			if err != nil {
				return err
			}
			answer, err := a.askAddonDiff(cmd.Context(), next, false)
			if err != nil {
				return err
			}
			if done, err := a.printStructured(output, answer); err != nil {
				return err
			} else if !done {
				a.printAddonDiff(answer, details)
			}
			switch {
			case len(refusedObjects(answer)) > 0:
				return &exit.Silent{Code: exit.Refused}
			case len(answer.Changes) > 0:
				return &exit.Silent{Code: exit.Changes}
			}
			return nil
		},
	}
	o.flags(a, cmd)
	cmd.Flags().BoolVar(&details, "details", false, "show new objects in full")
	addOutputFlag(cmd, &output, "json", "yaml")
	return cmd
}

func (a *app) addonApplyCommand() *cobra.Command {
	o := addonOptions{}
	var wait bool
	var timeout time.Duration
	var output string
	cmd := &cobra.Command{
		Use:   "apply NAME -f FOLDER",
		Short: "Give a cluster a folder of manifests, or a newer one",
		Long: `Give a cluster a folder of manifests. All files are read, and the cluster's own API tries every object, before anything is written. While that API does
not answer, the add-on is written all the same, and applied when it does.

In files, ${cluster.name}, version, dnsDomain, dnsAddress, podCIDR, podCIDRs, serviceCIDR, serviceCIDRs, apiHost and apiPort stand for what the
cluster has. Secrets are refused: everybody with role viewer may read an add-on.`,
		Example: `  coldrack addon apply metallb --cluster lab -f metallb/ --version 0.15.2 --wait
  coldrack addon apply dashboards --cluster lab -f dashboards/ -n monitoring --order 20`,
		Args: cobra.ExactArgs(1), ValidArgsFunction: a.completeAddons,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			next, was, err := a.proposed(cmd, c, args[0], &o)
			if err != nil {
				return err
			}
			answer, err := a.askAddonDiff(cmd.Context(), next, false)
			if refused := refusedObjects(answer); len(refused) > 0 {
				return exit.Refusedf("the cluster's API refuses objects of add-on %s, and nothing was written:\n  %s", next.Name, strings.Join(refused, "\n  "))
			}
			switch {
			case err == nil && output == "":
				a.printAddonDiff(answer, false)
			case err != nil && !request.Unavailable(err):
				return err
			case err != nil:
				fmt.Fprintf(a.err, "not compared: %v\n", err)
			}
			if err := writeAddon(cmd.Context(), c, next, was); err != nil {
				return fmt.Errorf("write add-on %s: %w", next.Name, err)
			}
			if wait {
				if next, err = a.awaitAddon(cmd.Context(), c, next.Name, next.Generation, timeout); err != nil {
					return err
				}
			}
			if done, err := a.printStructured(output, next); done {
				return err
			}
			if wait {
				fmt.Fprintf(a.out, "%s: ready in cluster %s, %s objects healthy\n", next.Name, next.Spec.Cluster, next.Status.Healthy)
			} else {
				fmt.Fprintf(a.out, "%s: written; see how it is with: coldrack addon status %s\n", next.Name, next.Name)
			}
			return nil
		},
	}
	o.flags(a, cmd)
	cmd.Flags().BoolVar(&wait, "wait", false, "wait until all objects are healthy")
	cmd.Flags().DurationVar(&timeout, "timeout", 10*time.Minute, "with --wait: give up after this time, with exit code 4; the server goes on")
	addOutputFlag(cmd, &output, "json", "yaml")
	return cmd
}

// writeAddon writes what is wanted, if nobody else has written since it was read. The server, which writes how the add-on is, is not somebody else.
func writeAddon(ctx context.Context, c client.Client, next, was *v1alpha1.Addon) error {
	if was == nil {
		return c.Create(ctx, next, client.FieldOwner(objects.FieldManager))
	}
	for {
		err := c.Update(ctx, next, client.FieldOwner(objects.FieldManager))
		if !apierrors.IsConflict(err) {
			return err
		}
		spec := next.Spec
		if err := c.Get(ctx, client.ObjectKeyFromObject(was), next); err != nil {
			return err
		}
		if next.Generation != was.Generation || next.UID != was.UID {
			return exit.Refusedf("somebody else has written it meanwhile; look at it (coldrack addon status %s), and apply again", was.Name)
		}
		next.Spec = spec
	}
}

// addonPause is how often a command looks at an add-on that it waits for.
const addonPause = time.Second

// awaitAddon returns when the server has made an add-on ready as it was written, and tells meanwhile what it waits for.
func (a *app) awaitAddon(ctx context.Context, c client.Client, name string, generation int64, timeout time.Duration) (*v1alpha1.Addon, error) {
	ctx, stop := context.WithTimeout(ctx, timeout)
	defer stop()
	is, said := &v1alpha1.Addon{}, ""
	for {
		err := c.Get(ctx, client.ObjectKey{Name: name}, is)
		if apierrors.IsNotFound(err) {
			return nil, exit.NotFoundf("there is no add-on %s any more", name)
		}
		if err == nil && is.Status.ObservedGeneration >= generation {
			if phase := addon.Phase(is.Status.Phase); phase == addon.Ready && meta.IsStatusConditionTrue(is.Status.Conditions, "Ready") {
				return is, nil
			} else if phase == addon.Broken {
				return nil, fmt.Errorf("add-on %s has failed: %s", name, is.Status.Message)
			}
			if text := fmt.Sprintf("%s: %s", is.Status.Phase, is.Status.Message); text != said {
				said = text
				fmt.Fprintln(a.err, termtext.Line(text, 500))
			}
		}
		select {
		case <-ctx.Done():
			if errors.Is(ctx.Err(), context.DeadlineExceeded) {
				return nil, exit.Timeoutf("add-on %s is not ready after %s; %s", name, timeout, said)
			}
			return nil, ctx.Err()
		case <-time.After(addonPause):
		}
	}
}

func (a *app) addonListCommand() *cobra.Command {
	var output, cluster string
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List add-ons of clusters, Coldrack's own included",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			rows, err := cli.ListAddons(cmd.Context(), c, cluster)
			if err != nil {
				return err
			}
			if done, err := a.printStructured(output, rows); done {
				return err
			}
			t := &cli.Table{Header: []string{"CLUSTER", "ADD-ON", "ORDER", "VERSION", "PHASE", "HEALTHY", "MESSAGE"}}
			for _, r := range rows {
				t.Add(r.Cluster, r.Name, r.OrderText(), r.Version, r.Phase, r.Healthy, r.Message)
			}
			return t.Print(a.out, true)
		},
	}
	a.addConnectionFlag(cmd)
	cmd.Flags().StringVar(&cluster, "cluster", "", "only those of this cluster")
	_ = cmd.RegisterFlagCompletionFunc("cluster", func(cmd *cobra.Command, _ []string, prefix string) ([]string, cobra.ShellCompDirective) {
		return a.completeClusters(cmd, nil, prefix)
	})
	addOutputFlag(cmd, &output, "json", "yaml")
	return cmd
}

func (a *app) addonNamed(ctx context.Context, c client.Client, name string) (*v1alpha1.Addon, error) {
	is := &v1alpha1.Addon{}
	err := c.Get(ctx, client.ObjectKey{Name: name}, is)
	if apierrors.IsNotFound(err) {
		return nil, exit.NotFoundf("there is no add-on %q; coldrack addon list shows which there are", name)
	}
	if err != nil {
		return nil, fmt.Errorf("get add-on %s: %w", name, err)
	}
	return is, nil
}

func (a *app) addonStatusCommand() *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:   "status NAME",
		Short: "Show how an add-on is in its cluster",
		Args:  cobra.ExactArgs(1), ValidArgsFunction: a.completeAddons,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			is, err := a.addonNamed(cmd.Context(), c, args[0])
			if err != nil {
				return err
			}
			if done, err := a.printStructured(output, is.Status); done {
				return err
			}
			fmt.Fprint(a.out, cli.AddonText(is))
			return nil
		},
	}
	a.addConnectionFlag(cmd)
	addOutputFlag(cmd, &output, "json", "yaml")
	return cmd
}

func (a *app) addonDeleteCommand() *cobra.Command {
	var keep, data, yes bool
	cmd := &cobra.Command{
		Use:   "delete NAME",
		Short: "Remove an add-on and its objects from its cluster",
		Long: `Remove an add-on. Its objects are removed from the cluster first, those of kinds of its own before everything else. Namespaces, definitions of kinds, volumes and
claims stay unless --remove-data is given, and what has the annotation coldrack.dev/keep=true stays in any case.`,
		Args: cobra.ExactArgs(1), ValidArgsFunction: a.completeAddons,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			is, err := a.addonNamed(cmd.Context(), c, args[0])
			if err != nil {
				return err
			}
			if !yes {
				question := fmt.Sprintf("This removes the objects of add-on %s from cluster %s. Type the add-on's name to go on: ", is.Name, is.Spec.Cluster)
				if keep {
					question = fmt.Sprintf("This ends add-on %s; its objects stay in cluster %s. Type the add-on's name to go on: ", is.Name, is.Spec.Cluster)
				}
				if err := cli.Confirm(cmd.Context(), a.in, a.err, question, is.Name, "nothing was done"); err != nil {
					return err
				}
			}
			if keep || data && !is.Spec.RemoveData {
				next := is.DeepCopy()
				if keep {
					metaSet(next, v1alpha1.AnnotationLeaveObjects, "true")
				}
				next.Spec.RemoveData = next.Spec.RemoveData || data
				if err := c.Patch(cmd.Context(), next, client.MergeFrom(is), client.FieldOwner(objects.FieldManager)); err != nil {
					return fmt.Errorf("write add-on %s: %w", is.Name, err)
				}
			}
			if err := c.Delete(cmd.Context(), is); err != nil && !apierrors.IsNotFound(err) {
				return fmt.Errorf("delete add-on %s: %w", is.Name, err)
			}
			fmt.Fprintf(a.out, "%s: is being removed; coldrack addon status %s says what it waits for until it is gone\n", is.Name, is.Name)
			return nil
		},
	}
	a.addConnectionFlag(cmd)
	cmd.Flags().BoolVar(&keep, "keep-objects", false, "leave its objects in the cluster; an add-on of the same name takes them up again")
	cmd.Flags().BoolVar(&data, "remove-data", false, "also remove its Namespaces, definitions of kinds, volumes and claims, with all that is in them")
	cmd.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	cmd.MarkFlagsMutuallyExclusive("keep-objects", "remove-data")
	return cmd
}

func metaSet(object client.Object, key, value string) {
	annotations := object.GetAnnotations()
	if annotations == nil {
		annotations = map[string]string{}
	}
	annotations[key] = value
	object.SetAnnotations(annotations)
}

func (a *app) completeAddons(cmd *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
	c, err := a.client()
	if err != nil || len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), objects.CompletionTimeout)
	defer cancel()
	var list v1alpha1.AddonList
	if err := c.List(ctx, &list); err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var names []string
	for _, is := range list.Items {
		if strings.HasPrefix(is.Name, prefix) {
			names = append(names, fmt.Sprintf("%s\t%s of %s", is.Name, is.Status.Phase, is.Spec.Cluster))
		}
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}
