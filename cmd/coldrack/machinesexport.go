package main

import (
	"github.com/spf13/cobra"

	"coldrack.dev/internal/base/durable"
	"coldrack.dev/internal/cli"
	"coldrack.dev/internal/cli/exit"
	"coldrack.dev/internal/cli/machine"
	"coldrack.dev/internal/machine/racksheet"
)

func (a *app) machinesExportCommand() *cobra.Command {
	var (
		pick         machine.Selection
		output, file string
	)
	cmd := &cobra.Command{
		Use:   "export [NAME...]",
		Short: "Write machines as a rack sheet, which can be edited and imported again",
		Example: `  coldrack machines export -w racks.csv
  coldrack machines export -l group=storage -o xlsx -w storage.xlsx`,
		ValidArgsFunction: a.completeMachines,
		RunE: func(cmd *cobra.Command, args []string) error {
			pick.Names = args
			if err := pick.Check(); err != nil {
				return err
			}
			if _, _, terminal := cli.Terminal(a.out); terminal && output == "xlsx" && file == "" {
				return exit.Usagef("a workbook is no text: name a file with -w FILE")
			}
			c, err := a.client()
			if err != nil {
				return err
			}
			machines, err := pick.List(cmd.Context(), c)
			if err != nil {
				return err
			}
			encode := map[string]func([][]string) ([]byte, error){"csv": racksheet.CSV, "xlsx": racksheet.Workbook, "yaml": racksheet.YAML}[output]
			data, err := encode(racksheet.Table(machines))
			if err != nil {
				return err
			}
			if file == "" {
				_, err = a.out.Write(data)
				return err
			}
			if err := durable.WriteFile(file, data, 0o644); err != nil {
				return exit.Usagef("write %s: %w", file, err)
			}
			return nil
		},
	}
	a.addConnectionFlag(cmd)
	addSelectionFlags(cmd, &pick)
	output = "csv"
	addOutputFlag(cmd, &output, "csv", "xlsx", "yaml")
	cmd.Flags().StringVarP(&file, "write", "w", "", "file to write; without it, standard output")
	return cmd
}
