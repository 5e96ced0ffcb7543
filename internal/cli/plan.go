package cli

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"coldrack.dev/internal/base/termtext"
	"coldrack.dev/internal/cluster/kube"
	"coldrack.dev/internal/server/peopleapi/peoplewire"
)

// Plan is what RenderPlan prints.
type Plan struct {
	Previews []peoplewire.ClusterPlan
	// Details also shows contents of new files, what certificates say, and the reason of every phase.
	Details bool
}

// Changes is true when carrying the plan out would do anything.
func (p *Plan) Changes() bool {
	return slices.ContainsFunc(p.Previews, func(p peoplewire.ClusterPlan) bool { return !p.Empty() })
}

// RenderPlan is a plan for a person, to be read before anything happens.
func RenderPlan(p Plan) string {
	var b strings.Builder
	for i, preview := range p.Previews {
		if i > 0 {
			b.WriteString("\n")
		}
		r := planText{details: p.Details}
		r.preview(&preview.Preview, preview.Forecast)
		b.WriteString(r.String())
	}
	return b.String()
}

type planText struct {
	strings.Builder
	details bool
}

func (r *planText) line(indent int, format string, args ...any) {
	fmt.Fprintf(r, "%s%s\n", strings.Repeat("  ", indent), strings.TrimRight(oneLine(fmt.Sprintf(format, args...)), " "))
}

func (r *planText) preview(p *kube.Preview, f *peoplewire.Forecast) {
	state := "exists"
	if !p.Exists {
		state = "is new"
	}
	r.line(0, "Cluster %s %s", p.Cluster, state)
	for _, list := range []struct {
		title string
		texts []string
	}{
		{"Invalid; nothing would be done:", p.Invalid},
		{"Waiting for:", p.Problems},
		{"Missing in all imported bundles:", p.Missing},
		{"Notes:", p.Warnings},
	} {
		if len(list.texts) > 0 {
			r.WriteString("\n")
			r.line(0, "%s", list.title)
			for _, text := range list.texts {
				r.line(1, "! %s", text)
			}
		}
	}
	if len(p.Written) > 0 {
		r.WriteString("\n")
		r.line(0, "Changes to the manifests")
		for _, o := range p.Written {
			r.line(1, "%s %s", sign(o.Change), o.Object)
			r.diff(o.Diff)
		}
	}
	r.machines(p.Machines)
	if len(p.Changes.Authorities) > 0 {
		r.WriteString("\n")
		r.line(0, "New certificate authorities, whose keys are sealed on this server: %s", joined(p.Changes.Authorities))
	}
	r.nodes(p.Changes.Nodes)
	r.objects(p.Changes.Objects)
	r.forecast(f)
	r.WriteString("\n")
	r.line(0, "%s", summary(p))
}

func (r *planText) machines(machines []kube.PreviewMachine) {
	if len(machines) == 0 {
		return
	}
	t := &Table{Header: []string{"MACHINE", "GROUP", "ROLES", "ADDRESS", "WHY", "FIRST"}}
	for _, m := range machines {
		t.Add(m.Machine, m.Group, roleText(m.Roles), m.Address, m.Why, m.Install)
	}
	r.WriteString("\n")
	for _, row := range align(withoutEmptyColumns(append([][]string{t.Header}, t.Rows...))) {
		fmt.Fprintln(r, row)
	}
}

// nodes prints what happens on each machine; machines to which the same happens are named together.
func (r *planText) nodes(nodes []kube.NodeChange) {
	type block struct {
		title    string
		machines []string
		text     string
	}
	var blocks []block
	for i := range nodes {
		n := &nodes[i]
		text := planText{details: r.details}
		text.node(n)
		title := map[kube.Change]string{kube.Added: "becomes a node", kube.Changed: "changes", kube.Removed: "leaves"}[n.Change]
		if n.Change == kube.Added {
			title += " (" + roleText(n.Roles) + ", " + n.Version + ")"
		}
		at := slices.IndexFunc(blocks, func(b block) bool { return b.title == title && b.text == text.String() })
		if at < 0 {
			blocks = append(blocks, block{title, nil, text.String()})
			at = len(blocks) - 1
		}
		blocks[at].machines = append(blocks[at].machines, n.Machine)
	}
	for _, b := range blocks {
		each := ""
		if len(b.machines) > 1 {
			each = "each "
		}
		fmt.Fprintf(r, "\n%s: %s%s\n%s", strings.Join(b.machines, ", "), each, b.title, b.text)
	}
}

func (r *planText) node(n *kube.NodeChange) {
	if n.FromVersion != "" {
		r.line(1, "kubelet %s → %s", n.FromVersion, n.Version)
	}
	if n.Change == kube.Removed {
		r.disruptions(n.Disruptions)
		return
	}
	r.certificates(n)
	if n.Change == kube.Added && !r.details {
		r.line(1, "+ %s, %s (--details shows them)", plural(len(n.Files), "file"), plural(len(n.Units), "unit"))
	} else {
		for _, f := range slices.Concat(n.Files, n.Units) {
			r.file(f)
		}
	}
	for _, text := range n.Other {
		r.line(1, "%s", text)
	}
	if len(n.Phases) > 0 {
		r.phases(n.Phases)
	}
	r.disruptions(n.Disruptions)
}

func (r *planText) certificates(n *kube.NodeChange) {
	if n.Change == kube.Added && !r.details {
		var names []string
		for _, c := range n.Certificates {
			names = append(names, c.Name)
		}
		if len(names) > 0 {
			r.line(1, "+ %s: %s", plural(len(names), "certificate"), strings.Join(names, ", "))
		}
		return
	}
	for _, c := range n.Certificates {
		r.line(1, "%s certificate %s: %s", sign(c.Change), c.Name, c.Says)
		if c.Was != "" {
			r.line(2, "was: %s", c.Was)
		}
	}
}

func (r *planText) file(f kube.FileChange) {
	note := f.Note
	if note != "" {
		note = " (" + note + ")"
	}
	r.line(1, "%s %s%s", sign(f.Change), f.Path, note)
	r.diff(f.Diff)
}

// diff indents a unified difference, and leaves out what its title says already.
func (r *planText) diff(text string) {
	for line := range strings.Lines(text) {
		if strings.HasPrefix(line, "--- now") || strings.HasPrefix(line, "+++ then") {
			continue
		}
		fmt.Fprintf(r, "      %s\n", strings.TrimRight(termtext.Lines(line), " \n"))
	}
}

func (r *planText) phases(phases []kube.PhaseChange) {
	if !r.details {
		var names []string
		for _, p := range phases {
			names = append(names, string(p.Name))
		}
		r.line(1, "steps: %s", strings.Join(names, ", "))
		return
	}
	r.line(1, "steps:")
	for _, p := range phases {
		after := ""
		if len(p.After) > 0 {
			after = ", after " + joined(p.After)
		}
		r.line(2, "%s: %s%s", p.Name, p.Reason, after)
	}
}

func (r *planText) disruptions(list []kube.Disruption) {
	for _, d := range list {
		mark := "~"
		if d.Outage {
			mark = "!"
		}
		r.line(1, "%s %s: %s", mark, d.What, d.Effect)
	}
}

// mostSteps of a forecast are shown without --details.
const mostSteps = 40

// forecast prints steps in their order; those that begin at the same time, on several machines for the same reason, in one line.
func (r *planText) forecast(f *peoplewire.Forecast) {
	if f == nil || len(f.Steps)+len(f.EndsAt)+len(f.Waits) == 0 {
		return
	}
	r.WriteString("\n")
	if len(f.Steps) > 0 {
		r.line(0, "Steps, about %s in all", f.Takes)
		r.forecastSteps(f.Steps)
	}
	for _, w := range f.Waits {
		r.line(1, "waits: %s", w)
	}
	for _, b := range f.EndsAt {
		r.line(1, "! %s: %s", strings.TrimPrefix(b.Machine+": "+b.Reason, ": "), b.Remedy)
	}
	for _, note := range f.Notes {
		r.line(1, "%s", note)
	}
}

func (r *planText) forecastSteps(steps []peoplewire.ForecastStep) {
	type row struct {
		step     peoplewire.ForecastStep
		machines []string
	}
	var rows []row
	for _, s := range steps {
		same := func(o row) bool {
			return o.step.After == s.After && o.step.Step == s.Step && o.step.Reason == s.Reason && o.step.Disruption == s.Disruption && o.step.To == s.To
		}
		if i := slices.IndexFunc(rows[max(0, len(rows)-8):], same); i >= 0 {
			i += max(0, len(rows)-8)
			rows[i].machines = append(rows[i].machines, s.Machine)
			continue
		}
		rows = append(rows, row{s, []string{s.Machine}})
	}
	t := &Table{Header: []string{"", "AFTER", "STEP", "MACHINE", "WHY"}}
	for i, o := range rows {
		if i == mostSteps && !r.details {
			t.Add("", "", "...", "", fmt.Sprintf("%d more lines: --details, or -o json", len(rows)-i))
			break
		}
		mark := map[bool]string{true: "", false: "?"}[o.step.CarriedOut]
		if o.step.Outage {
			mark += "!"
		}
		machines := strings.Join(o.machines, ", ")
		if len(o.machines) > 3 && !r.details {
			machines = fmt.Sprintf("%s and %d more", o.machines[0], len(o.machines)-1)
		}
		if o.step.To != "" {
			machines += " → " + o.step.To
		}
		t.Add(mark, o.step.After, o.step.Step, machines, strings.TrimSuffix(o.step.Reason+"; "+o.step.Disruption, "; "))
	}
	for _, line := range align(append([][]string{t.Header}, t.Rows...)) {
		r.WriteString("  " + line + "\n")
	}
}

func (r *planText) objects(objects []kube.ObjectChange) {
	if len(objects) == 0 {
		return
	}
	r.WriteString("\n")
	r.line(0, "Objects of the cluster's API")
	added := map[string][]string{}
	var addons []string
	for _, o := range objects {
		if o.Change == kube.Added && o.Diff == "" {
			if added[o.Addon] == nil {
				addons = append(addons, o.Addon)
			}
			added[o.Addon] = append(added[o.Addon], o.Object)
			continue
		}
		r.line(1, "%s %s", sign(o.Change), o.Object)
		r.diff(o.Diff)
	}
	for _, addon := range addons {
		r.line(1, "+ %s: %s", addon, plural(len(added[addon]), "object"))
	}
}

// summary is the last line.
func summary(p *kube.Preview) string {
	if p.Empty() {
		return "Nothing would change."
	}
	counts := map[kube.Change]int{}
	outages := 0
	for _, n := range p.Changes.Nodes {
		counts[n.Change]++
		if slices.ContainsFunc(n.Disruptions, func(d kube.Disruption) bool { return d.Outage }) {
			outages++
		}
	}
	installs := 0
	for _, m := range p.Machines {
		if m.Install != "" && !m.Has {
			installs++
		}
	}
	var parts []string
	add := func(n int, one, many string) {
		if n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", n, map[bool]string{true: one, false: many}[n == 1]))
		}
	}
	add(installs, "machine is installed first", "machines are installed first")
	add(counts[kube.Added], "machine becomes a node", "machines become nodes")
	add(counts[kube.Changed], "node changes", "nodes change")
	add(counts[kube.Removed], "machine leaves", "machines leave")
	add(len(p.Changes.Objects), "object of the API is written", "objects of the API are written")
	otherwise := "nothing happens until the problems above are solved"
	if len(p.Invalid)+len(p.Problems) == 0 {
		otherwise = "nothing changes on machines"
	}
	text := cmp.Or(strings.Join(parts, ", "), otherwise)
	if outages > 0 {
		text += "; the API is interrupted (!)"
	}
	return "Plan: " + text + "."
}

func sign(c kube.Change) string {
	return map[kube.Change]string{kube.Added: "+", kube.Changed: "~", kube.Removed: "-"}[c]
}

func plural(n int, noun string) string {
	if n != 1 {
		noun += "s"
	}
	return fmt.Sprintf("%d %s", n, noun)
}

func joined[T ~string](list []T) string {
	texts := make([]string, 0, len(list))
	for _, item := range list {
		texts = append(texts, string(item))
	}
	return strings.Join(texts, ", ")
}
