package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"coldrack.dev/internal/cli"
	"coldrack.dev/internal/cli/request"
	"coldrack.dev/internal/server/peopleapi/peoplewire"
)

func (a *app) serverRestoredCommand() *cobra.Command {
	var (
		confirm, yes bool
		output       string
	)
	cmd := &cobra.Command{
		Use:   "restored [--confirm]",
		Short: "Show what waits since the server's store was restored, and end that",
		Long: `Show what waits since the server's own store was restored from a backup. Machines that were installed after the backup are missing in it, or
stand in it as not installed. So until a person confirms the restore, nothing that may destroy a machine's data happens by itself: policies approve no machine,
no approved machine is installed by itself, and installs, reinstalls and releases that were asked for before the restore do not begin. Orders that
people give now are carried out.

Before you confirm: apply your YAML and rack sheets again, adopt machines whose disk bears an installation (coldrack adopt), readmit nodes that report
(coldrack readmit), and withdraw installs that have been carried out since the backup. --confirm needs role admin.`,
		Example: `  coldrack server restored
  coldrack server restored --confirm`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			config, err := a.connect()
			if err != nil {
				return err
			}
			var is peoplewire.Restored
			if err := request.Get(cmd.Context(), config, "whether the store was restored", &is, peoplewire.PathRestored); err != nil {
				return err
			}
			if !confirm {
				if done, err := a.printStructured(output, is); done {
					return err
				}
				return a.printRestored(is)
			}
			if !is.RestoredAt.IsZero() && !yes {
				if err := a.confirmRestored(cmd.Context(), is); err != nil {
					return err
				}
			}
			if err := request.Post(cmd.Context(), config, "confirm the restore", struct{}{}, &is, peoplewire.PathRestored); err != nil {
				return err
			}
			if done, err := a.printStructured(output, is); done {
				return err
			}
			fmt.Fprintln(a.out, "confirmed: machines are enrolled and installed as policies and intents say")
			return nil
		},
	}
	a.addConnectionFlag(cmd)
	addOutputFlag(cmd, &output, "json", "yaml")
	cmd.Flags().BoolVar(&confirm, "confirm", false, "end it: policies and earlier intents count again")
	cmd.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask for confirmation; required without a terminal")
	return cmd
}

func (a *app) printRestored(is peoplewire.Restored) error {
	if is.RestoredAt.IsZero() {
		fmt.Fprintln(a.out, "nothing waits: the store was not restored, or that was confirmed")
		return nil
	}
	taken := "an unknown time"
	if !is.TakenAt.IsZero() {
		taken = is.TakenAt.Format("2006-01-02 15:04 MST")
	}
	fmt.Fprintf(a.out, "The store was restored at %s. Machines may be missing in it since %s.\n", is.RestoredAt.Format("2006-01-02 15:04 MST"), taken)
	if len(is.Withheld) > 0 {
		t := &cli.Table{Header: []string{"WAITING MACHINE", "WHY"}}
		for _, w := range is.Withheld {
			t.Add(w.Machine, w.Why)
		}
		if err := t.Print(a.out, true); err != nil {
			return err
		}
	}
	if more := is.WithheldCount - len(is.Withheld); more > 0 {
		fmt.Fprintf(a.out, "and %d more\n", more)
	}
	if len(is.UnknownNodes) > 0 {
		t := &cli.Table{Header: []string{"NODE WITHOUT MACHINE", "ADDRESS", "IDENTITY OF", "WHY"}}
		for _, n := range is.UnknownNodes {
			why := "its record is lost"
			if n.IssuedAt.Before(is.TakenAt) {
				why = "it was deleted before the backup"
			}
			t.Add(n.Machine, n.Address, n.IssuedAt.UTC().Format("2006-01-02 15:04"), why)
		}
		return t.Print(a.out, true)
	}
	return nil
}

// confirmRestored asks the person at the terminal whether what waits may begin.
func (a *app) confirmRestored(ctx context.Context, is peoplewire.Restored) error {
	if err := a.printRestored(is); err != nil {
		return err
	}
	const question = "From then on these machines may be installed, and so wiped, even if they have been installed since the backup.\nType confirm: "
	return cli.Confirm(ctx, a.in, a.err, question, "confirm", "nothing was done, because the confirmation may destroy data on machines that wait")
}
