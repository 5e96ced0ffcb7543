package main

import (
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"coldrack.dev/internal/cli"
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
answers. It is uncordoned when it is healthy again. A machine of no cluster waits for the lock of the RebootGroup that selects it; where
there is none, it reboots with its next report.

A node whose operating system asks for a reboot (/run/reboot-required) needs no command: it gets its turn by itself, unless the
cluster's spec.upgrade.strategy is Manual; in a RebootGroup it does so where spec.automatic is set. A machine that does not answer is restarted by ` + "`coldrack power cycle`" + `.`,
		Example: `  coldrack reboot rack1-u10 --reason "new firmware"
  coldrack reboot -l rack=r1
  coldrack reboot rack1-u10 --cancel
  coldrack reboot status`,
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
	cmd.AddCommand(a.rebootStatusCommand())
	return cmd
}

func (a *app) rebootStatusCommand() *cobra.Command {
	var (
		pick    machine.Selection
		output  string
		history bool
	)
	cmd := &cobra.Command{
		Use:   "status [NAME...]",
		Short: "Show which machines reboot, which wait, for whom and why",
		Long: `Show which machines reboot now and which wait to, each with the lock that lets it go: that of its cluster, or of the RebootGroup that
selects it. A machine that is not back in time is Overdue.`,
		Example: `  coldrack reboot status
  coldrack reboot status -l rack=r1 -o json
  coldrack reboot status --history`,
		ValidArgsFunction: a.completeMachines,
		RunE: func(cmd *cobra.Command, args []string) error {
			pick.Names = args
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
			objects, err := cli.ListReboots(cmd.Context(), c, machines)
			if err != nil {
				return err
			}
			if history {
				return a.printRebootHistory(objects.History(), output)
			}
			return a.printReboots(objects.Rows(), output)
		},
	}
	a.addConnectionFlag(cmd)
	addOutputFlag(cmd, &output, "json", "yaml")
	cmd.Flags().StringVarP(&pick.Selector, "selector", "l", "", "only machines with these labels")
	cmd.Flags().BoolVar(&history, "history", false, "show the reboots that have ended, the newest first")
	return cmd
}

func (a *app) printReboots(rows []cli.RebootRow, output string) error {
	if done, err := a.printStructured(output, rows); done {
		return err
	}
	if len(rows) == 0 {
		fmt.Fprintln(a.err, "no machine reboots or waits for it")
		return nil
	}
	table := &cli.Table{Header: []string{"MACHINE", "LOCK", "STATE", "AGE", "REASON", "MESSAGE"}}
	for _, r := range rows {
		age := ""
		if r.Since != nil {
			age = cli.Age(a.now().Sub(r.Since.Time))
		}
		table.Add(r.Machine, r.Lock, r.State, age, r.Reason, r.Message)
	}
	return table.Print(a.out, true)
}

func (a *app) printRebootHistory(past []cli.RebootPast, output string) error {
	if done, err := a.printStructured(output, past); done {
		return err
	}
	if len(past) == 0 {
		fmt.Fprintln(a.err, "no reboot is recorded")
		return nil
	}
	table := &cli.Table{Header: []string{"ENDED", "MACHINE", "LOCK", "REASON", "OUTCOME"}}
	for _, p := range past {
		table.Add(p.EndedAt.UTC().Format(time.RFC3339), p.Machine, p.Lock, p.Reason, p.Outcome)
	}
	return table.Print(a.out, true)
}
