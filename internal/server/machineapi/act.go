package machineapi

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/base/pki"
	"coldrack.dev/internal/base/termtext"
	"coldrack.dev/internal/contract/wire"
	"coldrack.dev/internal/machine/fleet"
)

// errNotWanted says that the intent which a machine carries out is no longer the open one.
var errNotWanted = errors.New("the intent is no longer wanted")

// progress takes in the steps of a running intent.
func (a *API) progress(ctx context.Context, c call, in wire.Progress) (any, error) {
	name := c.peer.machine
	m, err := a.machine(ctx, name)
	if err != nil {
		return nil, err
	}
	if intent := m.OpenIntent(); intent == nil || intent.ID != in.IntentID {
		return wire.ProgressResponse{Cancel: true}, nil
	}
	if a.begins(m, in.IntentID) {
		switch err := a.begin(ctx, name, in.IntentID); {
		case errors.Is(err, errNotWanted):
			return wire.ProgressResponse{Cancel: true}, nil
		case err != nil:
			return nil, err
		}
	}
	a.Fleet.Progressed(name, in.IntentID, in.Steps, in.Log)
	return wire.ProgressResponse{}, nil
}

// begins says whether this report is the first of an attempt. A session that enrolled since the server
// started begins one; a session from before the server's restart goes on with the attempt it is in.
func (a *API) begins(m *v1alpha1.Machine, intentID string) bool {
	status := m.Status.Intent
	if status == nil || status.ID != intentID || status.State != v1alpha1.IntentRunning {
		return true
	}
	live := a.Fleet.Live(m.Name)
	return live.Session != "" && !(live.Attempt && live.IntentID == intentID)
}

// begin counts an attempt. The last one that is allowed makes way for a failure: a machine that resets
// in the middle of every install would otherwise go on for ever.
func (a *API) begin(ctx context.Context, name, intentID string) error {
	gaveUp := false
	_, err := a.update(ctx, name, func(m *v1alpha1.Machine) error {
		intent := m.OpenIntent()
		if intent == nil || intent.ID != intentID {
			return errNotWanted
		}
		m.AcknowledgeIntent()
		status, now := m.Status.Intent, metav1.NewTime(a.Now())
		if gaveUp = status.Attempts >= a.MaxAttempts; gaveUp {
			status.State, status.FinishedAt = v1alpha1.IntentFailed, &now
			status.Message = fmt.Sprintf("gave up after %d attempts that broke off without a reason; look at the machine's console", status.Attempts)
			return nil
		}
		status.State, status.Message = v1alpha1.IntentRunning, ""
		status.Attempts++
		if status.StartedAt == nil {
			status.StartedAt = &now
		}
		return nil
	})
	if err == nil && gaveUp {
		a.Log.Warn("intent abandoned", "machine", name, "intent", intentID)
		return errNotWanted
	}
	if err == nil {
		a.Fleet.Begun(name, intentID)
	}
	return err
}

// identity issues the installed node's certificate. From then on an earlier identity of the machine is
// worth nothing.
func (a *API) identity(ctx context.Context, c call, in wire.IdentityRequest) (any, error) {
	certificate, answer, err := a.signNode(c.peer.machine, in.CSR)
	if err != nil {
		return nil, err
	}
	_, err = a.update(ctx, c.peer.machine, func(m *v1alpha1.Machine) error {
		intent, status := m.OpenIntent(), m.Status.Intent
		if intent == nil || intent.ID != in.IntentID || intent.Action == v1alpha1.ActionRelease || !m.Spec.Approved ||
			status == nil || status.ID != in.IntentID || status.State != v1alpha1.IntentRunning {
			return refuse(http.StatusConflict, wire.CodeConflict, "machine %s gets an identity only while it is being installed, and intent %s is not running", m.Name, in.IntentID)
		}
		if status.StartedAt != nil && certificate.IssuedAt.Before(status.StartedAt) {
			certificate.IssuedAt = *status.StartedAt // the clock was set back since
		}
		m.Status.Identity = &certificate
		return nil
	})
	if err != nil {
		return nil, err
	}
	a.Log.Info("node identity issued", "machine", c.peer.machine, "key", certificate.KeyFingerprint, "intent", in.IntentID)
	a.Fleet.Log(c.peer.machine, "issued the node's identity for key "+certificate.KeyFingerprint)
	return answer, nil
}

func (a *API) signNode(name, csr string) (v1alpha1.IdentityStatus, wire.IdentityResponse, error) {
	var status v1alpha1.IdentityStatus
	public, err := pki.ParseCSR([]byte(csr))
	if err != nil {
		return status, wire.IdentityResponse{}, refuse(http.StatusBadRequest, wire.CodeBadRequest, "csr: %v", err)
	}
	if status.KeyFingerprint, err = pki.Fingerprint(public); err != nil {
		return status, wire.IdentityResponse{}, refuse(http.StatusBadRequest, wire.CodeBadRequest, "csr: %v", err)
	}
	certificate, leaf, err := a.Signer.SignClient(public, nodePrefix+name, []string{nodeOrganization}, nodeTTL)
	if err != nil {
		return status, wire.IdentityResponse{}, fmt.Errorf("sign node certificate of %s: %w", name, err)
	}
	status.IssuedAt, status.ExpiresAt = metav1.NewTime(a.Now()), metav1.NewTime(leaf.NotAfter)
	return status, wire.IdentityResponse{Certificate: string(certificate), CA: string(a.Signer.CertPEM()), ExpiresAt: leaf.NotAfter.UTC()}, nil
}

// complete ends an intent. It may be repeated: the answer to the first time may have been lost.
func (a *API) complete(ctx context.Context, c call, in wire.Complete) (any, error) {
	if in.State != wire.StateSucceeded && in.State != wire.StateFailed {
		return nil, refuse(http.StatusBadRequest, wire.CodeBadRequest, "state: %q is neither Succeeded nor Failed", in.State)
	}
	profile, image := a.wanted(ctx, c.peer.machine)
	again := false
	m, err := a.update(ctx, c.peer.machine, func(m *v1alpha1.Machine) error {
		status := m.Status.Intent
		if again = status != nil && status.ID == in.IntentID && status.FinishedAt != nil && string(status.State) == string(in.State); again {
			return nil
		}
		intent := m.OpenIntent()
		if intent == nil || intent.ID != in.IntentID || status == nil || status.ID != in.IntentID {
			return refuse(http.StatusConflict, wire.CodeConflict, "intent %s of machine %s is not running; ask for the assignment", in.IntentID, m.Name)
		}
		return finish(m, in, profile, image, a.Now())
	})
	if err != nil {
		return nil, err
	}
	if again {
		return wire.Empty{}, nil
	}
	a.Fleet.Progressed(m.Name, in.IntentID, in.Steps, nil)
	status := m.Status.Intent
	a.Log.Info("intent finished", "machine", m.Name, "intent", in.IntentID, "action", status.Action, "state", status.State, "reason", status.Message)
	a.Fleet.Log(m.Name, fmt.Sprintf("%s %s: %s", status.Action, status.State, cmp.Or(status.Message, "done")))
	return wire.Empty{}, nil
}

// wanted are the names of the profile and image that an install of the machine is made of.
func (a *API) wanted(ctx context.Context, name string) (profile, image string) {
	m, ok := a.Fleet.Get(name)
	if !ok {
		return "", ""
	}
	profile, image = m.Spec.Profile, m.Spec.Image
	if image == "" && profile != "" {
		if p, err := a.Plans.Profile(ctx, profile); err == nil {
			image = p.Spec.Image
		}
	}
	return profile, image
}

// finish records the outcome of m's open intent. It is pure.
func finish(m *v1alpha1.Machine, in wire.Complete, profile, image string, at time.Time) error {
	status, now := m.Status.Intent, metav1.NewTime(at)
	if len(in.Steps) > 0 {
		m.Status.Steps = fleet.Steps(in.Steps)
	}
	if in.State == wire.StateFailed {
		status.State, status.FinishedAt = v1alpha1.IntentFailed, &now
		status.Message = cmp.Or(termtext.Line(in.Message, 1024), "the machine gave no reason")
		return nil
	}
	switch status.Action {
	case v1alpha1.ActionRelease:
		m.Status.Identity, m.Status.Installed, m.Status.Node = nil, nil, nil
	default:
		if m.Status.Identity == nil || (status.StartedAt != nil && m.Status.Identity.IssuedAt.Time.Before(status.StartedAt.Truncate(time.Second))) {
			return refuse(http.StatusConflict, wire.CodeConflict, "machine %s has no identity from intent %s: an installed node without one could never report", m.Name, in.IntentID)
		}
		m.Status.Node = nil
		m.Status.Installed = &v1alpha1.InstalledStatus{
			IntentID: in.IntentID, Image: image, ImageDigest: termtext.Line(in.ImageDigest, 80),
			Disk: termtext.Line(in.Disk, 256), Profile: profile, At: now,
		}
	}
	status.State, status.FinishedAt, status.Message = v1alpha1.IntentSucceeded, &now, ""
	return nil
}
