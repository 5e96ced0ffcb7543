package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/user"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/spf13/cobra"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/cli"
)

// intentOptions are the flags that install, reinstall and release share.
type intentOptions struct {
	pick    selection
	yes     bool
	replace bool
	wait    bool
	timeout time.Duration
}

func (o *intentOptions) addFlags(cmd *cobra.Command, destructive bool) {
	cmd.Flags().StringVarP(&o.pick.selector, "selector", "l", "", "all machines with these labels")
	cmd.Flags().BoolVar(&o.replace, "replace", false, "give up an earlier act that has not begun, or that was running on a machine that is Lost")
	cmd.Flags().BoolVar(&o.wait, "wait", false, "follow the machines until the act has ended")
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
itself; this verb asks again after a failure. What may be overwritten is up to its Profile's wipe policy.`,
	})
}

func (a *app) reinstallCommand() *cobra.Command {
	return a.intentCommand(v1alpha1.ActionReinstall, &cobra.Command{
		Use:   "reinstall NAME...",
		Short: "Reinstall machines; data on their system disks is lost",
		Long: `Install machines again. What is on the system disk is lost, and the machine gets a new identity. The
machine restarts by itself when its agent can be reached, else when it is powered on the next time.`,
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
		options.pick.names = args
		if len(args) == 0 && options.pick.selector == "" {
			return usageError("name machines, or select them with -l")
		}
		if err := options.pick.check(); err != nil {
			return err
		}
		c, err := a.client()
		if err != nil {
			return err
		}
		machines, err := options.pick.list(ctx, c)
		if err != nil {
			return err
		}
		if len(machines) == 0 {
			return notFoundError("no machine has labels %s", options.pick.selector)
		}
		if err := checkIntents(machines, action, options.replace); err != nil {
			return err
		}
		if destructive && !options.yes {
			if err := a.confirm(ctx, machines, action); err != nil {
				return err
			}
		}
		asked, err := a.writeIntents(ctx, c, machines, action, options.replace)
		if err != nil || !options.wait {
			return err
		}
		return a.waitForIntents(ctx, c, asked, options.timeout)
	}
	a.addConnectionFlag(cmd)
	options.addFlags(cmd, destructive)
	return cmd
}

// checkIntents refuses before anything is written, so that of ten machines not five are asked.
func checkIntents(machines []v1alpha1.Machine, action v1alpha1.IntentAction, replace bool) error {
	var errs []error
	for i := range machines {
		if err := checkIntent(&machines[i], action, replace); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// checkIntent tells why an act cannot be asked of a machine now. An act that runs is never replaced while
// its machine may be carrying it out.
func checkIntent(m *v1alpha1.Machine, action v1alpha1.IntentAction, replace bool) error {
	open := m.OpenIntent()
	running := open != nil && cli.IntentStateOf(m) == v1alpha1.IntentRunning && m.Status.Phase != v1alpha1.PhaseLost
	if open != nil && (running || !replace) {
		state, hint := "has not begun", "; --replace gives it up"
		if running {
			state, hint = "is running", ""
		}
		who := ""
		if open.RequestedBy != "" {
			who = ", asked for by " + open.RequestedBy + ","
		}
		return refusedError("%s: its %s%s %s (intent %s); wait until it has ended, `coldrack watch %s` shows it%s",
			m.Name, strings.ToLower(string(open.Action)), who, state, open.ID, m.Name, hint)
	}
	switch {
	case action != v1alpha1.ActionRelease && !m.Spec.Approved:
		return refusedError("%s is not approved: `coldrack approve %s` first", m.Name, m.Name)
	case action == v1alpha1.ActionInstall && m.Status.Installed != nil:
		return refusedError("%s: %s is installed already; `coldrack reinstall %s` replaces it", m.Name, m.Status.Installed.Image, m.Name)
	case action == v1alpha1.ActionReinstall && m.Status.Installed == nil:
		return refusedError("%s has never been installed; `coldrack install %s` does that", m.Name, m.Name)
	}
	return nil
}

// confirm asks the person at the terminal, and refuses where there is none.
func (a *app) confirm(ctx context.Context, machines []v1alpha1.Machine, action v1alpha1.IntentAction) error {
	verb := strings.ToLower(string(action))
	stdin, isFile := a.in.(*os.File)
	if _, _, tty := terminal(a.err); !tty || !isFile || !isTerminal(stdin) {
		return refusedError("%s destroys what is on %s; say --yes if that is meant", verb, machineNames(machines))
	}
	fmt.Fprintf(a.err, "This destroys what is on:\n")
	for i := range machines {
		m := &machines[i]
		fmt.Fprintf(a.err, "  %s  %s  %s\n", m.Name, cli.PhaseOf(m), cli.AddressOf(m))
	}
	want := machines[0].Name
	if len(machines) > 1 {
		want = fmt.Sprint(len(machines))
		fmt.Fprintf(a.err, "Type the number of machines to %s them: ", verb)
	} else {
		fmt.Fprintf(a.err, "Type the machine's name to %s it: ", verb)
	}
	answer := make(chan string, 1)
	go func() { // ends with its line or with the process
		line, _ := bufio.NewReader(a.in).ReadString('\n')
		answer <- strings.TrimSpace(line)
	}()
	select {
	case <-ctx.Done():
		fmt.Fprintln(a.err)
	case line := <-answer:
		if line == want {
			return nil
		}
	}
	return refusedError("not confirmed, nothing was done")
}

// writeIntents asks each machine for the act; it returns those that were asked, with their new intents.
func (a *app) writeIntents(ctx context.Context, c client.Client, machines []v1alpha1.Machine, action v1alpha1.IntentAction, replace bool) ([]v1alpha1.Machine, error) {
	var asked []v1alpha1.Machine
	var errs []error
	for i := range machines {
		m, err := update(ctx, c, &machines[i], func(m *v1alpha1.Machine) error {
			if err := checkIntent(m, action, replace); err != nil {
				return err
			}
			m.Spec.Intent = &v1alpha1.Intent{
				ID:          uuid.NewString(),
				Action:      action,
				RequestedBy: requester(),
				RequestedAt: &metav1.Time{Time: a.now()},
			}
			return nil
		})
		if err != nil {
			errs = append(errs, err)
			continue
		}
		fmt.Fprintf(a.out, "%s: %s asked for (intent %s)\n", m.Name, strings.ToLower(string(action)), m.Spec.Intent.ID)
		asked = append(asked, *m)
	}
	return asked, errors.Join(errs...)
}

// update changes a machine's spec as of the state that was looked at, trying again when someone else
// wrote in between. change is called anew for each state and may refuse it.
func update(ctx context.Context, c client.Client, m *v1alpha1.Machine, change func(*v1alpha1.Machine) error) (*v1alpha1.Machine, error) {
	const attempts = 5
	for attempt := 1; ; attempt++ {
		changed := m.DeepCopy()
		if err := change(changed); err != nil {
			return nil, err
		}
		patch := client.MergeFromWithOptions(m, client.MergeFromWithOptimisticLock{})
		err := c.Patch(ctx, changed, patch, client.FieldOwner(fieldManager))
		if err == nil {
			return changed, nil
		}
		if !apierrors.IsConflict(err) || attempt == attempts {
			return nil, fmt.Errorf("machine %s: %w", m.Name, err)
		}
		if m, err = getMachine(ctx, c, m.Name); err != nil {
			return nil, err
		}
	}
}

// waitForIntents follows the machines until each has acknowledged its intent.
func (a *app) waitForIntents(ctx context.Context, c client.WithWatch, asked []v1alpha1.Machine, timeout time.Duration) error {
	ids := map[string]string{}
	pick := &selection{}
	for _, m := range asked {
		ids[m.Name] = m.Spec.Intent.ID
		pick.names = append(pick.names, m.Name)
	}
	return a.watch(ctx, c, pick, &intentGoal{ids: ids, limit: timeout}, false, nil)
}

// intentGoal waits until every intent was acknowledged as ended.
type intentGoal struct {
	ids   map[string]string // machine to intent
	limit time.Duration
}

func (g *intentGoal) String() string         { return fmt.Sprintf("%d intents", len(g.ids)) }
func (g *intentGoal) timeout() time.Duration { return g.limit }

func (g *intentGoal) reached(machines map[string]*v1alpha1.Machine) (bool, error) {
	var errs []error
	for name, id := range g.ids {
		m := machines[name]
		switch {
		case m == nil:
			errs = append(errs, notFoundError("%s was removed while it was waited for", name))
		case m.Status.Intent == nil || m.Status.Intent.ID != id:
			return false, nil
		case m.Status.Intent.State == v1alpha1.IntentFailed:
			errs = append(errs, fmt.Errorf("%s: %s failed: %s", name, strings.ToLower(string(m.Status.Intent.Action)), m.Status.Intent.Message))
		case m.Status.Intent.State != v1alpha1.IntentSucceeded:
			return false, nil
		}
	}
	return true, errors.Join(errs...)
}

func (g *intentGoal) missing(machines map[string]*v1alpha1.Machine) error {
	var lines []string
	for name, id := range g.ids {
		m := machines[name]
		if m == nil || m.Status.Intent == nil || m.Status.Intent.ID != id || m.Status.Intent.FinishedAt == nil {
			phase := "gone"
			if m != nil {
				phase = cli.PhaseOf(m) + " " + m.Status.Message
			}
			lines = append(lines, fmt.Sprintf("  %s is %s", name, phase))
		}
	}
	return timeoutError("not ended within %s; the intents stay and will be carried out\n%s", g.limit, strings.Join(lines, "\n"))
}

func (a *app) approveCommand() *cobra.Command {
	var (
		pick                       selection
		profile, hostname, address string
		wait                       bool
		timeout                    time.Duration
	)
	cmd := &cobra.Command{
		Use:   "approve NAME... | -l SELECTOR | --all",
		Short: "Approve machines for installation",
		Long: `Approve machines for installation. Until then a machine waits in discovery and no disk of it is touched.
--all approves every machine that waits for approval.`,
		Example: `  coldrack approve rack1-u10 --profile worker --hostname w1 --address 10.20.0.31
  coldrack approve -l rack=r1 --profile worker
  coldrack approve --all --profile worker --wait`,
		ValidArgsFunction: a.completeMachines,
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx := cmd.Context()
			pick.names = args
			switch {
			case len(args) == 0 && pick.selector == "" && !pick.all:
				return usageError("name machines, select them with -l, or say --all")
			case len(args) > 0 && (pick.selector != "" || pick.all), pick.selector != "" && pick.all:
				return usageError("names, -l and --all exclude each other")
			case (hostname != "" || address != "") && len(args) != 1:
				return usageError("--hostname and --address belong to one machine; name it")
			}
			if address != "" {
				if _, err := netip.ParseAddr(address); err != nil {
					return usageError("--address %q is not an IP address", address)
				}
			}
			if pick.all {
				pick.phases = []string{string(v1alpha1.PhaseWaiting)}
			}
			if err := pick.check(); err != nil {
				return err
			}
			c, err := a.client()
			if err != nil {
				return err
			}
			machines, err := pick.list(ctx, c)
			if err != nil {
				return err
			}
			if len(machines) == 0 && !pick.all {
				return notFoundError("no machine has labels %s", pick.selector)
			}
			if len(machines) == 0 {
				fmt.Fprintln(a.out, "no machine waits for approval")
				return nil
			}
			approved, err := a.approve(ctx, c, machines, profile, hostname, address)
			if err != nil || !wait {
				return err
			}
			pick.phases = nil
			pick.names = nil
			for _, m := range approved {
				pick.names = append(pick.names, m.Name)
			}
			return a.watch(ctx, c, &pick, &phaseGoal{phase: string(v1alpha1.PhaseReady), count: len(approved), limit: timeout, stopOnFailure: true}, false, nil)
		},
	}
	a.addConnectionFlag(cmd)
	cmd.Flags().StringVarP(&pick.selector, "selector", "l", "", "all machines with these labels")
	cmd.Flags().BoolVar(&pick.all, "all", false, "every machine that waits for approval")
	cmd.Flags().StringVar(&profile, "profile", "", "Profile to install with")
	cmd.Flags().StringVar(&hostname, "hostname", "", "host name of the installed node")
	cmd.Flags().StringVar(&address, "address", "", "static address of the installed node")
	cmd.Flags().BoolVar(&wait, "wait", false, "follow the machines until they are Ready")
	cmd.Flags().DurationVar(&timeout, "timeout", time.Hour, "with --wait, give up after this time, with exit code 4")
	return cmd
}

func (a *app) approve(ctx context.Context, c client.Client, machines []v1alpha1.Machine, profile, hostname, address string) ([]v1alpha1.Machine, error) {
	var approved []v1alpha1.Machine
	var errs []error
	for i := range machines {
		before := machines[i].Spec.Approved
		m, err := update(ctx, c, &machines[i], func(m *v1alpha1.Machine) error {
			m.Spec.Approved = true
			if profile != "" {
				m.Spec.Profile = profile
			}
			if hostname != "" {
				m.Spec.Hostname = hostname
			}
			if address != "" {
				if m.Spec.Network == nil {
					m.Spec.Network = &v1alpha1.MachineNetwork{}
				}
				m.Spec.Network.Address = address
			}
			return nil
		})
		switch {
		case err != nil:
			errs = append(errs, err)
			continue
		case before:
			fmt.Fprintf(a.out, "%s: was approved already\n", m.Name)
		default:
			fmt.Fprintf(a.out, "%s: approved\n", m.Name)
		}
		if m.Spec.Profile == "" {
			fmt.Fprintf(a.err, "%s has no profile yet, so it is not installed: coldrack approve %s --profile NAME\n", m.Name, m.Name)
		}
		approved = append(approved, *m)
	}
	return approved, errors.Join(errs...)
}

// requester is who asks, for the record: user@host. The server's audit log has the proven identity.
func requester() string {
	name := "unknown"
	if u, err := user.Current(); err == nil {
		name = u.Username
	}
	if sudo := os.Getenv("SUDO_USER"); sudo != "" {
		name = sudo
	}
	host, err := os.Hostname()
	if err != nil {
		host = "unknown"
	}
	return name + "@" + host
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
