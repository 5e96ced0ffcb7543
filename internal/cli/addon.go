package cli

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/base/termtext"
)

// AddonRow is an add-on of a cluster in a list.
type AddonRow struct {
	Cluster string `json:"cluster"`
	Name    string `json:"name"`
	// Own is true for what every cluster has of Coldrack.
	Own     bool   `json:"own,omitempty"`
	Order   int32  `json:"order,omitempty"`
	Version string `json:"version,omitempty"`
	Phase   string `json:"phase"`
	Healthy string `json:"healthy,omitempty"`
	Message string `json:"message,omitempty"`
}

// OrderText is empty for Coldrack's own, which come before all others.
func (r AddonRow) OrderText() string {
	if r.Own {
		return ""
	}
	return fmt.Sprint(r.Order)
}

// ListAddons lists the add-ons of all clusters, or of one: Coldrack's own, then people's in their order.
func ListAddons(ctx context.Context, c client.Client, cluster string) ([]AddonRow, error) {
	clusters, addons := &v1alpha1.ClusterList{}, &v1alpha1.AddonList{}
	if err := c.List(ctx, clusters); err != nil {
		return nil, fmt.Errorf("list clusters: %w", err)
	}
	if err := c.List(ctx, addons); err != nil {
		return nil, fmt.Errorf("list add-ons: %w", err)
	}
	return AddonRows(clusters.Items, addons.Items, cluster), nil
}

// AddonRows are the same of what was read.
func AddonRows(clusters []v1alpha1.Cluster, addons []v1alpha1.Addon, cluster string) []AddonRow {
	rows := []AddonRow{}
	for _, c := range clusters {
		for _, a := range c.Status.Addons {
			if !slices.Contains(v1alpha1.OwnAddons(), a.Name) {
				continue
			}
			phase := "Ready"
			if !a.Ready {
				phase = "Settling"
			}
			rows = append(rows, AddonRow{Cluster: c.Name, Name: a.Name, Own: true, Version: a.Version, Phase: phase, Message: a.Message})
		}
	}
	own := len(rows)
	for _, a := range addons {
		rows = append(rows, AddonRow{Cluster: a.Spec.Cluster, Name: a.Name, Order: a.Spec.Order, Version: a.Spec.Version, Phase: cmp.Or(a.Status.Phase, "Waiting"),
			Healthy: a.Status.Healthy, Message: a.Status.Message})
	}
	slices.SortFunc(rows[own:], func(a, b AddonRow) int { return cmp.Or(cmp.Compare(a.Order, b.Order), cmp.Compare(a.Name, b.Name)) })
	slices.SortStableFunc(rows, func(a, b AddonRow) int { return cmp.Compare(a.Cluster, b.Cluster) })
	return slices.DeleteFunc(rows, func(r AddonRow) bool { return cluster != "" && r.Cluster != cluster })
}

// AddonText says how an add-on is.
func AddonText(a *v1alpha1.Addon) string {
	var b strings.Builder
	field := func(name, format string, args ...any) {
		if text := fmt.Sprintf(format, args...); text != "" {
			fmt.Fprintf(&b, "%-12s %s\n", name, termtext.Line(text, 1000))
		}
	}
	phase := cmp.Or(a.Status.Phase, "Waiting")
	if a.Status.ObservedGeneration < a.Generation {
		phase += " (of what was written before)"
	}
	field("Add-on", "%s", strings.TrimSpace(a.Name+" "+a.Spec.Version))
	field("Cluster", "%s", a.Spec.Cluster)
	field("Phase", "%s", phase)
	field("Message", "%s", a.Status.Message)
	field("Healthy", "%s", a.Status.Healthy)
	if a.Status.AppliedAt != nil {
		field("Applied", "%s", a.Status.AppliedAt.UTC().Format(time.RFC3339))
	}
	for _, image := range a.Status.MissingImages {
		field("No image", "%s", image)
	}
	for _, left := range a.Status.Left {
		field("Left", "%s", left)
	}
	return b.String()
}
