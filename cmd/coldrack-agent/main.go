// Command coldrack-agent is a machine's side of Coldrack: the installer inside the discovery initramfs,
// and the node agent on the installed system.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"coldrack.dev/internal/agent/console"
	"coldrack.dev/internal/agent/discovery"
	"coldrack.dev/internal/agent/inventory"
	"coldrack.dev/internal/agent/node"
	"coldrack.dev/internal/agent/pid1"
	"coldrack.dev/internal/base/version"
)

const usage = `coldrack-agent is a machine's side of Coldrack.

  coldrack-agent init        be PID 1 of the discovery system
  coldrack-agent node        report to the server as an installed node; run by coldrack-agent.service
  coldrack-agent inventory [-o json|yaml|table]
                             print what this machine consists of; writes nothing, and needs no server
  coldrack-agent fingerprint print the fingerprint of this node's key, for "coldrack readmit"
  coldrack-agent version     print the version
`

// Exit codes.
const (
	exitOK     = 0
	exitFailed = 1
	exitUsage  = 2
)

func main() { os.Exit(run(os.Args, os.Stdout, os.Stderr)) }

func run(args []string, stdout, stderr io.Writer) int {
	// The kernel starts /init with whatever words of its command line it did not understand.
	if os.Getpid() == 1 || filepath.Base(args[0]) == "init" {
		args = []string{args[0], "init"}
	}
	verb, format := "", "json"
	switch {
	case len(args) == 2:
		verb = args[1]
	case len(args) == 4 && args[1] == "inventory" && args[2] == "-o" && slices.Contains(inventory.Formats, args[3]):
		verb, format = args[1], args[3]
	}
	var err error
	switch verb {
	case "init":
		err = pid1.Run()
	case pid1.Verb:
		err = discover()
	case "node":
		ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
		defer stop()
		err = node.Start(ctx, slog.NewTextHandler(stderr, nil), version.Get().Version)
	case "inventory":
		err = showInventory(format, stdout, stderr)
	case "fingerprint":
		var fingerprints []string
		fingerprints, err = node.Fingerprints("/")
		for _, f := range fingerprints {
			fmt.Fprintln(stdout, f)
		}
	case "version":
		fmt.Fprintln(stdout, "coldrack-agent", version.Get())
	case "help", "-h", "--help":
		fmt.Fprint(stdout, usage)
	default:
		fmt.Fprint(stderr, usage)
		return exitUsage
	}
	if err != nil {
		fmt.Fprintln(stderr, "coldrack-agent:", err)
		return exitFailed
	}
	return exitOK
}

// showInventory prints what this machine consists of. Some of it is for root alone to read.
func showInventory(format string, stdout, stderr io.Writer) error {
	if os.Geteuid() != 0 {
		fmt.Fprintln(stderr, "coldrack-agent: not run as root: serial numbers, memory modules, the health and the contents of disks, and the BMC are left out")
	}
	return inventory.Write(stdout, format, inventory.Host().Collect(""))
}

// discover is the installer, a child of PID 1. It returns nil when the machine shall restart.
func discover() error {
	con := console.Open()
	defer con.Close()
	log := slog.New(con.Handler(logFile()))
	err := discovery.Start(context.Background(), con, log, version.Get().Version)
	var reboot *discovery.Reboot
	if !errors.As(err, &reboot) {
		return err
	}
	if reboot.Wanted {
		con.Good("%s", reboot.Reason)
		return nil
	}
	con.Fail("%s", reboot.Reason)
	con.Say("this machine boots again in %s", reboot.After.Round(time.Second))
	time.Sleep(reboot.After)
	return nil
}

// logFile keeps the whole log where a person with a shell on the machine finds it.
func logFile() slog.Handler {
	if err := os.MkdirAll("/run/coldrack", 0o755); err != nil {
		return slog.DiscardHandler
	}
	f, err := os.OpenFile("/run/coldrack/agent.log", os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
	if err != nil {
		return slog.DiscardHandler
	}
	return slog.NewTextHandler(f, nil)
}
