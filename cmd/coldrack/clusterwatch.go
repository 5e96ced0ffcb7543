package main

import (
	"context"
	"strings"

	"github.com/spf13/cobra"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/cli/exit"
	"coldrack.dev/internal/cli/follow"
)

func clusterPhases() []string {
	return []string{string(v1alpha1.ClusterPending), string(v1alpha1.ClusterInvalid), string(v1alpha1.ClusterBringUp), string(v1alpha1.ClusterReady),
		string(v1alpha1.ClusterRolling), string(v1alpha1.ClusterDegraded), string(v1alpha1.ClusterReleasing)}
}

// checkClusterGoal completes what was said.
func checkClusterGoal(g *follow.ClusterGoal) error {
	if g.Phase == "" {
		if g.Limit > 0 || g.StopOnFailure {
			return exit.Usagef("--timeout and --stop-on-failure need --until PHASE")
		}
		return nil
	}
	for _, phase := range clusterPhases() {
		if strings.EqualFold(phase, g.Phase) {
			g.Phase = phase
			return nil
		}
	}
	return exit.Usagef("--until: there is no phase %q; there are %s", g.Phase, strings.Join(clusterPhases(), ", "))
}

func (a *app) clusterWatchCommand() *cobra.Command {
	var (
		goal  follow.ClusterGoal
		plain bool
	)
	cmd := &cobra.Command{
		Use:   "watch NAME",
		Short: "Follow a cluster and its nodes live, stuck ones first",
		Long: `Follow a cluster, its steps and its nodes live. On a terminal: the whole screen, nodes that need attention
first. Elsewhere, or with --plain: one line for each step and phase that begins, ends or fails, with the seconds
since the start.

With --until the command ends as soon as the cluster is in that phase, and with exit code 4 when the time is up.`,
		Example: `  coldrack cluster watch lab
  coldrack cluster watch lab --until Ready --timeout 30m`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeClusters,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := checkClusterGoal(&goal); err != nil {
				return err
			}
			return a.watchCluster(cmd.Context(), args[0], &goal, plain)
		},
	}
	a.addConnectionFlag(cmd)
	cmd.Flags().StringVar(&goal.Phase, "until", "", "end when the cluster is in this phase")
	cmd.Flags().DurationVar(&goal.Limit, "timeout", 0, "give up after this time, with exit code 4 (default: never)")
	cmd.Flags().BoolVar(&goal.StopOnFailure, "stop-on-failure", false, "with --until, give up as soon as a phase of a node has failed")
	cmd.Flags().BoolVar(&plain, "plain", false, "print lines even on a terminal")
	_ = cmd.RegisterFlagCompletionFunc("until", cobra.FixedCompletions(clusterPhases(), cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

func (a *app) watchCluster(ctx context.Context, name string, goal *follow.ClusterGoal, plain bool) error {
	c, err := a.client()
	if err != nil {
		return err
	}
	// A cluster that was never there is an error at once; a server that goes away later is waited for.
	if _, err := getCluster(ctx, c, name); err != nil {
		return err
	}
	return follow.Cluster(ctx, c, name, goal, a.view(plain))
}
