package kubeapi

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"coldrack.dev/api/v1alpha1"
)

// annotationTaints records the taints that we gave a node, so that those which leave the plan can be told from
// those of other people.
const annotationTaints = "coldrack.dev/taints"

// nodeChange is what a Node object lacks.
type nodeChange struct {
	// merge is a merge patch of networks, taints and the record of taints; nil for nothing.
	merge map[string]any
	// labels are to be applied as the whole set of ours.
	labels bool
	// problem for a person: what must not be changed.
	problem string
}

// changeOf compares a node with the plan. Networks are only ever given to a node that has none: kubelet and
// routes rely on those that it has. Labels and taints of the plan come back when somebody removes them; others'
// labels and taints stay.
func changeOf(node *corev1.Node, wanted *Node, networks []netip.Prefix) nodeChange {
	var change nodeChange
	merge := map[string]any{}
	spec := map[string]any{}
	if len(networks) > 0 {
		texts := prefixTexts(networks)
		switch {
		case len(node.Spec.PodCIDRs) == 0 && node.Spec.PodCIDR == "":
			spec["podCIDR"], spec["podCIDRs"] = texts[0], texts
		case !slices.Equal(node.Spec.PodCIDRs, texts):
			change.problem = fmt.Sprintf("node %s has pod networks %s, the plan says %s; they cannot be changed: drain the node, delete it, and let it register again",
				node.Name, strings.Join(node.Spec.PodCIDRs, ","), strings.Join(texts, ","))
		}
	}
	if wanted != nil {
		taints, record := mergeTaints(node, wanted.Taints)
		if !slices.EqualFunc(taints, node.Spec.Taints, sameTaint) {
			spec["taints"] = taints
		}
		if node.Annotations[annotationTaints] != record {
			merge["metadata"] = map[string]any{"annotations": map[string]any{annotationTaints: record}}
		}
		change.labels = !hasLabels(node, wanted.Labels)
	}
	if len(spec) > 0 {
		merge["spec"] = spec
	}
	if len(merge) > 0 {
		change.merge = merge
	}
	return change
}

func sameTaint(a, b corev1.Taint) bool {
	return a.Key == b.Key && a.Value == b.Value && a.Effect == b.Effect
}

type taintID struct {
	Key    string             `json:"key"`
	Effect corev1.TaintEffect `json:"effect"`
}

// mergeTaints returns the taints that the node should have, and the record of those that are ours.
func mergeTaints(node *corev1.Node, wanted []corev1.Taint) ([]corev1.Taint, string) {
	ids := []taintID{}
	for _, t := range wanted {
		ids = append(ids, taintID{t.Key, t.Effect})
	}
	var ours []taintID
	// What cannot be read was not written by us; nothing is removed then.
	_ = json.Unmarshal([]byte(node.Annotations[annotationTaints]), &ours)
	var taints []corev1.Taint
	for _, t := range node.Spec.Taints {
		id := taintID{t.Key, t.Effect}
		if i := slices.Index(ids, id); i >= 0 {
			if t.Value != wanted[i].Value {
				t = wanted[i]
			}
		} else if slices.Contains(ours, id) {
			continue
		}
		taints = append(taints, t)
	}
	for _, t := range wanted {
		if !slices.ContainsFunc(taints, func(has corev1.Taint) bool { return has.Key == t.Key && has.Effect == t.Effect }) {
			taints = append(taints, t)
		}
	}
	record, _ := json.Marshal(ids) // strings can be encoded
	return taints, string(record)
}

// hasLabels is true when the node has the labels and we own no others.
func hasLabels(node *corev1.Node, wanted map[string]string) bool {
	for key, value := range wanted {
		if has, ok := node.Labels[key]; !ok || has != value {
			return false
		}
	}
	return maps.Equal(ownedLabels(node), keySet(wanted))
}

func keySet(m map[string]string) map[string]bool {
	keys := map[string]bool{}
	for k := range m {
		keys[k] = true
	}
	return keys
}

// ownedLabels are the labels that we applied, as the API server remembers.
func ownedLabels(node *corev1.Node) map[string]bool {
	owned := map[string]bool{}
	for _, entry := range node.ManagedFields {
		if !ourFields(entry) || entry.FieldsV1 == nil {
			continue
		}
		var fields struct {
			Metadata struct {
				Labels map[string]any `json:"f:labels"`
			} `json:"f:metadata"`
		}
		if json.Unmarshal(entry.FieldsV1.GetRawBytes(), &fields) != nil {
			continue
		}
		for name := range fields.Metadata.Labels {
			if label, ok := strings.CutPrefix(name, "f:"); ok {
				owned[label] = true
			}
		}
	}
	return owned
}

func ourFields(entry metav1.ManagedFieldsEntry) bool {
	return entry.Manager == FieldManager && entry.Operation == metav1.ManagedFieldsOperationApply && entry.Subresource == ""
}

// reconcileNode makes one node what the plan says. The problem is for a person; an error is tried again.
func (w *work) reconcileNode(ctx context.Context, name string) (problem string, err error) {
	node := w.node(name)
	if node == nil {
		return "", nil
	}
	options := w.runner.options()
	wanted := options.Wanted.node(name)
	var networks []netip.Prefix
	switch {
	case wanted != nil:
		networks = wanted.PodCIDRs
	case options.PodCIDRs != nil && len(node.Spec.PodCIDRs) == 0:
		if networks, err = options.PodCIDRs(name); err != nil {
			return fmt.Sprintf("node %s, which is no machine of the plan, gets no pod networks: %v", name, err), err
		}
	}
	if len(node.Spec.PodCIDRs) == 0 {
		if other, network := w.overlapping(name, networks); other != "" {
			return fmt.Sprintf("node %s is to have pod network %s, which overlaps that of node %s; delete the node that should not have it", name, network, other), nil
		}
	}
	change := changeOf(node, wanted, networks)
	if wanted == nil && len(node.Spec.PodCIDRs) > 0 {
		// A kubelet may bring networks along when it registers.
		for i := range options.Wanted.Nodes {
			if planned := &options.Wanted.Nodes[i]; overlap(node.Spec.PodCIDRs, planned.PodCIDRs) {
				change.problem = fmt.Sprintf("node %s, which is no machine of the plan, has pod networks %s, which belong to node %s; delete node %s",
					name, strings.Join(node.Spec.PodCIDRs, ","), planned.Name, name)
			}
		}
	}
	nodes := w.connection.client.CoreV1().Nodes()
	if change.merge != nil {
		metadata, _ := change.merge["metadata"].(map[string]any)
		if metadata == nil {
			metadata = map[string]any{}
		}
		// What the change rests on must still be so, and the node still be the same one.
		metadata["uid"], metadata["resourceVersion"] = node.UID, node.ResourceVersion
		change.merge["metadata"] = metadata
		content, err := json.Marshal(change.merge)
		if err != nil {
			return "", err
		}
		if _, err := nodes.Patch(ctx, name, types.MergePatchType, content, metav1.PatchOptions{FieldManager: FieldManager}); err != nil {
			return change.problem, fmt.Errorf("node %s: set pod networks and taints: %w", name, err)
		}
	}
	if change.labels {
		content, err := json.Marshal(map[string]any{"apiVersion": "v1", "kind": "Node",
			// With the uid, a node that was deleted meanwhile is not made again.
			"metadata": map[string]any{"name": name, "uid": node.UID, "labels": wanted.Labels}})
		if err != nil {
			return "", err
		}
		force := true
		if _, err := nodes.Patch(ctx, name, types.ApplyPatchType, content, metav1.PatchOptions{FieldManager: FieldManager, Force: &force}); err != nil {
			return change.problem, fmt.Errorf("node %s: apply labels: %w", name, err)
		}
	}
	return change.problem, nil
}

// overlapping finds another node with pods in one of the networks.
func (w *work) overlapping(name string, networks []netip.Prefix) (string, netip.Prefix) {
	if len(networks) == 0 {
		return "", netip.Prefix{}
	}
	for _, other := range w.allNodes() {
		if other.Name == name {
			continue
		}
		for _, network := range networks {
			if overlap(other.Spec.PodCIDRs, []netip.Prefix{network}) {
				return other.Name, network
			}
		}
	}
	return "", netip.Prefix{}
}

func overlap(texts []string, networks []netip.Prefix) bool {
	for _, text := range texts {
		p, err := netip.ParsePrefix(text)
		if err == nil && slices.ContainsFunc(networks, p.Overlaps) {
			return true
		}
	}
	return false
}

// node finds a machine by the name of its node.
func (w *Wanted) node(name string) *Node {
	if w.index != nil {
		return w.index[name]
	}
	for i := range w.Nodes {
		if w.Nodes[i].Name == name {
			return &w.Nodes[i]
		}
	}
	return nil
}

// indexed makes finding nodes quick.
func (w Wanted) indexed() Wanted {
	w.index = map[string]*Node{}
	for i := range w.Nodes {
		w.index[w.Nodes[i].Name] = &w.Nodes[i]
	}
	return w
}

func prefixTexts(networks []netip.Prefix) []string {
	var texts []string
	for _, n := range networks {
		texts = append(texts, n.String())
	}
	return texts
}

// stateOf is what is reported of a node.
func stateOf(node *corev1.Node) NodeState {
	s := NodeState{Name: node.Name, UID: node.UID, Created: node.CreationTimestamp.Time,
		KubeletVersion: node.Status.NodeInfo.KubeletVersion, BootID: node.Status.NodeInfo.BootID, Unschedulable: node.Spec.Unschedulable, Reboot: v1alpha1.ReadRebootRequest(node.Annotations),
		Addresses: nodeAddresses(node), Reason: "NoStatus", Message: "the kubelet has not reported yet", Since: node.CreationTimestamp.Time}
	for _, c := range node.Status.Conditions {
		if c.Type == corev1.NodeReady {
			s.Ready = c.Status == corev1.ConditionTrue
			s.Since, s.Reason, s.Message = c.LastTransitionTime.Time, c.Reason, c.Message
		}
	}
	for _, text := range node.Spec.PodCIDRs {
		if p, err := netip.ParsePrefix(text); err == nil {
			s.PodCIDRs = append(s.PodCIDRs, p)
		}
	}
	return s
}

// nodeAddresses are the IP addresses that a kubelet reported.
func nodeAddresses(node *corev1.Node) []netip.Addr {
	var addresses []netip.Addr
	for _, a := range node.Status.Addresses {
		if a.Type != corev1.NodeInternalIP && a.Type != corev1.NodeExternalIP {
			continue
		}
		if ip, err := netip.ParseAddr(a.Address); err == nil {
			addresses = append(addresses, ip.Unmap())
		}
	}
	return addresses
}
