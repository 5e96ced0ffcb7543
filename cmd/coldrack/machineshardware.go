package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"coldrack.dev/internal/cli/machine"
)

func (a *app) machinesAcceptHardwareCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "accept-hardware NAME",
		Short: "Accept that hardware is missing, or that a link is slow",
		Long: `Accept the hardware that a machine reports now as what it is meant to have, and end the condition HardwareDrift. What is accepted is
printed. It counts for the hardware that was reported when you ran the command: if something else goes missing meanwhile, nothing is
accepted. Hardware that is added needs no acceptance while nothing is missing.

Labels that count accelerators follow: a machine that is accepted with fewer of them may no longer fit the selector of its group.`,
		Example: `  coldrack machines describe rack1-u10
  coldrack machines accept-hardware rack1-u10`,
		Args: cobra.ExactArgs(1), ValidArgsFunction: a.completeMachines,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			m, err := machine.Get(cmd.Context(), c, args[0])
			if err != nil {
				return err
			}
			accepted, err := machine.AcceptHardware(cmd.Context(), c, m)
			if err != nil {
				return err
			}
			fmt.Fprintf(a.out, "machine %s: accepted; %s\n", m.Name, accepted)
			return nil
		},
	}
	a.addConnectionFlag(cmd)
	return cmd
}
