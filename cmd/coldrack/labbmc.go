package main

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/cli/exit"
	"coldrack.dev/internal/cli/labs"
	"coldrack.dev/internal/cli/machine"
	"coldrack.dev/internal/lab"
)

// defaultBMCPort is where a lab's BMC listens, on the loopback address.
const defaultBMCPort = "16623"

func (a *app) labBMCCommand(place *labs.Place) *cobra.Command {
	var listen string
	var attach bool
	cmd := &cobra.Command{
		Use:   "bmc",
		Short: "Be the BMC of the lab's machines, so that a server can switch them",
		Long: `Be the BMC of the lab's machines, until the command is interrupted: a Redfish service in which each machine is a system. With
--attach the Machines that the server knows by these MACs get it as their spec.bmc, with its certificate and a Secret
with its password; run it again for machines that appear later. This needs role admin.`,
		Example: `  coldrack lab bmc --attach &
  coldrack power cycle MACHINE`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx := cmd.Context()
			if !strings.Contains(listen, ":") {
				listen = "127.0.0.1:" + listen
			}
			if _, err := netip.ParseAddrPort(listen); err != nil {
				return exit.Usagef("--listen %q: write a port, or address:port", listen)
			}
			l, err := place.Open()
			if err != nil {
				return err
			}
			controller, err := l.OpenBMC(ctx)
			if err != nil {
				return err
			}
			listener, err := net.Listen("tcp", listen)
			if err != nil {
				return fmt.Errorf("BMC of lab %s: %w", l.Name(), err)
			}
			defer listener.Close()
			address := listener.Addr().String()
			fmt.Fprintf(a.err, "the BMC of lab %s is at %s: user %s, password in %s, certificate %s\n", l.Name(), address, controller.User, l.BMCPasswordFile(), controller.Certificate)
			if attach {
				if err := a.attachBMC(ctx, l, controller, address); err != nil {
					return err
				}
			}
			return controller.Serve(ctx, listener)
		},
	}
	a.addConnectionFlag(cmd)
	cmd.Flags().StringVar(&listen, "listen", defaultBMCPort, "port on the loopback address, or address:port")
	cmd.Flags().BoolVar(&attach, "attach", false, "make it the BMC of the Machines that the server knows by the lab's MACs")
	return cmd
}

// attachBMC tells the server which of its Machines are switched here.
func (a *app) attachBMC(ctx context.Context, l *lab.Lab, controller *lab.BMC, address string) error {
	c, err := a.client()
	if err != nil {
		return err
	}
	var known v1alpha1.MachineList
	if err := c.List(ctx, &known); err != nil {
		return fmt.Errorf("list machines: %w", err)
	}
	secret := "bmc-lab-" + l.Name()
	host, _, _ := net.SplitHostPort(address)
	credentials := machine.Credentials{Secret: secret, User: controller.User, Password: controller.Password, For: []string{host}}
	if _, err := credentials.Write(ctx, c, secret, nil); err != nil {
		return err
	}
	for _, virtual := range l.Machines() {
		i := slices.IndexFunc(known.Items, func(m v1alpha1.Machine) bool { return machine.HasMAC(&m, virtual.MAC().String()) })
		if i < 0 {
			fmt.Fprintf(a.err, "%s: the server knows no Machine with MAC %s yet\n", virtual.Name(), virtual.MAC())
			continue
		}
		b := v1alpha1.BMC{Address: address, System: virtual.Name(), Certificate: controller.Certificate, CredentialsSecret: secret}
		if err := machine.PutBMC(ctx, c, &known.Items[i], b); err != nil {
			return err
		}
		fmt.Fprintf(a.err, "%s: Machine %s is switched here\n", virtual.Name(), known.Items[i].Name)
	}
	return nil
}
