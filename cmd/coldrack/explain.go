package main

import (
	"net"

	"github.com/spf13/cobra"

	"coldrack.dev/internal/cli/exit"
	"coldrack.dev/internal/cli/machine"
)

func (a *app) explainBootCommand() *cobra.Command {
	var output, mac string
	cmd := &cobra.Command{
		Use:   "explain-boot NAME | --mac MAC",
		Short: "Show what a machine was told to boot, why, and what it would be told now",
		Example: `  coldrack explain-boot node-1
  coldrack explain-boot --mac 52:54:00:12:34:56`,
		Args:              cobra.MaximumNArgs(1),
		ValidArgsFunction: a.completeMachines,
		RunE: func(cmd *cobra.Command, args []string) error {
			if (mac == "") == (len(args) == 0) {
				return exit.Usagef("name either a machine or --mac MAC")
			}
			if mac != "" {
				parsed, err := net.ParseMAC(mac)
				if err != nil {
					return exit.Usagef("--mac %q is not a MAC address such as 52:54:00:12:34:56", mac)
				}
				mac = parsed.String()
			}
			c, err := a.client()
			if err != nil {
				return err
			}
			e, err := machine.ExplainBoot(cmd.Context(), c, args, mac)
			if err != nil {
				return err
			}
			if done, err := a.printStructured(output, e); done {
				return err
			}
			return e.Print(a.out, a.now())
		},
	}
	a.addConnectionFlag(cmd)
	cmd.Flags().StringVar(&mac, "mac", "", "the machine with this MAC, known or not")
	addOutputFlag(cmd, &output, "json", "yaml")
	return cmd
}
