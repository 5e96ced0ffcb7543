package main

import (
	"context"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"coldrack.dev/internal/base/durable"
	"coldrack.dev/internal/base/termtext"
	"coldrack.dev/internal/cli"
	"coldrack.dev/internal/cli/csrfile"
	"coldrack.dev/internal/cli/exit"
	"coldrack.dev/internal/cli/request"
	"coldrack.dev/internal/server/peopleapi/peoplewire"
)

func (a *app) pkiCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "pki",
		Short: "Issue certificates to people and services beside Kubernetes",
		Long: `Issue certificates to people and services beside Kubernetes, from an authority of its own that "pki init" makes. Keys are made here and never
sent. See docs/pki.md.`,
		RunE: group,
	}
	cmd.AddCommand(a.pkiInitCommand(), a.pkiIssueCommand(), a.pkiSignCommand(), a.pkiListCommand(), a.pkiShowCommand(), a.pkiRevokeCommand(), a.pkiBundleCommand(), a.pkiCRLCommand())
	return cmd
}

func (a *app) pkiInitCommand() *cobra.Command {
	var (
		wanted peoplewire.PKIInit
		output string
	)
	cmd := &cobra.Command{
		Use:   "init",
		Short: "Make the authority",
		Long: `Make the authority. Domains and networks are all that it may sign for; they stand in its certificate, so that nobody accepts what it signs for
others, and cannot be changed. Needs role admin.`,
		Example: `  coldrack pki init --domain rack.example --network 10.0.0.0/16
  coldrack pki init --name "Rack 7 services" --url http://boot.rack.example:7080`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			config, err := a.connect()
			if err != nil {
				return err
			}
			var made peoplewire.PKI
			if err := request.Post(cmd.Context(), config, "make the authority", wanted, &made, peoplewire.PathPKI, "init"); err != nil {
				return err
			}
			if done, err := a.printStructured(output, made); done {
				return err
			}
			a.printPKI(made)
			return nil
		},
	}
	cmd.Flags().StringVar(&wanted.Name, "name", "", "common name of the authority (default: coldrack service-ca)")
	cmd.Flags().StringSliceVar(&wanted.Domains, "domain", nil, "domain that it may sign for, with all names below (repeatable; default: all)")
	cmd.Flags().StringSliceVar(&wanted.Networks, "network", nil, "network that it may sign for (repeatable; default: all, or none where domains are named)")
	cmd.Flags().StringVar(&wanted.URL, "url", "", "where clients find revoked certificates, http://HOST:PORT, or none (default: the server's address and boot port)")
	a.addConnectionFlag(cmd)
	addOutputFlag(cmd, &output, "json", "yaml")
	return cmd
}

func (a *app) printPKI(p peoplewire.PKI) {
	fmt.Fprintf(a.out, "authority %s, until %s\n", termtext.Line(p.Name, 300), p.Until.Format(time.RFC3339))
	if bounds := slices.Concat(p.Domains, p.Networks); len(bounds) > 0 {
		fmt.Fprintf(a.out, "signs for: %s\n", strings.Join(bounds, ", "))
	} else {
		fmt.Fprintln(a.out, "signs for: all names and addresses")
	}
	if p.URL != "" {
		fmt.Fprintf(a.out, "revoked certificates: %s/pki/ca.crl, %s/pki/ocsp\n", p.URL, p.URL)
	}
}

// issuance are the flags of what asks for a certificate.
type issuance struct {
	profile, cn, out, output, key string
	hosts                         []string
	ttl                           time.Duration
	force                         bool
}

func (i *issuance) define(a *app, cmd *cobra.Command) {
	cmd.Flags().StringVar(&i.profile, "profile", "", "what it is for: server, client or peer, which is both (default server)")
	_ = cmd.RegisterFlagCompletionFunc("profile", cobra.FixedCompletions([]string{"server", "client", "peer"}, cobra.ShellCompDirectiveNoFileComp))
	cmd.Flags().StringSliceVar(&i.hosts, "host", nil, "name, address, mail address or URI that it is for, in place of those of the file (repeatable)")
	cmd.Flags().StringVar(&i.cn, "cn", "", "common name, in place of that of the file")
	cmd.Flags().DurationVar(&i.ttl, "ttl", 0, "how long it lives (default 2160h, 90 days; at most 398 days, for operators 90)")
	a.addConnectionFlag(cmd)
	addOutputFlag(cmd, &i.output, "json", "yaml")
}

// ask sends a request for a certificate.
func (i *issuance) ask(ctx context.Context, a *app, f csrfile.File) (made peoplewire.PKICertificate, err error) {
	if i.ttl < 0 || i.ttl%time.Second != 0 {
		return made, exit.Usagef("--ttl %s: must be whole seconds, for example 720h", i.ttl)
	}
	wanted := peoplewire.PKIRequest{CSR: string(f.CSR), Profile: f.Profile, TTL: int64(i.ttl / time.Second), Hosts: f.Hosts, CommonName: f.CommonName}
	if i.profile != "" {
		wanted.Profile = i.profile
	}
	if len(i.hosts) > 0 {
		wanted.Hosts = i.hosts
	}
	if i.cn != "" {
		wanted.CommonName = i.cn
	}
	config, err := a.connect()
	if err != nil {
		return made, err
	}
	return made, request.Post(ctx, config, "issue a certificate", wanted, &made, peoplewire.PathPKI, "certificates")
}

// told is what -o json prints, with the fields of cfssl, so that cfssljson -bare reads it.
type told struct {
	Cert   string    `json:"cert"`
	Key    string    `json:"key,omitempty"`
	CSR    string    `json:"csr"`
	Serial string    `json:"serial"`
	Until  time.Time `json:"until"`
}

func (a *app) pkiIssueCommand() *cobra.Command {
	var i issuance
	cmd := &cobra.Command{
		Use:   "issue [FILE]",
		Short: "Make a key here and have a certificate issued for it",
		Long: `Make a key here and have a certificate issued for it; the key is not sent. What is wanted stands in flags, or in a JSON file as "cfssl genkey"
reads it ("-": standard input). With --out NAME the files are those of "cfssljson -bare NAME": NAME.pem, NAME-key.pem and NAME.csr.
With -o json, "cfssljson -bare NAME" reads the output.`,
		Example: `  coldrack pki issue --host db.rack.example --host 10.0.0.5 --out db
  coldrack pki issue --profile client --cn alice --ttl 720h --out alice
  coldrack pki issue csr.json --profile peer -o json | cfssljson -bare etcd`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			f := csrfile.File{Key: csrfile.Key{Algo: "ecdsa", Size: 256}}
			if len(args) == 1 {
				var err error
				if f, err = a.readCSR(args[0]); err != nil {
					return err
				}
				if len(f.CSR) > 0 {
					return exit.Usagef("%s is a request already, whose key somebody has; use coldrack pki sign", args[0])
				}
			}
			if i.key != "" {
				key, err := csrfile.ParseKey(i.key)
				if err != nil {
					return exit.Usagef("--%v", err)
				}
				f.Key = key
			}
			if len(i.hosts) > 0 {
				f.Hosts = i.hosts
			}
			if i.cn != "" {
				f.Subject.CommonName = i.cn
			}
			files := []string{i.out + ".pem", i.out + "-key.pem", i.out + ".csr"}
			if err := i.free(files...); err != nil {
				return err
			}
			key, csr, err := f.New()
			if err != nil {
				return exit.Usagef("%v", err)
			}
			f.CSR, f.Hosts = csr, nil // they are in the request
			i.hosts = nil
			made, err := i.ask(cmd.Context(), a, f)
			if err != nil {
				return err
			}
			if i.out != "" {
				// The key comes first: a certificate without its key is worth nothing.
				for n, content := range [][]byte{key, []byte(made.Certificate), csr} {
					mode := []fs.FileMode{0o600, 0o644, 0o644}[n]
					if err := durable.WriteFile([]string{files[1], files[0], files[2]}[n], content, mode); err != nil {
						return fmt.Errorf("the certificate was issued with serial number %s, and cannot be written: %w; revoke it (coldrack pki revoke %s) and issue another", made.Serial, err, made.Serial)
					}
				}
				fmt.Fprintf(a.err, "wrote %s (0600), %s and %s; serial %s, until %s\n", files[1], files[0], files[2], made.Serial, made.Until.Format(time.RFC3339))
			}
			all := told{Cert: made.Certificate, Key: string(key), CSR: string(csr), Serial: made.Serial, Until: made.Until}
			if done, err := a.printStructured(i.output, all); done || i.out != "" {
				return err
			}
			_, err = fmt.Fprint(a.out, all.Key, all.Cert)
			return err
		},
	}
	cmd.Flags().StringVar(&i.key, "key", "", "key to make: "+strings.Join(csrfile.Keys(), ", ")+" (default ecdsa-256, or what the file says)")
	_ = cmd.RegisterFlagCompletionFunc("key", cobra.FixedCompletions(csrfile.Keys(), cobra.ShellCompDirectiveNoFileComp))
	cmd.Flags().StringVar(&i.out, "out", "", "write NAME.pem, NAME-key.pem and NAME.csr instead of printing")
	cmd.Flags().BoolVar(&i.force, "force", false, "replace files that are there")
	i.define(a, cmd)
	return cmd
}

// free refuses to replace files.
func (i *issuance) free(files ...string) error {
	if i.out == "" || i.force {
		return nil
	}
	for _, f := range files {
		if _, err := os.Lstat(f); err == nil {
			return exit.Refusedf("%s is there already; --force replaces it", f)
		} else if !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

func (a *app) readCSR(path string) (f csrfile.File, err error) {
	var content []byte
	if path == "-" {
		content, err = io.ReadAll(io.LimitReader(a.in, 1<<20))
	} else {
		content, err = os.ReadFile(path)
	}
	if err != nil {
		return f, err
	}
	if f, err = csrfile.Parse(content); err != nil {
		return f, exit.Usagef("%s: %v", path, err)
	}
	return f, nil
}

func (a *app) pkiSignCommand() *cobra.Command {
	var i issuance
	cmd := &cobra.Command{
		Use:   "sign FILE",
		Short: "Have a certificate issued for a request",
		Long: `Have a certificate issued for a request (PKCS #10) whose key is elsewhere: a PEM file, or what "cfssl genkey" writes; "-" is standard input.
Its subject and its names count, and no other extension.`,
		Example: `  coldrack pki sign db.csr > db.pem
  openssl req -new -key db.key -subj /CN=db.rack.example -addext subjectAltName=DNS:db.rack.example | coldrack pki sign -
  cfssl genkey csr.json | coldrack pki sign - --profile client -o json | cfssljson -bare db`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			f, err := a.readCSR(args[0])
			if err != nil {
				return err
			}
			if len(f.CSR) == 0 {
				return exit.Usagef("%s asks for a key to be made; use coldrack pki issue", args[0])
			}
			made, err := i.ask(cmd.Context(), a, f)
			if err != nil {
				return err
			}
			if done, err := a.printStructured(i.output, told{Cert: made.Certificate, CSR: string(f.CSR), Serial: made.Serial, Until: made.Until}); done {
				return err
			}
			_, err = fmt.Fprint(a.out, made.Certificate)
			return err
		},
	}
	i.define(a, cmd)
	return cmd
}

func (a *app) pkiCertificates(ctx context.Context) (all []peoplewire.PKICertificate, err error) {
	config, err := a.connect()
	if err != nil {
		return nil, err
	}
	return all, request.Get(ctx, config, "certificates", &all, peoplewire.PathPKI, "certificates")
}

func (a *app) pkiListCommand() *cobra.Command {
	var (
		output, state string
		ending        time.Duration
	)
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List certificates that were issued",
		Example: `  coldrack pki list
  coldrack pki list --ending 720h
  coldrack pki list --state revoked -o json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if states := []string{"", peoplewire.PKIValid, peoplewire.PKIEnded, peoplewire.PKIRevoked}; !slices.Contains(states, state) {
				return exit.Usagef("--state %q: must be one of %s", state, strings.Join(states[1:], ", "))
			}
			all, err := a.pkiCertificates(cmd.Context())
			if err != nil {
				return err
			}
			all = slices.DeleteFunc(all, func(c peoplewire.PKICertificate) bool {
				return state != "" && c.State != state || ending > 0 && (c.State != peoplewire.PKIValid || c.Until.Sub(a.now()) > ending)
			})
			if done, err := a.printStructured(output, all); done {
				return err
			}
			if len(all) == 0 {
				fmt.Fprintln(a.err, "no certificates")
				return nil
			}
			t := &cli.Table{Header: []string{"SERIAL", "PROFILE", "NAME", "NAMES", "STATE", "ENDS", "ISSUED TO"}}
			for _, c := range all {
				t.Add(c.Serial, c.Profile, termtext.Line(c.CommonName, 64), termtext.Line(strings.Join(c.Names, ","), 60), c.State, c.Until.Format(time.RFC3339), termtext.Line(c.By, 64))
			}
			return t.Print(a.out, true)
		},
	}
	cmd.Flags().StringVar(&state, "state", "", "only those that are valid, ended or revoked")
	_ = cmd.RegisterFlagCompletionFunc("state", cobra.FixedCompletions([]string{peoplewire.PKIValid, peoplewire.PKIEnded, peoplewire.PKIRevoked}, cobra.ShellCompDirectiveNoFileComp))
	cmd.Flags().DurationVar(&ending, "ending", 0, "only valid ones that end within this time, for example 720h")
	a.addConnectionFlag(cmd)
	addOutputFlag(cmd, &output, "json", "yaml")
	return cmd
}

// completeSerials completes one serial number.
func (a *app) completeSerials(cmd *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
	var serials []string
	if len(args) == 0 {
		all, _ := a.pkiCertificates(cmd.Context())
		for _, c := range all {
			if strings.HasPrefix(c.Serial, prefix) {
				serials = append(serials, fmt.Sprintf("%s\t%s, %s", c.Serial, termtext.Line(strings.Join(append([]string{c.CommonName}, c.Names...), " "), 60), c.State))
			}
		}
	}
	return serials, cobra.ShellCompDirectiveNoFileComp
}

func (a *app) pkiShowCommand() *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:   "show SERIAL",
		Short: "Show a certificate that was issued",
		Args:  cobra.ExactArgs(1), ValidArgsFunction: a.completeSerials,
		RunE: func(cmd *cobra.Command, args []string) error {
			config, err := a.connect()
			if err != nil {
				return err
			}
			var c peoplewire.PKICertificate
			if err := request.Get(cmd.Context(), config, "certificate "+args[0], &c, peoplewire.PathPKI, "certificates", url.PathEscape(args[0])); err != nil {
				return err
			}
			if done, err := a.printStructured(output, c); done {
				return err
			}
			fmt.Fprintf(a.out, "serial   %s\nprofile  %s\nname     %s\nnames    %s\nissued   %s to %s\nends     %s\nstate    %s\n", c.Serial, c.Profile,
				termtext.Line(c.CommonName, 64), termtext.Line(strings.Join(c.Names, " "), 4000), c.IssuedAt.Format(time.RFC3339), termtext.Line(c.By, 64), c.Until.Format(time.RFC3339), c.State)
			if c.State == peoplewire.PKIRevoked {
				fmt.Fprintf(a.out, "revoked  %s by %s: %s\n", c.RevokedAt.Format(time.RFC3339), termtext.Line(c.RevokedBy, 64), c.Reason)
			}
			fmt.Fprint(a.out, c.Certificate)
			return nil
		},
	}
	a.addConnectionFlag(cmd)
	addOutputFlag(cmd, &output, "json", "yaml")
	return cmd
}

func (a *app) pkiRevokeCommand() *cobra.Command {
	var (
		wanted peoplewire.PKIRevoke
		output string
	)
	reasons := []string{"unspecified", "keyCompromise", "affiliationChanged", "superseded", "cessationOfOperation", "privilegeWithdrawn"}
	cmd := &cobra.Command{
		Use:   "revoke SERIAL",
		Short: "Take a certificate back, for ever",
		Long: `Take a certificate back, for ever. Clients learn of it when they next fetch the list of revoked certificates or ask the responder; those that do
neither never do. Operators take back what was issued to them, administrators all.`,
		Example: `  coldrack pki revoke 5f0c --reason keyCompromise`,
		Args:    cobra.ExactArgs(1), ValidArgsFunction: a.completeSerials,
		RunE: func(cmd *cobra.Command, args []string) error {
			config, err := a.connect()
			if err != nil {
				return err
			}
			var c peoplewire.PKICertificate
			if err := request.Post(cmd.Context(), config, "revoke certificate "+args[0], wanted, &c, peoplewire.PathPKI, "certificates", url.PathEscape(args[0]), "revoke"); err != nil {
				return err
			}
			if done, err := a.printStructured(output, c); done {
				return err
			}
			fmt.Fprintf(a.out, "certificate %s revoked: %s\n", c.Serial, c.Reason)
			return nil
		},
	}
	cmd.Flags().StringVar(&wanted.Reason, "reason", "unspecified", "why: "+strings.Join(reasons, ", "))
	_ = cmd.RegisterFlagCompletionFunc("reason", cobra.FixedCompletions(reasons, cobra.ShellCompDirectiveNoFileComp))
	a.addConnectionFlag(cmd)
	addOutputFlag(cmd, &output, "json", "yaml")
	return cmd
}

func (a *app) pkiBundleCommand() *cobra.Command {
	var (
		output string
		server bool
	)
	cmd := &cobra.Command{
		Use:   "bundle",
		Short: "Print the certificates to trust",
		Long: `Print the authority's certificate, which verifies what it issued. With --server also the authority of machines, which verifies this server's port
for machines. Do not let a service accept people or machines by that one: it identifies this rack's nodes.`,
		Example: `  coldrack pki bundle > /usr/local/share/ca-certificates/rack.crt && update-ca-certificates`,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			config, err := a.connect()
			if err != nil {
				return err
			}
			var p peoplewire.PKI
			if err := request.Get(cmd.Context(), config, "authority", &p, peoplewire.PathPKI); err != nil {
				return err
			}
			if done, err := a.printStructured(output, p); done {
				return err
			}
			fmt.Fprint(a.out, p.Certificate)
			if server {
				fmt.Fprint(a.out, p.Server)
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&server, "server", false, "also the certificate that verifies this server's port for machines")
	a.addConnectionFlag(cmd)
	addOutputFlag(cmd, &output, "json", "yaml")
	return cmd
}

func (a *app) pkiCRLCommand() *cobra.Command {
	var der bool
	cmd := &cobra.Command{
		Use:   "crl",
		Short: "Print the list of revoked certificates",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			config, err := a.connect()
			if err != nil {
				return err
			}
			var list peoplewire.PKIList
			if err := request.Get(cmd.Context(), config, "list of revoked certificates", &list, peoplewire.PathPKI, "crl"); err != nil {
				return err
			}
			if !der {
				_, err = fmt.Fprint(a.out, list.CRL)
				return err
			}
			block, _ := pem.Decode([]byte(list.CRL))
			if block == nil {
				return errors.New("the server's answer holds no list")
			}
			_, err = a.out.Write(block.Bytes)
			return err
		},
	}
	cmd.Flags().BoolVar(&der, "der", false, "in binary")
	return a.addConnectionFlag(cmd)
}
