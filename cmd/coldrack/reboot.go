package main

import (
	"github.com/spf13/cobra"

	"coldrack.dev/internal/cli/exit"
	"coldrack.dev/internal/cli/machine"
)

func (a *app) rebootCommand() *cobra.Command {
	var (
		pick   machine.Selection
		reason string
		cancel bool
	)
	cmd := &cobra.Command{
		Use:   "reboot NAME... | -l SELECTOR",
		Short: "Reboot installed machines by their agents; nodes of a cluster one after another",
		Long: `Reboot installed machines by their agents. A node of a cluster is rebooted when its turn has come: within the cluster's
maintenance windows and its group's budget, drained first, and only while etcd keeps its majority and another API server
answers. It is uncordoned when it is healthy again. Another machine reboots with its next report.

A node whose operating system asks for a reboot (/run/reboot-required) needs no command: it gets its turn by itself, unless the
cluster's spec.upgrade.strategy is Manual. A machine that does not answer is restarted by ` + "`coldrack power cycle`" + `.`,
		Example: `  coldrack reboot rack1-u10 --reason "new firmware"
  coldrack reboot -l rack=r1
  coldrack reboot rack1-u10 --cancel`,
		ValidArgsFunction: a.completeMachines,
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx := cmd.Context()
			pick.Names = args
			switch {
			case len(args) == 0 && pick.Selector == "":
				return exit.Usagef("name machines, or select them with -l")
			case cancel && reason != "":
				return exit.Usagef("--cancel and --reason exclude each other")
			}
			if err := pick.Check(); err != nil {
				return err
			}
			c, err := a.client()
			if err != nil {
				return err
			}
			machines, err := pick.List(ctx, c)
			if err != nil {
				return err
			}
			if len(machines) == 0 {
				return exit.NotFoundf("no machine has labels %s", pick.Selector)
			}
			if cancel {
				return machine.CancelReboots(ctx, c, machines, a.out)
			}
			if err := machine.CheckReboots(machines); err != nil {
				return err
			}
			return machine.AskReboots(ctx, c, machines, reason, a.now(), a.out)
		},
	}
	a.addConnectionFlag(cmd)
	cmd.Flags().StringVarP(&pick.Selector, "selector", "l", "", "all machines with these labels")
	cmd.Flags().StringVar(&reason, "reason", "", "why, for the record and for people who look at the machine")
	cmd.Flags().BoolVar(&cancel, "cancel", false, "take back the request; a reboot that has begun goes on")
	return cmd
}
