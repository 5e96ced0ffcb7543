package main

import (
	"fmt"
	"io"
	"os"

	"coldrack.dev/internal/cli/capture"
	"coldrack.dev/internal/cli/exit"
)

// explainCapture tells what a packet capture shows; path "-" is standard input.
func (a *app) explainCapture(path, output string) error {
	var file io.Reader = a.in
	if path != "-" {
		opened, err := os.Open(path)
		if err != nil {
			return fmt.Errorf("open the capture: %w", err)
		}
		defer opened.Close()
		file = opened
	}
	// Lines for people appear while the file is read; it may be larger than memory.
	events := []capture.Event{}
	const mostEvents = 100_000
	tell := func(e capture.Event) {
		switch {
		case output == "":
			client := e.Client
			if client == "" {
				client = "-"
			}
			fmt.Fprintf(a.out, "%6d %10.3f  %-17s  %-4s  %s\n", e.Packet, e.Seconds, client, e.Protocol, e.Text)
		case len(events) < mostEvents:
			events = append(events, e)
		}
	}
	report, err := capture.Explain(file, tell)
	if err != nil {
		return exit.Usagef("%s: %v", path, err)
	}
	structured := struct {
		capture.Report `json:",inline"`
		Events         []capture.Event `json:"events"`
	}{report, events}
	if done, err := a.printStructured(output, structured); done && err != nil {
		return err
	} else if !done {
		a.printCapture(report)
	}
	for _, c := range report.Clients {
		if c.State == capture.Fail {
			return &exit.Silent{Code: exit.Failure}
		}
	}
	return nil
}

func (a *app) printCapture(r capture.Report) {
	fmt.Fprintf(a.out, "\n%d packets, of which %d are of other protocols; %d lines like those before are left out\n", r.Packets, r.Unread, r.Repeated)
	if r.Cut != "" {
		fmt.Fprintln(a.out, r.Cut)
	}
	if len(r.Clients) == 0 {
		fmt.Fprintln(a.out, "no client that asks for an address or a file by IPv4; capture on the interface of the segment, from before the machine is switched on")
	}
	for _, c := range r.Clients {
		fmt.Fprintf(a.out, "%-4s  %s  %s\n", c.State, c.MAC, c.Verdict)
		if c.Do != "" {
			fmt.Fprintf(a.out, "      %s  -> %s\n", c.MAC, c.Do)
		}
		for _, note := range c.Notes {
			fmt.Fprintf(a.out, "      %s  note: %s\n", c.MAC, note)
		}
	}
}
