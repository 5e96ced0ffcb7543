package cli

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"coldrack.dev/api/v1alpha1"
)

// phases are in the order in which counts are shown: trouble first, then the order of a machine's life.
var phases = [...]v1alpha1.MachinePhase{
	v1alpha1.PhaseFailed, v1alpha1.PhaseLost,
	v1alpha1.PhaseExpected, v1alpha1.PhaseDiscovering, v1alpha1.PhaseWaiting, v1alpha1.PhaseApproved,
	v1alpha1.PhaseInstalling, v1alpha1.PhaseRebooting, v1alpha1.PhaseReady,
	v1alpha1.PhaseReleasing, v1alpha1.PhaseReleased,
}

// Phases returns every phase, troubled ones first, then in the order of a machine's way.
func Phases() []v1alpha1.MachinePhase { return slices.Clone(phases[:]) }

// patience is how long a machine may stay in a phase before a person should look. Phases that are not
// listed may last for ever.
func patience(phase v1alpha1.MachinePhase) time.Duration {
	switch phase {
	case v1alpha1.PhaseDiscovering, v1alpha1.PhaseApproved, v1alpha1.PhaseRebooting:
		// Servers with much memory and many option ROMs need up to ten minutes for a cold start.
		return 15 * time.Minute
	case v1alpha1.PhaseInstalling, v1alpha1.PhaseReleasing:
		return time.Hour
	}
	return 0
}

// Stuck tells why a machine will not get on without a person, or "" when nothing is known to be wrong.
func Stuck(m *v1alpha1.Machine, now time.Time) string {
	switch m.Status.Phase {
	case v1alpha1.PhaseFailed, v1alpha1.PhaseLost:
		return orElse(m.Status.Message, strings.ToLower(string(m.Status.Phase)))
	}
	if c := meta.FindStatusCondition(m.Status.Conditions, v1alpha1.ConditionIdentityConflict); c != nil && c.Status == metav1.ConditionTrue {
		return orElse(c.Message, "shares identifiers with another machine")
	}
	limit, since := patience(m.Status.Phase), m.Status.PhaseSince
	if limit > 0 && since != nil && now.Sub(since.Time) > limit {
		text := fmt.Sprintf("%s for %s", strings.ToLower(string(m.Status.Phase)), Age(now.Sub(since.Time)))
		if m.Status.Message != "" {
			text += ": " + m.Status.Message
		}
		return text
	}
	return ""
}

// Progress is how far the current operation of a machine has come.
type Progress struct {
	// Step is the name of the running step and Number its place among Total, counted from 1.
	Step          string
	Number, Total int
	// Fraction of the step that is done, 0 to 1, when Measured.
	Fraction float64
	Measured bool
	State    v1alpha1.StepState
	Message  string
}

// ProgressOf returns the progress of the running or failed step; ok is false when no operation is under way.
func ProgressOf(m *v1alpha1.Machine) (p Progress, ok bool) {
	for i, step := range m.Status.Steps {
		if step.State != v1alpha1.StepRunning && step.State != v1alpha1.StepFailed {
			continue
		}
		p = Progress{Step: step.Name, Number: i + 1, Total: len(m.Status.Steps), State: step.State, Message: step.Message}
		if step.BytesTotal > 0 {
			p.Measured = true
			p.Fraction = min(1, float64(step.BytesDone)/float64(step.BytesTotal))
		}
		return p, true
	}
	return Progress{}, false
}

// String is the progress in few words: "image 43% (6/10)".
func (p Progress) String() string {
	text := p.Step
	switch {
	case p.State == v1alpha1.StepFailed:
		text += " failed"
	case p.Measured:
		text += fmt.Sprintf(" %d%%", int(p.Fraction*100))
	}
	return fmt.Sprintf("%s (%d/%d)", text, p.Number, p.Total)
}

// Overall is the fraction of the whole operation. The steps that move data count as much as all others
// together, which is about how the time is spent.
func Overall(m *v1alpha1.Machine) float64 {
	var done, total float64
	for _, step := range m.Status.Steps {
		weight := 1.0
		if step.BytesTotal > 0 || step.Name == "image" {
			weight = float64(max(1, len(m.Status.Steps)-1))
		}
		total += weight
		switch step.State {
		case v1alpha1.StepSucceeded, v1alpha1.StepSkipped:
			done += weight
		case v1alpha1.StepRunning, v1alpha1.StepFailed:
			if step.BytesTotal > 0 {
				done += weight * min(1, float64(step.BytesDone)/float64(step.BytesTotal))
			}
		}
	}
	if total == 0 {
		return 0
	}
	return done / total
}

// Bar draws a fraction between 0 and 1, width columns wide, brackets included.
func Bar(fraction float64, width int) string {
	inner := max(1, width-2)
	full := int(min(max(fraction, 0), 1)*float64(inner) + 0.5)
	return "[" + strings.Repeat("#", full) + strings.Repeat(".", inner-full) + "]"
}

// stepCell is the step column of a table.
func stepCell(m *v1alpha1.Machine) string {
	if k := m.Status.Kubernetes; k != nil && !k.Done && m.Status.Phase == v1alpha1.PhaseReady {
		return PhasesOf(k.Phases).String()
	}
	p, ok := ProgressOf(m)
	if !ok || !acting(m) {
		if acting(m) {
			return m.Status.CurrentStep
		}
		return ""
	}
	return Bar(Overall(m), 12) + " " + p.String()
}

// acting is true while steps tell of the present, not of the last operation.
func acting(m *v1alpha1.Machine) bool {
	switch m.Status.Phase {
	case v1alpha1.PhaseInstalling, v1alpha1.PhaseReleasing, v1alpha1.PhaseFailed, v1alpha1.PhaseLost:
		return true
	}
	return false
}

// MachineTable sums machines up, one a row; wide adds columns.
func MachineTable(machines []v1alpha1.Machine, now time.Time, wide bool) *Table {
	t := &Table{Header: []string{"NAME", "PHASE", "STEP", "ADDRESS", "RACK", "SERIAL", "SINCE", "MESSAGE"}}
	if wide {
		t.Header = []string{"NAME", "PHASE", "STEP", "ADDRESS", "RACK", "SERIAL", "SINCE", "HOSTNAME", "CLUSTER", "ROLES", "PROFILE", "IMAGE",
			"MODEL", "CPUS", "MEMORY", "DISKS", "FIRMWARE", "INTENT", "MESSAGE"}
	}
	for i := range machines {
		m := &machines[i]
		row := []string{m.Name, PhaseOf(m), stepCell(m), AddressOf(m), rack(m.Spec.Location), serial(m), since(m, now)}
		if wide {
			cluster, roles := membership(m)
			row = append(row, m.Spec.Hostname, cluster, roles, m.Spec.Profile, installedImage(m))
			row = append(row, hardware(m.Status.Inventory)...)
			row = append(row, intentCell(m))
		}
		t.Add(append(row, message(m, now))...)
	}
	return t
}

// PhaseOf is the phase as shown; a Machine that no controller has looked at yet is Expected.
func PhaseOf(m *v1alpha1.Machine) string {
	return orElse(string(m.Status.Phase), string(v1alpha1.PhaseExpected))
}

// AddressOf is the address at which a machine is, or will be, reached.
func AddressOf(m *v1alpha1.Machine) string {
	if m.Status.Address != "" {
		return m.Status.Address
	}
	if m.Spec.Network != nil && m.Spec.Network.Address != "" {
		return m.Spec.Network.Address
	}
	if m.Status.Lease != nil {
		return m.Status.Lease.Address
	}
	return ""
}

// SortMachines orders by name in a person's sense: node-2 before node-10. With stuckFirst, those that
// need a person come before those that do not.
func SortMachines(machines []v1alpha1.Machine, stuckFirst bool, now time.Time) {
	slices.SortStableFunc(machines, func(a, b v1alpha1.Machine) int {
		if stuckFirst {
			if c := cmp.Compare(urgency(&a, now), urgency(&b, now)); c != 0 {
				return c
			}
		}
		return naturalCompare(a.Name, b.Name)
	})
}

// urgency orders machines by how much they need a person.
func urgency(m *v1alpha1.Machine, now time.Time) int {
	switch {
	case Stuck(m, now) != "":
		return 0
	case m.Status.Phase == v1alpha1.PhaseInstalling || m.Status.Phase == v1alpha1.PhaseReleasing || m.Status.Phase == v1alpha1.PhaseRebooting:
		return 1
	case m.Status.Phase == v1alpha1.PhaseWaiting:
		return 2
	case m.Status.Phase == v1alpha1.PhaseReady:
		return 4
	}
	return 3
}

func naturalCompare(a, b string) int {
	for a != "" && b != "" {
		x, restA := number(a)
		y, restB := number(b)
		if x != "" && y != "" {
			x, y = strings.TrimLeft(x, "0"), strings.TrimLeft(y, "0")
			if c := cmp.Or(cmp.Compare(len(x), len(y)), cmp.Compare(x, y)); c != 0 {
				return c
			}
			a, b = restA, restB
			continue
		}
		if a[0] != b[0] {
			return cmp.Compare(a[0], b[0])
		}
		a, b = a[1:], b[1:]
	}
	return cmp.Compare(len(a), len(b))
}

func number(s string) (digits, rest string) {
	end := 0
	for end < len(s) && s[end] >= '0' && s[end] <= '9' {
		end++
	}
	return s[:end], s[end:]
}

// Age is a duration in at most two units: 42s, 3m20s, 5h12m, 8d.
func Age(d time.Duration) string {
	d = max(d, 0)
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < 10*time.Minute:
		return fmt.Sprintf("%dm%02ds", int(d.Minutes()), int(d.Seconds())%60)
	case d < time.Hour:
		return fmt.Sprintf("%dm", int(d.Minutes()))
	case d < 24*time.Hour:
		return fmt.Sprintf("%dh%02dm", int(d.Hours()), int(d.Minutes())%60)
	default:
		return fmt.Sprintf("%dd", int(d.Hours()/24))
	}
}

// Bytes is a size in binary units: 512 B, 8.0 GiB.
func Bytes(n int64) string {
	const units = "KMGTPE"
	if n < 1024 {
		return fmt.Sprintf("%d B", n)
	}
	value, i := float64(n)/1024, 0
	for value >= 1024 && i < len(units)-1 {
		value, i = value/1024, i+1
	}
	return fmt.Sprintf("%.1f %ciB", value, units[i])
}

func since(m *v1alpha1.Machine, now time.Time) string {
	if m.Status.PhaseSince == nil {
		return Age(now.Sub(m.CreationTimestamp.Time))
	}
	return Age(now.Sub(m.Status.PhaseSince.Time))
}

func message(m *v1alpha1.Machine, now time.Time) string {
	if text := Stuck(m, now); text != "" {
		return text
	}
	if k := m.Status.Kubernetes; k != nil && !k.Done && m.Status.Phase == v1alpha1.PhaseReady {
		if failed := PhasesOf(k.Phases).Failed; failed != nil {
			return failed.Name + ": " + failed.Message
		}
		return orElse(k.Message, m.Status.Message)
	}
	return m.Status.Message
}

func rack(l v1alpha1.Location) string {
	if l.Unit > 0 {
		return fmt.Sprintf("%s/%d", l.Rack, l.Unit)
	}
	return l.Rack
}

// membership is the machine's cluster and what it does there.
func membership(m *v1alpha1.Machine) (cluster, roles string) {
	if k := m.Status.Kubernetes; k != nil {
		return k.Cluster, roleText(k.Roles)
	}
	return "", ""
}

func serial(m *v1alpha1.Machine) string {
	if m.Status.Inventory != nil && m.Status.Inventory.System.Serial != "" {
		return m.Status.Inventory.System.Serial
	}
	return m.Spec.Identifiers.Serial
}

func installedImage(m *v1alpha1.Machine) string {
	if m.Status.Installed != nil {
		return m.Status.Installed.Image
	}
	return m.Spec.Image
}

func hardware(inv *v1alpha1.Inventory) []string {
	if inv == nil {
		return []string{"", "", "", "", ""}
	}
	var total int64
	for _, disk := range inv.Disks {
		total += disk.Size.Value()
	}
	return []string{
		strings.TrimSpace(inv.System.Vendor + " " + inv.System.Product),
		fmt.Sprint(inv.CPU.Threads),
		Bytes(inv.Memory.Value()),
		fmt.Sprintf("%d, %s", len(inv.Disks), Bytes(total)),
		inv.Firmware,
	}
}

func intentCell(m *v1alpha1.Machine) string {
	if m.Spec.Intent == nil {
		return ""
	}
	return fmt.Sprintf("%s %s", m.Spec.Intent.Action, IntentStateOf(m))
}

// IntentStateOf is the state of the intent in spec; one that no controller has acknowledged is Pending.
func IntentStateOf(m *v1alpha1.Machine) v1alpha1.IntentState {
	ack := m.Status.Intent
	if ack == nil || m.Spec.Intent == nil || ack.ID != m.Spec.Intent.ID {
		return v1alpha1.IntentPending
	}
	return ack.State
}

func orElse(text, otherwise string) string {
	if text == "" {
		return otherwise
	}
	return text
}
