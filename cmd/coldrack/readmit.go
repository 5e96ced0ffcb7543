package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"coldrack.dev/internal/cli/exit"
	"coldrack.dev/internal/cli/machine"
)

func (a *app) readmitCommand() *cobra.Command {
	var key string
	cmd := &cobra.Command{
		Use:   "readmit NAME --key FINGERPRINT",
		Short: "Accept a node's present key after a backup was restored",
		Long: `Accept the key that a node has now as its machine's identity. A node renews its key; a server that was restored
from a backup of before that knows only the old one and refuses the node (condition KeyRefused).

Run "coldrack-agent fingerprint" on the node, over its console or SSH, and give what it prints. A disk that was in the
machine before has a key of its own: never take the fingerprint from this server's message alone.`,
		Example: `  coldrack readmit rack1-u10 --key sha256:5f70bf18a086007016e948b04aed3b82103a36bea41755b6cddfaf10ace3c6ef`,
		Args:    cobra.ExactArgs(1), ValidArgsFunction: a.completeMachines,
		RunE: func(cmd *cobra.Command, args []string) error {
			if key == "" {
				return exit.Usagef("give --key with what \"coldrack-agent fingerprint\" prints on the node")
			}
			c, err := a.client()
			if err != nil {
				return err
			}
			m, err := machine.Get(cmd.Context(), c, args[0])
			if err != nil {
				return err
			}
			if err := machine.Readmit(cmd.Context(), c, m, key); err != nil {
				return err
			}
			fmt.Fprintf(a.out, "machine %s: the node is accepted with its next report\n", m.Name)
			return nil
		},
	}
	a.addConnectionFlag(cmd)
	cmd.Flags().StringVar(&key, "key", "", "fingerprint that \"coldrack-agent fingerprint\" prints on the node")
	return cmd
}
