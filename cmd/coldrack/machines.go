package main

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/spf13/cobra"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/cli"
	"coldrack.dev/internal/cli/machine"
	"coldrack.dev/internal/server/peopleapi/peoplewire"
)

func addSelectionFlags(cmd *cobra.Command, s *machine.Selection) {
	cmd.Flags().StringVarP(&s.Selector, "selector", "l", "", "only machines with these labels, for example rack=r1,role!=spare")
	cmd.Flags().StringSliceVar(&s.Phases, "phase", nil, "only machines in these phases, for example Failed,Lost")
	_ = cmd.RegisterFlagCompletionFunc("phase", func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
		var names []string
		for _, phase := range cli.Phases() {
			names = append(names, string(phase))
		}
		return names, cobra.ShellCompDirectiveNoFileComp
	})
}

// listed are the selected machines as far as an output shows them.
func (a *app) listed(ctx context.Context, pick *machine.Selection, output string) ([]v1alpha1.Machine, error) {
	c, err := a.client()
	if err != nil {
		return nil, err
	}
	if output != "" && output != "wide" && output != "name" {
		return pick.List(ctx, c)
	}
	return pick.ListForTable(ctx, c, a.known)
}

// known are the machines in the server's memory. It is false where another API holds them, and whenever anything is in the
// way.
func (a *app) known(ctx context.Context) ([]v1alpha1.Machine, bool) {
	raw, err := a.raw()
	if err != nil {
		return nil, false
	}
	answer, err := raw.Get().AbsPath(peoplewire.PathMachines).DoRaw(ctx)
	if err != nil {
		return nil, false
	}
	var list v1alpha1.MachineList
	if err := json.Unmarshal(answer, &list); err != nil || list.Kind != "MachineList" {
		return nil, false
	}
	return list.Items, true
}

func (a *app) machinesCommand() *cobra.Command {
	var (
		pick       machine.Selection
		output     string
		stuckFirst bool
		noHeaders  bool
	)
	cmd := &cobra.Command{
		Use:     "machines [NAME...]",
		Aliases: []string{"m"},
		Short:   "List machines with their phase, progress and place",
		Example: `  coldrack machines
  coldrack machines --phase Failed,Lost
  coldrack machines -l rack=r1 -o wide --stuck-first
  coldrack machines describe node-1`,
		ValidArgsFunction: a.completeMachines,
		RunE: func(cmd *cobra.Command, args []string) error {
			pick.Names = args
			if err := pick.Check(); err != nil {
				return err
			}
			machines, err := a.listed(cmd.Context(), &pick, output)
			if err != nil {
				return err
			}
			cli.SortMachines(machines, stuckFirst, a.now())
			return a.printMachines(machines, output, noHeaders)
		},
	}
	a.addConnectionFlag(cmd)
	addSelectionFlags(cmd, &pick)
	addOutputFlag(cmd, &output, "json", "yaml", "wide", "name")
	cmd.Flags().BoolVar(&stuckFirst, "stuck-first", false, "put machines that need attention first")
	cmd.Flags().BoolVar(&noHeaders, "no-headers", false, "print no header line")
	cmd.AddCommand(a.describeCommand("describe NAME"), a.machinesImportCommand(), a.machinesExportCommand(), a.machinesAuditCommand(), a.machinesSwapCommand(), a.machinesAcceptHardwareCommand(), a.machinesFailuresCommand())
	return cmd
}

func (a *app) printMachines(machines []v1alpha1.Machine, output string, noHeaders bool) error {
	for i := range machines {
		stamp(&machines[i])
	}
	list := v1alpha1.MachineList{
		TypeMeta: metav1.TypeMeta{APIVersion: v1alpha1.GroupVersion.String(), Kind: "MachineList"},
		Items:    machines,
	}
	if done, err := a.printStructured(output, list); done {
		return err
	}
	if output == "name" {
		for _, m := range machines {
			fmt.Fprintln(a.out, m.Name)
		}
		return nil
	}
	if len(machines) == 0 {
		fmt.Fprintln(a.err, "no machines match")
		return nil
	}
	return cli.MachineTable(machines, a.now(), output == "wide").Print(a.out, !noHeaders)
}

// stamp sets what a typed client leaves out and every reader of JSON expects.
func stamp(m *v1alpha1.Machine) {
	m.TypeMeta = metav1.TypeMeta{APIVersion: v1alpha1.GroupVersion.String(), Kind: "Machine"}
	m.ManagedFields = nil
}
