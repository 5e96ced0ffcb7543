package machineapi

import (
	"context"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/contract/wire"
	"coldrack.dev/internal/machine/fleet"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
)

// maxWait is how long an assignment's long poll lasts at most: below the time after which boxes between
// the two forget idle connections.
const maxWait = 60 * time.Second

// assignment answers as soon as it is another than the caller knows, or when the wait is over.
func (a *API) assignment(ctx context.Context, c call) (any, error) {
	version, wait, err := longPoll(c.request)
	if err != nil {
		return nil, err
	}
	deadline := time.NewTimer(wait)
	defer deadline.Stop()
	for {
		// Taken before the look, so that a change in between is not missed.
		machineChanged, planChanged := a.Fleet.Changed(c.peer.machine)
		a.Fleet.Contacted(c.peer.machine, address(c.request))
		answer, blocked, err := a.currentAssignment(ctx, c.peer.machine)
		if err != nil {
			return nil, err
		}
		a.Fleet.Blocked(c.peer.machine, blocked)
		if answer.Version != version {
			return a.handOut(ctx, c.peer, answer)
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-deadline.C:
			return answer, nil
		case <-machineChanged:
			if err := a.checkSession(ctx, c.peer); err != nil {
				return nil, err
			}
		case <-planChanged:
		}
	}
}

// longPoll reads the version that the caller knows and how long it waits for another.
func longPoll(r *http.Request) (version string, wait time.Duration, err error) {
	query := r.URL.Query()
	seconds, err := strconv.ParseFloat(query.Get("wait"), 64)
	if query.Get("wait") != "" && (err != nil || !(seconds >= 0 && seconds < 1e6)) {
		return "", 0, refuse(http.StatusBadRequest, wire.CodeBadRequest, "wait: %q is not a number of seconds", query.Get("wait"))
	}
	return query.Get("version"), min(time.Duration(seconds*float64(time.Second)), maxWait), nil
}

// currentAssignment is what the machine shall do now, and what keeps its intent from being carried out.
func (a *API) currentAssignment(ctx context.Context, name string) (answer wire.Assignment, blocked fleet.Block, err error) {
	m, err := a.machine(ctx, name)
	if err != nil {
		return answer, blocked, err
	}
	in := ingredients{machine: m}
	restoredAt, _ := a.Fleet.RestoredAt()
	switch intent := m.OpenIntent(); {
	case intent == nil || intent.FromBackup(restoredAt):
	case intent.Action == v1alpha1.ActionRelease && m.Spec.Profile != "":
		// Its wipe policy. A release waits for the profile to be readable, but not for one that is gone.
		if in.profile, err = a.Plans.Profile(ctx, m.Spec.Profile); apierrors.IsNotFound(err) {
			in.profile = nil
		} else if err != nil {
			return answer, blocked, fmt.Errorf("read profile %s: %w", m.Spec.Profile, err)
		}
	case intent.Action != v1alpha1.ActionRelease && m.Spec.Approved:
		if in, err = a.gather(ctx, m); err != nil {
			return answer, blocked, err
		}
	}
	in.restoredAt = restoredAt
	answer, blocked = assign(in)
	return answer, blocked, nil
}

// handOut gives a plan away. From then on the machine's disk may carry the intent's mark, so the intent is
// acknowledged first.
func (a *API) handOut(ctx context.Context, p peer, answer wire.Assignment) (any, error) {
	intentID := ""
	switch {
	case answer.Plan != nil:
		intentID = answer.Plan.IntentID
	case answer.Release != nil:
		intentID = answer.Release.IntentID
	default:
		return answer, nil
	}
	m, err := a.update(ctx, p.machine, func(m *v1alpha1.Machine) error {
		intent := m.OpenIntent()
		if intent == nil || intent.ID != intentID {
			return refuse(http.StatusServiceUnavailable, wire.CodeConflict, "the intent of machine %s has just changed; ask again", m.Name)
		}
		m.AcknowledgeIntent()
		return nil
	})
	if err != nil {
		return nil, err
	}
	// The acknowledged intent is now among those whose marks are this machine's own; the plan named it
	// already, so its version stands.
	a.Log.Info("plan sent to a machine", "machine", m.Name, "action", answer.Action, "intent", intentID)
	a.Fleet.Log(m.Name, fmt.Sprintf("told to %s (intent %s)", answer.Action, intentID))
	return answer, nil
}

// gather collects what an install of m is made of.
func (a *API) gather(ctx context.Context, m *v1alpha1.Machine) (ingredients, error) {
	in := ingredients{machine: m}
	var err error
	if in.subnets, err = a.Plans.Subnets(ctx); err != nil {
		return in, fmt.Errorf("read subnets: %w", err)
	}
	if a.Clusters != nil {
		_, _, in.member = a.Clusters.Reboot(m.Name)
	}
	if m.Spec.Network != nil {
		in.addressOwners = a.Fleet.AddressOwners(m.Spec.Network.Address)
	}
	if m.Spec.Profile == "" {
		in.missing = fmt.Sprintf("machine %s has no profile: set spec.profile, or run: coldrack install %s --profile NAME", m.Name, m.Name)
		return in, nil
	}
	in.profile, err = a.Plans.Profile(ctx, m.Spec.Profile)
	if apierrors.IsNotFound(err) {
		in.missing = fmt.Sprintf("profile %s does not exist: create it, or correct spec.profile of machine %s", m.Spec.Profile, m.Name)
		return in, nil
	} else if err != nil {
		return in, fmt.Errorf("read profile %s: %w", m.Spec.Profile, err)
	}
	name := in.profile.Spec.Image
	if m.Spec.Image != "" {
		name = m.Spec.Image
	}
	in.image, err = a.Plans.Image(ctx, name)
	if apierrors.IsNotFound(err) {
		in.missing = fmt.Sprintf("image %s is not in any imported bundle: import one that has it, or correct profile %s", name, in.profile.Name)
		return in, nil
	} else if err != nil {
		return in, fmt.Errorf("read image %s: %w", name, err)
	}
	if in.index, in.boot, err = a.Content.ImageFiles(in.image); err != nil {
		in.missing = fmt.Sprintf("image %s cannot be installed: %v", name, err)
		return in, nil
	}
	in.facts = a.Content.ImageFacts(in.image)
	return in, nil
}
