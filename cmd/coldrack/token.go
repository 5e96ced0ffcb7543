package main

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"coldrack.dev/internal/cli"
	"coldrack.dev/internal/cli/exit"
	"coldrack.dev/internal/server/audit"
	"coldrack.dev/internal/server/controlplane"
)

func (a *app) tokenCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "token",
		Short: "Create, list and revoke bearer tokens for people and programs",
		Long: `Make, list and revoke bearer tokens. These verbs run on the server's machine, as the owner of the
data folder, whether the server runs or not; a change takes effect with the next request.`,
		RunE: group,
	}
	var server serverFlags
	server.addFlags(cmd)
	cmd.AddCommand(a.tokenCreateCommand(&server), a.tokenListCommand(&server), a.tokenRevokeCommand(&server))
	return cmd
}

func (a *app) tokenCreateCommand(server *serverFlags) *cobra.Command {
	var (
		name, role string
		ttl        time.Duration
	)
	cmd := &cobra.Command{
		Use:     "create --name NAME --role ROLE",
		Short:   "Create a token and print it once",
		Example: `  coldrack token create --name prometheus --role viewer --ttl 720h`,
		Args:    cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			if name == "" {
				return exit.Usagef("--name NAME is missing")
			}
			if ttl < 0 {
				return exit.Usagef("--ttl must not be negative")
			}
			groups, err := roleGroups(role)
			if err != nil {
				return err
			}
			cfg, err := server.existing(a)
			if err != nil {
				return err
			}
			tokens := controlplane.OpenTokens(controlplane.TokensPath(cfg.DataDir))
			secret, err := tokens.Create(name, groups, ttl)
			if err != nil {
				return err
			}
			issued := audit.Issued{What: "tokens", Name: name, Verb: "create", Details: map[string]string{"groups": strings.Join(groups, ","), "ttl": lifetime(ttl)}}
			if err := cfg.RecordIssued(issued, a.logger(cfg)); err != nil {
				return errors.Join(err, tokens.Revoke(name))
			}
			fmt.Fprintln(a.out, secret)
			return nil
		},
	}
	cmd.Flags().StringVar(&name, "name", "", "who will use it, for the audit log")
	cmd.Flags().StringVar(&role, "role", "viewer", "viewer, operator or admin")
	cmd.Flags().DurationVar(&ttl, "ttl", 0, "how long it works (default: until revoked)")
	return cmd
}

func (a *app) tokenListCommand(server *serverFlags) *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List tokens, without their secrets",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			cfg, err := server.existing(a)
			if err != nil {
				return err
			}
			tokens, err := controlplane.OpenTokens(controlplane.TokensPath(cfg.DataDir)).List()
			if err != nil {
				return err
			}
			if done, err := a.printStructured(output, tokens); done {
				return err
			}
			if len(tokens) == 0 {
				fmt.Fprintln(a.err, "no tokens")
				return nil
			}
			table := &cli.Table{Header: []string{"NAME", "ROLE", "CREATED", "EXPIRES"}}
			for _, t := range tokens {
				expires := "never"
				if !t.Expires.IsZero() {
					expires = t.Expires.Format(time.RFC3339)
				}
				if t.Expired(a.now()) {
					expires += " (expired)"
				}
				table.Add(t.Name, roleNames(t.Groups), t.Created.Format(time.RFC3339), expires)
			}
			return table.Print(a.out, true)
		},
	}
	addOutputFlag(cmd, &output, "json", "yaml")
	return cmd
}

func (a *app) tokenRevokeCommand(server *serverFlags) *cobra.Command {
	return &cobra.Command{
		Use:   "revoke NAME",
		Short: "Revoke a token",
		Args:  cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			cfg, err := server.existing(a)
			if err != nil {
				return err
			}
			tokens := controlplane.OpenTokens(controlplane.TokensPath(cfg.DataDir))
			known, err := tokens.List()
			if err != nil {
				return err
			}
			if !slices.ContainsFunc(known, func(t controlplane.Token) bool { return t.Name == args[0] }) {
				return exit.NotFoundf("there is no token %q; `coldrack token list` shows all", args[0])
			}
			// What takes a right away is done whether a record of it can be kept or not.
			unrecorded := cfg.RecordIssued(audit.Issued{What: "tokens", Name: args[0], Verb: "delete"}, a.logger(cfg))
			if err := tokens.Revoke(args[0]); err != nil {
				return err
			}
			if unrecorded != nil {
				fmt.Fprintf(a.err, "warning: the audit log has no record of this: %v\n", unrecorded)
			}
			fmt.Fprintf(a.out, "token %s revoked\n", args[0])
			return nil
		},
	}
}

// lifetime of a credential, for a record.
func lifetime(ttl time.Duration) string {
	if ttl == 0 {
		return "until revoked"
	}
	return ttl.String()
}

func roleNames(groups []string) string {
	var names []string
	for _, g := range groups {
		names = append(names, strings.TrimPrefix(g, "coldrack:"))
	}
	return strings.Join(names, ", ")
}
