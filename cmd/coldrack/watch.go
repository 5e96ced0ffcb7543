package main

import (
	"context"
	"encoding/json"

	"github.com/spf13/cobra"

	"coldrack.dev/internal/cli/exit"
	"coldrack.dev/internal/cli/follow"
	"coldrack.dev/internal/cli/machine"
	"coldrack.dev/internal/netboot/gate"
	"coldrack.dev/internal/server/peopleapi/peoplewire"
)

func (a *app) watchCommand() *cobra.Command {
	var (
		pick  machine.Selection
		goal  follow.PhaseGoal
		plain bool
		file  string
	)
	cmd := &cobra.Command{
		Use:   "watch [NAME...]",
		Short: "Follow all machines live, stuck ones first",
		Long: `Follow machines live. On a terminal: the whole screen, stuck machines first. Elsewhere, or with
--plain: one line for each transition, with the seconds since the start.

With --rehearsed FILE, written by "coldrack rehearse -o json", the run is compared with the rehearsal, and
machines that are slower than expected are named.

With --until the command ends as soon as enough machines are in that phase, and with exit code 4 when
the time is up.`,
		Example: `  coldrack watch
  coldrack watch --until Ready --count 3 --timeout 15m
  coldrack watch node-1 node-2 --until Ready --stop-on-failure
  coldrack rehearse -f plan.yaml -o json > rehearsed.json; coldrack watch --rehearsed rehearsed.json`,
		ValidArgsFunction: a.completeMachines,
		RunE: func(cmd *cobra.Command, args []string) error {
			pick.Names = args
			if err := pick.Check(); err != nil {
				return err
			}
			if goal.Phase == "" && goal.Limit > 0 {
				return exit.Usagef("--timeout needs --until PHASE")
			}
			if err := checkPhaseGoal(&goal, len(args)); err != nil {
				return err
			}
			c, err := a.client()
			if err != nil {
				return err
			}
			rehearsed, err := follow.ReadRehearsal(file, a.now())
			if err != nil {
				return err
			}
			view := a.view(plain)
			view.Rehearsal = rehearsed
			return follow.Machines(cmd.Context(), c, pick.Matches, &goal, view)
		},
	}
	a.addConnectionFlag(cmd)
	addSelectionFlags(cmd, &pick)
	addPhaseGoalFlags(cmd, &goal)
	cmd.Flags().BoolVar(&plain, "plain", false, "print lines even on a terminal")
	cmd.Flags().StringVar(&file, "rehearsed", "", "compare with a rehearsal: the file that rehearse -o json wrote")
	return cmd
}

func addPhaseGoalFlags(cmd *cobra.Command, g *follow.PhaseGoal) {
	cmd.Flags().StringVar(&g.Phase, "until", "", "end when machines are in this phase")
	cmd.Flags().IntVar(&g.Count, "count", 0, "how many machines --until waits for (default: all that are named, or one)")
	cmd.Flags().DurationVar(&g.Limit, "timeout", 0, "give up after this time, with exit code 4 (default: never)")
	cmd.Flags().BoolVar(&g.StopOnFailure, "stop-on-failure", false, "with --until, give up as soon as a machine is Failed")
}

// checkPhaseGoal completes what was said, with as many machines as are named.
func checkPhaseGoal(g *follow.PhaseGoal, named int) error {
	if g.Phase == "" {
		if g.Count != 0 || g.StopOnFailure {
			return exit.Usagef("--count and --stop-on-failure need --until PHASE")
		}
		return nil
	}
	check := machine.Selection{Phases: []string{g.Phase}}
	if err := check.Check(); err != nil {
		return exit.Usagef("--until: %w", err)
	}
	g.Phase = check.Phases[0]
	if g.Count == 0 {
		g.Count = max(1, named)
	}
	if g.Count < 0 {
		return exit.Usagef("--count must be at least 1")
	}
	return nil
}

// view is how this command line shows what it follows; there is a connection already.
func (a *app) view(plain bool) follow.View {
	_, noColor := a.env("NO_COLOR")
	return follow.View{Out: a.out, Now: a.now, Plain: plain, Server: a.config.Host, Color: !noColor, Boots: a.boots}
}

// boots asks how many machines boot from the network.
func (a *app) boots(ctx context.Context) (counts gate.Counts, err error) {
	raw, err := a.raw()
	if err != nil {
		return counts, err
	}
	answer, err := raw.Get().AbsPath(peoplewire.PathBoots).DoRaw(ctx)
	if err != nil {
		return counts, err
	}
	return counts, json.Unmarshal(answer, &counts)
}
