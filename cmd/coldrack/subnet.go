package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"coldrack.dev/internal/cli/machine"
)

func (a *app) subnetCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "subnet", Short: "Settings of a Subnet that are no part of its manifest", Args: cobra.ArbitraryArgs, RunE: group}
	cmd.AddCommand(a.subnetSetPINCommand())
	return cmd
}

func (a *app) subnetSetPINCommand() *cobra.Command {
	var (
		secret    string
		fromStdin bool
		output    string
	)
	cmd := &cobra.Command{
		Use:   "set-pin SUBNET",
		Short: "Set the PIN of a Subnet's boot menu",
		Long: `Ask for the PIN of a Subnet's boot menu and keep it in a Secret, encrypted at rest: the one that spec.bootMenu.pinSecret
names, or boot-menu-SUBNET. A PIN has 6 to 32 digits and letters. It counts within 15 seconds. Needs role admin.

Machines send the PIN over plain HTTP, since firmware has no other way. Use one that opens nothing else.`,
		Example: `  coldrack subnet set-pin rack-1
  coldrack subnet set-pin rack-1 --pin-stdin <file`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx := cmd.Context()
			pin, err := a.newPassword(ctx, "PIN of the boot menu of Subnet "+args[0]+": ", fromStdin)
			if err != nil {
				return err
			}
			c, err := a.client()
			if err != nil {
				return err
			}
			answer, err := machine.SetPIN(ctx, c, args[0], secret, pin)
			if err != nil {
				return err
			}
			if done, err := a.printStructured(output, answer); done || err != nil {
				return err
			}
			fmt.Fprintf(a.out, "Secret %s: the PIN is set\n", answer.Secret)
			if !answer.Used {
				fmt.Fprintf(a.out, "Subnet %s does not use it yet; write into its spec: bootMenu: {mode: PIN, pinSecret: %s}\n", answer.Subnet, answer.Secret)
			}
			return nil
		},
	}
	a.addConnectionFlag(cmd)
	cmd.Flags().StringVar(&secret, "secret", "", "name of the Secret")
	cmd.Flags().BoolVar(&fromStdin, "pin-stdin", false, "read the PIN from standard input, one line")
	addOutputFlag(cmd, &output, "json", "yaml")
	return cmd
}
