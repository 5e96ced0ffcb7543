package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"

	"github.com/spf13/cobra"
	"k8s.io/client-go/rest"

	"coldrack.dev/internal/cli/machine"
	"coldrack.dev/internal/cli/objects"
	"coldrack.dev/internal/server/peopleapi/peoplewire"
)

func (a *app) logsCommand() *cobra.Command {
	var follow bool
	cmd := &cobra.Command{
		Use:   "logs NAME",
		Short: "Show a machine's log: agent and server messages",
		Long: `Show the last lines of a machine's log: what its agent said in discovery, while it installed and on
the installed node, and what the server did for it. The server keeps them in memory, for as long as it runs.`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeMachines,
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx := cmd.Context()
			c, err := a.client()
			if err != nil {
				return err
			}
			// A name that does not exist gets the same answer from every verb.
			if _, err := machine.Get(ctx, c, args[0]); err != nil {
				return err
			}
			raw, err := a.raw()
			if err != nil {
				return err
			}
			request := raw.Get().AbsPath(peoplewire.PathMachines, url.PathEscape(args[0]), "log")
			if follow {
				request = request.Param("follow", "1")
			}
			stream, err := request.Stream(ctx)
			if err != nil {
				return fmt.Errorf("log of %s: %w", args[0], err)
			}
			defer stream.Close()
			_, err = io.Copy(a.out, stream)
			switch {
			case errors.Is(ctx.Err(), context.Canceled):
				return nil // the person has seen enough
			case err == nil && follow:
				return fmt.Errorf("the server ended the log of %s; it may be restarting", args[0])
			case err != nil:
				return fmt.Errorf("log of %s: %w", args[0], err)
			}
			return nil
		},
	}
	a.addConnectionFlag(cmd)
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on printing new lines until interrupted")
	return cmd
}

// raw returns a client for paths that hold no objects.
func (a *app) raw() (*rest.RESTClient, error) {
	config, err := a.connect()
	if err != nil {
		return nil, err
	}
	return objects.RawClient(config)
}
