// Command coldrack-agent is a machine's side of Coldrack: the installer inside the discovery initramfs,
// and the node agent on the installed system.
package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"

	"coldrack.dev/internal/agent/inventory"
	"coldrack.dev/internal/version"
)

const usage = `coldrack-agent is a machine's side of Coldrack.

  coldrack-agent init        be the installer; this is what PID 1 of the discovery system runs
  coldrack-agent node        report to the server as an installed node; run by coldrack-agent.service
  coldrack-agent inventory   print as JSON what this machine consists of; writes nothing
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
	verb := ""
	if len(args) == 2 {
		verb = args[1]
	}
	switch verb {
	case "inventory":
		enc := json.NewEncoder(stdout)
		enc.SetIndent("", "  ")
		if err := enc.Encode(inventory.Host().Collect("")); err != nil {
			fmt.Fprintln(stderr, "coldrack-agent:", err)
			return exitFailed
		}
		return exitOK
	case "version":
		fmt.Fprintln(stdout, "coldrack-agent", version.Get())
		return exitOK
	case "help", "-h", "--help":
		fmt.Fprint(stdout, usage)
		return exitOK
	}
	fmt.Fprint(stderr, usage)
	return exitUsage
}
