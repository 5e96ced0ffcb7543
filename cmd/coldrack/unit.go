package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/base/termtext"
	"coldrack.dev/internal/cli"
	"coldrack.dev/internal/cli/exit"
	"coldrack.dev/internal/cli/objects"
	"coldrack.dev/internal/contract/validate"
)

func (a *app) unitCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "unit",
		Aliases: []string{"units"},
		Short:   "Run systemd units on installed machines",
		Long: `Run systemd units on installed machines, with or without Kubernetes. The server chooses the machines and says why; systemd on the machine
runs the unit, also while the server is away. Files with a section [X-Fleet] are read as fleet did. Writing needs role admin, since a unit
runs as root.

  coldrack unit start web.service
  coldrack unit submit web@.service --replicas 3
  coldrack unit list
  coldrack unit status web.service
  coldrack unit stop web.service
  coldrack unit destroy web.service`,
		RunE: group,
	}
	cmd.AddCommand(a.unitSubmitCommand(), a.unitStateCommand("start", "Start units on the machines that fit", v1alpha1.UnitLaunched),
		a.unitStateCommand("load", "Write units to their machines without starting them", v1alpha1.UnitLoaded),
		a.unitStateCommand("stop", "Stop units and remove them from their machines; the server keeps them", v1alpha1.UnitInactive),
		a.unitStatusCommand(), a.unitListCommand(), a.unitMachinesCommand(), a.unitCatCommand(), a.unitDestroyCommand())
	return cmd
}

// unitSource reads a unit file; the unit has the name of the file.
func (a *app) unitSource(path, name string) (unit, text string, err error) {
	var b []byte
	if path == "-" {
		if name == "" {
			return "", "", exit.Usagef("a unit file from standard input needs --name")
		}
		b, err = io.ReadAll(io.LimitReader(a.in, validate.MaxUnitFile+1))
	} else {
		b, err = os.ReadFile(path)
	}
	if name == "" {
		name = filepath.Base(path)
	}
	return name, string(b), err
}

// getUnit reads a unit by systemd's name of it; nil: there is none.
func getUnit(ctx context.Context, c client.Client, name string) (*v1alpha1.Unit, error) {
	u := &v1alpha1.Unit{}
	err := c.Get(ctx, client.ObjectKey{Name: v1alpha1.UnitObjectName(withUnitType(name))}, u)
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	return u, err
}

// withUnitType lets people leave .service away.
func withUnitType(name string) string {
	if validate.IsUnitName(name) {
		return name
	}
	return name + ".service"
}

func newUnit(name, text string) *v1alpha1.Unit {
	u := &v1alpha1.Unit{TypeMeta: metav1.TypeMeta{APIVersion: v1alpha1.GroupVersion.String(), Kind: "Unit"}, ObjectMeta: metav1.ObjectMeta{Name: v1alpha1.UnitObjectName(name)}, Spec: v1alpha1.UnitSpec{File: text}}
	if u.Name != name {
		u.Spec.UnitName = name
	}
	return u
}

func checkUnit(u *v1alpha1.Unit) error {
	if errs := v1alpha1.ValidateUnit(u); len(errs) > 0 {
		return exit.Refusedf("unit %s: %w", u.FullName(), errs.ToAggregate())
	}
	return nil
}

func (a *app) unitSubmitCommand() *cobra.Command {
	var name, machine, machineOf, selector, output string
	var conflicts []string
	var replicas int32
	var global, start bool
	var moveAfter time.Duration
	cmd := &cobra.Command{
		Use:   "submit FILE...",
		Short: "Give the server unit files, or newer ones",
		Long: `Give the server unit files. They are not started by that (--start does), but a file that is newer than that of a started unit restarts it
on all its machines at once. The unit has the name of the file. Flags that are not given leave what is.`,
		Example: `  coldrack unit submit web@.service --replicas 3 --conflicts 'web@*.service' --start
  coldrack unit submit node-exporter.service --global --start
  coldrack unit submit db.service --selector disk=ssd`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if name != "" && len(args) > 1 {
				return exit.Usagef("--name is for one file")
			}
			c, err := a.client()
			if err != nil {
				return err
			}
			var all []*v1alpha1.Unit
			for _, path := range args {
				unit, text, err := a.unitSource(path, name)
				if err != nil {
					return err
				}
				was, err := getUnit(cmd.Context(), c, unit)
				if err != nil {
					return err
				}
				next := newUnit(unit, text)
				next.Spec.DesiredState = v1alpha1.UnitInactive
				if was != nil {
					if was.FullName() != next.FullName() {
						return exit.Refusedf("unit %s would have the object %s, which is that of unit %s; take another name", unit, was.Name, was.FullName())
					}
					next = was.DeepCopy()
					next.Spec.File = text
				}
				flags := cmd.Flags()
				set := func(flag string, to func()) {
					if flags.Changed(flag) {
						to()
					}
				}
				set("global", func() { next.Spec.Global = global })
				set("replicas", func() { next.Spec.Replicas = &replicas })
				set("machine", func() { next.Spec.Machine = machine })
				set("machine-of", func() { next.Spec.MachineOf = machineOf })
				set("conflicts", func() { next.Spec.Conflicts = conflicts })
				set("move-after", func() { next.Spec.MoveAfter = &metav1.Duration{Duration: moveAfter} })
				if flags.Changed("selector") {
					if next.Spec.MachineSelector, err = metav1.ParseToLabelSelector(selector); err != nil {
						return exit.Usagef("--selector: %w", err)
					}
				}
				if start {
					next.Spec.DesiredState = v1alpha1.UnitLaunched
				}
				if err := checkUnit(next); err != nil {
					return err
				}
				all = append(all, next)
			}
			for _, next := range all {
				if err := writeUnit(cmd.Context(), c, next); err != nil {
					return err
				}
				if output == "" {
					fmt.Fprintf(a.out, "%s: submitted, %s; see: coldrack unit status %s\n", next.FullName(), strings.ToLower(string(next.Wants())), next.FullName())
				}
			}
			_, err = a.printStructured(output, all)
			return err
		},
	}
	a.addConnectionFlag(cmd)
	cmd.Flags().StringVar(&name, "name", "", "name of the unit, where it is not that of the file")
	cmd.Flags().BoolVar(&global, "global", false, "run on every machine that fits")
	cmd.Flags().Int32Var(&replicas, "replicas", 1, "how many machines run it; of a template, how many instances there are")
	cmd.Flags().StringVar(&machine, "machine", "", "run on this machine only")
	cmd.Flags().StringVar(&machineOf, "machine-of", "", "run on the machine of this unit, and move with it")
	cmd.Flags().StringVar(&selector, "selector", "", "labels that its machines have, such as disk=ssd")
	cmd.Flags().StringSliceVar(&conflicts, "conflicts", nil, "names of units, or globs of them, that are never on the same machine")
	cmd.Flags().DurationVar(&moveAfter, "move-after", v1alpha1.DefaultUnitMoveAfter, "how long its machine may be silent before it is started on another one")
	cmd.Flags().BoolVar(&start, "start", false, "start it, too")
	_ = cmd.RegisterFlagCompletionFunc("machine", func(cmd *cobra.Command, _ []string, prefix string) ([]string, cobra.ShellCompDirective) {
		return a.completeMachines(cmd, nil, prefix)
	})
	_ = cmd.RegisterFlagCompletionFunc("machine-of", func(cmd *cobra.Command, _ []string, prefix string) ([]string, cobra.ShellCompDirective) {
		return a.completeUnits(cmd, nil, prefix)
	})
	addOutputFlag(cmd, &output, "json", "yaml")
	return cmd
}

// writeUnit makes a unit, or replaces one of which nobody else has changed the spec since it was read.
func writeUnit(ctx context.Context, c client.Client, next *v1alpha1.Unit) error {
	var err error
	if next.UID == "" {
		err = c.Create(ctx, next, client.FieldOwner(objects.FieldManager))
	} else {
		generation, spec := next.Generation, next.Spec
		for {
			if err = c.Update(ctx, next, client.FieldOwner(objects.FieldManager)); !apierrors.IsConflict(err) {
				break
			}
			if err = c.Get(ctx, client.ObjectKeyFromObject(next), next); err != nil {
				break
			}
			if next.Generation != generation {
				return exit.Refusedf("somebody else has changed unit %s meanwhile; look at it (coldrack unit status %s) and do it again", next.FullName(), next.FullName())
			}
			next.Spec = spec // the server has written how the unit is
		}
	}
	if err != nil {
		return fmt.Errorf("write unit %s: %w", next.FullName(), err)
	}
	return nil
}

func (a *app) unitStateCommand(verb, short string, state v1alpha1.UnitDesiredState) *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:   verb + " UNIT...",
		Short: short,
		Long: short + `. UNIT is the name of a unit that was submitted, of a file, which is submitted then, or of an instance of a template that was submitted:
web@7.service. A template itself is changed in all its replicas.`,
		Example: "  coldrack unit " + verb + " web.service\n  coldrack unit " + verb + " web@7.service",
		Args:    cobra.MinimumNArgs(1), ValidArgsFunction: a.completeUnits,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			var all []*v1alpha1.Unit
			for _, arg := range args {
				name := withUnitType(filepath.Base(arg))
				u, err := getUnit(cmd.Context(), c, name)
				if err != nil {
					return err
				}
				if u == nil && state != v1alpha1.UnitInactive {
					if u, err = a.unitFrom(cmd.Context(), c, arg, name); err != nil {
						return err
					}
				}
				if u == nil {
					return exit.NotFoundf("there is no unit %s; coldrack unit list has those that there are", name)
				}
				u.Spec.DesiredState = state
				if err := checkUnit(u); err != nil {
					return err
				}
				all = append(all, u)
			}
			for _, u := range all {
				if err := writeUnit(cmd.Context(), c, u); err != nil {
					return err
				}
				if output == "" {
					fmt.Fprintf(a.out, "%s: %s; see: coldrack unit status %s\n", u.FullName(), strings.ToLower(string(state)), u.FullName())
				}
			}
			_, err = a.printStructured(output, all)
			return err
		},
	}
	a.addConnectionFlag(cmd)
	addOutputFlag(cmd, &output, "json", "yaml")
	return cmd
}

// unitFrom makes a unit of a file, or an instance of a template that the server has; nil: there is neither.
func (a *app) unitFrom(ctx context.Context, c client.Client, arg, name string) (*v1alpha1.Unit, error) {
	if _, err := os.Stat(arg); err == nil {
		unit, text, err := a.unitSource(arg, "")
		if err != nil {
			return nil, err
		}
		return newUnit(unit, text), nil
	}
	prefix, instance, kind, _ := validate.SplitUnitName(name)
	if instance == "" {
		return nil, nil
	}
	template, err := getUnit(ctx, c, prefix+"@."+kind)
	if err != nil || template == nil {
		return nil, err
	}
	u := newUnit(name, template.Spec.File)
	unitName := u.Spec.UnitName
	u.Spec = *template.Spec.DeepCopy()
	u.Spec.UnitName, u.Spec.Replicas = unitName, nil
	return u, nil
}

func (a *app) unitListCommand() *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use: "list", Short: "List units, where they are and how", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			list := &v1alpha1.UnitList{}
			if err := c.List(cmd.Context(), list); err != nil {
				return err
			}
			if done, err := a.printStructured(output, list.Items); done {
				return err
			}
			if len(list.Items) == 0 {
				fmt.Fprintln(a.err, "there are no units; coldrack unit submit FILE makes one")
				return nil
			}
			t := &cli.Table{Header: []string{"UNIT", "WANTED", "PHASE", "ACTIVE", "MACHINES", "MESSAGE"}}
			for i := range list.Items {
				u := &list.Items[i]
				const most = 3
				var on []string
				for _, p := range u.Status.Placements {
					on = append(on, p.Machine)
				}
				on = slices.Compact(on)
				text := strings.Join(on[:min(most, len(on))], ",")
				if len(on) > most {
					text += fmt.Sprintf(" and %d more", len(on)-most)
				}
				t.Add(u.FullName(), string(u.Wants()), u.Status.Phase, u.Status.Active, text, termtext.Line(u.Status.Message, 120))
			}
			return t.Print(a.out, true)
		},
	}
	a.addConnectionFlag(cmd)
	addOutputFlag(cmd, &output, "json", "yaml")
	return cmd
}

// unitMachine is a machine in the list of those that can run units.
type unitMachine struct {
	Machine string            `json:"machine"`
	Phase   string            `json:"phase"`
	Address string            `json:"address,omitempty"`
	Units   []string          `json:"units"`
	Labels  map[string]string `json:"labels,omitempty"`
}

func (a *app) unitMachinesCommand() *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use: "list-machines", Short: "List installed machines with their units and labels", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			machines, units := &v1alpha1.MachineList{}, &v1alpha1.UnitList{}
			if err := c.List(cmd.Context(), machines); err != nil {
				return err
			}
			if err := c.List(cmd.Context(), units); err != nil {
				return err
			}
			on := map[string][]string{}
			for _, u := range units.Items {
				for _, p := range u.Status.Placements {
					on[p.Machine] = append(on[p.Machine], p.Unit)
				}
			}
			rows := []unitMachine{}
			for i := range machines.Items {
				if m := &machines.Items[i]; m.Status.Installed != nil {
					rows = append(rows, unitMachine{Machine: m.Name, Phase: string(m.Status.Phase), Address: m.Status.Address, Units: on[m.Name], Labels: m.SelectorLabels()})
				}
			}
			if done, err := a.printStructured(output, rows); done {
				return err
			}
			t := &cli.Table{Header: []string{"MACHINE", "PHASE", "ADDRESS", "UNITS", "LABELS"}}
			for _, r := range rows {
				var labels []string
				for key, value := range r.Labels {
					labels = append(labels, key+"="+value)
				}
				slices.Sort(labels)
				t.Add(r.Machine, r.Phase, r.Address, fmt.Sprint(len(r.Units)), strings.Join(labels, ","))
			}
			return t.Print(a.out, true)
		},
	}
	a.addConnectionFlag(cmd)
	addOutputFlag(cmd, &output, "json", "yaml")
	return cmd
}

// oneUnit reads the unit that a command is about.
func (a *app) oneUnit(ctx context.Context, name string) (client.Client, *v1alpha1.Unit, error) {
	c, err := a.client()
	if err != nil {
		return nil, nil, err
	}
	u, err := getUnit(ctx, c, name)
	if err == nil && u == nil {
		err = exit.NotFoundf("there is no unit %s; coldrack unit list has those that there are", withUnitType(name))
	}
	return c, u, err
}

func (a *app) unitStatusCommand() *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use: "status UNIT", Short: "Show where a unit is, why there, and how it is",
		Args: cobra.ExactArgs(1), ValidArgsFunction: a.completeUnits,
		RunE: func(cmd *cobra.Command, args []string) error {
			_, u, err := a.oneUnit(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			if done, err := a.printStructured(output, u); done {
				return err
			}
			fmt.Fprintf(a.out, "%s: %s, wanted %s, %s active\n", u.FullName(), u.Status.Phase, u.Wants(), u.Status.Active)
			if u.Status.ObservedGeneration != u.Generation {
				fmt.Fprintln(a.out, "the server has not looked at the last change yet")
			}
			if u.Status.Message != "" {
				fmt.Fprintln(a.out, termtext.Line(u.Status.Message, 1000))
			}
			t := &cli.Table{Header: []string{"UNIT", "MACHINE", "STATE", "SINCE", "REASON", "MESSAGE"}}
			for _, p := range u.Status.Placements {
				state := p.State
				if p.Leaving {
					state = "leaving"
				}
				t.Add(p.Unit, p.Machine, state, p.Since.UTC().Format(time.RFC3339), p.Reason, termtext.Line(p.Message, 300))
			}
			if len(u.Status.Placements) == 0 {
				return nil
			}
			return t.Print(a.out, true)
		},
	}
	a.addConnectionFlag(cmd)
	addOutputFlag(cmd, &output, "json", "yaml")
	return cmd
}

func (a *app) unitCatCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "cat UNIT", Short: "Print a unit's file",
		Args: cobra.ExactArgs(1), ValidArgsFunction: a.completeUnits,
		RunE: func(cmd *cobra.Command, args []string) error {
			_, u, err := a.oneUnit(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			_, err = io.WriteString(a.out, u.Spec.File)
			return err
		},
	}
	a.addConnectionFlag(cmd)
	return cmd
}

func (a *app) unitDestroyCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "destroy UNIT...", Short: "Stop units, and remove them from their machines and from the server",
		Args: cobra.MinimumNArgs(1), ValidArgsFunction: a.completeUnits,
		RunE: func(cmd *cobra.Command, args []string) error {
			for _, name := range args {
				c, u, err := a.oneUnit(cmd.Context(), name)
				if err != nil {
					return err
				}
				if err := c.Delete(cmd.Context(), u, client.Preconditions{UID: &u.UID}); err != nil {
					return fmt.Errorf("destroy unit %s: %w", u.FullName(), err)
				}
				fmt.Fprintf(a.out, "%s: destroyed; %d of its machines stop it as soon as they ask\n", u.FullName(), len(u.Status.Placements))
			}
			return nil
		},
	}
	a.addConnectionFlag(cmd)
	return cmd
}

// completeUnits offers names of units to the shell.
func (a *app) completeUnits(cmd *cobra.Command, _ []string, prefix string) ([]string, cobra.ShellCompDirective) {
	c, err := a.client()
	if err != nil {
		return nil, cobra.ShellCompDirectiveDefault
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), objects.CompletionTimeout)
	defer cancel()
	var list v1alpha1.UnitList
	if err := c.List(ctx, &list); err != nil {
		return nil, cobra.ShellCompDirectiveDefault
	}
	var names []string
	for i := range list.Items {
		if u := &list.Items[i]; strings.HasPrefix(u.FullName(), prefix) {
			names = append(names, fmt.Sprintf("%s\t%s", u.FullName(), u.Status.Phase))
		}
	}
	return names, cobra.ShellCompDirectiveDefault
}
