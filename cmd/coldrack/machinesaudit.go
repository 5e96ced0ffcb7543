package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"coldrack.dev/internal/cli"
	"coldrack.dev/internal/cli/exit"
	"coldrack.dev/internal/cli/machine"
	"coldrack.dev/internal/machine/expect"
)

func (a *app) machinesAuditCommand() *cobra.Command {
	var pick machine.Selection
	var output string
	cmd := &cobra.Command{
		Use:   "audit",
		Short: "Compare what was written down with what is there",
		Long: `Compare what was written down with what is there: machines that were never seen, machines that nobody wrote down, memory, cores and
disks that differ from spec.expected, and cables that end at another switch port, as switches say by LLDP. Exit code 1 says that
something differs.`,
		Example: `  coldrack machines audit
  coldrack machines audit -o json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := pick.Check(); err != nil {
				return err
			}
			c, err := a.client()
			if err != nil {
				return err
			}
			all, err := (&machine.Selection{}).List(cmd.Context(), c) // the other end of a swapped cable may not be selected
			if err != nil {
				return err
			}
			selected := map[string]bool{}
			for i := range all {
				selected[all[i].Name] = pick.Matches(&all[i])
			}
			findings := []expect.Finding{}
			for _, f := range expect.Audit(all) {
				if selected[f.Machine] {
					findings = append(findings, f)
				}
			}
			if done, err := a.printStructured(output, findings); err != nil {
				return err
			} else if !done {
				if err := a.printFindings(findings, len(selected)); err != nil {
					return err
				}
			}
			if len(findings) > 0 {
				return &exit.Silent{Code: exit.Failure}
			}
			return nil
		},
	}
	a.addConnectionFlag(cmd)
	addSelectionFlags(cmd, &pick)
	addOutputFlag(cmd, &output, "json", "yaml")
	return cmd
}

func (a *app) printFindings(findings []expect.Finding, looked int) error {
	if len(findings) == 0 {
		_, err := fmt.Fprintf(a.out, "all of %d machines are as they were written down\n", looked)
		return err
	}
	t := &cli.Table{Header: []string{"WHAT", "MACHINE", "MESSAGE"}}
	for _, f := range findings {
		t.Add(string(f.Kind), f.Machine, f.Message)
	}
	return t.Print(a.out, true)
}
