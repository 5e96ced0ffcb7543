package main

import (
	"context"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"coldrack.dev/internal/cli"
	"coldrack.dev/internal/cli/exit"
	"coldrack.dev/internal/cli/machine"
	"coldrack.dev/internal/machine/racksheet"
)

func (a *app) machinesImportCommand() *cobra.Command {
	var (
		settings          racksheet.Settings
		output            string
		dryRun, yes, undo bool
	)
	cmd := &cobra.Command{
		Use:   "import FILE.csv|xlsx|yaml | --undo",
		Short: "Create and change machines from a rack sheet",
		Long: `Create and change machines from an operator's sheet: CSV, an Excel workbook or YAML; "-" is CSV at standard input. Columns are
known by their headers, in English, German and Chinese: name, hostname, site, room, rack, unit, chassis, slot, serial, uuid, mac,
bmc mac, bmc address, address, subnet, group, labels, profile, approved, memory, cores, disks, switch, port and more.

What would change is shown first, and written after a yes. All that is wrong is told at once, with sheet, line and column; then
nothing is written. An empty cell leaves what the server has. The same sheet again changes nothing.

--name and --address are templates for lines without a name or an address, with .Site .Room .Rack .Unit .Chassis .Slot .Serial
.MAC .Group .Name, .Sequence (the line's number among the machines, from 1) and .RackSequence; num takes the number out of a text,
add and mul compute, pad 3 .Unit gives 012, ip "10.0.0.9" .Sequence counts addresses.`,
		Example: `  coldrack machines import racks.xlsx --dry-run
  coldrack machines import racks.csv --name 'core-{{.Rack}}-{{.Unit}}' --address '10.12.{{num .Rack}}.{{.Unit}}'
  coldrack machines import racks.csv --yes
  coldrack machines import --undo`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx := cmd.Context()
			switch {
			case undo && (len(args) > 0 || settings != racksheet.Settings{}):
				return exit.Usagef("--undo takes back the last import; it needs no file and no settings")
			case !undo && len(args) == 0:
				return exit.Usagef("name the sheet: a .csv, .xlsx or .yaml file, or - for CSV at standard input")
			}
			for flag, text := range map[string]string{"--name": settings.NameTemplate, "--address": settings.AddressTemplate} {
				if err := racksheet.CheckTemplate(text); err != nil {
					return exit.Usagef("%s: %w", flag, err)
				}
			}
			c, err := a.client()
			if err != nil {
				return err
			}
			if undo {
				plan, err := machine.PlanUndo(ctx, c)
				if err != nil {
					return err
				}
				return a.carryOut(ctx, plan, output, dryRun, yes, "nothing was taken back", func() error { return plan.Undo(ctx, c) })
			}
			plan, err := a.planImport(ctx, c, args[0], settings)
			if err != nil {
				return err
			}
			return a.carryOut(ctx, plan, output, dryRun, yes, "nothing was imported", func() error { return plan.Write(ctx, c, a.now()) })
		},
	}
	a.addConnectionFlag(cmd)
	addOutputFlag(cmd, &output, "json", "yaml")
	cmd.Flags().StringVar(&settings.NameTemplate, "name", "", "template of the names of machines that the sheet does not name")
	cmd.Flags().StringVar(&settings.AddressTemplate, "address", "", "template of the addresses of machines that have none in the sheet")
	cmd.Flags().StringVar(&settings.Subnet, "subnet", "", "Subnet of the addresses; without it, the one that each lies in")
	cmd.Flags().StringVar(&settings.Profile, "profile", "", "Profile of machines that have none in the sheet")
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "show what would change, and change nothing")
	cmd.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask for confirmation; required without a terminal")
	cmd.Flags().BoolVar(&undo, "undo", false, "take back the last import: what it made or changed, and nobody has changed since")
	return cmd
}

func (a *app) planImport(ctx context.Context, c client.Client, file string, settings racksheet.Settings) (*machine.Import, error) {
	in, name := a.in, "standard input"
	if file != "-" {
		f, err := os.Open(file)
		if err != nil {
			return nil, exit.Usagef("%w", err)
		}
		defer f.Close()
		in, name = f, file
	}
	data, err := io.ReadAll(io.LimitReader(in, racksheet.MaxBytes+1))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	return machine.PlanImport(ctx, c, name, data, settings)
}

// carryOut shows a plan, asks, and has it written. A program that reads -o json gets the plan, and whether it was written.
func (a *app) carryOut(ctx context.Context, plan *machine.Import, output string, dryRun, yes bool, nothing string, write func() error) error {
	for _, note := range plan.Notes {
		fmt.Fprintf(a.err, "note: %s\n", note)
	}
	if output == "" {
		if err := plan.Print(a.out); err != nil {
			return err
		}
	}
	if !dryRun && !plan.Empty() {
		if !yes {
			if err := cli.Confirm(ctx, a.in, a.err, "Write this? Type yes: ", "yes", nothing); err != nil {
				return err
			}
		}
		if err := write(); err != nil {
			return fmt.Errorf("not all was written; the same again completes it: %w", err)
		}
		if output == "" {
			fmt.Fprintln(a.out, "written")
		}
	}
	_, err := a.printStructured(output, plan)
	return err
}
