package controllers

import (
	"context"
	"errors"
	"fmt"
	"time"

	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/cluster/members"
)

// Backups of the etcd of clusters.
type Backups interface {
	// Back takes one and returns when it was restored on trial. ErrBackupRuns: one is being taken.
	Back(ctx context.Context, c *v1alpha1.Cluster, why string) error
	// Newest is the newest good one, nil when there is none.
	Newest(c *v1alpha1.Cluster) (*v1alpha1.BackupRecord, error)
	// Copies is how the copies of a cluster's backups stand; nil: none are kept.
	Copies(cluster string) *CopyState
	// Changed is closed when Newest or Copies may be another.
	Changed() <-chan struct{}
	// Forget a cluster that is not there any more. Its backups stay.
	Forget(cluster string)
}

// CopyState is how the copies of a cluster's backups stand.
type CopyState struct {
	// To is where they are kept; empty until that was opened once.
	To string
	// Newest is the ID of the newest backup there; empty: there is none.
	Newest string
	// Waiting are how many are still to be copied.
	Waiting int
	// Error is why that failed; empty: it did not. Since is when it began to fail.
	Error string
	Since time.Time
}

// ErrBackupRuns says that somebody else takes a backup right now.
var ErrBackupRuns = errors.New("a backup is being taken")

const (
	// backupLimit is how long a backup may take.
	backupLimit = time.Hour
	// backupRetry and backupRetryMost are how long a failed backup waits for another try; it doubles.
	backupRetry, backupRetryMost = time.Minute, time.Hour
	// backupBusy is how long to wait while somebody else takes one.
	backupBusy = 10 * time.Second
)

// backupKeeper takes backups when they are due and records how they stand.
type backupKeeper struct{ Deps }

func backupReconciler(d Deps) reconciler {
	r := &backupKeeper{d}
	return reconciler{name: "cluster-backups", workers: 2, do: r.reconcile, watches: append(clusterWatches(d), everyClusterWhen(d, d.Backups.Changed))}
}

func (r *backupKeeper) reconcile(ctx context.Context, name string) (time.Duration, error) {
	c := &v1alpha1.Cluster{}
	switch err := r.Cache.Get(ctx, client.ObjectKey{Name: name}, c); {
	case apierrors.IsNotFound(err):
		r.Backups.Forget(name)
		return 0, nil
	case err != nil:
		return 0, fmt.Errorf("read cluster %s: %w", name, err)
	}
	if c.DeletionTimestamp != nil || !members.BroughtUp(c) || c.Status.Restore.Running() {
		return 0, nil
	}
	newest, problem := r.Backups.Newest(c)
	b := backupStatus(c)
	if problem == nil {
		b.Last = newest
	}
	due := nextBackup(c, b)
	if !due.IsZero() && !r.Now().Before(due) {
		problem = r.back(ctx, c)
		if errors.Is(problem, ErrBackupRuns) {
			return backupBusy, nil
		}
		if ctx.Err() != nil {
			return 0, ctx.Err()
		}
		tried := v1alpha1.TimeOf(r.Now())
		b.TriedAt, b.Error, b.Failures = &tried, "", 0
		if problem != nil {
			b.Error, b.Failures = problem.Error(), backupStatus(c).Failures+1
			r.Log.Error("backup failed", "cluster", name, "failures", b.Failures, "err", problem)
		} else if newest, problem = r.Backups.Newest(c); problem == nil {
			b.Last = newest
		}
		due = nextBackup(c, b)
	}
	again, err := r.record(ctx, name, b)
	if err != nil {
		return 0, err
	}
	if !due.IsZero() {
		if wait := max(due.Sub(r.Now()), time.Second); again == 0 || wait < again {
			again = wait
		}
	}
	return again, nil
}

func (r *backupKeeper) back(ctx context.Context, c *v1alpha1.Cluster) error {
	ctx, cancel := context.WithTimeoutCause(ctx, backupLimit, fmt.Errorf("it took longer than %s", backupLimit))
	defer cancel()
	why := "schedule"
	if c.Status.BackupWanted != nil {
		why = "upgrade"
	}
	return r.Backups.Back(ctx, c, why)
}

func backupStatus(c *v1alpha1.Cluster) v1alpha1.BackupStatus {
	if c.Status.Backup == nil {
		return v1alpha1.BackupStatus{}
	}
	return *c.Status.Backup.DeepCopy()
}

// nextBackup is when the next backup is to be taken; zero: none is.
func nextBackup(c *v1alpha1.Cluster, b v1alpha1.BackupStatus) time.Time {
	every, wanted := c.Spec.Etcd.BackupEvery(), c.Status.BackupWanted
	if wanted != nil && b.Last != nil && !b.Last.TakenAt.Before(wanted) {
		wanted = nil
	}
	if r := c.Status.Restore; r != nil && r.FormerData && !r.Running() && wanted == nil {
		wanted = r.FinishedAt // nodes keep what was there before until then
	}
	if r := c.Status.Rotation; r != nil && r.Stage.Ended() && every > 0 && wanted == nil {
		wanted = &r.Since // backups from before are of no use any more
	}
	if wanted != nil && b.Last != nil && b.Last.TakenAt.After(wanted.Time) {
		wanted = nil
	}
	if every <= 0 && wanted == nil {
		return time.Time{}
	}
	at := broughtUpAt(c)
	if b.Last != nil {
		at = b.Last.TakenAt.Add(every)
	}
	if wanted != nil && (every <= 0 || wanted.Time.Before(at)) {
		at = wanted.Time
	}
	if b.Failures > 0 && b.TriedAt != nil {
		wait := min(backupRetry<<min(b.Failures-1, 10), backupRetryMost)
		if every > 0 {
			wait = min(wait, every)
		}
		if retry := b.TriedAt.Add(wait); retry.After(at) {
			at = retry
		}
	}
	return at
}

func broughtUpAt(c *v1alpha1.Cluster) time.Time {
	if up := meta.FindStatusCondition(c.Status.Conditions, v1alpha1.ConditionBroughtUp); up != nil {
		return up.LastTransitionTime.Time
	}
	return c.CreationTimestamp.Time
}

// backedUp says whether the newest backup is young enough, and when that ends; zero: it does not.
func backedUp(c *v1alpha1.Cluster, b v1alpha1.BackupStatus, now time.Time) (condition metav1.Condition, until time.Time) {
	condition = metav1.Condition{Type: v1alpha1.ConditionBackedUp, Status: metav1.ConditionTrue, Reason: "Recent", LastTransitionTime: v1alpha1.TimeOf(now)}
	every := c.Spec.Etcd.BackupEvery()
	since := broughtUpAt(c)
	if b.Last == nil {
		condition.Status, condition.Reason = metav1.ConditionFalse, "NoneYet"
	} else {
		since = b.Last.TakenAt.Time
	}
	if every <= 0 {
		if b.Last != nil {
			condition.Reason = "OnDemand"
		}
		return condition, time.Time{}
	}
	if until = since.Add(2 * every); now.Before(until) {
		return condition, until
	}
	condition.Status, condition.Reason = metav1.ConditionFalse, "Overdue"
	condition.Message = fmt.Sprintf("no backup of etcd has succeeded since %s", since.UTC().Format(time.RFC3339))
	if b.Error != "" {
		condition.Message += ": " + b.Error
	}
	return condition, time.Time{}
}

// reasonCopyFails is the reason of the condition while copies cannot be made, and copyPatience how long that is until the cluster's message tells it.
const (
	reasonCopyFails = "Failing"
	copyPatience    = 2 * time.Hour
)

// copied says whether there is a copy of the newest backup elsewhere.
func copied(b v1alpha1.BackupStatus, copies *CopyState, now time.Time) metav1.Condition {
	condition := metav1.Condition{Type: v1alpha1.ConditionBackupCopied, Status: metav1.ConditionFalse, Reason: "Waiting", LastTransitionTime: v1alpha1.TimeOf(now)}
	switch {
	case copies.Error != "":
		condition.Reason = reasonCopyFails
		condition.Message = fmt.Sprintf("copies are not up to date since %s; it is tried again: %s", copies.Since.UTC().Format(time.RFC3339), copies.Error)
	case b.Last != nil && b.Last.ID == copies.Newest && copies.Waiting == 0:
		condition.Status, condition.Reason, condition.Message = metav1.ConditionTrue, "Copied", "backup "+copies.Newest+" is at "+copies.To
	}
	return condition
}

// record writes how the backups stand, and says when that may be otherwise without anything happening.
func (r *backupKeeper) record(ctx context.Context, name string, b v1alpha1.BackupStatus) (again time.Duration, err error) {
	for try := 1; ; try++ {
		was := &v1alpha1.Cluster{}
		if err := r.Client.Get(ctx, client.ObjectKey{Name: name}, was); err != nil {
			return 0, client.IgnoreNotFound(err)
		}
		b.NextAt = nil
		if at := nextBackup(was, b); !at.IsZero() {
			next := v1alpha1.TimeOf(at)
			b.NextAt = &next
		}
		next := was.DeepCopy()
		next.Status.Backup = &b
		condition, until := backedUp(was, b, r.Now())
		condition.ObservedGeneration = was.Generation
		meta.SetStatusCondition(&next.Status.Conditions, condition)
		if copies := r.Backups.Copies(name); copies == nil {
			meta.RemoveStatusCondition(&next.Status.Conditions, v1alpha1.ConditionBackupCopied)
		} else {
			condition := copied(b, copies, r.Now())
			condition.ObservedGeneration = was.Generation
			meta.SetStatusCondition(&next.Status.Conditions, condition)
		}
		if !until.IsZero() {
			again = max(until.Sub(r.Now()), time.Second)
		}
		if equality.Semantic.DeepEqual(was.Status, next.Status) {
			return again, nil
		}
		err := r.Client.Status().Patch(ctx, next, client.MergeFromWithOptions(was, client.MergeFromWithOptimisticLock{}))
		if err == nil || !apierrors.IsConflict(err) || try == 5 {
			return again, client.IgnoreNotFound(err)
		}
	}
}
