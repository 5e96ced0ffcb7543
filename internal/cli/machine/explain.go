package machine

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/cli"
	"coldrack.dev/internal/netboot/boot"
)

// Explanation is the outcome of explain-boot.
type Explanation struct {
	Machine string                `json:"machine,omitempty"`
	MAC     string                `json:"mac,omitempty"`
	Now     Decision              `json:"now"`
	Boots   []v1alpha1.BootRecord `json:"boots"`
}

// Decision is what the machine would be told if it asked now.
type Decision struct {
	Action v1alpha1.BootAction `json:"action"`
	Reason string              `json:"reason"`
	Local  boot.LocalMethod    `json:"local,omitempty"`
}

// ExplainBoot asks the same pure function as the server, with the facts that the API holds.
func ExplainBoot(ctx context.Context, c client.Client, names []string, mac string) (*Explanation, error) {
	e := &Explanation{MAC: mac, Boots: []v1alpha1.BootRecord{}}
	var m *v1alpha1.Machine
	var err error
	if len(names) > 0 {
		m, err = Get(ctx, c, names[0])
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
	if m != nil {
		blocked := meta.FindStatusCondition(m.Status.Conditions, v1alpha1.ConditionBlocked)
		if blocked != nil && blocked.Reason == v1alpha1.ReasonStoreRestored {
			policy.RestoredAt = blocked.LastTransitionTime.Time
		}
	}
	plan := boot.Decide(requestOf(m, mac), boot.Subject{Machine: m}, policy)
	e.Now = Decision{Action: plan.Action, Reason: plan.Reason, Local: plan.Local}
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

// Print shows it to a person.
func (e *Explanation) Print(w io.Writer, now time.Time) error {
	who := e.Machine
	if who == "" {
		who = "an unknown machine with MAC " + e.MAC
	}
	fmt.Fprintf(w, "If %s asked now: %s\n  because %s\n", who, e.Now.Action, e.Now.Reason)
	if e.Now.Local != "" {
		fmt.Fprintf(w, "  by %s\n", e.Now.Local)
	}
	if len(e.Boots) == 0 {
		fmt.Fprintln(w, "\nIt has not asked for a network boot yet: check its cable, its boot order and `coldrack doctor`.")
		return nil
	}
	fmt.Fprintln(w)
	return cli.BootTable(e.Boots, now).Print(w, true)
}
