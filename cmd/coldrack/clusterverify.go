package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"time"

	"github.com/spf13/cobra"

	"coldrack.dev/internal/cli"
	"coldrack.dev/internal/cli/exit"
	"coldrack.dev/internal/cli/request"
	"coldrack.dev/internal/server/peopleapi/peoplewire"
)

func (a *app) clusterVerifyCommand() *cobra.Command {
	var (
		output  string
		noPods  bool
		timeout time.Duration
	)
	cmd := &cobra.Command{
		Use:   "verify NAME",
		Short: "Check that a cluster works",
		Long: `Check a cluster from outside and inside: API servers, etcd, nodes, certificates, encryption of Secrets; DNS, services
and pods of other nodes from a pod of each node; DNS and services from each node's own network; an admission webhook
and an aggregated API from each API server. Probe pods run in namespaces of their own. All of it is removed again.
A line is printed as soon as a check has ended. The exit code is 1 when one failed.`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeClusters,
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx, stop := context.WithTimeout(cmd.Context(), timeout)
			defer stop()
			return a.verifyCluster(ctx, args[0], noPods, output)
		},
	}
	a.addConnectionFlag(cmd)
	addOutputFlag(cmd, &output, "json")
	cmd.Flags().BoolVar(&noPods, "no-pods", false, "skip checks that need pods in the cluster")
	cmd.Flags().DurationVar(&timeout, "timeout", 10*time.Minute, "give up after this time, with exit code 4")
	return cmd
}

func (a *app) verifyCluster(ctx context.Context, name string, noPods bool, output string) error {
	query := url.Values{}
	if noPods {
		query.Set("pods", "no")
	}
	config, err := a.connect()
	if err != nil {
		return err
	}
	stream, err := request.Stream(ctx, config, "verify cluster "+name, struct{}{}, query, peoplewire.PathClusters, url.PathEscape(name), "verify")
	if err != nil {
		return err
	}
	defer stream.Close()

	var all []peoplewire.Check
	failed := 0
	lines := json.NewDecoder(stream)
	for {
		var line peoplewire.CheckLine
		err := lines.Decode(&line)
		switch {
		case errors.Is(ctx.Err(), context.DeadlineExceeded):
			return exit.Timeoutf("verify cluster %s: not all checks ended in time; %d did, %d of them failed", name, len(all), failed)
		case errors.Is(err, io.EOF):
			return fmt.Errorf("verify cluster %s: the server's answer ended before the last check; it may be restarting", name)
		case err != nil:
			return fmt.Errorf("verify cluster %s: %w", name, err)
		case line.Error != "":
			return fmt.Errorf("verify cluster %s: %s", name, line.Error)
		case line.Done:
			return a.verified(name, all, failed, output)
		case line.Check != nil:
			all = append(all, *line.Check)
			if !line.Check.OK {
				failed++
			}
			if output == "" {
				if len(all) == 1 {
					fmt.Fprintln(a.out, cli.CheckHeader())
				}
				fmt.Fprintln(a.out, cli.CheckLine(line.Check.Name, line.Check.Target, line.Check.OK, line.Check.Duration, line.Check.Detail))
			}
		}
	}
}

// verified is the end of a verification.
func (a *app) verified(name string, all []peoplewire.Check, failed int, output string) error {
	if done, err := a.printStructured(output, all); err != nil {
		return err
	} else if !done {
		fmt.Fprintf(a.out, "\n%d checks, %d failed\n", len(all), failed)
	}
	switch {
	case len(all) == 0:
		return fmt.Errorf("verify cluster %s: nothing was checked", name)
	case failed > 0:
		return &exit.Silent{Code: exit.Failure}
	}
	return nil
}
