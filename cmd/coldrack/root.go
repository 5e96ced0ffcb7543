package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/client-go/rest"

	"coldrack.dev/internal/base/version"
	"coldrack.dev/internal/cli/exit"
)

// app is what the verbs share: the streams, the clock and the connection to the server.
type app struct {
	in       io.Reader
	out, err io.Writer
	now      func() time.Time
	env      func(string) (string, bool)

	// kubeconfig is the value of --kubeconfig.
	kubeconfig string
	// config is the connection once a verb has asked for it.
	config *rest.Config
	// started is true once arguments and flags were found well-formed.
	started bool
}

// run executes one command line and returns the exit code.
func run(ctx context.Context, args []string, in io.Reader, out, errOut io.Writer) int {
	a := &app{in: in, out: out, err: errOut, now: time.Now, env: os.LookupEnv}
	root := a.rootCommand()
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return exit.OK
	}
	var silent *exit.Silent
	if errors.As(err, &silent) {
		return silent.Code
	}
	if !a.started {
		// Before a verb begins, only the command line itself can be at fault.
		err = exit.Usagef("%w", err)
	}
	if a.config != nil {
		err = exit.Explain(err, a.config.Host)
	}
	fmt.Fprintf(errOut, "coldrack: %v\n", err)
	return exit.CodeOf(err)
}

func (a *app) rootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:   "coldrack",
		Short: "From a cold rack to running nodes, with no internet",
		Long: `Coldrack answers the network boot of servers, learns what each machine is, installs an
operating system and shows where every machine stands.

Exit codes: 0 done, 1 failed, 2 wrong usage, 3 not found, 4 timed out, 5 refused, 6 a plan
that would change something, 7 done without a part that is named.`,
		SilenceUsage:     true,
		SilenceErrors:    true,
		Version:          version.Get().Version,
		PersistentPreRun: func(*cobra.Command, []string) { a.started = true },
	}
	root.SetIn(a.in)
	root.SetOut(a.out)
	root.SetErr(a.err)
	root.SetVersionTemplate(version.Get().String() + "\n")

	const server, machines, clusters, objects, tools = "server", "machines", "clusters", "objects", "tools"
	root.AddGroup(
		&cobra.Group{ID: server, Title: "Server:"},
		&cobra.Group{ID: machines, Title: "Machines:"},
		&cobra.Group{ID: clusters, Title: "Clusters:"},
		&cobra.Group{ID: objects, Title: "Objects:"},
		&cobra.Group{ID: tools, Title: "Tools:"},
	)
	add := func(group string, commands ...*cobra.Command) {
		for _, c := range commands {
			c.GroupID = group
			root.AddCommand(c)
		}
	}
	add(server, a.serveCommand(), a.serverCommand(), a.uiCommand(), a.tokenCommand(), a.kubeconfigCommand(), a.pkiCommand(), a.auditCommand())
	add(machines, a.machinesCommand(), a.machineCommand(), a.watchCommand(), a.approveCommand(),
		a.installCommand(), a.reinstallCommand(), a.releaseCommand(), a.adoptCommand(), a.readmitCommand(), a.rebootCommand(), a.rescueCommand(), a.powerCommand(), a.bmcCommand(), a.logsCommand(), a.unitCommand(), a.updateCommand(), a.explainBootCommand())
	add(clusters, a.clusterCommand(), a.planCommand(), a.addonCommand(), a.discoveryCommand())
	add(objects, a.applyCommand(), a.getCommand(), a.deleteCommand(), a.subnetCommand())
	add(tools, a.bundleCommand(), a.imageCommand(), a.configCommand(), a.labCommand(), a.rehearseCommand(), a.doctorCommand(), a.dnsCommand(), a.versionCommand(), a.docsCommand(), a.manualCommand(), etcdDataCommand())
	root.SetHelpCommandGroupID(tools)
	root.SetCompletionCommandGroupID(tools)
	return root
}

// group is the body of a command that only holds others.
func group(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return cmd.Help()
	}
	return exit.Usagef("unknown command %q for %q; `%s --help` lists them", args[0], cmd.CommandPath(), cmd.CommandPath())
}
