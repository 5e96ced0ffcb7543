package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strings"

	"github.com/spf13/cobra"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/cli"
	"coldrack.dev/internal/cli/exit"
	"coldrack.dev/internal/cli/machine"
	"coldrack.dev/internal/cli/power"
	"coldrack.dev/internal/cli/request"
	"coldrack.dev/internal/server/peopleapi/peoplewire"
)

func (a *app) bmcCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "bmc",
		Short: "Find BMCs, see what they can do, and set their passwords",
		Args:  cobra.ArbitraryArgs,
		RunE:  group,
	}
	a.addConnectionFlag(cmd)
	cmd.AddCommand(a.bmcProbeCommand(), a.bmcScanCommand(), a.bmcTrustCommand(), a.bmcSetPasswordCommand())
	return cmd
}

func (a *app) bmcProbeCommand() *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:   "probe MACHINE|ADDRESS",
		Short: "Show what a BMC is and can do",
		Long: `Show what a BMC is and can do, as the server sees it. A machine's BMC is asked with its credentials. Of an address, what a
BMC tells everybody is shown, and the fingerprint of its certificate.`,
		Example: `  coldrack bmc probe rack1-u10
  coldrack bmc probe 10.0.9.21`,
		Args: cobra.ExactArgs(1), ValidArgsFunction: a.completeMachines,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			probe := peoplewire.ProbeRequest{Machine: args[0]}
			err = c.Get(cmd.Context(), client.ObjectKey{Name: args[0]}, &v1alpha1.Machine{})
			switch {
			case apierrors.IsNotFound(err):
				probe = peoplewire.ProbeRequest{Address: args[0]}
			case err != nil:
				return fmt.Errorf("get machine %s: %w", args[0], err)
			}
			found, err := a.probe(cmd.Context(), probe)
			if err != nil {
				return err
			}
			if done, err := a.printStructured(output, found); done {
				return err
			}
			return power.Describe(a.out, found)
		},
	}
	addOutputFlag(cmd, &output, "json", "yaml")
	return cmd
}

func (a *app) probe(ctx context.Context, probe peoplewire.ProbeRequest) (found peoplewire.BMC, err error) {
	config, err := a.connect()
	if err != nil {
		return found, err
	}
	err = request.Post(ctx, config, "probe", probe, &found, peoplewire.PathBMCProbe)
	return found, err
}

func (a *app) bmcScanCommand() *cobra.Command {
	var output, secret string
	cmd := &cobra.Command{
		Use:   "scan NETWORK",
		Short: "Look for BMCs in a network",
		Long: `Look for BMCs at all addresses of a network of at most 4096, 64 at a time, from the server: Redfish at TCP port 443, IPMI at
UDP port 623. Serial numbers and MACs are told only to those who log in: --credentials names a Secret to do so with, whose
addresses must hold the network. Its password is then given to everything that answers as a Redfish service there, because
no certificate is known yet; use it with passwords that are changed afterwards. This needs role admin.

-o csv writes a rack sheet with a line for each machine, in the order of the BMCs' addresses: fill in racks, names and addresses,
then "coldrack machines import".`,
		Example: `  coldrack bmc scan 10.0.9.0/24
  coldrack bmc scan 10.0.9.0/24 --credentials bmc-factory -o json
  coldrack bmc scan 10.0.9.0/24 --credentials bmc-factory -o csv > racks.csv    # for coldrack machines import`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if _, err := netip.ParsePrefix(args[0]); err != nil {
				return exit.Usagef("NETWORK %q: want an address and a length, such as 10.0.9.0/24", args[0])
			}
			found, err := a.scan(cmd.Context(), peoplewire.ScanRequest{Network: args[0], CredentialsSecret: secret})
			if err != nil {
				return err
			}
			power.SortFound(found)
			if output == "csv" {
				sheet, err := power.FoundSheet(found, secret)
				if err != nil {
					return err
				}
				_, err = a.out.Write(sheet)
				return err
			}
			if done, err := a.printStructured(output, found); done {
				return err
			}
			if len(found) == 0 {
				fmt.Fprintf(a.err, "no BMC answers in %s, as seen from the server\n", args[0])
				return nil
			}
			return power.FoundTable(found).Print(a.out, true)
		},
	}
	addOutputFlag(cmd, &output, "json", "yaml", "csv")
	cmd.Flags().StringVar(&secret, "credentials", "", "Secret to log in with, to read serial numbers and MACs")
	return cmd
}

func (a *app) scan(ctx context.Context, scan peoplewire.ScanRequest) ([]peoplewire.BMC, error) {
	config, err := a.connect()
	if err != nil {
		return nil, err
	}
	stream, err := request.Stream(ctx, config, "scan", scan, nil, peoplewire.PathBMCScan)
	if err != nil {
		return nil, err
	}
	defer stream.Close()
	found := []peoplewire.BMC{}
	lines := json.NewDecoder(stream)
	for {
		var line peoplewire.ScanLine
		switch err := lines.Decode(&line); {
		case errors.Is(err, io.EOF):
			return nil, errors.New("scan: the server's answer ended before the scan did; it may be restarting")
		case err != nil:
			return nil, fmt.Errorf("scan: %w", err)
		case line.Error != "":
			return nil, fmt.Errorf("scan: %s", line.Error)
		case line.Done:
			return found, nil
		case line.Found != nil:
			found = append(found, *line.Found)
		}
	}
}

func (a *app) bmcTrustCommand() *cobra.Command {
	var fingerprint string
	var yes bool
	cmd := &cobra.Command{
		Use:   "trust MACHINE",
		Short: "Record the certificate of a machine's BMC",
		Long: `Record the certificate that a machine's BMC shows now (spec.bmc.certificate). From then on only this one is accepted, and
nobody else gets the password. Compare the fingerprint with what the BMC's own page or the vendor's list says; with
--fingerprint it is compared here, and anything else is refused.`,
		Example: `  coldrack bmc trust rack1-u10
  coldrack bmc trust rack1-u10 --fingerprint sha256:5f70bf18a086007016e948b04aed3b82103a36bea41755b6cddfaf10ace3c6ef`,
		Args: cobra.ExactArgs(1), ValidArgsFunction: a.completeMachines,
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx := cmd.Context()
			c, err := a.client()
			if err != nil {
				return err
			}
			m, err := machine.Get(ctx, c, args[0])
			if err != nil {
				return err
			}
			switch b := m.Spec.BMC; {
			case b == nil:
				return machine.NoBMC(m.Name)
			case b.Protocol == "ipmi":
				return exit.Refusedf("the BMC of machine %s is asked by IPMI, which has no certificates", m.Name)
			}
			found, err := a.probe(ctx, peoplewire.ProbeRequest{Machine: m.Name, AnyCertificate: true})
			switch {
			case err != nil:
				return err
			case found.Certificate == "":
				return exit.Refusedf("the BMC of machine %s shows no certificate", m.Name)
			case fingerprint != "" && !strings.EqualFold(strings.TrimPrefix(fingerprint, "sha256:"), strings.TrimPrefix(found.Certificate, "sha256:")):
				return exit.Refusedf("the BMC of machine %s shows %s, not %s", m.Name, found.Certificate, fingerprint)
			case found.Certificate == m.Spec.BMC.Certificate:
				fmt.Fprintf(a.out, "%s: %s is recorded already\n", m.Name, found.Certificate)
				return nil
			case fingerprint == "" && !yes:
				question := fmt.Sprintf("The BMC of %s at %s shows the certificate\n  %s\n", m.Name, m.Spec.BMC.Address, found.Certificate)
				if was := m.Spec.BMC.Certificate; was != "" {
					question += "and this one is recorded:\n  " + was + "\n"
				}
				if err := cli.Confirm(ctx, a.in, a.err, question+"Is it the BMC's? Type yes: ", "yes", "no certificate was recorded"); err != nil {
					return err
				}
			}
			if err := machine.SetBMC(ctx, c, m, func(b *v1alpha1.BMC) { b.Certificate, b.Authority = found.Certificate, "" }); err != nil {
				return err
			}
			fmt.Fprintf(a.out, "%s: only %s is accepted from now on\n", m.Name, found.Certificate)
			return nil
		},
	}
	cmd.Flags().StringVar(&fingerprint, "fingerprint", "", "the certificate that it must be: sha256 of its DER bytes")
	cmd.Flags().BoolVarP(&yes, "yes", "y", false, "take what the BMC shows now, without a look (trust on first use)")
	return cmd
}

func (a *app) bmcSetPasswordCommand() *cobra.Command {
	var (
		o         powerOptions
		set       machine.Credentials
		fromStdin bool
	)
	cmd := &cobra.Command{
		Use:   "set-password [MACHINE...]",
		Short: "Give the server the password of BMCs",
		Long: `Ask for a BMC's user and password, keep it in a Secret (encrypted at rest), and have the machines use it. The password of the
BMC itself is not changed. The server sends it only to addresses that the Secret names: those of the machines' BMCs, and
what --for adds. Needs role admin.`,
		Example: `  coldrack bmc set-password rack1-u10
  coldrack bmc set-password --where rack=r1 --secret bmc-r1 --user ADMIN
  coldrack bmc set-password --secret bmc-factory --for 10.0.9.0/24 --password-stdin <file`,
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx := cmd.Context()
			var machines []v1alpha1.Machine
			if len(args) > 0 || o.pick.Selector != "" || o.where != "" {
				var err error
				if machines, err = a.selected(ctx, &o, args, false); err != nil {
					return err
				}
			}
			for i := range machines {
				if machines[i].Spec.BMC == nil {
					return machine.NoBMC(machines[i].Name)
				}
			}
			name, err := set.SecretName(machines)
			if err != nil {
				return err
			}
			if set.Password, err = a.newPassword(ctx, "Password of the BMCs, for Secret "+name+": ", fromStdin); err != nil {
				return err
			}
			c, err := a.client()
			if err != nil {
				return err
			}
			secret, err := set.Write(ctx, c, name, machines)
			if err != nil {
				return err
			}
			fmt.Fprintf(a.out, "Secret %s: user %s, for %s\n", name, secret.Data[v1alpha1.BMCSecretUsername], strings.ReplaceAll(string(secret.Data[v1alpha1.BMCSecretAddresses]), "\n", ", "))
			return nil
		},
	}
	cmd.ValidArgsFunction = a.completeMachines
	cmd.Flags().StringVarP(&o.pick.Selector, "selector", "l", "", "all machines with these labels")
	cmd.Flags().StringVar(&o.where, "where", "", "all machines at a place, for example rack=r1,unit=10-20")
	cmd.Flags().StringVar(&set.Secret, "secret", "", "name of the Secret (default: the one that the machines name, or bmc-MACHINE)")
	cmd.Flags().StringVar(&set.User, "user", "", "user name (default: as before, or admin)")
	cmd.Flags().StringSliceVar(&set.For, "for", nil, "more addresses, networks or host names that the password may be sent to")
	cmd.Flags().BoolVar(&fromStdin, "password-stdin", false, "read the password from standard input, one line")
	return cmd
}

// newPassword asks twice at the terminal, or reads a line.
func (a *app) newPassword(ctx context.Context, question string, fromStdin bool) (string, error) {
	var password string
	var err error
	if fromStdin {
		password, err = bufio.NewReader(io.LimitReader(a.in, 4096)).ReadString('\n')
		if errors.Is(err, io.EOF) {
			err = nil
		}
		password = strings.TrimRight(password, "\r\n")
	} else {
		if password, err = cli.AskPassword(ctx, a.in, a.err, question); err == nil {
			var again string
			if again, err = cli.AskPassword(ctx, a.in, a.err, "Once more: "); err == nil && again != password {
				err = exit.Refusedf("the two differ; nothing was written")
			}
		}
	}
	if err == nil && password == "" {
		err = exit.Usagef("what was given is empty; nothing was written")
	}
	return password, err
}
