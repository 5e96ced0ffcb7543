package bringup

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"coldrack.dev/internal/agent/nodefile"
	"coldrack.dev/internal/contract/wire"
)

// state is what a node keeps of what it was assigned. It is one file, so that a power cut leaves one state or the other.
type state struct {
	// The assignment that is carried out. Its Plan is what the node has or gets, which is not always what the server sent.
	wire.NodeAssignment
	// Taken is the operation in which the hard part of Plan was taken.
	Taken string `json:"taken,omitempty"`
	// Former is the plan before Plan, to which a roll-back leads.
	Former *wire.NodePlan `json:"former,omitempty"`
	// Signed are certificates as the server signs them now, where that may be otherwise than Plan says.
	Signed []wire.NodeCertificate `json:"signed,omitempty"`
}

// decide says what becomes of a node that has was, nil for nothing, when the server assigns a, which has a plan. message says what
// of it cannot be done.
func decide(was *state, a wire.NodeAssignment) (next *state, message string) {
	next = &state{NodeAssignment: a, Taken: a.Operation}
	if was == nil || was.Plan.Cluster != a.Plan.Cluster || was.Plan.NodeName != a.Plan.NodeName {
		return next, ""
	}
	same := was.Plan.Digests == a.Plan.Digests && a.Plan.Digests != wire.ConfigDigests{}
	switch {
	case a.RollBack && was.Taken == a.Operation && was.Former != nil:
		next.keep(was.Former, a.Plan)
		next.Taken = ""
		return next, ""
	case a.RollBack && was.Taken == a.Operation:
		message = "cannot go back: this node has no configuration from before; it keeps what it has"
	case a.RollBack, a.Hold && !newMember(was.Plan, a.Plan):
	case same:
		// There is nothing to take, and nothing to go back from.
	default:
		next.Former = was.Plan
		if was.Former != nil && a.Operation != "" && was.Taken == a.Operation {
			next.Former = was.Former // the plan that failed first is not worth going back to
		}
		return next, ""
	}
	next.Taken, next.Former = was.Taken, was.Former
	if !same {
		next.keep(was.Plan, a.Plan)
	}
	return next, message
}

// newMember says that the machine's member of etcd was added: nothing of it runs that could be interrupted.
func newMember(was, is *wire.NodePlan) bool {
	return was.Digests.Node != "" && was.Digests.Etcd == "" && is.Digests.Etcd != ""
}

// keep makes the plan one with the hard part of one plan and the soft part of another.
func (s *state) keep(hard, soft *wire.NodePlan) {
	s.Plan, s.Signed = merge(hard, soft), soft.Certificates
}

func merge(hard, soft *wire.NodePlan) *wire.NodePlan {
	out := *hard
	out.ContentURL, out.Kit, out.Routes, out.ServiceRoutes = soft.ContentURL, soft.Kit, soft.Routes, soft.ServiceRoutes
	if hard.LoadBalancer != nil && soft.LoadBalancer != nil {
		balancer := *hard.LoadBalancer
		balancer.Backends = soft.LoadBalancer.Backends
		out.LoadBalancer = &balancer
	}
	out.Files = slices.DeleteFunc(slices.Clone(hard.Files), func(f wire.NodeFile) bool { return f.Soft })
	out.Phases = slices.Clone(hard.Phases)
	for i := range out.Phases {
		phase := &out.Phases[i]
		phase.Files = slices.DeleteFunc(slices.Clone(phase.Files), func(p string) bool { return fileAt(hard, p).Soft })
		for _, p := range find(soft.Phases, func(ph wire.Phase) bool { return ph.Name == phase.Name }).Files {
			if f := fileAt(soft, p); f.Soft && fileAt(&out, p) == nil {
				out.Files = append(out.Files, *f)
				phase.Files = append(phase.Files, p)
			}
		}
	}
	return &out
}

// loadState returns the state that was saved last, nil if there is none.
func loadState(d nodefile.Disk) (*state, error) {
	var s state
	if err := nodefile.ReadJSON(d, assignmentFile, &s); errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	if s.Plan == nil {
		return nil, fmt.Errorf("%s has no plan", assignmentFile)
	}
	if s.Former != nil {
		if err := Validate(s.Former); err != nil {
			return nil, fmt.Errorf("%s: the former plan: %w", assignmentFile, err)
		}
	}
	return &s, nil
}
