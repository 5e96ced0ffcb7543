package main

import (
	"context"
	"fmt"
	"net/url"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/cli"
	"coldrack.dev/internal/cli/exit"
	"coldrack.dev/internal/cli/machine"
	"coldrack.dev/internal/cli/power"
	"coldrack.dev/internal/cli/request"
	"coldrack.dev/internal/server/peopleapi/peoplewire"
)

// powerOptions are the flags of power's verbs.
type powerOptions struct {
	pick    machine.Selection
	where   string
	output  string
	atATime int
	yes     bool
	hard    bool
	boot    string
	reason  string
	ask     bool
}

func (o *powerOptions) addSelection(a *app, cmd *cobra.Command) {
	cmd.ValidArgsFunction = a.completeMachines
	cmd.Flags().StringVarP(&o.pick.Selector, "selector", "l", "", "all machines with these labels")
	cmd.Flags().StringVar(&o.where, "where", "", "all machines at a place or in a state: site, room, rack, unit, phase, power; for example rack=r1,unit=10-20")
	addOutputFlag(cmd, &o.output, "json")
}

func (a *app) powerCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "power",
		Short: "Switch machines on and off by their BMCs",
		Long: `Switch machines on and off by their BMCs (spec.bmc). The server does it: only it reaches the BMCs and has their passwords.
"coldrack bmc set-password" gives it those, and "coldrack bmc probe" says what a BMC can do.`,
		Args: cobra.ArbitraryArgs,
		RunE: group,
	}
	a.addConnectionFlag(cmd)
	cmd.AddCommand(
		a.powerStatusCommand(),
		a.powerActionCommand("on", "Switch machines on", `Switch machines on, from the bottom of each rack upwards. --at-a-time bounds how many start at the same moment, so that
their inrush current and their network boots do not come all at once. A machine counts as started when its BMC says On.`),
		a.powerActionCommand("off", "Shut machines down, or cut their power with --hard", `Have the operating systems of machines end, as a press of the power button does, and wait up to five minutes. With
--hard the power is cut at once, and what was not written to a disk is lost.`),
		a.powerActionCommand("cycle", "Cut machines' power and give it back", `Cut machines' power and give it back, at once. What is off is switched on.`),
		a.powerActionCommand("reset", "Restart machines without cutting their power", `Restart machines at once, as the reset button does. What is off is switched on.`),
	)
	return cmd
}

// selected are the machines that a person named or chose, in the order in which they are switched.
func (a *app) selected(ctx context.Context, o *powerOptions, names []string, all bool) ([]v1alpha1.Machine, error) {
	o.pick.Names = names
	where, err := machine.ParseWhere(o.where)
	switch {
	case err != nil:
		return nil, err
	case len(names) > 0 && (o.pick.Selector != "" || o.where != ""):
		return nil, exit.Usagef("names exclude -l and --where")
	case len(names) == 0 && o.pick.Selector == "" && o.where == "" && !all:
		return nil, exit.Usagef("name machines, or choose them with -l or --where")
	}
	c, err := a.client()
	if err != nil {
		return nil, err
	}
	found, err := o.pick.List(ctx, c)
	if err != nil {
		return nil, err
	}
	machines := found[:0]
	for i := range found {
		if where.Matches(&found[i]) {
			machines = append(machines, found[i])
		}
	}
	if len(machines) == 0 && !all {
		return nil, exit.NotFoundf("no machine is chosen by %s", strings.TrimSpace(o.pick.Selector+" "+o.where))
	}
	power.Order(machines)
	return machines, nil
}

func (a *app) powerActionCommand(verb, short, long string) *cobra.Command {
	var o powerOptions
	cmd := &cobra.Command{
		Use: verb + " MACHINE... | -l SELECTOR | --where TERMS", Short: short, Long: long,
		Example: fmt.Sprintf("  coldrack power %s rack1-u10\n  coldrack power %s --where rack=r1,unit=1-20 --at-a-time 4", verb, verb),
		RunE: func(cmd *cobra.Command, args []string) error {
			machines, err := a.selected(cmd.Context(), &o, args, false)
			if err != nil {
				return err
			}
			return a.switchPower(cmd.Context(), verb, machines, &o)
		},
	}
	o.addSelection(a, cmd)
	cmd.Flags().IntVar(&o.atATime, "at-a-time", 8, "how many machines are switched at the same moment, 1 to 32")
	cmd.Flags().StringVar(&o.reason, "reason", "", "why, for the audit log")
	if verb != "on" {
		cmd.Flags().BoolVarP(&o.yes, "yes", "y", false, "do not ask for confirmation; required without a terminal where nodes of a cluster are interrupted")
	}
	if verb == "off" {
		cmd.Flags().BoolVar(&o.hard, "hard", false, "cut the power at once")
	} else {
		cmd.Flags().StringVar(&o.boot, "boot", "", "what the machine boots next, once: network, http or disk (default: as it is set up)")
		_ = cmd.RegisterFlagCompletionFunc("boot", cobra.FixedCompletions([]string{"network", "http", "disk"}, cobra.ShellCompDirectiveNoFileComp))
	}
	return cmd
}

func (a *app) switchPower(ctx context.Context, verb string, machines []v1alpha1.Machine, o *powerOptions) error {
	if o.atATime < 1 || o.atATime > 32 {
		return exit.Usagef("--at-a-time %d: must be between 1 and 32", o.atATime)
	}
	for i := range machines {
		if machines[i].Spec.BMC == nil {
			return machine.NoBMC(machines[i].Name)
		}
	}
	config, err := a.connect()
	if err != nil {
		return err
	}
	if verb == "on" {
		a.showOrder(machines, o.atATime)
	} else if err := a.confirmPower(ctx, verb, machines, o); err != nil {
		return err
	}
	action := verb
	if verb == "off" && !o.hard {
		action = "shutdown"
	}
	outcomes := power.Run(ctx, machines, o.atATime, func(ctx context.Context, m *v1alpha1.Machine) power.Outcome {
		body := peoplewire.PowerRequest{Action: action, Boot: o.boot, Firmware: firmwareOf(m), Reason: o.reason}
		var answer peoplewire.PowerResponse
		err := request.Post(ctx, config, "power "+verb, body, &answer, peoplewire.PathPower, url.PathEscape(m.Name))
		outcome := power.Outcome{Machine: m.Name, Action: action, Was: answer.Was, State: answer.State}
		if err != nil {
			outcome.Problem = err.Error()
		}
		return outcome
	}, func(outcome power.Outcome) {
		if o.output == "" {
			fmt.Fprintln(a.out, outcome.Line())
		}
	})
	return a.reportPower(outcomes, o.output)
}

// firmwareOf is how a machine boots, as it reported; empty: not known.
func firmwareOf(m *v1alpha1.Machine) string {
	if m.Status.Inventory == nil {
		return ""
	}
	return strings.ToLower(m.Status.Inventory.Firmware)
}

func (a *app) reportPower(outcomes []power.Outcome, output string) error {
	if _, err := a.printStructured(output, outcomes); err != nil {
		return err
	}
	failed := power.Failed(outcomes)
	if output == "" && len(outcomes) > 1 {
		fmt.Fprintf(a.out, "\n%d machines, %d failed\n", len(outcomes), failed)
	}
	if failed > 0 {
		return &exit.Silent{Code: exit.Failure}
	}
	return nil
}

// showOrder tells in which order machines are switched on.
func (a *app) showOrder(machines []v1alpha1.Machine, atATime int) {
	if len(machines) < 2 {
		return
	}
	fmt.Fprintf(a.err, "switching on %d machines, %d at a time, in this order:\n", len(machines), min(atATime, len(machines)))
	const shown = 20
	for i := range machines[:min(len(machines), shown)] {
		fmt.Fprintf(a.err, "  %s  %s\n", machines[i].Name, cli.PlaceOf(&machines[i]))
	}
	if more := len(machines) - shown; more > 0 {
		fmt.Fprintf(a.err, "  and %d more\n", more)
	}
}

// confirmPower shows what ends when the machines' power goes, and asks where that is more than a machine that nothing is known of.
func (a *app) confirmPower(ctx context.Context, verb string, machines []v1alpha1.Machine, o *powerOptions) error {
	c, err := a.client()
	if err != nil {
		return err
	}
	var clusters v1alpha1.ClusterList
	var groups v1alpha1.MachineGroupList
	if err := c.List(ctx, &clusters); err != nil {
		return fmt.Errorf("list clusters: %w", err)
	}
	if err := c.List(ctx, &groups); err != nil {
		return fmt.Errorf("list machine groups: %w", err)
	}
	var lost strings.Builder
	var asked []string
	for _, loss := range power.Losses(machines, clusters.Items, groups.Items) {
		if loss.What != "" {
			fmt.Fprintf(&lost, "  %s  %s\n", loss.Machine, loss.What)
		}
		if loss.Asks {
			asked = append(asked, loss.Machine)
		}
	}
	if lost.Len() == 0 {
		return nil
	}
	picture := "This interrupts:\n" + lost.String()
	if len(asked) == 0 || o.yes {
		fmt.Fprint(a.err, picture)
		return nil
	}
	answer, what := asked[0], "the machine's name"
	if len(asked) > 1 {
		answer, what = fmt.Sprint(len(asked)), fmt.Sprintf("the number of these machines (%d chosen in all)", len(machines))
	}
	nothing := fmt.Sprintf("nothing was done, because power %s interrupts %s", verb, strings.TrimSpace(lost.String()))
	return cli.Confirm(ctx, a.in, a.err, picture+fmt.Sprintf("Type %s for power %s: ", what, verb), answer, nothing)
}

func (a *app) powerStatusCommand() *cobra.Command {
	var o powerOptions
	cmd := &cobra.Command{
		Use:   "status [MACHINE...]",
		Short: "Show whether machines are on",
		Long: `Show whether machines are on, as the server saw it last: it asks each BMC about every quarter of an hour, and after each action.
--ask asks the BMCs now.`,
		Example: `  coldrack power status
  coldrack power status rack1-u10 --ask`,
		RunE: func(cmd *cobra.Command, args []string) error {
			machines, err := a.selected(cmd.Context(), &o, args, true)
			if err != nil {
				return err
			}
			if o.ask {
				return a.askPower(cmd.Context(), machines, &o)
			}
			return a.showPower(machines, o.output)
		},
	}
	o.addSelection(a, cmd)
	cmd.Flags().BoolVar(&o.ask, "ask", false, "ask the BMCs now")
	return cmd
}

func (a *app) showPower(machines []v1alpha1.Machine, output string) error {
	if output == "json" {
		type entry struct {
			Machine string                `json:"machine"`
			Power   *v1alpha1.PowerStatus `json:"power"`
		}
		list := []entry{}
		for _, m := range machines {
			list = append(list, entry{m.Name, m.Status.Power})
		}
		_, err := a.printStructured(output, list)
		return err
	}
	return power.Table(machines, func(m *v1alpha1.Machine) string {
		if m.Status.Power == nil || m.Status.Power.SeenAt == nil {
			return "-"
		}
		return cli.Age(a.now().Sub(m.Status.Power.SeenAt.Time)) + " ago"
	}).Print(a.out, true)
}

func (a *app) askPower(ctx context.Context, machines []v1alpha1.Machine, o *powerOptions) error {
	config, err := a.connect()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Minute)
	defer cancel()
	outcomes := power.Run(ctx, machines, 32, func(ctx context.Context, m *v1alpha1.Machine) power.Outcome {
		var answer peoplewire.PowerResponse
		err := request.Get(ctx, config, "power", &answer, peoplewire.PathPower, url.PathEscape(m.Name))
		outcome := power.Outcome{Machine: m.Name, Was: answer.State, State: answer.State}
		if err != nil {
			outcome.Problem = err.Error()
		}
		return outcome
	}, func(outcome power.Outcome) {
		if o.output == "" {
			fmt.Fprintln(a.out, outcome.Line())
		}
	})
	return a.reportPower(outcomes, o.output)
}
