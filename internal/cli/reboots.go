package cli

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"coldrack.dev/api/v1alpha1"
)

// RebootRow is a machine that reboots, or is to.
type RebootRow struct {
	Machine string `json:"machine"`
	// Lock is what lets it go: "cluster NAME", "group NAME", or empty.
	Lock string `json:"lock,omitempty"`
	// State is Waiting, Rebooting or Overdue.
	State   string       `json:"state"`
	Reason  string       `json:"reason,omitempty"`
	Since   *metav1.Time `json:"since,omitempty"`
	Message string       `json:"message,omitempty"`
}

// RebootPast is a reboot that has ended.
type RebootPast struct {
	Machine string      `json:"machine"`
	Lock    string      `json:"lock"`
	EndedAt metav1.Time `json:"endedAt"`
	Reason  string      `json:"reason,omitempty"`
	Outcome string      `json:"outcome"`
}

// RebootObjects are what reboots are told from.
type RebootObjects struct {
	Machines []v1alpha1.Machine
	Groups   []v1alpha1.RebootGroup
	Clusters []v1alpha1.Cluster
}

// ListReboots reads them, for the given machines.
func ListReboots(ctx context.Context, c client.Client, machines []v1alpha1.Machine) (o RebootObjects, err error) {
	groups, clusters := &v1alpha1.RebootGroupList{}, &v1alpha1.ClusterList{}
	if err := c.List(ctx, groups); err != nil {
		return o, fmt.Errorf("list reboot groups: %w", err)
	}
	if err := c.List(ctx, clusters); err != nil {
		return o, fmt.Errorf("list clusters: %w", err)
	}
	return RebootObjects{machines, groups.Items, clusters.Items}, nil
}

// Rows are the machines that reboot or are to: first those that are late, then those that reboot, then those that wait.
func (o RebootObjects) Rows() []RebootRow {
	nodes := map[string]*v1alpha1.ClusterNode{}
	clusterOf := map[string]string{}
	for i := range o.Clusters {
		for j := range o.Clusters[i].Status.Nodes {
			n := &o.Clusters[i].Status.Nodes[j]
			nodes[n.Machine], clusterOf[n.Machine] = n, o.Clusters[i].Name
		}
	}
	rows := []RebootRow{}
	for i := range o.Machines {
		m := &o.Machines[i]
		var row RebootRow
		if n := nodes[m.Name]; n != nil {
			row = nodeReboot(m, n)
			row.Lock = "cluster " + clusterOf[m.Name]
		} else {
			row = o.groupReboot(m)
		}
		if row.State != "" {
			row.Machine = m.Name
			rows = append(rows, row)
		}
	}
	order := []string{"Overdue", "Rebooting", "Waiting"}
	slices.SortFunc(rows, func(a, b RebootRow) int {
		return cmp.Or(cmp.Compare(slices.Index(order, a.State), slices.Index(order, b.State)), cmp.Compare(a.Machine, b.Machine))
	})
	return rows
}

func nodeReboot(m *v1alpha1.Machine, n *v1alpha1.ClusterNode) (row RebootRow) {
	why, _ := m.WantsReboot()
	if why == "" && n.RebootRequest != nil && m.Status.Node != nil && n.RebootRequest.BootID == m.Status.Node.BootID {
		why = "asked for on its Node: " + n.RebootRequest.Request
	}
	switch h := n.Hand; {
	case h != nil && h.Operation == "reboot":
		row = RebootRow{State: "Rebooting", Reason: h.Reason, Since: &h.Since, Message: n.RebootState}
		if h.Failed != "" {
			row.State = "Overdue"
		}
	case why != "":
		row = RebootRow{State: "Waiting", Reason: why, Message: n.RebootState}
	}
	return row
}

func (o RebootObjects) groupReboot(m *v1alpha1.Machine) (row RebootRow) {
	for i := range o.Groups {
		g := &o.Groups[i]
		if h := g.Status.Holder(m.Name); h != nil {
			row = RebootRow{Lock: "group " + g.Name, State: "Rebooting", Reason: h.Reason, Since: &h.Since, Message: h.Message}
			if h.Overdue {
				row.State = "Overdue"
			}
			return row
		}
	}
	why, asked := m.WantsReboot()
	if why == "" {
		return row
	}
	row = RebootRow{State: "Waiting", Reason: why, Message: m.Status.RebootState}
	for i := range o.Groups {
		if is, err := o.Groups[i].Selects(m); err == nil && is {
			row.Lock = "group " + o.Groups[i].Name
			for _, w := range o.Groups[i].Status.Waiting {
				if w.Name == m.Name {
					row.Since, row.Message = &w.Since, w.Message
				}
			}
		}
	}
	if row.Lock == "" {
		row.Message = "nobody has asked for it: coldrack reboot " + m.Name
		if asked {
			row.Message = "begins with its next report"
		}
	}
	return row
}

// History are the reboots that have ended, of the machines, the newest first.
func (o RebootObjects) History() []RebootPast {
	past := []RebootPast{}
	known := map[string]bool{}
	for i := range o.Machines {
		known[o.Machines[i].Name] = true
	}
	for _, g := range o.Groups {
		for _, r := range g.Status.History {
			past = append(past, RebootPast{r.Name, "group " + g.Name, r.EndedAt, r.Reason, r.Outcome})
		}
	}
	for _, c := range o.Clusters {
		for _, s := range c.Status.History {
			if s.Operation == "reboot" && s.Kind == "change" && s.FinishedAt != nil {
				past = append(past, RebootPast{s.Node, "cluster " + c.Name, *s.FinishedAt, s.Reason, cmp.Or(s.Error, "done")})
			}
		}
	}
	past = slices.DeleteFunc(past, func(p RebootPast) bool { return !known[p.Machine] })
	slices.SortStableFunc(past, func(a, b RebootPast) int { return b.EndedAt.Compare(a.EndedAt.Time) })
	return past
}
