package main

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/cli"
	"coldrack.dev/internal/cli/exit"
	"coldrack.dev/internal/cli/objects"
)

func (a *app) clusterScaleCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "scale NAME GROUP REPLICAS",
		Short: "Change how many machines a group of a cluster has",
		Long: `Change how many machines a group of a cluster has. Machines that are too many are drained, leave one after another, and are
then wiped or become spares, as the group's spec.whenRemoved says. What would lose etcd's majority or the last control
plane is refused. ` + "`coldrack plan`" + ` shows the steps beforehand, ` + "`coldrack cluster watch`" + ` follows them.`,
		Example: "  coldrack cluster scale lab workers 5",
		Args:    cobra.ExactArgs(3),
		ValidArgsFunction: func(cmd *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
			switch len(args) {
			case 0:
				return a.completeClusters(cmd, args, prefix)
			case 1:
				return a.completeGroups(cmd, args[0], prefix)
			}
			return nil, cobra.ShellCompDirectiveNoFileComp
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			replicas, err := strconv.ParseInt(args[2], 10, 32)
			if err != nil || replicas < 0 {
				return exit.Usagef("%q is not a number of machines", args[2])
			}
			c, err := a.client()
			if err != nil {
				return err
			}
			if _, err := getCluster(cmd.Context(), c, args[0]); err != nil {
				return err
			}
			g, err := groupOf(cmd.Context(), c, args[0], args[1])
			if err != nil {
				return err
			}
			if was := g.WantedReplicas(); was == int(replicas) {
				fmt.Fprintf(a.out, "%s: wants %d machines already\n", g.Name, was)
				return nil
			}
			was := g.WantedReplicas()
			patch := client.RawPatch(types.MergePatchType, fmt.Appendf(nil, `{"spec":{"replicas":%d}}`, replicas))
			if err := c.Patch(cmd.Context(), g, patch, client.FieldOwner(objects.FieldManager)); err != nil {
				return fmt.Errorf("machine group %s: %w", g.Name, err)
			}
			fmt.Fprintf(a.out, "%s: wants %d machines, wanted %d; follow it with: coldrack cluster watch %s\n", g.Name, replicas, was, args[0])
			return nil
		},
	}
	return a.addConnectionFlag(cmd)
}

// groupOf finds a group by its name, or by what follows its cluster's name and a dash.
func groupOf(ctx context.Context, c client.Client, cluster, name string) (*v1alpha1.MachineGroup, error) {
	var list v1alpha1.MachineGroupList
	if err := c.List(ctx, &list); err != nil {
		return nil, fmt.Errorf("list machine groups: %w", err)
	}
	var names []string
	for i := range list.Items {
		g := &list.Items[i]
		if g.Spec.Cluster != cluster {
			continue
		}
		if g.Name == name || g.Name == cluster+"-"+name {
			return g, nil
		}
		names = append(names, strings.TrimPrefix(g.Name, cluster+"-"))
	}
	slices.Sort(names)
	return nil, exit.NotFoundf("cluster %s has no group %q; it has %s", cluster, name, strings.Join(names, ", "))
}

func (a *app) completeGroups(cmd *cobra.Command, cluster, prefix string) ([]string, cobra.ShellCompDirective) {
	c, err := a.client()
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), objects.CompletionTimeout)
	defer cancel()
	var list v1alpha1.MachineGroupList
	if err := c.List(ctx, &list); err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var names []string
	for i := range list.Items {
		if short := strings.TrimPrefix(list.Items[i].Name, cluster+"-"); list.Items[i].Spec.Cluster == cluster && strings.HasPrefix(short, prefix) {
			names = append(names, fmt.Sprintf("%s\t%d machines", short, list.Items[i].WantedReplicas()))
		}
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}

func (a *app) clusterAbortCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "abort NAME",
		Short: "Take no further node of a cluster, and bring those in hand back to what they had",
		Long: `Take no further node of a cluster. Nodes in hand go back to the versions and the configuration that they had, as far as that is
possible; a node that was about to leave stays, if nothing of it was taken away yet. ` + "`coldrack cluster resume`" + ` ends this: what is
wanted is then begun again, so change what is wanted first.`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeClusters,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, cluster, err := a.clusterNamed(cmd, args[0])
			if err != nil {
				return err
			}
			patch := client.RawPatch(types.MergePatchType, fmt.Appendf(nil, `{"metadata":{"annotations":{%q:"true"}}}`, v1alpha1.AnnotationAbort))
			if err := c.Patch(cmd.Context(), cluster, patch, client.FieldOwner(objects.FieldManager)); err != nil {
				return fmt.Errorf("cluster %s: %w", cluster.Name, err)
			}
			fmt.Fprintf(a.out, "%s: aborted; end this with: coldrack cluster resume %s\n", cluster.Name, cluster.Name)
			return nil
		},
	}
	return a.addConnectionFlag(cmd)
}

func (a *app) clusterResumeCommand() *cobra.Command {
	var putBack bool
	cmd := &cobra.Command{
		Use:   "resume NAME",
		Short: "Go on with a cluster that was paused or aborted, or that a failure stopped",
		Long: `Go on with a cluster that was paused or aborted, or that a failure stopped. A cluster whose nodes' files somebody else has changed while it
was paused, kubeadm for example, is resumed only with --put-back: all nodes write the files anew at once, and what reads them restarts.`,
		Args: cobra.ExactArgs(1), ValidArgsFunction: a.completeClusters,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, cluster, err := a.clusterNamed(cmd, args[0])
			if err != nil {
				return err
			}
			aborted, failure := cluster.Annotations[v1alpha1.AnnotationAbort] != "", cluster.Status.Failure
			if !cluster.Spec.Paused && !aborted && failure == nil {
				fmt.Fprintf(a.out, "%s: was not paused, aborted or stopped\n", cluster.Name)
				return nil
			}
			change := map[string]any{"spec": map[string]any{"paused": false}}
			annotations := map[string]any{v1alpha1.AnnotationAbort: nil}
			if failure != nil {
				annotations[v1alpha1.AnnotationRetry] = a.now().UTC().Format(time.RFC3339Nano)
			}
			if putBack {
				annotations[v1alpha1.AnnotationPutBack] = a.now().UTC().Format(time.RFC3339Nano)
			}
			change["metadata"] = map[string]any{"annotations": annotations}
			patch, err := json.Marshal(change)
			if err != nil {
				return err
			}
			if err := c.Patch(cmd.Context(), cluster, client.RawPatch(types.MergePatchType, patch), client.FieldOwner(objects.FieldManager)); err != nil {
				return fmt.Errorf("cluster %s: %w", cluster.Name, err)
			}
			fmt.Fprintf(a.out, "%s: resumed\n", cluster.Name)
			if failure != nil {
				fmt.Fprintf(a.out, "%s: tries machine %s again, which failed at %s: %s\n", cluster.Name, failure.Node, failure.At.UTC().Format(time.RFC3339), failure.Reason)
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&putBack, "put-back", false, "put back files of nodes that somebody else has changed meanwhile")
	return a.addConnectionFlag(cmd)
}

func (a *app) clusterHistoryCommand() *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:   "history NAME",
		Short: "Show what was done to a cluster, what is done now, and what holds it up",
		Args:  cobra.ExactArgs(1), ValidArgsFunction: a.completeClusters,
		RunE: func(cmd *cobra.Command, args []string) error {
			_, cluster, err := a.clusterNamed(cmd, args[0])
			if err != nil {
				return err
			}
			if done, err := a.printStructured(output, cli.HistoryOf(cluster)); done {
				return err
			}
			fmt.Fprint(a.out, cli.HistoryText(cluster))
			return nil
		},
	}
	a.addConnectionFlag(cmd)
	addOutputFlag(cmd, &output, "json", "yaml")
	return cmd
}
