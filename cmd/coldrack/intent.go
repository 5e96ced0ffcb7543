package main

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/cli"
	"coldrack.dev/internal/cli/exit"
	"coldrack.dev/internal/cli/follow"
	"coldrack.dev/internal/cli/machine"
)

// intentOptions are the flags that install, reinstall and release share.
type intentOptions struct {
	pick    machine.Selection
	yes     bool
	replace bool
	wait    bool
	timeout time.Duration
}

func (o *intentOptions) addFlags(cmd *cobra.Command, destructive bool) {
	cmd.Flags().StringVarP(&o.pick.Selector, "selector", "l", "", "all machines with these labels")
	cmd.Flags().BoolVar(&o.replace, "replace", false, "withdraw an earlier request that has not begun, or whose machine is Lost")
	cmd.Flags().BoolVar(&o.wait, "wait", false, "follow the machines until the operation has ended")
	cmd.Flags().DurationVar(&o.timeout, "timeout", time.Hour, "with --wait, give up after this time, with exit code 4")
	if destructive {
		cmd.Flags().BoolVarP(&o.yes, "yes", "y", false, "do not ask for confirmation; required without a terminal")
	}
}

func (a *app) installCommand() *cobra.Command {
	return a.intentCommand(v1alpha1.ActionInstall, &cobra.Command{
		Use:   "install NAME...",
		Short: "Ask for an install, for example again after one failed",
		Long: `Ask for an install of approved machines. A machine that is approved and complete is installed by
itself; this command asks again after a failure. The Profile's wipe policy decides what may be overwritten.`,
	})
}

func (a *app) reinstallCommand() *cobra.Command {
	return a.intentCommand(v1alpha1.ActionReinstall, &cobra.Command{
		Use:   "reinstall NAME...",
		Short: "Reinstall machines; data on their system disks is lost",
		Long: `Install machines again. What is on the system disk is lost, and the machine gets a new identity. The
machine restarts at once if its agent can be reached; otherwise the install begins when it is powered on again.`,
	})
}

func (a *app) releaseCommand() *cobra.Command {
	return a.intentCommand(v1alpha1.ActionRelease, &cobra.Command{
		Use:   "release NAME...",
		Short: "Wipe machines and forget their identity",
		Long: `Wipe the disks that Coldrack wrote and forget the machine's identity. Afterwards the machine is
Released: it waits in discovery until it is approved and installed again, or removed.`,
	})
}

func (a *app) intentCommand(action v1alpha1.IntentAction, cmd *cobra.Command) *cobra.Command {
	var options intentOptions
	destructive := action != v1alpha1.ActionInstall
	cmd.ValidArgsFunction = a.completeMachines
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		ctx := cmd.Context()
		options.pick.Names = args
		if len(args) == 0 && options.pick.Selector == "" {
			return exit.Usagef("name machines, or select them with -l")
		}
		if err := options.pick.Check(); err != nil {
			return err
		}
		c, err := a.client()
		if err != nil {
			return err
		}
		machines, err := options.pick.List(ctx, c)
		if err != nil {
			return err
		}
		if len(machines) == 0 {
			return exit.NotFoundf("no machine has labels %s", options.pick.Selector)
		}
		if err := machine.CheckIntents(machines, action, options.replace); err != nil {
			return err
		}
		if destructive && !options.yes {
			if err := a.confirm(ctx, machines, action); err != nil {
				return err
			}
		}
		intent := v1alpha1.Intent{Action: action, RequestedBy: machine.Requester(), RequestedAt: &metav1.Time{Time: a.now()}}
		asked, err := machine.WriteIntents(ctx, c, machines, intent, options.replace, a.out)
		if err != nil || !options.wait {
			return err
		}
		return a.waitForIntents(ctx, c, asked, options.timeout)
	}
	a.addConnectionFlag(cmd)
	options.addFlags(cmd, destructive)
	return cmd
}

// confirm asks the person at the terminal whether the data on these machines may go.
func (a *app) confirm(ctx context.Context, machines []v1alpha1.Machine, action v1alpha1.IntentAction) error {
	verb := strings.ToLower(string(action))
	var question strings.Builder
	question.WriteString("This destroys data on:\n")
	for i := range machines {
		m := &machines[i]
		fmt.Fprintf(&question, "  %s  %s  %s\n", m.Name, cli.PhaseOf(m), cli.AddressOf(m))
	}
	answer := machines[0].Name
	if len(machines) > 1 {
		answer = fmt.Sprint(len(machines))
		fmt.Fprintf(&question, "Type the number of machines to %s them: ", verb)
	} else {
		fmt.Fprintf(&question, "Type the machine's name to %s it: ", verb)
	}
	nothing := fmt.Sprintf("nothing was done, because %s destroys data on %s", verb, machineNames(machines))
	return cli.Confirm(ctx, a.in, a.err, question.String(), answer, nothing)
}

// waitForIntents follows the machines until each has acknowledged its intent.
func (a *app) waitForIntents(ctx context.Context, c client.WithWatch, asked []v1alpha1.Machine, timeout time.Duration) error {
	ids := map[string]string{}
	pick := &machine.Selection{}
	for _, m := range asked {
		ids[m.Name] = m.Spec.Intent.ID
		pick.Names = append(pick.Names, m.Name)
	}
	return follow.Machines(ctx, c, pick.Matches, &follow.IntentGoal{IDs: ids, Limit: timeout}, a.view(false))
}

func (a *app) approveCommand() *cobra.Command {
	var (
		pick                       machine.Selection
		all                        bool
		rack                       string
		profile, hostname, address string
		wait                       bool
		timeout                    time.Duration
	)
	cmd := &cobra.Command{
		Use:   "approve NAME... | -l SELECTOR | --rack RACK | --all",
		Short: "Approve machines for installation",
		Long: `Approve machines for installation. Until then a machine waits in discovery and no disk of it is touched.
--all approves every machine that waits for approval. --rack approves all machines of a rack, also those that have not been seen yet.`,
		Example: `  coldrack approve rack1-u10 --profile worker --hostname w1 --address 10.20.0.31
  coldrack approve --rack a1 --profile worker
  coldrack approve -l rack=r1 --profile worker
  coldrack approve --all --profile worker --wait`,
		ValidArgsFunction: a.completeMachines,
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx := cmd.Context()
			pick.Names = args
			switch {
			case len(args) == 0 && pick.Selector == "" && rack == "" && !all:
				return exit.Usagef("name machines, select them with -l or --rack, or say --all")
			case len(args) > 0 && (pick.Selector != "" || rack != "" || all), (pick.Selector != "" || rack != "") && all:
				return exit.Usagef("names, --all, and -l with --rack exclude each other")
			case (hostname != "" || address != "") && len(args) != 1:
				return exit.Usagef("--hostname and --address belong to one machine; name it")
			}
			if address != "" {
				if _, err := netip.ParseAddr(address); err != nil {
					return exit.Usagef("--address %q is not an IP address", address)
				}
			}
			if all {
				pick.Phases = []string{string(v1alpha1.PhaseWaiting)}
			}
			if err := pick.Check(); err != nil {
				return err
			}
			c, err := a.client()
			if err != nil {
				return err
			}
			machines, err := pick.List(ctx, c)
			if err != nil {
				return err
			}
			if rack != "" {
				machines = slices.DeleteFunc(machines, func(m v1alpha1.Machine) bool { return !strings.EqualFold(m.Spec.Location.Rack, rack) })
			}
			switch {
			case len(machines) == 0 && rack != "":
				return exit.NotFoundf("no machine stands in rack %s", rack)
			case len(machines) == 0 && !all:
				return exit.NotFoundf("no machine has labels %s", pick.Selector)
			case len(machines) == 0:
				fmt.Fprintln(a.out, "no machine waits for approval")
				return nil
			}
			approved, err := machine.Approval{Profile: profile, Hostname: hostname, Address: address}.Approve(ctx, c, machines, a.out, a.err)
			if err != nil || !wait {
				return err
			}
			pick.Phases = nil
			pick.Names = nil
			for _, m := range approved {
				pick.Names = append(pick.Names, m.Name)
			}
			goal := &follow.PhaseGoal{Phase: string(v1alpha1.PhaseReady), Count: len(approved), Limit: timeout, StopOnFailure: true}
			return follow.Machines(ctx, c, pick.Matches, goal, a.view(false))
		},
	}
	a.addConnectionFlag(cmd)
	cmd.Flags().StringVarP(&pick.Selector, "selector", "l", "", "all machines with these labels")
	cmd.Flags().StringVar(&rack, "rack", "", "all machines of this rack (spec.location.rack)")
	cmd.Flags().BoolVar(&all, "all", false, "every machine that waits for approval")
	cmd.Flags().StringVar(&profile, "profile", "", "Profile to install with")
	cmd.Flags().StringVar(&hostname, "hostname", "", "host name of the installed node")
	cmd.Flags().StringVar(&address, "address", "", "static address of the installed node")
	cmd.Flags().BoolVar(&wait, "wait", false, "follow the machines until they are Ready")
	cmd.Flags().DurationVar(&timeout, "timeout", time.Hour, "with --wait, give up after this time, with exit code 4")
	return cmd
}

func machineNames(machines []v1alpha1.Machine) string {
	var names []string
	for _, m := range machines {
		names = append(names, m.Name)
	}
	const shown = 5
	if len(names) > shown {
		return fmt.Sprintf("%s and %d more", strings.Join(names[:shown], ", "), len(names)-shown)
	}
	return strings.Join(names, ", ")
}
