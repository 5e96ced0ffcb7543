package controllers

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/cluster/etcd"
	"coldrack.dev/internal/cluster/kube"
	"coldrack.dev/internal/cluster/kubeapi"
	"coldrack.dev/internal/cluster/members"
	"coldrack.dev/internal/cluster/planner"
)

// Restores are backups that can be restored.
type Restores interface {
	// Snapshot says what a backup is, by reading all of it. The error also says why it does not fit the cluster as it is now.
	Snapshot(ctx context.Context, c *v1alpha1.Cluster, backup string) (SnapshotFacts, error)
	// Prepare makes the data of each member, by machine.
	Prepare(ctx context.Context, c *v1alpha1.Cluster, order RestoreOrder) ([]v1alpha1.RestoreMember, error)
	// IsPrepared says whether this server has it.
	IsPrepared(restore string, machines []string) bool
	// Discard removes it.
	Discard(restore string) error
}

// BackupsAndRestores are what this server can do with backups.
type BackupsAndRestores interface {
	Backups
	Restores
}

// SnapshotFacts are what a restore is decided by.
type SnapshotFacts struct {
	UID, Etcd, Digest string
	Revision          int64
}

// RestoreOrder is what members begin with.
type RestoreOrder struct {
	ID, Backup string
	// Bump is added to the revision of the snapshot.
	Bump int64
	// Members of the new cluster, by machine.
	Members map[string]RestoreMember
}

// RestoreMember is a member as others know it.
type RestoreMember struct{ Name, PeerURL string }

// revisionStep is how far the revision goes up with each restore; more than is written between two of them.
const revisionStep = 1_000_000_000

// restorer carries out restores of etcd: one step begins when it is recorded in status.restore, and is carried on by whichever server finds
// it there. Each may be done twice.
type restorer struct {
	Deps
	apis interface {
		state(cluster string) *kubeapi.State
	}
}

func restoreReconciler(d Deps, apis *clusterAPIs) reconciler {
	r := &restorer{d, apis}
	return reconciler{name: "cluster-restore", workers: 2, do: r.reconcile, watches: append(clusterWatches(d), machinesThatMatter(d), apis.source())}
}

func (r *restorer) reconcile(ctx context.Context, name string) (time.Duration, error) {
	was := &v1alpha1.Cluster{}
	if err := r.Client.Get(ctx, client.ObjectKey{Name: name}, was); err != nil {
		return 0, client.IgnoreNotFound(err)
	}
	if was.DeletionTimestamp != nil {
		return 0, nil
	}
	next := was.DeepCopy()
	again, err := r.advance(ctx, next)
	if err != nil {
		return 0, err
	}
	if equality.Semantic.DeepEqual(was.Status.Restore, next.Status.Restore) {
		return again, nil
	}
	err = r.Client.Status().Patch(ctx, next, client.MergeFromWithOptions(was, client.MergeFromWithOptimisticLock{}))
	switch {
	case apierrors.IsConflict(err):
		return 50 * time.Millisecond, nil
	case err != nil:
		return 0, client.IgnoreNotFound(err)
	}
	if a, b := was.Status.Restore, next.Status.Restore; a == nil || a.Step != b.Step || a.ID != b.ID {
		r.Log.Info("restore of etcd", "cluster", name, "restore", b.ID, "backup", b.Backup, "step", b.Step, "message", b.Message)
		return 50 * time.Millisecond, nil
	}
	return again, nil
}

// restoreLook is how often a restore is looked at beside what wakes it.
const restoreLook = 2 * time.Second

// advance changes c's status by one step.
func (r *restorer) advance(ctx context.Context, c *v1alpha1.Cluster) (time.Duration, error) {
	s := c.Status.Restore
	if !s.Running() {
		if backup, request := c.RestoreWanted(); request != "" {
			return 0, r.begin(ctx, c, backup, request)
		}
		if s != nil && s.FormerData {
			if err := r.Backups.Discard(s.ID); err != nil {
				r.Log.Warn("cannot remove what was prepared for a restore; trying again", "restore", s.ID, "err", err)
			}
			if b := c.Status.Backup; b != nil && b.Last != nil && b.Last.TakenAt.After(s.FinishedAt.Time) {
				s.FormerData = false
			}
		}
		return 0, nil
	}
	switch s.Step {
	case v1alpha1.RestoreStopping:
		if s.Message = r.waitFor(c, "stopped"); s.Message == "" {
			r.step(s, v1alpha1.RestorePreparing)
		}
	case v1alpha1.RestorePreparing:
		if err := r.prepare(ctx, c); err != nil {
			if ctx.Err() != nil {
				return 0, ctx.Err()
			}
			s.Message = err.Error()
			return 10 * time.Second, nil
		}
		r.step(s, v1alpha1.RestoreStarting)
	case v1alpha1.RestoreStarting:
		if s.Message = r.waitFor(c, "done"); s.Message != "" {
			// A server without the data, because it was lost or another one made it, makes it again: other bytes, and so another digest.
			if !r.Backups.IsPrepared(s.ID, machinesOf(s.Members)) {
				r.step(s, v1alpha1.RestorePreparing)
			}
			break
		}
		if s.Message = r.notUp(c); s.Message == "" {
			r.step(s, v1alpha1.RestoreDone)
			s.FinishedAt, s.FormerData = s.StepSince, true
		}
	}
	return restoreLook, nil
}

func machinesOf(list []v1alpha1.RestoreMember) []string {
	var names []string
	for _, m := range list {
		names = append(names, m.Machine)
	}
	return names
}

func (r *restorer) step(s *v1alpha1.RestoreStatus, to v1alpha1.RestoreStep) {
	at := v1alpha1.TimeOf(r.Now())
	s.Step, s.StepSince, s.Message = to, &at, ""
}

// begin records a restore, or why there is none.
func (r *restorer) begin(ctx context.Context, c *v1alpha1.Cluster, backup, request string) error {
	id := make([]byte, 8)
	if _, err := rand.Read(id); err != nil {
		return err
	}
	next := &v1alpha1.RestoreStatus{Request: request, ID: hex.EncodeToString(id), Backup: backup, Since: v1alpha1.TimeOf(r.Now())}
	if was := c.Status.Restore; was != nil {
		next.Revision, next.FormerData = was.Revision, was.FormerData
	}
	c.Status.Restore = next
	facts, why, err := r.refuse(ctx, c, backup)
	if err != nil {
		return err
	}
	if why != "" {
		r.step(next, v1alpha1.RestoreRefused)
		next.Message, next.FinishedAt = why, next.StepSince
		return nil
	}
	next.Digest, next.Revision = facts.Digest, max(next.Revision, facts.Revision)+revisionStep
	r.step(next, v1alpha1.RestoreStopping)
	return nil
}

// refuse says why a backup must not be restored now; empty: it may.
func (r *restorer) refuse(ctx context.Context, c *v1alpha1.Cluster, backup string) (facts SnapshotFacts, why string, err error) {
	switch {
	case !members.BroughtUp(c):
		return facts, "the cluster was not brought up yet", nil
	case c.Spec.Paused:
		return facts, "the cluster is paused; resume it first (coldrack cluster resume)", nil
	case c.Status.OpenRotation() != nil:
		return facts, fmt.Sprintf("key %s of it is being rotated; wait until that has ended, or take it back", c.Status.Rotation.Key), nil
	}
	if facts, err = r.Backups.Snapshot(ctx, c, backup); err != nil {
		return facts, err.Error(), nil
	}
	groups := &v1alpha1.MachineGroupList{}
	if err := r.Client.List(ctx, groups); err != nil {
		return facts, "", fmt.Errorf("list machine groups: %w", err)
	}
	f := members.Facts{Cluster: c, Groups: groups.Items, Now: r.Now()}
	for _, m := range r.Fleet.List() {
		f.Machines = append(f.Machines, *m)
	}
	in, err := members.Steps(f)
	if err != nil {
		return facts, err.Error(), nil
	}
	runs, count := "", 0
	for i := range c.Status.Nodes {
		n := &c.Status.Nodes[i]
		if n.Etcd == nil {
			continue
		}
		count++
		version := n.EtcdVersion
		if version == "" {
			if version, err = kube.EtcdVersion(n.Version); err != nil {
				return facts, err.Error(), nil
			}
		}
		if runs != "" && runs != version {
			return facts, fmt.Sprintf("its members run etcd %s and %s; finish the upgrade, or abort it, first", runs, version), nil
		}
		runs = version
	}
	if count == 0 {
		return facts, "no node of it holds etcd", nil
	}
	if block := planner.Restore(in, planner.Snapshot{Cluster: facts.UID, Storage: facts.Etcd}, string(c.UID), runs); block != nil {
		return facts, block.String(), nil
	}
	return facts, "", nil
}

// waitFor names the nodes with etcd or the control plane that are not where they are to be; empty: all are.
func (r *restorer) waitFor(c *v1alpha1.Cluster, state string) string {
	var missing []string
	for i := range c.Status.Nodes {
		n := &c.Status.Nodes[i]
		m, _ := r.Fleet.Get(n.Machine)
		if !r.isServer(n) {
			continue
		}
		is := nodeRestore(m, c)
		switch {
		case is != nil && is.State == state:
			continue
		case m == nil || m.Status.Installed == nil:
			missing = append(missing, n.Machine+" is not installed")
		case m.Status.Phase == v1alpha1.PhaseLost:
			missing = append(missing, n.Machine+" is lost; bring it back, or install it anew (coldrack reinstall "+n.Machine+")")
		case is != nil && is.Message != "":
			missing = append(missing, n.Machine+": "+is.Message)
		default:
			missing = append(missing, n.Machine+" has not begun")
		}
	}
	if len(missing) == 0 {
		return ""
	}
	return "waits for " + shortened(missing)
}

func (r *restorer) isServer(n *v1alpha1.ClusterNode) bool {
	_, _, roles, _ := r.Clusters.Member(n.Machine)
	return n.Etcd != nil || slices.Contains(roles, v1alpha1.RoleControlPlane)
}

// nodeRestore is what a machine said of the cluster's present restore; nil: nothing.
func nodeRestore(m *v1alpha1.Machine, c *v1alpha1.Cluster) *v1alpha1.NodeRestore {
	if m == nil || m.Status.Installed == nil || m.Status.Kubernetes == nil || m.Status.Kubernetes.Cluster != c.Name {
		return nil
	}
	if is := m.Status.Kubernetes.Restore; is != nil && is.ID == c.Status.Restore.ID {
		return is
	}
	return nil
}

func (r *restorer) prepare(ctx context.Context, c *v1alpha1.Cluster) error {
	ctx, cancel := context.WithTimeoutCause(ctx, backupLimit, fmt.Errorf("it took longer than %s", backupLimit))
	defer cancel()
	s := c.Status.Restore
	facts, err := r.Backups.Snapshot(ctx, c, s.Backup)
	if err != nil {
		return err
	}
	if facts.Digest != s.Digest {
		return fmt.Errorf("backup %s is another one than when the restore began", s.Backup)
	}
	order := RestoreOrder{ID: s.ID, Backup: s.Backup, Bump: s.Revision - facts.Revision, Members: map[string]RestoreMember{}}
	for i := range c.Status.Nodes {
		if n := &c.Status.Nodes[i]; n.Etcd != nil {
			order.Members[n.Machine] = RestoreMember{n.NodeName, etcd.PeerURL(addressOf(n))}
		}
	}
	if s.Members, err = r.Backups.Prepare(ctx, c, order); err != nil {
		return err
	}
	slices.SortFunc(s.Members, func(a, b v1alpha1.RestoreMember) int { return strings.Compare(a.Machine, b.Machine) })
	return nil
}

// notUp says what of the cluster does not run again yet; empty: everything does.
func (r *restorer) notUp(c *v1alpha1.Cluster) string {
	var missing []string
	for i := range c.Status.Nodes {
		n := &c.Status.Nodes[i]
		m, _ := r.Fleet.Get(n.Machine)
		if r.isServer(n) && (m == nil || m.Status.Kubernetes == nil || !m.Status.Kubernetes.Done) {
			missing = append(missing, strings.TrimSuffix(n.Machine+": "+runningPhase(m), ": "))
		}
	}
	if len(missing) > 0 {
		return "waits for " + shortened(missing)
	}
	if state := r.apis.state(c.Name); state == nil || !state.Reachable {
		return "waits for the cluster's API"
	}
	return ""
}
