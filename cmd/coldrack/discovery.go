package main

import (
	"context"
	"fmt"
	"net/url"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"coldrack.dev/internal/cli"
	"coldrack.dev/internal/cli/exit"
	"coldrack.dev/internal/cli/request"
	"coldrack.dev/internal/server/peopleapi/peoplewire"
)

func (a *app) discoveryCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "discovery",
		Short: "Let the members of a new etcd cluster find each other",
		Long: `Make tokens with which the members of a new etcd cluster find each other, as the public discovery service does. The cluster may be of
any machines that reach the server; Kubernetes clusters of Coldrack need no token. The server must run with --etcd-discovery-port.`,
		RunE: group,
	}
	cmd.AddCommand(a.discoveryNewCommand(), a.discoveryListCommand(), a.discoveryShowCommand(), a.discoveryDeleteCommand())
	return cmd
}

func (a *app) discoveryNewCommand() *cobra.Command {
	var (
		size   int
		ttl    time.Duration
		output string
	)
	cmd := &cobra.Command{
		Use:   "new",
		Short: "Make a token for a cluster",
		Example: `  coldrack discovery new --size 3
  coldrack discovery new --size 5 --ttl 1h -o json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if ttl < 0 || ttl%time.Second != 0 {
				return exit.Usagef("--ttl %s: must be whole seconds, for example 1h", ttl)
			}
			config, err := a.connect()
			if err != nil {
				return err
			}
			var made peoplewire.DiscoveryToken
			wanted := peoplewire.NewDiscovery{Size: size, TTL: int64(ttl / time.Second)}
			if err := request.Post(cmd.Context(), config, "make a token", wanted, &made, peoplewire.PathDiscovery); err != nil {
				return err
			}
			if done, err := a.printStructured(output, made); done {
				return err
			}
			if size%2 == 0 {
				fmt.Fprintf(a.err, "note: %d members bear the loss of as many as %d do\n", size, size-1)
			}
			a.printDiscovery(made)
			return nil
		},
	}
	cmd.Flags().IntVar(&size, "size", 3, "how many members the cluster begins with")
	cmd.Flags().DurationVar(&ttl, "ttl", 0, "how long members may register (default: a week)")
	_ = cmd.RegisterFlagCompletionFunc("size", cobra.FixedCompletions([]string{"1", "3", "5", "7"}, cobra.ShellCompDirectiveNoFileComp))
	_ = cmd.RegisterFlagCompletionFunc("ttl", cobra.NoFileCompletions)
	a.addConnectionFlag(cmd)
	addOutputFlag(cmd, &output, "json", "yaml")
	return cmd
}

// printDiscovery shows a token and how etcd is told of it.
func (a *app) printDiscovery(t peoplewire.DiscoveryToken) {
	fmt.Fprintf(a.out, "token %s: %d of %d members, %s, ends %s, made by %s\n", t.Token, len(t.Members), t.Size, t.State, t.Expires.Format(time.RFC3339), t.By)
	for _, m := range t.Members {
		fmt.Fprintf(a.out, "  %s  %s  %s, from %s %s ago\n", m.ID, m.Name, strings.Join(m.PeerURLs, ","), m.From, cli.Age(a.now().Sub(m.At)))
	}
	if t.State != peoplewire.DiscoveryForming {
		return
	}
	at := "SERVER:PORT"
	if len(t.Endpoints) > 0 {
		at = t.Endpoints[0]
	}
	fmt.Fprintf(a.out, "etcd up to 3.6:     --discovery http://%s/%s\n", at, t.Token)
	fmt.Fprintf(a.out, "etcd 3.6 and later: --discovery-token %s --discovery-endpoints http://%s\n", t.Token, at)
	if len(t.Endpoints) > 1 {
		fmt.Fprintf(a.out, "The server is also reached at %s.\n", strings.Join(t.Endpoints[1:], ", "))
	}
}

func (a *app) discoveries(ctx context.Context) (all []peoplewire.DiscoveryToken, err error) {
	config, err := a.connect()
	if err != nil {
		return nil, err
	}
	return all, request.Get(ctx, config, "tokens of etcd discovery", &all, peoplewire.PathDiscovery)
}

func (a *app) discoveryListCommand() *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List tokens",
		Long:  "List tokens: those that wait for members, those that have all, and those that ended in the last week. Viewers see the first characters of a token only.",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			all, err := a.discoveries(cmd.Context())
			if err != nil {
				return err
			}
			if done, err := a.printStructured(output, all); done {
				return err
			}
			if len(all) == 0 {
				fmt.Fprintln(a.err, "no tokens")
				return nil
			}
			t := &cli.Table{Header: []string{"TOKEN", "STATE", "MEMBERS", "AGE", "ENDS", "MADE BY"}}
			for _, d := range all {
				t.Add(d.Token, d.State, fmt.Sprintf("%d of %d", len(d.Members), d.Size), cli.Age(a.now().Sub(d.Created)), d.Expires.Format(time.RFC3339), d.By)
			}
			return t.Print(a.out, true)
		},
	}
	a.addConnectionFlag(cmd)
	addOutputFlag(cmd, &output, "json", "yaml")
	return cmd
}

// completeDiscoveries completes one token.
func (a *app) completeDiscoveries(cmd *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
	var tokens []string
	if len(args) == 0 {
		all, _ := a.discoveries(cmd.Context())
		for _, d := range all {
			if strings.HasPrefix(d.Token, prefix) {
				tokens = append(tokens, fmt.Sprintf("%s\t%s, %d of %d", d.Token, d.State, len(d.Members), d.Size))
			}
		}
	}
	return tokens, cobra.ShellCompDirectiveNoFileComp
}

// discovery finds a token by its first characters.
func (a *app) discovery(ctx context.Context, prefix string) (found peoplewire.DiscoveryToken, err error) {
	all, err := a.discoveries(ctx)
	if err != nil {
		return found, err
	}
	n := 0
	for _, d := range all {
		if prefix != "" && strings.HasPrefix(d.Token, prefix) {
			found = d
			n++
		}
	}
	switch n {
	case 0:
		return found, exit.NotFoundf("there is no token %q; `coldrack discovery list` shows all", prefix)
	case 1:
		return found, nil
	}
	return found, exit.Usagef("%d tokens begin with %q: give more of it", n, prefix)
}

func (a *app) discoveryShowCommand() *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:   "show TOKEN",
		Short: "Show the members that have registered with a token",
		Args:  cobra.ExactArgs(1), ValidArgsFunction: a.completeDiscoveries,
		RunE: func(cmd *cobra.Command, args []string) error {
			d, err := a.discovery(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			if done, err := a.printStructured(output, d); done {
				return err
			}
			a.printDiscovery(d)
			return nil
		},
	}
	a.addConnectionFlag(cmd)
	addOutputFlag(cmd, &output, "json", "yaml")
	return cmd
}

func (a *app) discoveryDeleteCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "delete TOKEN",
		Short: "End a token: nobody registers with it any more",
		Long:  "End a token: nobody registers with it any more. A cluster that has formed with it needs it no longer and is not touched.",
		Args:  cobra.ExactArgs(1), ValidArgsFunction: a.completeDiscoveries,
		RunE: func(cmd *cobra.Command, args []string) error {
			d, err := a.discovery(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			config, err := a.connect()
			if err != nil {
				return err
			}
			if err := request.Delete(cmd.Context(), config, "delete token "+d.Token, url.Values{"token": {d.Token}}, &d, peoplewire.PathDiscovery); err != nil {
				return err
			}
			fmt.Fprintf(a.out, "token %s deleted\n", d.Token)
			return nil
		},
	}
	return a.addConnectionFlag(cmd)
}
