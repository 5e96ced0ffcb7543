package main

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/cli"
	"coldrack.dev/internal/cli/exit"
	"coldrack.dev/internal/cli/objects"
	"coldrack.dev/internal/server/peopleapi/peoplewire"
)

func (a *app) clusterRestoreCommand() *cobra.Command {
	var (
		from string
		yes  bool
	)
	cmd := &cobra.Command{
		Use:   "restore NAME --from BACKUP",
		Short: "Bring a cluster's etcd back to what a backup holds",
		Long: `Bring a cluster's etcd back to what a backup holds. Everything that was written since is lost. The cluster's API is away meanwhile;
pods that run go on running. etcd and the control plane stop on all nodes, every member of etcd gets its data from the server, and all start again.
All machines with etcd or the control plane have to take part: one whose disk is lost is installed anew (coldrack reinstall) before or
meanwhile. What etcd had before stays on the machines until the next backup has succeeded.

The server goes on with a restore that has begun, also after its own restart. This command only watches; it may be ended.`,
		Example: `  coldrack cluster backups lab
  coldrack cluster restore lab --from 20261130t214500z`,
		Args: cobra.ExactArgs(1), ValidArgsFunction: a.completeClusters,
		RunE: func(cmd *cobra.Command, args []string) error {
			if from == "" {
				return exit.Usagef("name the backup with --from; `coldrack cluster backups %s` lists them", args[0])
			}
			c, cluster, err := a.clusterNamed(cmd, args[0])
			if err != nil {
				return err
			}
			request, err := a.orderRestore(cmd.Context(), c, cluster, from, yes)
			if err != nil {
				return err
			}
			return a.watchRestore(cmd.Context(), c, cluster.Name, request)
		},
	}
	a.addConnectionFlag(cmd)
	cmd.Flags().StringVar(&from, "from", "", "ID of the backup")
	cmd.Flags().BoolVar(&yes, "yes", false, "do not ask for the cluster's name")
	_ = cmd.RegisterFlagCompletionFunc("from", func(cmd *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
		if len(args) != 1 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return a.completeBackups(cmd, args, prefix)
	})
	return cmd
}

// orderRestore asks the person and writes the order.
func (a *app) orderRestore(ctx context.Context, c client.Client, cluster *v1alpha1.Cluster, from string, yes bool) (request string, err error) {
	if r := cluster.Status.Restore; r.Running() {
		return "", exit.Refusedf("cluster %s: a restore from backup %s is under way (%s: %s)", cluster.Name, r.Backup, r.Step, r.Message)
	}
	all, err := a.backupsOf(ctx, cluster.Name)
	if err != nil {
		return "", err
	}
	i := slices.IndexFunc(all, func(b peoplewire.Backup) bool { return b.ID == from })
	if i < 0 {
		return "", exit.NotFoundf("cluster %s has no backup %q; `coldrack cluster backups %s` lists those that it has", cluster.Name, from, cluster.Name)
	}
	if b := all[i]; !yes {
		question := fmt.Sprintf("Backup %s of cluster %s: %d keys at revision %d, taken %s ago.\nWhat was written to the cluster since is lost, and its API is away meanwhile.\nType the cluster's name to restore it: ",
			b.ID, cluster.Name, b.Keys, b.Revision, cli.Age(a.now().Sub(b.TakenAt)))
		if err := cli.Confirm(ctx, a.in, a.err, question, cluster.Name, "nothing was restored"); err != nil {
			return "", err
		}
	}
	request = from + " " + a.now().UTC().Format(time.RFC3339Nano)
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"uid": cluster.UID, "annotations": map[string]any{v1alpha1.AnnotationRestore: request}}})
	if err != nil {
		return "", err
	}
	if err := c.Patch(ctx, cluster, client.RawPatch(types.MergePatchType, patch), client.FieldOwner(objects.FieldManager)); err != nil {
		return "", fmt.Errorf("cluster %s: %w", cluster.Name, err)
	}
	return request, nil
}

// restoreLook is how often the order is looked at.
const restoreLook = time.Second

// watchRestore tells how far a restore is, until it has ended.
func (a *app) watchRestore(ctx context.Context, c client.Client, name, request string) error {
	told := ""
	for {
		cluster, err := getCluster(ctx, c, name)
		if ctx.Err() != nil {
			fmt.Fprintf(a.err, "\n%s: the restore goes on; `coldrack cluster describe %s` shows how far it is\n", name, name)
			return ctx.Err()
		}
		if err == nil && cluster.Status.Restore != nil && cluster.Status.Restore.Request == request {
			switch r := cluster.Status.Restore; r.Step {
			case v1alpha1.RestoreRefused:
				return exit.Refusedf("cluster %s is not restored: %s", name, r.Message)
			case v1alpha1.RestoreDone:
				fmt.Fprintf(a.out, "%s: restored from backup %s\n", name, r.Backup)
				return nil
			default:
				if now := fmt.Sprintf("%s: %s", r.Step, r.Message); now != told {
					told = now
					fmt.Fprintln(a.err, now)
				}
			}
		}
		select {
		case <-ctx.Done():
		case <-time.After(restoreLook):
		}
	}
}
