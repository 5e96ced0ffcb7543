package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"coldrack.dev/internal/cli/machine"
)

func (a *app) adoptCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "adopt NAME",
		Short: "Keep an installation on a machine's disk that this server does not know",
		Long: `Keep the installation by Coldrack that is on a machine's disk, though this server knows nothing of it (condition
UnknownInstallation): the store was restored from a backup of before, or the machine was deleted here. The machine leaves discovery
and starts from its disk, now and at every later network boot. An install of it that waits is given up.

Its node then shows a key that this server does not know (condition KeyRefused): accept it with "coldrack readmit". The node's
identity is for the name that its machine had. Give the machine that name before: apply your YAML or rack sheet again.

An installation of another Coldrack server starts, too, and reports to that server.`,
		Example: `  coldrack machines describe rack1-u10
  coldrack adopt rack1-u10
  coldrack readmit rack1-u10 --key sha256:5f70bf18a086007016e948b04aed3b82103a36bea41755b6cddfaf10ace3c6ef`,
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
			if _, err := machine.Adopt(cmd.Context(), c, m); err != nil {
				return err
			}
			fmt.Fprintf(a.out, "machine %s: its installation is kept; it starts from its disk. When its node reports: coldrack machines describe %s\n", m.Name, m.Name)
			return nil
		},
	}
	a.addConnectionFlag(cmd)
	return cmd
}
