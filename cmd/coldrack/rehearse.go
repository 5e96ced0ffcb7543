package main

import (
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

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
root, and shares the processors with what it measures: a real rack is no load for its server's host. What machines take
to start their firmware and to write their disks is not in the times. Lost packets on TCP are lost from the server to
the machine only.`,
		Example: `  coldrack rehearse --machines 1000
  coldrack rehearse -f site/ --bundle site.bundle.tar --trusted-keys site.pub --loss 1% --slow-links 5%:10Mbit --plot rack.svg
  coldrack rehearse --machines 300 --ramp 60s -o json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var err error
			if o.Loss, err = parsePercent(loss); err != nil {
				return usageError("--loss: %w", err)
			}
			if slow != "" {
				share, text, ok := strings.Cut(slow, ":")
				if !ok {
					return usageError("--slow-links %q: write a share and a rate, for example 5%%:10Mbit", slow)
				}
				if o.SlowShare, err = parsePercent(share); err != nil {
					return usageError("--slow-links: %w", err)
				}
				if o.SlowRate, err = parseRate(text); err != nil {
					return usageError("--slow-links: %w", err)
				}
			}
			if rate != "" {
				if o.Rate, err = parseRate(rate); err != nil {
					return usageError("--link: %w", err)
				}
			}
			if o.Machines < 0 || o.Machines > 60000 {
				return usageError("--machines %d: must be between 1 and 60000, or 0 for those of the plan", o.Machines)
			}
			if o.Bundle != "" && len(o.TrustedKeys) == 0 {
				return usageError("--bundle needs --trusted-keys: the file with the public key of who signed it")
			}
			if o.Program, err = os.Executable(); err != nil {
				return err
			}
			o.Stdin = a.in
			show := a.newRehearsalProgress()
			o.Progress = show.at
			result, err := rehearse.Rehearse(cmd.Context(), o)
			show.end()
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
	flags.Uint64Var(&o.Seed, "seed", 1, "another number makes other machines")
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

// parsePercent reads 1% or 0.01.
func parsePercent(text string) (float64, error) {
	number, percent := strings.CutSuffix(strings.TrimSpace(text), "%")
	v, err := strconv.ParseFloat(number, 64)
	if percent {
		v /= 100
	}
	if err != nil || !(v >= 0 && v < 1) {
		return 0, fmt.Errorf("%q is not a share: write for example 1%%", text)
	}
	return v, nil
}

// parseRate reads a rate in bits a second and gives bytes a second.
func parseRate(text string) (int64, error) {
	number := strings.TrimRight(text, "kKMGbits/")
	factor, known := map[string]float64{"bit": 1, "kbit": 1e3, "mbit": 1e6, "gbit": 1e9}[strings.TrimSuffix(strings.ToLower(text[len(number):]), "/s")]
	v, err := strconv.ParseFloat(number, 64)
	if err != nil || !known || v*factor < 8000 {
		return 0, fmt.Errorf("%q is not a rate: write for example 100Mbit or 1Gbit", text)
	}
	return int64(v * factor / 8), nil
}

// rehearsalProgress keeps one line up to date where a person looks on.
type rehearsalProgress struct {
	out   io.Writer
	width int
	doing string
	last  time.Time
}

func (a *app) newRehearsalProgress() *rehearsalProgress {
	width, _, _ := terminal(a.err)
	return &rehearsalProgress{out: a.err, width: width}
}

func (p *rehearsalProgress) at(s rehearse.Snapshot) {
	if s.Doing != "" {
		if s.Doing != p.doing {
			p.doing = s.Doing
			p.show(s.Doing, true)
		}
		return
	}
	every := time.Second
	if p.width == 0 {
		every = 10 * time.Second
	}
	if time.Since(p.last) < every {
		return
	}
	p.last = time.Now()
	asked := s.Machines - s.Counts[rehearse.Off]
	line := fmt.Sprintf("%4.0f s  %d asked", s.At.Seconds(), asked)
	for _, phase := range rehearse.Phases()[1:] {
		if n := s.Counts[phase]; n > 0 || phase == rehearse.Lost {
			line += fmt.Sprintf(", %d %s", n, phase)
		}
	}
	line += fmt.Sprintf("  |  server %.1f cores, %d MiB, %.1f Gbit/s", s.CPU, s.Memory>>20, s.Sent*8/1e9)
	p.show(line, false)
}

func (p *rehearsalProgress) show(line string, step bool) {
	switch {
	case p.width == 0:
		fmt.Fprintln(p.out, line)
	case step:
		fmt.Fprintf(p.out, "\r\x1b[K%s", line)
	default:
		fmt.Fprintf(p.out, "\r\x1b[K%.*s", p.width-1, line)
	}
}

func (p *rehearsalProgress) end() {
	if p.width > 0 {
		fmt.Fprint(p.out, "\r\x1b[K")
	}
}
