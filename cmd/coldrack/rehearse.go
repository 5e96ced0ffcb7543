package main

import (
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"coldrack.dev/internal/cli/exit"
	"coldrack.dev/internal/cli/follow"
	"coldrack.dev/internal/lab/rehearse"
)

func (a *app) rehearseCommand() *cobra.Command {
	o := rehearse.Options{Sizes: rehearse.DefaultSizes}
	var (
		loss, slow, rate, plotFile, output string
	)
	cmd := &cobra.Command{
		Use:   "rehearse",
		Short: "Simulate the power-on of a whole rack",
		Long: `Simulate the power-on of a whole rack.

A real server is started in a network of its own, with the plan of -f, and as many simulated machines boot from it and
install themselves: DHCP as their firmware, iPXE and the discovery system speak it, TFTP, boot scripts, kernel and
initramfs, enrolment, image, first boot from disk, heartbeats. A machine is lost when its firmware would have given up.
Machines that the plan names come first; the others are made up and differ as those of a rack do.

The rehearsal touches neither this host's network nor a server that runs on it, and leaves nothing behind. It needs
root. The simulated machines share the processors with the server, which real ones do not. The times do not include the
start of the machines' firmware and writing to their disks. Lost packets on TCP are lost from the server to
the machine only.`,
		Example: `  coldrack rehearse --machines 1000
  coldrack rehearse -f site/ --bundle site.bundle.tar --trusted-keys site.pub --loss 1% --slow-links 5%:10Mbit --plot rack.svg
  coldrack rehearse --machines 300 --ramp 60s -o json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var err error
			if o.Loss, err = rehearse.ParseShare(loss); err != nil {
				return exit.Usagef("--loss: %w", err)
			}
			if slow != "" {
				share, text, ok := strings.Cut(slow, ":")
				if !ok {
					return exit.Usagef("--slow-links %q: write a share and a rate, for example 5%%:10Mbit", slow)
				}
				if o.SlowShare, err = rehearse.ParseShare(share); err != nil {
					return exit.Usagef("--slow-links: %w", err)
				}
				if o.SlowRate, err = rehearse.ParseRate(text); err != nil {
					return exit.Usagef("--slow-links: %w", err)
				}
			}
			if rate != "" {
				if o.Rate, err = rehearse.ParseRate(rate); err != nil {
					return exit.Usagef("--link: %w", err)
				}
			}
			if o.Machines < 0 || o.Machines > 60000 {
				return exit.Usagef("--machines %d: must be between 1 and 60000, or 0 for those of the plan", o.Machines)
			}
			if o.Bundle != "" && len(o.TrustedKeys) == 0 {
				return exit.Usagef("--bundle needs --trusted-keys: the file with the public key of who signed it")
			}
			if o.Program, err = os.Executable(); err != nil {
				return err
			}
			o.Stdin = a.in
			show := follow.NewRehearsalProgress(a.err)
			o.Progress = show.At
			result, err := rehearse.Rehearse(cmd.Context(), o)
			show.End()
			if err != nil {
				return fmt.Errorf("rehearse: %w", err)
			}
			if plotFile != "" {
				if err := writePlot(plotFile, result); err != nil {
					return err
				}
			}
			if done, err := a.printStructured(output, result); done || err != nil {
				return err
			}
			return result.Text(a.out)
		},
	}
	flags := cmd.Flags()
	flags.IntVarP(&o.Machines, "machines", "n", 0, "how many machines (default: those that the plan names, or 100)")
	flags.StringArrayVarP(&o.Manifests, "filename", "f", nil, "the plan: files or folders of manifests, - for standard input (default: a plan that installs everything)")
	flags.StringVar(&o.Bundle, "bundle", "", "bundle to install from (default: a made-up one of a usual size)")
	flags.StringArrayVar(&o.TrustedKeys, "trusted-keys", nil, "files with public keys that may have signed the bundle")
	flags.DurationVar(&o.Ramp, "ramp", 10*time.Second, "all machines are switched on within this time")
	flags.StringVar(&loss, "loss", "0%", "share of packets that are lost")
	flags.StringVar(&slow, "slow-links", "", "share of machines with slow links and their rate, for example 5%:10Mbit")
	flags.StringVar(&rate, "link", "", "rate of all other machines' links, for example 1Gbit (default: no limit)")
	flags.DurationVar(&o.Hold, "hold", 0, "go on for this long when all machines are ready, to measure heartbeats")
	flags.DurationVar(&o.Limit, "timeout", 30*time.Minute, "stop after this time")
	flags.DurationVar(&o.Settle, "settle", 20*time.Second, "machines that wait are given up when nothing has moved for this time")
	flags.DurationVar(&o.Heartbeat, "heartbeat-interval", 30*time.Second, "how often installed nodes report")
	flags.Uint64Var(&o.Seed, "seed", 1, "seed of the made-up machines: another one makes other machines")
	flags.StringVar(&plotFile, "plot", "", "write a diagram of the machines over time to this SVG file")
	flags.StringVar(&o.LogFile, "server-log", "", "keep the server's log in this file")
	flags.Int64Var(&o.Sizes.Image, "image-bytes", o.Sizes.Image, "size of the made-up bundle's image")
	flags.Int64Var(&o.Sizes.Initrd, "initramfs-bytes", o.Sizes.Initrd, "size of the made-up bundle's initramfs")
	addOutputFlag(cmd, &output, "json", "yaml")
	cmd.AddCommand(&cobra.Command{
		Use: "machines", Hidden: true, Args: cobra.NoArgs,
		Short: "The process of the simulated machines; rehearse starts it",
		RunE: func(cmd *cobra.Command, _ []string) error {
			return rehearse.RunRack(cmd.Context(), a.in, a.out)
		},
	})
	return cmd
}

func writePlot(path string, result *rehearse.Result) error {
	var text strings.Builder
	if err := result.Plot(&text); err != nil {
		return err
	}
	return os.WriteFile(path, []byte(text.String()), 0o644)
}
