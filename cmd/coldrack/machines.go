package main

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/cli"
	"coldrack.dev/internal/server/peopleapi/peoplewire"
)

// selection names machines: by name, by label, by phase.
type selection struct {
	names    []string
	selector string
	phases   []string
	all      bool
}

func (s *selection) addFlags(cmd *cobra.Command) {
	cmd.Flags().StringVarP(&s.selector, "selector", "l", "", "only machines with these labels, for example rack=r1,role!=spare")
	cmd.Flags().StringSliceVar(&s.phases, "phase", nil, "only machines in these phases, for example Failed,Lost")
	_ = cmd.RegisterFlagCompletionFunc("phase", func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
		var names []string
		for _, phase := range cli.Phases() {
			names = append(names, string(phase))
		}
		return names, cobra.ShellCompDirectiveNoFileComp
	})
}

// check reports what cannot be meant, before the server is asked.
func (s *selection) check() error {
	if _, err := labels.Parse(s.selector); err != nil {
		return usageError("--selector: %w", err)
	}
	for i, phase := range s.phases {
		known := slices.IndexFunc(cli.Phases(), func(p v1alpha1.MachinePhase) bool { return strings.EqualFold(string(p), phase) })
		if known < 0 {
			return usageError("--phase: there is no phase %q; there are %s", phase, joinPhases())
		}
		s.phases[i] = string(cli.Phases()[known])
	}
	return nil
}

func joinPhases() string {
	var names []string
	for _, phase := range cli.Phases() {
		names = append(names, string(phase))
	}
	return strings.Join(names, ", ")
}

// matches tells whether a machine is selected.
func (s *selection) matches(m *v1alpha1.Machine) bool {
	selector, err := labels.Parse(s.selector)
	if err != nil || !selector.Matches(labels.Set(m.Labels)) {
		return false
	}
	if len(s.names) > 0 && !slices.Contains(s.names, m.Name) {
		return false
	}
	return len(s.phases) == 0 || slices.Contains(s.phases, cli.PhaseOf(m))
}

// list returns the selected machines. A name that does not exist is an error.
func (s *selection) list(ctx context.Context, c client.Client) ([]v1alpha1.Machine, error) {
	if err := s.check(); err != nil {
		return nil, err
	}
	var machines []v1alpha1.Machine
	if len(s.names) == 0 {
		var list v1alpha1.MachineList
		if err := c.List(ctx, &list); err != nil {
			return nil, fmt.Errorf("list machines: %w", err)
		}
		machines = list.Items
	}
	for _, name := range s.names {
		m, err := getMachine(ctx, c, name)
		if err != nil {
			return nil, err
		}
		machines = append(machines, *m)
	}
	return slices.DeleteFunc(machines, func(m v1alpha1.Machine) bool { return !s.matches(&m) }), nil
}

// few machines are read from the store, where what was written a moment ago is sure to be. Of ten thousand that would take
// seconds: they are seen as the server's memory has them, which follows within moments.
const few = 500

// listed are the selected machines as far as an output shows them.
func (a *app) listed(ctx context.Context, pick *selection, output string) ([]v1alpha1.Machine, error) {
	c, err := a.client()
	if err != nil {
		return nil, err
	}
	whole := output != "" && output != "wide" && output != "name"
	if len(pick.names) > 0 || whole {
		return pick.list(ctx, c)
	}
	var list v1alpha1.MachineList
	if err := c.List(ctx, &list, client.Limit(few)); err != nil {
		return nil, fmt.Errorf("list machines: %w", err)
	}
	machines := list.Items
	if list.Continue != "" {
		known, ok := a.known(ctx)
		if !ok {
			return pick.list(ctx, c)
		}
		machines = known
	}
	return slices.DeleteFunc(machines, func(m v1alpha1.Machine) bool { return !pick.matches(&m) }), nil
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

func getMachine(ctx context.Context, c client.Client, name string) (*v1alpha1.Machine, error) {
	m := &v1alpha1.Machine{}
	err := c.Get(ctx, client.ObjectKey{Name: name}, m)
	if apierrors.IsNotFound(err) {
		return nil, notFoundError("there is no machine %q; `coldrack machines` lists them", name)
	}
	if err != nil {
		return nil, fmt.Errorf("get machine %s: %w", name, err)
	}
	return m, nil
}

func (a *app) machinesCommand() *cobra.Command {
	var (
		pick       selection
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
			pick.names = args
			if err := pick.check(); err != nil {
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
	pick.addFlags(cmd)
	addOutputFlag(cmd, &output, "json", "yaml", "wide", "name")
	cmd.Flags().BoolVar(&stuckFirst, "stuck-first", false, "put machines that need a person first")
	cmd.Flags().BoolVar(&noHeaders, "no-headers", false, "print no header line")
	cmd.AddCommand(a.describeCommand("describe NAME"))
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
