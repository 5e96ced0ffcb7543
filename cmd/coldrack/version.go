package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"coldrack.dev/internal/base/version"
)

func (a *app) versionCommand() *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:   "version",
		Short: "Show which build this is",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			if done, err := a.printStructured(output, version.Get()); done {
				return err
			}
			fmt.Fprintln(a.out, version.Get())
			return nil
		},
	}
	addOutputFlag(cmd, &output, "json", "yaml")
	return cmd
}
