package main

import (
	"io"

	"github.com/spf13/cobra"

	"coldrack.dev/internal/cli"
	"coldrack.dev/internal/cli/machine"
)

func (a *app) machineCommand() *cobra.Command {
	return a.addConnectionFlag(a.describeCommand("machine NAME"))
}

// describeCommand shows one machine in full; it is reached by two names.
func (a *app) describeCommand(use string) *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:               use,
		Short:             "Show all details of one machine",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeMachines,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			m, err := machine.Get(cmd.Context(), c, args[0])
			if err != nil {
				return err
			}
			stamp(m)
			if done, err := a.printStructured(output, m); done {
				return err
			}
			_, err = io.WriteString(a.out, cli.Describe(m, a.now()))
			return err
		},
	}
	addOutputFlag(cmd, &output, "json", "yaml")
	return cmd
}
