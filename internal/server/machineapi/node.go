package machineapi

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/base/pki"
	"coldrack.dev/internal/contract/wire"
	"coldrack.dev/internal/machine/fleet"
)

// Limits of what a heartbeat may carry.
const (
	maxAddresses   = 64
	maxFailedUnits = 64
	maxPackages    = 64
)

// heartbeat takes in what an installed node reports of itself, in memory only.
func (a *API) heartbeat(ctx context.Context, c call, in wire.Heartbeat) (any, error) {
	m, err := a.node(ctx, c.peer)
	if err != nil {
		a.tellRefusedKey(c, err)
		return nil, err
	}
	a.Fleet.Beat(m.Name, cut(in), address(c.request))
	answer := wire.HeartbeatResponse{IntervalSeconds: max(int(a.HeartbeatInterval/time.Second), 1)}
	if intent := m.OpenIntent(); intent != nil {
		reason, err := a.rebootFor(ctx, m, intent, in.BootID)
		if err != nil {
			return nil, err
		}
		answer.Reboot, answer.RebootReason = reason != "", reason
	} else if reason := a.rebootNow(m, in.BootID); reason != "" {
		a.Fleet.Log(m.Name, "told to reboot: "+reason)
		answer.Reboot, answer.RebootReason = true, reason
	}
	return answer, nil
}

// rebootNow says why the node shall end the boot that it reports, or "" when it shall not. A node of a cluster waits until the cluster
// has drained it, and a machine of a RebootGroup until it has the group's lock; of other machines a person's word is enough.
func (a *API) rebootNow(m *v1alpha1.Machine, bootID string) string {
	if a.Clusters != nil {
		if boot, reason, member := a.Clusters.Reboot(m.Name); member {
			if boot == "" || boot != bootID {
				return ""
			}
			return reason
		}
	}
	reason, asked := m.WantsReboot()
	if a.Reboots != nil {
		if boot, _, bound := a.Reboots.Turn(m); bound {
			if boot == "" || boot != bootID {
				return ""
			}
			return reason // empty when nobody wants it any more
		}
	}
	if asked && m.Status.Reboot.BootID == bootID {
		return reason
	}
	return ""
}

// rebootFor says why the node shall boot from the network, or "" when it shall not: it leaves its system only
// for a plan that can be carried out, and not again and again.
func (a *API) rebootFor(ctx context.Context, m *v1alpha1.Machine, intent *v1alpha1.Intent, bootID string) (string, error) {
	next, blocked, err := a.currentAssignment(ctx, m.Name)
	if err != nil {
		return "", err
	}
	ready := next.Action == wire.ActionInstall || next.Action == wire.ActionRelease
	if ready && !a.Fleet.AskReboot(m.Name, intent.ID, text(bootID)) {
		ready = false
		blocked = fleet.Block{Reason: v1alpha1.ReasonBootsFromDisk, Message: fmt.Sprintf("node %s was told to boot from the network for intent %s and came back from its own disk: put the network before the disk in its firmware's boot order, then reboot it", m.Name, intent.ID)}
	}
	a.Fleet.Blocked(m.Name, blocked)
	if !ready {
		return "", nil
	}
	reason := fmt.Sprintf("%s was asked for (intent %s)", intent.Action, intent.ID)
	a.Fleet.Log(m.Name, "told to boot from the network: "+reason)
	return reason, nil
}

func cut(in wire.Heartbeat) wire.Heartbeat {
	in.AgentVersion, in.OS, in.Kernel, in.BootID = text(in.AgentVersion), text(in.OS), text(in.Kernel), text(in.BootID)
	in.Addresses = texts(in.Addresses, maxAddresses)
	in.FailedUnits = texts(in.FailedUnits, maxFailedUnits)
	if r := in.RebootRequired; r != nil {
		in.RebootRequired = &wire.RebootRequired{Packages: texts(r.Packages, maxPackages)}
	}
	interfaces := map[string]string{}
	for _, prefix := range in.Addresses {
		address, _, _ := strings.Cut(prefix, "/")
		if name, ok := in.Interfaces[address]; ok {
			interfaces[address] = text(name)
		}
	}
	in.Interfaces = interfaces
	return in
}

func texts(list []string, limit int) []string {
	var out []string
	for _, s := range list[:min(len(list), limit)] {
		out = append(out, text(s))
	}
	return out
}

// node returns the Machine whose identity the caller has proven.
func (a *API) node(ctx context.Context, p peer) (*v1alpha1.Machine, error) {
	m, err := a.machine(ctx, p.machine)
	if err != nil {
		return nil, err
	}
	if hasIdentity(m, p.fingerprint) {
		return m, nil
	}
	// Another server may have issued it a moment ago, so the cache does not decide a refusal.
	if m, err = a.Store.Get(ctx, p.machine); err != nil {
		return nil, fmt.Errorf("read machine %s: %w", p.machine, err)
	}
	a.Fleet.Put(m)
	if hasIdentity(m, p.fingerprint) {
		return m, nil
	}
	if m.Readmits(p.fingerprint) || m.Status.Identity != nil && m.Status.Identity.NextKeyFingerprint == p.fingerprint {
		return a.adopt(ctx, p)
	}
	return nil, refuse(http.StatusForbidden, wire.CodeForbidden,
		"this key is not machine %s's identity any more: it was installed again or released since, or the server was restored from a backup. If this is an old disk, remove it; otherwise: coldrack machines describe %s", p.machine, p.machine)
}

// tellRefusedKey records a key that is not the machine's identity though we signed it for this machine, so that a person can
// tell an old disk from a restored backup.
func (a *API) tellRefusedKey(c call, err error) {
	m, ok := a.Fleet.Get(c.peer.machine)
	var no *refusal
	if !errors.As(err, &no) {
		return
	}
	restoredAt, _ := a.Fleet.RestoredAt()
	if !ok && no.what.Code == wire.CodeNotFound {
		a.Fleet.UnknownNode(c.peer.machine, address(c.request), c.peer.issued)
		return
	}
	// A machine without an identity has none because it was released, or because its install is missing in the backup.
	if !ok || m.Status.Identity == nil && m.Status.Installed == nil && restoredAt.IsZero() || no.what.Code != wire.CodeForbidden {
		return
	}
	a.Fleet.KeyRefused(m.Name, v1alpha1.KeyRefusedStatus{KeyFingerprint: c.peer.fingerprint,
		IssuedAt: metav1.NewTime(c.peer.issued), From: address(c.request)})
}

func hasIdentity(m *v1alpha1.Machine, fingerprint string) bool {
	return m.Status.Identity != nil && m.Status.Identity.KeyFingerprint == fingerprint
}

// adopt makes a renewed key the machine's identity, now that the node has shown that it holds it.
func (a *API) adopt(ctx context.Context, p peer) (*v1alpha1.Machine, error) {
	readmitted := false
	m, err := a.update(ctx, p.machine, func(m *v1alpha1.Machine) error {
		identity := m.Status.Identity
		readmitted = m.Readmits(p.fingerprint)
		if !readmitted && (identity == nil || identity.NextKeyFingerprint != p.fingerprint && identity.KeyFingerprint != p.fingerprint) {
			return refuse(http.StatusForbidden, wire.CodeForbidden, "this key is not machine %s's identity any more", m.Name)
		}
		if readmitted {
			readmit(m, p, a.Now())
			return nil
		}
		identity.KeyFingerprint, identity.NextKeyFingerprint = p.fingerprint, ""
		return nil
	})
	if err != nil {
		return nil, err
	}
	if readmitted {
		a.Log.Warn("node readmitted with a key that this server did not know", "machine", p.machine, "key", p.fingerprint)
		a.Fleet.Log(p.machine, "readmitted with key "+p.fingerprint)
		return m, nil
	}
	a.Log.Info("node uses its renewed certificate", "machine", p.machine, "key", p.fingerprint)
	return m, nil
}

// readmit makes the key that a node shows its machine's identity. A machine of which no install is recorded has one from then on: the node runs
// from its disk. An install that the node was to have is over.
func readmit(m *v1alpha1.Machine, p peer, now time.Time) {
	if m.Status.Identity == nil && m.Status.Installed == nil {
		m.Status.Installed = &v1alpha1.InstalledStatus{Image: v1alpha1.AdoptedImage, Disk: v1alpha1.AdoptedImage, At: metav1.NewTime(now)}
		m.AcknowledgeIntent()
		if intent := m.OpenIntent(); intent != nil && intent.Action != v1alpha1.ActionRelease && intent.FromBackup(p.issued) {
			m.Status.Installed.IntentID = intent.ID
			m.Status.Intent.State, m.Status.Intent.FinishedAt, m.Status.Intent.Message = v1alpha1.IntentSucceeded, new(metav1.NewTime(now)), "carried out before the store was restored"
		}
	}
	m.Status.Identity = &v1alpha1.IdentityStatus{KeyFingerprint: p.fingerprint, IssuedAt: metav1.NewTime(p.issued), ExpiresAt: metav1.NewTime(p.expires)}
}

// renew issues a certificate in place of one that is about to expire. For a node a new key counts from its
// first use on, and the old one until then.
func (a *API) renew(ctx context.Context, c call, in wire.RenewRequest) (any, error) {
	if c.peer.kind == kindSession {
		return a.renewSession(c, in)
	}
	if _, err := a.node(ctx, c.peer); err != nil {
		return nil, err
	}
	identity, answer, err := a.signNode(c.peer.machine, in.CSR)
	if err != nil {
		return nil, err
	}
	_, err = a.update(ctx, c.peer.machine, func(m *v1alpha1.Machine) error {
		if !hasIdentity(m, c.peer.fingerprint) {
			return refuse(http.StatusForbidden, wire.CodeForbidden, "this key is not machine %s's identity any more", m.Name)
		}
		m.Status.Identity.IssuedAt, m.Status.Identity.ExpiresAt, m.Status.Identity.NextKeyFingerprint = identity.IssuedAt, identity.ExpiresAt, ""
		if identity.KeyFingerprint != c.peer.fingerprint {
			m.Status.Identity.NextKeyFingerprint = identity.KeyFingerprint
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	a.Log.Info("node certificate renewed", "machine", c.peer.machine, "key", identity.KeyFingerprint)
	return answer, nil
}

// renewSession lets a machine wait in discovery for longer than a session lasts.
func (a *API) renewSession(c call, in wire.RenewRequest) (any, error) {
	public, err := pki.ParseCSR([]byte(in.CSR))
	if err != nil {
		return nil, refuse(http.StatusBadRequest, wire.CodeBadRequest, "csr: %v", err)
	}
	key, err := pki.Fingerprint(public)
	if err != nil {
		return nil, refuse(http.StatusBadRequest, wire.CodeBadRequest, "csr: %v", err)
	}
	// A machine that was installed in the meantime has no use for a session, but its thief has.
	if m, ok := a.Fleet.Get(c.peer.machine); ok && m.Status.Identity != nil && m.OpenIntent() == nil {
		return nil, refuse(http.StatusForbidden, wire.CodeIdentityExists, "machine %s is installed and has an identity", m.Name)
	}
	certificate, leaf, err := a.Signer.SignClient(public, sessionPrefix+c.peer.machine, []string{sessionOrganization}, sessionTTL)
	if err != nil {
		return nil, fmt.Errorf("sign session certificate of %s: %w", c.peer.machine, err)
	}
	a.Fleet.SessionRenewed(c.peer.machine, key, pki.IssuedAt(leaf))
	return wire.IdentityResponse{Certificate: string(certificate), CA: string(a.Signer.CertPEM()), ExpiresAt: leaf.NotAfter.UTC()}, nil
}
