package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"coldrack.dev/internal/base/durable"
	"coldrack.dev/internal/cli"
	"coldrack.dev/internal/cli/exit"
	"coldrack.dev/internal/cli/request"
	"coldrack.dev/internal/netboot/dns"
	"coldrack.dev/internal/server/peopleapi/peoplewire"
)

func (a *app) dnsCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "dns",
		Short: "Show the names of machines and clusters, and hand them to a site's DNS server",
		Long: `Show the names that the server knows: of machines, their BMCs and clusters, forward and reverse. Where a Subnet has
serveDNS, the server answers by them itself; otherwise, or as well, a site's DNS server is handed them as zone files (export)
or by dynamic updates (update).`,
		Args: cobra.ArbitraryArgs, RunE: group,
	}
	cmd.AddCommand(a.dnsShowCommand(), a.dnsExportCommand(), a.dnsUpdateCommand())
	return cmd
}

// names asks the server for those of the named zones, or of all.
func (a *app) names(ctx context.Context, zones []string) (peoplewire.Names, error) {
	config, err := a.connect()
	if err != nil {
		return peoplewire.Names{}, err
	}
	var all peoplewire.Names
	if err := request.Get(ctx, config, "names of machines", &all, peoplewire.PathNames); err != nil || len(zones) == 0 {
		return all, err
	}
	chosen := peoplewire.Names{Zones: []peoplewire.Zone{}, Collisions: all.Collisions}
	for _, name := range zones {
		found := false
		for _, zone := range all.Zones {
			if strings.EqualFold(zone.Name, strings.TrimSuffix(name, ".")+".") {
				chosen.Zones, found = append(chosen.Zones, zone), true
			}
		}
		if !found {
			return chosen, exit.Usagef("there is no zone %s; there are: %s", name, zoneNames(all))
		}
	}
	return chosen, nil
}

func zoneNames(all peoplewire.Names) string {
	var names []string
	for _, zone := range all.Zones {
		names = append(names, zone.Name)
	}
	return cmp.Or(strings.Join(names, " "), "none, since no Subnet is there")
}

func (a *app) completeZones(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
	all, err := a.names(cmd.Context(), nil)
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	return strings.Fields(zoneNames(all)), cobra.ShellCompDirectiveNoFileComp
}

func (a *app) dnsShowCommand() *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:   "show [ZONE...]",
		Short: "List the names, whose they are, and who wants one that another has",
		Example: `  coldrack dns show
  coldrack dns show rack1.example.org -o json`,
		ValidArgsFunction: a.completeZones,
		RunE: func(cmd *cobra.Command, zones []string) error {
			all, err := a.names(cmd.Context(), zones)
			if err != nil {
				return err
			}
			if done, err := a.printStructured(output, all); done {
				return err
			}
			t := &cli.Table{Header: []string{"NAME", "TYPE", "VALUE", "OF"}}
			for _, zone := range all.Zones {
				for _, r := range zone.Records {
					t.Add(r.Name, r.Type, r.Value, r.Source)
				}
			}
			if err := t.Print(a.out, true); err != nil {
				return err
			}
			for _, c := range all.Collisions {
				fmt.Fprintf(a.err, "%s wants the name %s, which %s has; give one of them another host name\n", c.Loser, c.Name, c.Holder)
			}
			return nil
		},
	}
	a.addConnectionFlag(cmd)
	addOutputFlag(cmd, &output, "json", "yaml")
	return cmd
}

func (a *app) dnsExportCommand() *cobra.Command {
	var dir string
	cmd := &cobra.Command{
		Use:   "export [ZONE...]",
		Short: "Write zone files for a site's DNS server",
		Long: `Write zones as files that DNS servers load (RFC 1035). Without --dir, one zone is printed. The serial number of a zone grows with each
change of it, and only then; a file that is as it was is not written again.`,
		Example: `  coldrack dns export rack1.example.org > rack1.example.org.zone
  coldrack dns export --dir /etc/bind/rack && rndc reload`,
		ValidArgsFunction: a.completeZones,
		RunE: func(cmd *cobra.Command, zones []string) error {
			all, err := a.names(cmd.Context(), zones)
			if err != nil {
				return err
			}
			if dir == "" {
				if len(all.Zones) != 1 {
					return exit.Usagef("name one zone, or a folder for all of them with --dir; there are: %s", zoneNames(all))
				}
				fmt.Fprint(a.out, all.Zones[0].File)
				return nil
			}
			return a.writeZones(dir, all)
		},
	}
	a.addConnectionFlag(cmd)
	cmd.Flags().StringVar(&dir, "dir", "", "folder that gets a file ZONE.zone for each zone")
	return cmd
}

func (a *app) writeZones(dir string, all peoplewire.Names) error {
	for _, zone := range all.Zones {
		name := strings.TrimSuffix(zone.Name, ".")
		// The server has checked names; a file goes nowhere else, whatever server it is.
		if name != filepath.Base(name) || strings.HasPrefix(name, ".") {
			return fmt.Errorf("zone %q cannot be the name of a file", name)
		}
		path := filepath.Join(dir, name+".zone")
		if before, err := os.ReadFile(path); err == nil && string(before) == zone.File {
			fmt.Fprintf(a.out, "%s: serial %d, as it was\n", path, zone.Serial)
			continue
		}
		if err := durable.WriteFile(path, []byte(zone.File), 0o644); err != nil {
			return fmt.Errorf("write zone %s: %w", zone.Name, err)
		}
		fmt.Fprintf(a.out, "%s: serial %d, written\n", path, zone.Serial)
	}
	return nil
}

func (a *app) dnsUpdateCommand() *cobra.Command {
	var (
		server, keyFile, owner, output string
		dryRun                         bool
	)
	cmd := &cobra.Command{
		Use:   "update --server ADDRESS --key-file FILE [ZONE...]",
		Short: "Bring the zones of a site's DNS server up to date",
		Long: `Bring the zones of a site's DNS server up to date by dynamic updates (RFC 2136), signed with a key (TSIG) as tsig-keygen writes it. The
server must let that key transfer and update its zones. Run it from a timer to keep them so.

Which names are Coldrack's is written beside them as TXT records ("heritage=coldrack", "owner=..."). Names of others are left alone and
reported; names of machines that have gone are removed. The exit code is 1 when a name could not be had.`,
		Example: `  tsig-keygen -a hmac-sha256 coldrack > coldrack.key
  coldrack dns update --server 10.0.0.53 --key-file coldrack.key --dry-run
  coldrack dns update --server 10.0.0.53 --key-file coldrack.key rack1.example.org 0.20.10.in-addr.arpa`,
		ValidArgsFunction: a.completeZones,
		RunE: func(cmd *cobra.Command, zones []string) error {
			if server == "" || keyFile == "" {
				return exit.Usagef("give the site's DNS server with --server, and the key that signs updates with --key-file")
			}
			text, err := os.ReadFile(keyFile)
			if err != nil {
				return fmt.Errorf("--key-file: %w", err)
			}
			key, err := dns.ParseKey(string(text))
			if err != nil {
				return exit.Usagef("--key-file %s: %w", keyFile, err)
			}
			if _, _, err := net.SplitHostPort(server); err != nil {
				server = net.JoinHostPort(strings.Trim(server, "[]"), fmt.Sprint(dns.Port))
			}
			return a.updateZones(cmd.Context(), dns.Site{Server: server, Key: key, Owner: owner}, zones, dryRun, output)
		},
	}
	a.addConnectionFlag(cmd)
	addOutputFlag(cmd, &output, "json", "yaml")
	cmd.Flags().StringVar(&server, "server", "", "the site's DNS server, HOST or HOST:PORT")
	cmd.Flags().StringVar(&keyFile, "key-file", "", "file with the key, as tsig-keygen writes it")
	cmd.Flags().StringVar(&owner, "owner", "coldrack", "tells the names of several Coldrack servers in one zone apart")
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "show what would change, and change nothing")
	return cmd
}

func (a *app) updateZones(ctx context.Context, site dns.Site, zones []string, dryRun bool, output string) error {
	all, err := a.names(ctx, zones)
	if err != nil {
		return err
	}
	files := map[string]string{}
	for _, zone := range all.Zones {
		files[zone.Name] = zone.File
	}
	changes, err := site.Plan(ctx, files)
	if err == nil && !dryRun {
		err = site.Apply(ctx, changes)
	}
	if err != nil {
		return errors.New(err.Error()) // that one refused a connection must not be said of our own server
	}
	done, err := a.printStructured(output, changes)
	if err != nil {
		return err
	}
	kept := 0
	for _, c := range changes {
		if c.Kept != "" {
			kept++
		}
		if done {
			continue
		}
		for _, r := range c.Remove {
			fmt.Fprintf(a.out, "- %s %s\n", c.Name, r)
		}
		for _, r := range c.Add {
			fmt.Fprintf(a.out, "+ %s %s\n", c.Name, r)
		}
		if c.Kept != "" {
			fmt.Fprintf(a.err, "%s %s\n", c.Name, c.Kept)
		}
	}
	if !done && len(changes) == 0 {
		fmt.Fprintf(a.out, "%s is up to date\n", site.Server)
	}
	if kept > 0 {
		return &exit.Silent{Code: exit.Failure}
	}
	return nil
}
