package main

import (
	"context"
	"fmt"
	"net"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/cli"
	"coldrack.dev/internal/netboot/boot"
)

// explanation is the outcome of explain-boot.
type explanation struct {
	Machine string                `json:"machine,omitempty"`
	MAC     string                `json:"mac,omitempty"`
	Now     decision              `json:"now"`
	Boots   []v1alpha1.BootRecord `json:"boots"`
}

// decision is what the machine would be told if it asked now.
type decision struct {
	Action v1alpha1.BootAction `json:"action"`
	Reason string              `json:"reason"`
	Local  boot.LocalMethod    `json:"local,omitempty"`
}

func (a *app) explainBootCommand() *cobra.Command {
	var output, mac string
	cmd := &cobra.Command{
		Use:   "explain-boot NAME | --mac MAC",
		Short: "Show what a machine was told to boot, why, and what it would be told now",
		Example: `  coldrack explain-boot node-1
  coldrack explain-boot --mac 52:54:00:12:34:56`,
		Args:              cobra.MaximumNArgs(1),
		ValidArgsFunction: a.completeMachines,
		RunE: func(cmd *cobra.Command, args []string) error {
			if (mac == "") == (len(args) == 0) {
				return usageError("name either a machine or --mac MAC")
			}
			if mac != "" {
				parsed, err := net.ParseMAC(mac)
				if err != nil {
					return usageError("--mac %q is not a MAC address such as 52:54:00:12:34:56", mac)
				}
				mac = parsed.String()
			}
			c, err := a.client()
			if err != nil {
				return err
			}
			e, err := explainBoot(cmd.Context(), c, args, mac)
			if err != nil {
				return err
			}
			if done, err := a.printStructured(output, e); done {
				return err
			}
			return a.printExplanation(e)
		},
	}
	a.addConnectionFlag(cmd)
	cmd.Flags().StringVar(&mac, "mac", "", "the machine with this MAC, known or not")
	addOutputFlag(cmd, &output, "json", "yaml")
	return cmd
}

// explainBoot asks the same pure function as the server, with the facts that the API holds.
func explainBoot(ctx context.Context, c client.Client, names []string, mac string) (*explanation, error) {
	e := &explanation{MAC: mac, Boots: []v1alpha1.BootRecord{}}
	var m *v1alpha1.Machine
	var err error
	if len(names) > 0 {
		m, err = getMachine(ctx, c, names[0])
	} else {
		m, err = machineByMAC(ctx, c, mac)
	}
	if err != nil {
		return nil, err
	}
	policy, err := bootPolicy(ctx, c)
	if err != nil {
		return nil, err
	}
	plan := boot.Decide(requestOf(m, mac), boot.Subject{Machine: m}, policy)
	e.Now = decision{Action: plan.Action, Reason: plan.Reason, Local: plan.Local}
	if m != nil {
		e.Machine = m.Name
		e.Boots = append(e.Boots, m.Status.Boots...)
	}
	return e, nil
}

// bootPolicy is the server's policy as far as its bundles show it.
func bootPolicy(ctx context.Context, c client.Client) (boot.Policy, error) {
	var bundles v1alpha1.BundleList
	if err := c.List(ctx, &bundles); err != nil && !apierrors.IsNotFound(err) {
		return boot.Policy{}, fmt.Errorf("list bundles: %w", err)
	}
	return boot.Policy{Netboot: slices.ContainsFunc(bundles.Items, func(b v1alpha1.Bundle) bool {
		return slices.ContainsFunc(b.Spec.Contents, func(content v1alpha1.BundleContent) bool { return content.Kind == "netboot" })
	})}, nil
}

// requestOf is what the machine would most likely send.
func requestOf(m *v1alpha1.Machine, mac string) boot.Request {
	request := boot.Request{Arch: "x86_64", Platform: boot.PlatformUEFI, MACs: []string{mac}}
	if m == nil {
		return request
	}
	firmware := ""
	if len(m.Status.Boots) > 0 {
		firmware = m.Status.Boots[0].Firmware
	} else if m.Status.Inventory != nil {
		firmware = m.Status.Inventory.Firmware
	}
	if f := strings.ToLower(firmware); strings.Contains(f, "bios") {
		request.Platform = boot.PlatformBIOS
	}
	request.MACs = macsOf(m)
	return request
}

func machineByMAC(ctx context.Context, c client.Client, mac string) (*v1alpha1.Machine, error) {
	var list v1alpha1.MachineList
	if err := c.List(ctx, &list); err != nil {
		return nil, fmt.Errorf("list machines: %w", err)
	}
	for i := range list.Items {
		if slices.Contains(macsOf(&list.Items[i]), mac) {
			return &list.Items[i], nil
		}
	}
	return nil, nil
}

// macsOf are all MACs by which a machine is known.
func macsOf(m *v1alpha1.Machine) []string {
	macs := slices.Clone(m.Spec.Identifiers.MACs)
	if m.Status.Inventory != nil {
		for _, nic := range m.Status.Inventory.NICs {
			macs = append(macs, nic.MAC)
		}
	}
	if m.Status.Lease != nil {
		macs = append(macs, m.Status.Lease.MAC)
	}
	return macs
}

func (a *app) printExplanation(e *explanation) error {
	who := e.Machine
	if who == "" {
		who = "an unknown machine with MAC " + e.MAC
	}
	fmt.Fprintf(a.out, "If %s asked now: %s\n  because %s\n", who, e.Now.Action, e.Now.Reason)
	if e.Now.Local != "" {
		fmt.Fprintf(a.out, "  by %s\n", e.Now.Local)
	}
	if len(e.Boots) == 0 {
		fmt.Fprintln(a.out, "\nIt has not asked for a network boot yet: look at its cable, its boot order and `coldrack doctor`.")
		return nil
	}
	fmt.Fprintln(a.out)
	return cli.BootTable(e.Boots, a.now()).Print(a.out, true)
}
