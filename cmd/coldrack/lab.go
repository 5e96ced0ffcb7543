package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"coldrack.dev/internal/cli/exit"
	"coldrack.dev/internal/cli/labs"
	"coldrack.dev/internal/lab"
	"coldrack.dev/internal/server/daemon"
)

func (a *app) labCommand() *cobra.Command {
	place := labs.Place{StateDir: filepath.Join(daemon.DefaultConfig().DataDir, "lab")}
	if dir, ok := a.env("COLDRACK_DATA_DIR"); ok && dir != "" {
		place.StateDir = filepath.Join(dir, "lab")
	}
	if dir, ok := a.env("COLDRACK_LAB_DIR"); ok && dir != "" {
		place.StateDir = dir
	}
	cmd := &cobra.Command{
		Use:   "lab",
		Short: "Virtual machines on a private network, to try things out",
		Long: `Virtual machines on a private network, to try things out.

A lab is a network namespace of its own with a bridge and QEMU machines in it. It has no connection to this
host's network. A server takes part by opening its boot sockets inside:

  coldrack lab up --off                           # the network, and machines that are still off
  coldrack serve --boot-netns coldrack-lab        # in another terminal
  coldrack lab power all on

A lab needs root and QEMU (Debian: qemu-system-x86 ovmf ipxe-qemu). Machines go on running when this command ends.`,
		Args: cobra.ArbitraryArgs,
		RunE: group,
	}
	cmd.PersistentFlags().StringVar(&place.Name, "name", "lab", "name of the lab; its network namespace is coldrack-NAME")
	cmd.PersistentFlags().StringVar(&place.StateDir, "state-dir", place.StateDir, "folder of all labs, one folder each [$COLDRACK_LAB_DIR]")
	cmd.AddCommand(a.labUpCommand(&place), a.labPsCommand(&place), a.labConsoleCommand(&place), a.labPowerCommand(&place), a.labForwardCommand(&place), a.labBMCCommand(&place), a.labDownCommand(&place))
	return cmd
}

func (a *app) labLog() *slog.Logger { return slog.New(slog.NewTextHandler(a.err, nil)) }

// completeLab offers names of machines.
func completeLab(place *labs.Place, extra ...string) cobra.CompletionFunc {
	return func(_ *cobra.Command, _ []string, prefix string) ([]string, cobra.ShellCompDirective) {
		names := append(slices.Clone(extra), place.MachineNames()...)
		names = slices.DeleteFunc(names, func(name string) bool { return !strings.HasPrefix(name, prefix) })
		return names, cobra.ShellCompDirectiveNoFileComp
	}
}

func (a *app) labUpCommand(place *labs.Place) *cobra.Command {
	o := lab.Options{Memory: 2 * lab.GiB}
	var (
		firmware, bus, accelerator, subnet, output string
		disks                                      []string
		off                                        bool
	)
	cmd := &cobra.Command{
		Use:   "up",
		Short: "Create the lab, or its missing parts, and power on its machines",
		Example: `  coldrack lab up -n 3
  coldrack lab up -n 1 --name try --firmware uefi --memory 4GiB --disk 8GiB --disk 1GiB
  coldrack lab up --off`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			o.Dir, o.Name, o.Log = place.Dir(), place.Name, a.labLog()
			o.Firmware, o.Bus, o.Accelerator = lab.Firmware(firmware), lab.Bus(bus), lab.Accelerator(accelerator)
			var err error
			if o.Subnet, err = netip.ParsePrefix(subnet); err != nil {
				return exit.Usagef("--subnet %q: write an address and a length, for example %s", subnet, lab.DefaultSubnet)
			}
			o.Disks = []lab.Size{}
			for _, text := range disks {
				size, err := lab.ParseSize(text)
				if err != nil {
					return exit.Usagef("--disk: %w", err)
				}
				o.Disks = append(o.Disks, size)
			}
			if err := o.Validate(); err != nil {
				return exit.Usagef("%w", err)
			}
			l, err := lab.Create(cmd.Context(), o)
			if err != nil {
				return err
			}
			if !off {
				if err := l.PowerOn(cmd.Context()); err != nil {
					return err
				}
			}
			if err := a.printLab(l, output); err != nil {
				return err
			}
			return a.adviseServer(l, off)
		},
	}
	flags := cmd.Flags()
	flags.IntVarP(&o.Machines, "machines", "n", 3, "how many machines there shall be; those that exist are kept as they are")
	flags.StringVar(&firmware, "firmware", string(lab.Mixed), "firmware of new machines: bios, uefi, or mixed for one after the other")
	flags.Var(&o.Memory, "memory", "memory of a new machine")
	flags.IntVar(&o.CPUs, "cpus", 2, "processors of a new machine")
	flags.IntVar(&o.Nice, "nice", 5, "nice level of a new machine's process, 1 to 19")
	flags.BoolVar(&o.OwnTime, "own-time", false, "the clock of a new, emulated machine follows its instructions, so that many machines on few processors miss no deadlines; needs --cpus 1")
	flags.StringArrayVar(&disks, "disk", []string{"8GiB"}, "size of a blank disk of a new machine; repeat for more disks")
	flags.StringVar(&bus, "disk-bus", string(lab.SCSI), "how disks of new machines are attached: scsi, virtio, nvme, sata")
	flags.IntVar(&o.NICs, "nics", 1, "network cards of a new machine; the first one boots")
	flags.StringVar(&subnet, "subnet", lab.DefaultSubnet.String(), "network of a new lab; its first address is the server's")
	flags.StringVar(&accelerator, "accelerator", "", "kvm or tcg (emulation); default: kvm if a trial shows that it works")
	flags.BoolVar(&off, "off", false, "leave the machines off")
	addOutputFlag(cmd, &output, "wide", "json", "yaml")
	for name, words := range map[string][]string{
		"firmware": {"bios", "uefi", "mixed"}, "disk-bus": {"scsi", "virtio", "nvme", "sata"}, "accelerator": {"kvm", "tcg"},
	} {
		_ = cmd.RegisterFlagCompletionFunc(name, cobra.FixedCompletions(words, cobra.ShellCompDirectiveNoFileComp))
	}
	return cmd
}

// adviseServer tells a person that the machines' requests go unheard.
func (a *app) adviseServer(l *lab.Lab, off bool) error {
	served, err := l.Served()
	if err != nil || served || len(l.Machines()) == 0 {
		return err
	}
	lines := "no server answers in this lab yet. Start one with:  coldrack serve --boot-netns " + l.Namespace()
	if !off {
		lines += "\nMachines with a BIOS ask again and again; those with UEFI give up after some minutes, then: coldrack lab power NAME reset"
	}
	_, err = fmt.Fprintln(a.err, lines)
	return err
}

func (a *app) printLab(l *lab.Lab, output string) error {
	view := labs.ViewOf(l)
	if done, err := a.printStructured(output, view); done {
		return err
	}
	return view.Print(a.out, output == "wide")
}

func (a *app) labPsCommand(place *labs.Place) *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:   "ps",
		Short: "Show the machines of the lab and what they use",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			l, err := place.Open()
			if err != nil {
				return err
			}
			return a.printLab(l, output)
		},
	}
	addOutputFlag(cmd, &output, "wide", "json", "yaml")
	return cmd
}

func (a *app) labDownCommand(place *labs.Place) *cobra.Command {
	var keep bool
	cmd := &cobra.Command{
		Use:   "down",
		Short: "Power off all machines and remove the lab",
		Long: `Power off all machines and remove the lab: processes, network, disks. It may be repeated, and it
works on a lab that is half made.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := lab.Down(cmd.Context(), place.Dir(), place.Name, keep); err != nil {
				return err
			}
			_, err := fmt.Fprintf(a.out, "lab %s is down\n", place.Name)
			return err
		},
	}
	cmd.Flags().BoolVar(&keep, "keep-disks", false, "keep the machines' disks and console logs for the next `up`")
	return cmd
}

func (a *app) labPowerCommand(place *labs.Place) *cobra.Command {
	var (
		diskOnly    bool
		impersonate string
	)
	type action struct {
		name, about string
		do          func(context.Context, *lab.Machine) error
	}
	powerOn := func(ctx context.Context, m *lab.Machine) error {
		var options []lab.StartOption
		if diskOnly {
			options = append(options, lab.DiskOnly())
		}
		if impersonate != "" {
			other, err := place.Machine(impersonate)
			if err != nil {
				return err
			}
			options = append(options, lab.Impersonate(other))
		}
		return m.PowerOn(ctx, options...)
	}
	actions := []action{
		{"on", "power on", powerOn},
		{"off", "pull the plug", func(ctx context.Context, m *lab.Machine) error { return m.PowerOff(ctx) }},
		{"reset", "press the reset button", func(ctx context.Context, m *lab.Machine) error { return m.Reset(ctx) }},
		{"cycle", "pull the plug and power on", func(ctx context.Context, m *lab.Machine) error {
			if err := m.PowerOff(ctx); err != nil {
				return err
			}
			return powerOn(ctx, m)
		}},
		{"shutdown", "press the power button: the operating system decides", func(ctx context.Context, m *lab.Machine) error { return m.Shutdown(ctx) }},
		{"cut-network", "pull the network cables, until they are restored", func(ctx context.Context, m *lab.Machine) error { return m.CutNetwork(ctx) }},
		{"restore-network", "plug the network cables in again", func(ctx context.Context, m *lab.Machine) error { return m.RestoreNetwork(ctx) }},
	}
	var names []string
	var about strings.Builder
	for _, x := range actions {
		names = append(names, x.name)
		fmt.Fprintf(&about, "  %-16s %s\n", x.name, x.about)
	}
	cmd := &cobra.Command{
		Use:   "power NAME... ACTION",
		Short: "Switch machines of the lab, or their network, on and off",
		Long:  "Switch machines of the lab, or their network, on and off. NAME is a machine, or all. ACTION is one of:\n\n" + about.String(),
		Example: `  coldrack lab power lab-1 off
  coldrack lab power all on`,
		Args:              cobra.MinimumNArgs(2),
		ValidArgsFunction: completeLab(place, append([]string{"all"}, names...)...),
		RunE: func(cmd *cobra.Command, args []string) error {
			last := len(args) - 1
			i := slices.Index(names, args[last])
			if i < 0 {
				return exit.Usagef("there is no action %q; there are %s", args[last], strings.Join(names, ", "))
			}
			if (diskOnly || impersonate != "") && names[i] != "on" && names[i] != "cycle" {
				return exit.Usagef("--disk-only and --impersonate go with on and cycle only")
			}
			machines, err := place.Machines(args[:last]...)
			if err != nil {
				return err
			}
			tasks, ctx := errgroup.WithContext(cmd.Context())
			tasks.SetLimit(4)
			for _, m := range machines {
				tasks.Go(func() error { return actions[i].do(ctx, m) })
			}
			err = tasks.Wait()
			if errors.Is(err, lab.ErrOff) || errors.Is(err, lab.ErrOn) {
				return exit.Refusedf("%w", err)
			}
			return err
		},
	}
	cmd.Flags().BoolVar(&diskOnly, "disk-only", false, "start from the disks and never ask the network")
	cmd.Flags().StringVar(&impersonate, "impersonate", "", "claim MAC addresses, UUID and serial number of this machine")
	_ = cmd.RegisterFlagCompletionFunc("impersonate", completeLab(place))
	return cmd
}

func (a *app) labForwardCommand(place *labs.Place) *cobra.Command {
	return &cobra.Command{
		Use:   "forward LISTEN TARGET...",
		Short: "Make a TCP port of the lab's machines reachable from this host",
		Long: `Make a TCP port of the lab's machines reachable from this host, until the command is interrupted. This host has
no route into the lab. LISTEN is an address and port of this host, or a port of its loopback address; each connection
goes to the first TARGET that accepts it.`,
		Example: `  coldrack lab forward 16443 10.77.0.10:6443      # a cluster's API, at https://127.0.0.1:16443`,
		Args:    cobra.MinimumNArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			listen := args[0]
			if !strings.Contains(listen, ":") {
				listen = "127.0.0.1:" + listen
			}
			if _, err := netip.ParseAddrPort(listen); err != nil {
				return exit.Usagef("LISTEN %q: write a port, or address:port", args[0])
			}
			var targets []netip.AddrPort
			for _, text := range args[1:] {
				target, err := netip.ParseAddrPort(text)
				if err != nil {
					return exit.Usagef("TARGET %q: write address:port", text)
				}
				targets = append(targets, target)
			}
			l, err := place.Open()
			if err != nil {
				return err
			}
			listener, err := net.Listen("tcp", listen)
			if err != nil {
				return fmt.Errorf("forward: %w", err)
			}
			fmt.Fprintf(a.err, "%s leads to %s of lab %s\n", listener.Addr(), strings.Join(args[1:], ", "), l.Name())
			return l.Forward(cmd.Context(), listener, targets)
		},
	}
}

func (a *app) labConsoleCommand(place *labs.Place) *cobra.Command {
	var (
		show   labs.Console
		attach bool
	)
	cmd := &cobra.Command{
		Use:               "console NAME",
		Short:             "Show, follow or use the serial console of a machine",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: completeLab(place),
		Example: `  coldrack lab console lab-1
  coldrack lab console lab-1 -f --tail 20
  coldrack lab console lab-1 --attach      # Ctrl-] leaves`,
		RunE: func(cmd *cobra.Command, args []string) error {
			m, err := place.Machine(args[0])
			if err != nil {
				return err
			}
			if attach {
				return labs.AttachConsole(cmd.Context(), m, a.in, a.out, a.err)
			}
			return show.Show(cmd.Context(), m, a.out)
		},
	}
	cmd.Flags().BoolVarP(&show.Follow, "follow", "f", false, "go on showing what comes")
	cmd.Flags().BoolVar(&attach, "attach", false, "use the console with this terminal; Ctrl-] leaves")
	cmd.Flags().BoolVar(&show.Raw, "raw", false, "leave terminal control sequences in")
	cmd.Flags().IntVar(&show.Tail, "tail", -1, "begin with this many last lines (default all)")
	cmd.MarkFlagsMutuallyExclusive("attach", "follow")
	cmd.MarkFlagsMutuallyExclusive("attach", "raw")
	return cmd
}
