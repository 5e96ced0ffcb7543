package kube

import (
	"bytes"
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"coldrack.dev/api/v1alpha1"
	"github.com/rogpeppe/go-internal/diff"
)

// Change is what happens to something.
type Change string

const (
	Added   Change = "add"
	Changed Change = "change"
	Removed Change = "remove"
)

// Changes are the way from one plan to another. Nothing in them is secret.
type Changes struct {
	// Authorities that are made.
	Authorities []Authority `json:"authorities,omitempty"`
	// Nodes that change, by machine name.
	Nodes []NodeChange `json:"nodes,omitempty"`
	// Objects of the cluster's API, in the order in which they are applied.
	Objects []ObjectChange `json:"objects,omitempty"`
	// Images that nodes will pull for the first time.
	Images []string `json:"images,omitempty"`
}

// Empty is true when both plans say the same.
func (c *Changes) Empty() bool {
	return len(c.Authorities) == 0 && len(c.Nodes) == 0 && len(c.Objects) == 0
}

// NodeChange is what happens on one machine.
type NodeChange struct {
	Machine string          `json:"machine"`
	Node    string          `json:"node"`
	Address string          `json:"address,omitempty"`
	Roles   []v1alpha1.Role `json:"roles,omitempty"`
	Change  Change          `json:"change"`
	// Version of the kubelet, and FromVersion where it is another now.
	Version     string `json:"version,omitempty"`
	FromVersion string `json:"fromVersion,omitempty"`

	Files        []FileChange        `json:"files,omitempty"` // static pods' manifests included
	Units        []FileChange        `json:"units,omitempty"`
	Certificates []CertificateChange `json:"certificates,omitempty"`
	// Other changes in few words: routes, load balancer, labels, taints, kubeconfigs.
	Other []string `json:"other,omitempty"`
	// Phases that have something to do, in order.
	Phases []PhaseChange `json:"phases,omitempty"`
	// Restarts are the static pods that are started anew.
	Restarts []string `json:"restarts,omitempty"`
	// Disruptions to expect, in the order in which they take place.
	Disruptions []Disruption `json:"disruptions,omitempty"`
}

// FileChange is what happens to a file or a unit.
type FileChange struct {
	Change Change `json:"change"`
	Path   string `json:"path"`
	Mode   string `json:"mode,omitempty"`
	// Diff is unified. It is empty where content is secret or stays, and for new files unless they were asked for.
	Diff string `json:"diff,omitempty"`
	// Note says what Diff does not.
	Note string `json:"note,omitempty"`
}

// CertificateChange is what happens to a certificate.
type CertificateChange struct {
	Change Change `json:"change"`
	Name   string `json:"name"`
	// Subject, SANs and lifetime; what was, for one that is removed.
	Says string `json:"says"`
	// Was is what a changed one says now.
	Was string `json:"was,omitempty"`
}

// PhaseChange is a phase with something to do.
type PhaseChange struct {
	Name   PhaseName   `json:"name"`
	After  []PhaseName `json:"after,omitempty"`
	Reason string      `json:"reason"`
}

// Disruption is something that people could notice.
type Disruption struct {
	// What happens.
	What string `json:"what"`
	// Effect on the cluster and its users.
	Effect string `json:"effect"`
	// Outage is true when the cluster's API or workloads do not answer meanwhile.
	Outage bool `json:"outage,omitempty"`
}

// ObjectChange is what happens to an object of the cluster's API.
type ObjectChange struct {
	Change Change `json:"change"`
	Addon  string `json:"addon"`
	Object string `json:"object"` // Kind [namespace/]name
	Diff   string `json:"diff,omitempty"`
}

// Diff is the way from old to plan. old is nil for a cluster that does not exist yet. contents also shows what is in
// new files, units and objects.
func Diff(old, plan *Plan, contents bool) Changes {
	d := differ{old: old, plan: plan, contents: contents}
	if old == nil {
		d.old = &Plan{}
		for _, a := range plan.Authorities {
			d.changes.Authorities = append(d.changes.Authorities, a.Authority)
		}
	}
	names := slices.Sorted(maps.Keys(d.old.Nodes))
	for name := range plan.Nodes {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range slices.Compact(names) {
		before, was := d.old.Nodes[name]
		after, is := plan.Nodes[name]
		switch {
		case !was:
			d.changes.Nodes = append(d.changes.Nodes, d.added(&after))
		case !is:
			d.changes.Nodes = append(d.changes.Nodes, d.removed(&before))
		default:
			if change, ok := d.changed(&before, &after); ok {
				d.changes.Nodes = append(d.changes.Nodes, change)
			}
		}
	}
	d.objects()
	for _, image := range plan.Requirements.Images {
		if !slices.Contains(d.old.Requirements.Images, image) {
			d.changes.Images = append(d.changes.Images, image)
		}
	}
	return d.changes
}

type differ struct {
	old, plan *Plan
	contents  bool
	changes   Changes
}

func nodeChange(n *NodePlan, change Change) NodeChange {
	return NodeChange{Machine: n.Machine, Node: n.NodeName, Address: n.Address.String(), Roles: n.Roles, Change: change, Version: n.Version}
}

func (d *differ) added(n *NodePlan) NodeChange {
	change := nodeChange(n, Added)
	d.compare(&change, &NodePlan{}, n)
	change.Other = nil
	for _, p := range n.Phases {
		change.Phases = append(change.Phases, PhaseChange{p.Name, p.After, p.Reason})
	}
	members := d.count(d.old, componentEtcd)
	if members > 0 && slices.Contains(n.Roles, v1alpha1.RoleEtcd) {
		change.Disruptions = append(change.Disruptions, Disruption{
			What:   "etcd gets a further member",
			Effect: fmt.Sprintf("%d members keep serving while it copies the data", members)})
	}
	return change
}

func (d *differ) removed(n *NodePlan) NodeChange {
	change := nodeChange(n, Removed)
	effect := fmt.Sprintf("it keeps running what it has until it is released (coldrack release %s)", n.Machine)
	if len(n.Routes) > 0 {
		effect += "; the other nodes drop their routes to its pods"
	}
	change.Disruptions = []Disruption{{What: "the machine is no longer part of the plan", Effect: effect}}
	return change
}

func (d *differ) changed(before, after *NodePlan) (NodeChange, bool) {
	change := nodeChange(after, Changed)
	if before.Version != after.Version {
		change.FromVersion = before.Version
	}
	d.compare(&change, before, after)
	if len(change.Files)+len(change.Units)+len(change.Certificates)+len(change.Other) == 0 && change.FromVersion == "" {
		return change, false
	}
	change.Phases = touched(&change, before, after)
	change.Restarts = d.restarts(&change, after)
	change.Disruptions = d.disruptions(&change, after)
	return change, true
}

// compare fills in what differs in lists.
func (d *differ) compare(change *NodeChange, before, after *NodePlan) {
	eachPair(allFiles(before), allFiles(after), func(f File) string { return f.Path }, func(was, is *File) {
		if c, ok := d.file(was, is); ok {
			change.Files = append(change.Files, c)
		}
	})
	eachPair(before.Units, after.Units, func(u Unit) string { return u.Name }, func(was, is *Unit) {
		if c, ok := d.unit(was, is); ok {
			change.Units = append(change.Units, c)
		}
	})
	eachPair(before.Certificates, after.Certificates, func(c CertificateRequest) string { return c.Name }, func(was, is *CertificateRequest) {
		switch {
		case was == nil:
			change.Certificates = append(change.Certificates, CertificateChange{Added, is.Name, is.says(), ""})
		case is == nil:
			change.Certificates = append(change.Certificates, CertificateChange{Removed, was.Name, was.says(), ""})
		case was.says() != is.says():
			change.Certificates = append(change.Certificates, CertificateChange{Changed, is.Name, is.says(), was.says()})
		}
	})
	change.Other = others(before, after)
}

func allFiles(n *NodePlan) []File {
	files := slices.Clone(n.Files)
	for _, pod := range n.StaticPods {
		files = append(files, pod.File)
	}
	slices.SortFunc(files, func(a, b File) int { return cmp.Compare(a.Path, b.Path) })
	return files
}

// eachPair calls f for every key of both lists, in the order of the keys; nil stands for what is not there.
func eachPair[T any](before, after []T, key func(T) string, f func(was, is *T)) {
	was, is := map[string]*T{}, map[string]*T{}
	for i := range before {
		was[key(before[i])] = &before[i]
	}
	for i := range after {
		is[key(after[i])] = &after[i]
	}
	keys := slices.AppendSeq(slices.Collect(maps.Keys(was)), maps.Keys(is))
	slices.Sort(keys)
	for _, k := range slices.Compact(keys) {
		f(was[k], is[k])
	}
}

func (d *differ) file(was, is *File) (FileChange, bool) {
	switch {
	case was == nil:
		return FileChange{Change: Added, Path: is.Path, Mode: is.Mode.String(), Note: is.note(), Diff: d.text(Added, is.Path, nil, is.Content)}, true
	case is == nil:
		return FileChange{Change: Removed, Path: was.Path, Mode: was.Mode.String(), Note: was.note(), Diff: d.text(Removed, was.Path, was.Content, nil)}, true
	}
	change := FileChange{Change: Changed, Path: is.Path, Mode: is.Mode.String(), Note: is.note()}
	var notes []string
	if was.Mode != is.Mode {
		notes = append(notes, fmt.Sprintf("mode %v becomes %v", was.Mode, is.Mode))
	}
	if was.Link != is.Link {
		notes = append(notes, fmt.Sprintf("a link to %q becomes one to %q", was.Link, is.Link))
	}
	if was.Secret != is.Secret {
		notes = append(notes, "another secret")
	}
	same := bytes.Equal(was.Content, is.Content)
	if same && len(notes) == 0 {
		return change, false
	}
	if len(notes) > 0 {
		change.Note = strings.Join(notes, ", ")
	}
	if is.Once && !same {
		change.Note = strings.TrimPrefix(change.Note+", ", ", ") + "on nodes that have it, it stays as it is"
	}
	change.Diff = d.text(Changed, is.Path, was.Content, is.Content)
	return change, true
}

// note says in few words what a file is when it is not simply content.
func (f *File) note() string {
	switch {
	case f.Secret != "":
		return "secret " + string(f.Secret) + ", not shown"
	case f.Link != "":
		return "a link to " + f.Link
	case f.Mode.IsDir():
		return "a folder"
	case f.Once:
		return "only where there is none"
	}
	return ""
}

func (d *differ) unit(was, is *Unit) (FileChange, bool) {
	switch {
	case was == nil:
		return FileChange{Change: Added, Path: is.Name, Diff: d.text(Added, is.Name, nil, is.text())}, true
	case is == nil:
		return FileChange{Change: Removed, Path: was.Name, Diff: d.text(Removed, was.Name, was.text(), nil)}, true
	case bytes.Equal(was.text(), is.text()):
		return FileChange{}, false
	}
	return FileChange{Change: Changed, Path: is.Name, Diff: d.text(Changed, is.Name, was.text(), is.text())}, true
}

// text is a unit with its drop-ins, each under its name.
func (u *Unit) text() []byte {
	text := bytes.NewBuffer(slices.Clone(u.Content))
	for _, name := range slices.Sorted(maps.Keys(u.DropIns)) {
		fmt.Fprintf(text, "# %s.d/%s\n%s", u.Name, name, u.DropIns[name])
	}
	return text.Bytes()
}

// text is a unified difference, as far as it is wanted.
func (d *differ) text(change Change, name string, was, is []byte) string {
	if change != Changed && !d.contents {
		return ""
	}
	return Unified(name, was, is)
}

// Unified is the difference of two texts in unified form, empty when they are equal.
func Unified(name string, was, is []byte) string {
	if bytes.Equal(was, is) {
		return ""
	}
	unified := diff.Diff("now"+slash(name), was, "then"+slash(name), is)
	// The first line repeats the other two in a form that only one tool knows.
	if _, rest, ok := bytes.Cut(unified, []byte("\n")); ok {
		unified = rest
	}
	return string(unified)
}

func slash(name string) string {
	if strings.HasPrefix(name, "/") {
		return name
	}
	return "/" + name
}

// says is everything about a certificate that a person may want to compare.
func (c *CertificateRequest) says() string {
	text := "CN=" + c.CommonName
	if len(c.Organizations) > 0 {
		text += " O=" + strings.Join(c.Organizations, "+")
	}
	names := slices.Clone(c.DNSNames)
	for _, address := range c.IPAddresses {
		names = append(names, address.String())
	}
	if len(names) > 0 {
		text += " for " + strings.Join(names, ", ")
	}
	return fmt.Sprintf("%s; %s, %d days, by %s", text, c.KeyAlgorithm, int(c.TTL.Hours()/24), c.Authority)
}

// others are changes that are no files.
func others(before, after *NodePlan) []string {
	var list []string
	for _, set := range []struct {
		what    string
		was, is []string
	}{
		{"kubeconfig", texts(before.Kubeconfigs, kubeconfigText), texts(after.Kubeconfigs, kubeconfigText)},
		{"pod network", texts(before.PodCIDRs, netip.Prefix.String), texts(after.PodCIDRs, netip.Prefix.String)},
		{"route", texts(before.Routes, routeText), texts(after.Routes, routeText)},
		{"route to services", texts(before.ServiceRoutes, serviceRouteText), texts(after.ServiceRoutes, serviceRouteText)},
		{"API server behind the local load balancer", texts(before.LoadBalancer.Backends, netip.AddrPort.String), texts(after.LoadBalancer.Backends, netip.AddrPort.String)},
		{"label", pairs(before.Labels), pairs(after.Labels)},
		{"taint", texts(before.Taints, taintText), texts(after.Taints, taintText)},
	} {
		for _, text := range set.was {
			if !slices.Contains(set.is, text) {
				list = append(list, fmt.Sprintf("- %s %s", set.what, text))
			}
		}
		for _, text := range set.is {
			if !slices.Contains(set.was, text) {
				list = append(list, fmt.Sprintf("+ %s %s", set.what, text))
			}
		}
	}
	if was, is := before.LoadBalancer.Listen, after.LoadBalancer.Listen; was != is && was.IsValid() {
		list = append(list, fmt.Sprintf("local load balancer from %s to %s", was, is))
	}
	return list
}

func texts[T any](list []T, text func(T) string) []string {
	out := make([]string, 0, len(list))
	for _, item := range list {
		out = append(out, text(item))
	}
	return out
}

func pairs(m map[string]string) []string {
	out := make([]string, 0, len(m))
	for _, key := range slices.Sorted(maps.Keys(m)) {
		out = append(out, key+"="+m[key])
	}
	return out
}

// objects compares what the cluster's API holds.
func (d *differ) objects() {
	key := func(o Object) string {
		name := o.Name
		if o.Namespace != "" {
			name = o.Namespace + "/" + name
		}
		return o.Kind + " " + name
	}
	was := map[string]Object{}
	for _, o := range d.old.Objects {
		was[key(o)] = o
	}
	for _, o := range d.plan.Objects {
		before, ok := was[key(o)]
		delete(was, key(o))
		switch {
		case !ok:
			d.changes.Objects = append(d.changes.Objects, ObjectChange{Added, o.Addon, key(o), d.text(Added, key(o), nil, o.Content)})
		case !bytes.Equal(before.Content, o.Content):
			d.changes.Objects = append(d.changes.Objects, ObjectChange{Changed, o.Addon, key(o), d.text(Changed, key(o), before.Content, o.Content)})
		}
	}
	for _, name := range slices.Sorted(maps.Keys(was)) {
		d.changes.Objects = append(d.changes.Objects, ObjectChange{Removed, was[name].Addon, name, d.text(Removed, name, was[name].Content, nil)})
	}
}

// touched are the phases that have something to do when a node changes.
func touched(change *NodeChange, before, after *NodePlan) []PhaseChange {
	files, units, certificates := map[string]bool{}, map[string]bool{}, map[string]bool{}
	for _, f := range change.Files {
		files[f.Path] = true
	}
	for _, u := range change.Units {
		units[u.Path] = true
	}
	for _, c := range change.Certificates {
		certificates[c.Name] = true
	}
	kubeconfigs := map[string]bool{}
	for _, k := range after.Kubeconfigs {
		if !slices.Contains(texts(before.Kubeconfigs, kubeconfigText), kubeconfigText(k)) || certificates[k.Certificate] {
			kubeconfigs[k.Path] = true
		}
	}
	has := func(set map[string]bool) func(string) bool { return func(key string) bool { return set[key] } }
	routes := !slices.Equal(before.Routes, after.Routes) || !slices.Equal(before.ServiceRoutes, after.ServiceRoutes)
	balancer := fmt.Sprint(before.LoadBalancer) != fmt.Sprint(after.LoadBalancer)
	var phases []PhaseChange
	for _, p := range after.Phases {
		if slices.ContainsFunc(p.Files, has(files)) || slices.ContainsFunc(p.Units, has(units)) ||
			slices.ContainsFunc(p.Certificates, has(certificates)) || slices.ContainsFunc(p.Kubeconfigs, has(kubeconfigs)) ||
			p.Routes && routes || p.LoadBalancer && balancer || (p.Name == PhaseContent || p.Name == PhaseTools) && change.FromVersion != "" {
			phases = append(phases, PhaseChange{p.Name, p.After, p.Reason})
		}
	}
	return phases
}
