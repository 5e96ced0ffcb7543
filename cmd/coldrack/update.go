package main

import (
	"context"
	"fmt"
	"net/url"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"coldrack.dev/internal/base/termtext"
	"coldrack.dev/internal/cli"
	"coldrack.dev/internal/cli/exit"
	"coldrack.dev/internal/cli/request"
	"coldrack.dev/internal/server/peopleapi/peoplewire"
)

func (a *app) updateCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "update",
		Short: "See and steer updates of machines with update_engine",
		Long: `See and steer the update server for machines with update_engine (Flatcar, CoreOS Container Linux). Its groups, channels and packages are in a
folder of the server, see docs/coreos.md. The server must run with --update-port.`,
		RunE: group,
	}
	cmd.AddCommand(a.updateStatusCommand(), a.updateInstancesCommand(), a.updateExplainCommand(), a.updateRetryCommand(), a.updateForgetCommand())
	return cmd
}

func (a *app) updates(ctx context.Context) (status peoplewire.UpdateStatus, err error) {
	config, err := a.connect()
	if err != nil {
		return status, err
	}
	return status, request.Get(ctx, config, "updates", &status, peoplewire.PathUpdates)
}

func (a *app) updateStatusCommand() *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show how far each group is",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			status, err := a.updates(cmd.Context())
			if err != nil {
				return err
			}
			if done, err := a.printStructured(output, status); done {
				return err
			}
			for _, p := range status.Problems {
				fmt.Fprintf(a.err, "problem: %s\n", termtext.Line(p, 300))
			}
			t := &cli.Table{Header: []string{"GROUP", "BOARD", "CHANNEL", "VERSION", "INSTANCES", "UP TO DATE", "IN PROGRESS", "FAILED", "PAUSED"}}
			for _, g := range status.Groups {
				t.Add(g.Name, g.Board, g.Channel, g.Version, fmt.Sprint(g.Instances), fmt.Sprint(g.UpToDate), fmt.Sprint(g.InProgress), fmt.Sprint(g.Failed), fmt.Sprint(g.Paused))
			}
			return t.Print(a.out, true)
		},
	}
	a.addConnectionFlag(cmd)
	addOutputFlag(cmd, &output, "json", "yaml")
	return cmd
}

func (a *app) updateInstancesCommand() *cobra.Command {
	var output, of string
	cmd := &cobra.Command{
		Use:   "instances",
		Short: "List the machines that ask for updates",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			status, err := a.updates(cmd.Context())
			if err != nil {
				return err
			}
			chosen := []peoplewire.UpdateInstance{}
			for _, i := range status.Instances {
				if of == "" || i.Group == of {
					chosen = append(chosen, i)
				}
			}
			if done, err := a.printStructured(output, chosen); done {
				return err
			}
			t := &cli.Table{Header: []string{"INSTANCE", "GROUP", "ADDRESS", "VERSION", "STATE", "ASKED", "NOW"}}
			for _, i := range chosen {
				t.Add(termtext.Line(i.ID, 300), i.Group, i.Address, termtext.Line(i.Version, 300), i.State, cli.Age(a.now().Sub(i.Last))+" ago", i.Reason)
			}
			return t.Print(a.out, true)
		},
	}
	cmd.Flags().StringVar(&of, "group", "", "only those of a group")
	_ = cmd.RegisterFlagCompletionFunc("group", a.completeUpdateGroups)
	a.addConnectionFlag(cmd)
	addOutputFlag(cmd, &output, "json", "yaml")
	return cmd
}

// completeUpdateGroups completes one group.
func (a *app) completeUpdateGroups(cmd *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
	return a.completeUpdates(cmd, args, prefix, func(s peoplewire.UpdateStatus) (names []string) {
		for _, g := range s.Groups {
			names = append(names, g.Name)
		}
		return names
	})
}

// completeInstances completes one instance.
func (a *app) completeInstances(cmd *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
	return a.completeUpdates(cmd, args, prefix, func(s peoplewire.UpdateStatus) (names []string) {
		for _, i := range s.Instances {
			names = append(names, i.ID)
		}
		return names
	})
}

func (a *app) completeUpdates(cmd *cobra.Command, args []string, prefix string, of func(peoplewire.UpdateStatus) []string) (names []string, _ cobra.ShellCompDirective) {
	if len(args) == 0 {
		status, _ := a.updates(cmd.Context())
		for _, name := range of(status) {
			if strings.HasPrefix(name, prefix) {
				names = append(names, name)
			}
		}
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}

func (a *app) updateExplainCommand() *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:   "explain INSTANCE",
		Short: "Say why a machine gets an update now, or none, and what it did",
		Args:  cobra.ExactArgs(1), ValidArgsFunction: a.completeInstances,
		RunE: func(cmd *cobra.Command, args []string) error {
			status, err := a.updates(cmd.Context())
			if err != nil {
				return err
			}
			for _, i := range status.Instances {
				if i.ID != args[0] {
					continue
				}
				if done, err := a.printStructured(output, i); done {
					return err
				}
				fmt.Fprintf(a.out, "%s, group %s, runs %s: %s\n", termtext.Line(i.ID, 300), i.Group, termtext.Line(i.Version, 300), i.Reason)
				fmt.Fprintf(a.out, "%s\n", termtext.Line(i.Detail, 300))
				for _, h := range i.History {
					fmt.Fprintf(a.out, "  %s  %s\n", h.At.Format(time.RFC3339), termtext.Line(h.What, 300))
				}
				return nil
			}
			return exit.NotFoundf("no machine %q has asked for updates; `coldrack update instances` lists those that have", args[0])
		},
	}
	a.addConnectionFlag(cmd)
	addOutputFlag(cmd, &output, "json", "yaml")
	return cmd
}

func (a *app) updateRetryCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "retry GROUP",
		Short: "Let updates of a group go on that failures have stopped",
		Args:  cobra.ExactArgs(1), ValidArgsFunction: a.completeUpdateGroups,
		RunE: func(cmd *cobra.Command, args []string) error {
			config, err := a.connect()
			if err != nil {
				return err
			}
			var done peoplewire.UpdateDone
			if err := request.Post(cmd.Context(), config, "retry group "+args[0], peoplewire.UpdateRetry{Group: args[0]}, &done, peoplewire.PathUpdates); err != nil {
				return err
			}
			fmt.Fprintf(a.out, "%d failed instances of group %s may try again\n", done.Instances, args[0])
			return nil
		},
	}
	return a.addConnectionFlag(cmd)
}

func (a *app) updateForgetCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "forget INSTANCE",
		Short: "Forget a machine that asks for updates no more",
		Args:  cobra.ExactArgs(1), ValidArgsFunction: a.completeInstances,
		RunE: func(cmd *cobra.Command, args []string) error {
			config, err := a.connect()
			if err != nil {
				return err
			}
			var done peoplewire.UpdateDone
			if err := request.Delete(cmd.Context(), config, "forget "+args[0], url.Values{"instance": {args[0]}}, &done, peoplewire.PathUpdates); err != nil {
				return err
			}
			fmt.Fprintf(a.out, "%s forgotten\n", args[0])
			return nil
		},
	}
	return a.addConnectionFlag(cmd)
}
