package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"golang.org/x/sys/unix"

	"coldrack.dev/internal/cli/bootprobe"
	"coldrack.dev/internal/cli/exit"
)

// probeSegment acts as machines that boot on the segment of an interface, and tells what they would experience.
func (a *app) probeSegment(ctx context.Context, device, output string) error {
	report, err := bootprobe.Run(ctx, bootprobe.Options{Interface: device})
	if errors.Is(err, unix.EPERM) {
		return fmt.Errorf("%w: run as root", err)
	}
	if err != nil {
		return err
	}
	if done, err := a.printStructured(output, report); done && err != nil {
		return err
	} else if !done {
		a.printSegment(report)
	}
	for _, c := range report.Clients {
		if c.State == bootprobe.Fail {
			return &exit.Silent{Code: exit.Failure}
		}
	}
	return nil
}

func (a *app) printSegment(r bootprobe.Report) {
	from := "no address to load files with"
	switch {
	case r.Leased:
		from = fmt.Sprintf("leased %s to load files, and gave it back", r.Address)
	case r.Address.IsValid():
		from = fmt.Sprintf("loads files from its own address %s", r.Address)
	}
	fmt.Fprintf(a.out, "%s asks as %s; %s\n", r.Interface, r.MAC, from)
	if len(r.Servers) == 0 {
		fmt.Fprintln(a.out, "no DHCP server answers")
	}
	for _, s := range r.Servers {
		gives := "gives no address (a proxy)"
		if len(s.Gives) > 0 {
			gives = "gives " + joinAddresses(s.Gives)
		}
		boots := "names a boot file to none"
		if len(s.Boots) > 0 {
			boots = "names a boot file to: " + strings.Join(s.Boots, ", ")
		}
		fmt.Fprintf(a.out, "server %s %s; %s\n", s.Address, gives, boots)
	}
	for _, c := range r.Clients {
		fmt.Fprintf(a.out, "\n%-4s  %-18s %s\n", c.State, c.Kind, c.Verdict)
		if c.Do != "" {
			fmt.Fprintf(a.out, "      %-18s -> %s\n", "", c.Do)
		}
		for _, note := range c.Notes {
			fmt.Fprintf(a.out, "      %-18s note: %s\n", "", note)
		}
		for _, o := range c.Offers {
			fmt.Fprintf(a.out, "      %-12s %8.1f ms  %s\n", "offer", o.Milliseconds, o)
		}
		for _, s := range c.Stages {
			outcome := bootprobe.Size(s.Size)
			if s.Read < s.Size {
				outcome += fmt.Sprintf(", of which %s were read", bootprobe.Size(s.Read))
			}
			if s.Format != "" {
				outcome += ", " + string(s.Format)
			}
			if s.Error != "" {
				outcome = s.Error
			}
			fmt.Fprintf(a.out, "      %-12s %8.1f ms  %s\n      %-12s              %s\n", s.Name, s.Milliseconds, s.URL, "", outcome)
		}
	}
}

func joinAddresses(all []netip.Addr) string {
	var texts []string
	for _, one := range all {
		texts = append(texts, one.String())
	}
	return strings.Join(texts, ", ")
}
