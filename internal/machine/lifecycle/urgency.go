package lifecycle

import (
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/api/equality"

	"coldrack.dev/api/v1alpha1"
)

// Urgency is how long the store may do without a change of a status. What a machine reports is in memory at once; the store
// holds it for people and for the next start of the server.
type Urgency int

const (
	// Immediate is what others act upon: intents, conditions, that a machine is ready, failed or lost.
	Immediate Urgency = iota
	// Soon are the phases on the way, which people look at.
	Soon
	// Progress is how a machine gets on: steps, boots, leases.
	Progress
	// Bytes is how many bytes a step has moved.
	Bytes
)

// UrgencyOf tells how urgent the change from one status to the next is.
func UrgencyOf(was, next v1alpha1.MachineStatus) Urgency {
	same := equality.Semantic.DeepEqual
	switch {
	case same(withoutBytes(was), withoutBytes(next)):
		return Bytes
	case same(withoutSteps(was), withoutSteps(next)):
		return Progress
	case was.Phase == "" && (next.Phase == v1alpha1.PhaseExpected || onTheWay(next.Phase)): // new, perhaps with thousands of others
		return Soon
	case onTheWay(next.Phase) && same(withoutPhase(was), withoutPhase(next)):
		return Soon
	}
	return Immediate
}

// onTheWay says that a phase waits for nobody.
func onTheWay(phase v1alpha1.MachinePhase) bool {
	switch phase {
	case v1alpha1.PhaseDiscovering, v1alpha1.PhaseWaiting, v1alpha1.PhaseApproved, v1alpha1.PhaseInstalling, v1alpha1.PhaseRebooting:
		return true
	}
	return false
}

func withoutPhase(s v1alpha1.MachineStatus) v1alpha1.MachineStatus {
	s = withoutSteps(s)
	s.Phase, s.PhaseSince, s.Message = "", nil, ""
	s.Conditions = slices.Clone(s.Conditions)
	for i := range s.Conditions {
		if c := &s.Conditions[i]; c.Type == v1alpha1.ConditionReady { // says again which phase it is
			c.Reason, c.Message = "", ""
		}
	}
	return s
}

func withoutBytes(s v1alpha1.MachineStatus) v1alpha1.MachineStatus {
	s.CurrentStep, _, _ = strings.Cut(s.CurrentStep, " ")
	if s.Kubernetes != nil {
		// What a phase waits for may change with every look.
		s.Kubernetes = s.Kubernetes.DeepCopy()
		for i := range s.Kubernetes.Phases {
			p := &s.Kubernetes.Phases[i]
			p.BytesDone, p.BytesTotal = 0, 0
			if p.State == v1alpha1.StepRunning {
				p.Message = ""
			}
		}
		s.CurrentStep, s.Kubernetes.Message = "", ""
	}
	s.Steps = slices.Clone(s.Steps)
	for i := range s.Steps {
		s.Steps[i].BytesDone, s.Steps[i].BytesTotal = 0, 0
	}
	return s
}

func withoutSteps(s v1alpha1.MachineStatus) v1alpha1.MachineStatus {
	s = withoutBytes(s)
	s.CurrentStep, s.Steps, s.Boots, s.Lease, s.Address = "", nil, nil, nil, ""
	s.RebootState = "" // says for whom it waits, as hundreds of others may
	return s
}
