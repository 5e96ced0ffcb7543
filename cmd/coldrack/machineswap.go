package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"coldrack.dev/internal/cli"
	"coldrack.dev/internal/cli/exit"
	"coldrack.dev/internal/cli/machine"
)

func (a *app) machinesSwapCommand() *cobra.Command {
	var output string
	var dryRun, yes bool
	cmd := &cobra.Command{
		Use:   "swap A B",
		Short: "Exchange what two machines are recognised by",
		Long: `Exchange what two machines are recognised by: serials, MACs, UUIDs and BMCs, after two servers were found in each other's place.
Names, places and addresses stay. What would change is shown first. Machines that have reported or are installed are refused.`,
		Example: `  coldrack machines swap a1-u10 a1-u11`,
		Args:    cobra.ExactArgs(2), ValidArgsFunction: a.completeMachines,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			plan, err := machine.PlanSwap(cmd.Context(), c, args[0], args[1])
			if err != nil {
				return err
			}
			return a.carryOut(cmd.Context(), plan, output, dryRun, yes, "nothing was exchanged", func() error { return plan.Write(cmd.Context(), c, a.now()) })
		},
	}
	a.addConnectionFlag(cmd)
	addOutputFlag(cmd, &output, "json", "yaml")
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "show what would change, and change nothing")
	cmd.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask for confirmation; required without a terminal")
	return cmd
}

func (a *app) machinesFailuresCommand() *cobra.Command {
	var pick machine.Selection
	var output string
	cmd := &cobra.Command{
		Use:   "failures",
		Short: "Show what keeps machines from getting on, by cause",
		Long:  "Show the machines that will not get on without a person, grouped by the cause, the most frequent first.",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := pick.Check(); err != nil {
				return err
			}
			c, err := a.client()
			if err != nil {
				return err
			}
			machines, err := pick.List(cmd.Context(), c)
			if err != nil {
				return err
			}
			failures := cli.Failures(machines, a.now())
			if done, err := a.printStructured(output, failures); done {
				return err
			}
			if len(failures) == 0 {
				_, err := fmt.Fprintf(a.out, "none of %d machines waits for a person because of a failure\n", len(machines))
				return err
			}
			if err := cli.PrintFailures(a.out, failures); err != nil {
				return err
			}
			return &exit.Silent{Code: exit.Failure}
		},
	}
	a.addConnectionFlag(cmd)
	addSelectionFlags(cmd, &pick)
	addOutputFlag(cmd, &output, "json", "yaml")
	return cmd
}
