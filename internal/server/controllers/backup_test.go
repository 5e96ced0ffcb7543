package controllers

import (
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"coldrack.dev/api/v1alpha1"
)

func TestWhenABackupIsDue(t *testing.T) {
	up := time.Date(2026, 11, 30, 12, 0, 0, 0, time.UTC)
	at := func(d time.Duration) *metav1.Time { return new(metav1.NewTime(up.Add(d))) }
	taken := func(d time.Duration) *v1alpha1.BackupRecord {
		return &v1alpha1.BackupRecord{ID: "x", TakenAt: *at(d)}
	}
	none := time.Duration(-1)
	for what, test := range map[string]struct {
		every  *metav1.Duration
		wanted *metav1.Time
		b      v1alpha1.BackupStatus
		due    time.Duration // after the cluster was brought up
	}{
		"the first one at once":                        {due: 0},
		"the next one a period later":                  {b: v1alpha1.BackupStatus{Last: taken(time.Hour)}, due: 7 * time.Hour},
		"an own period":                                {every: &metav1.Duration{Duration: time.Hour}, b: v1alpha1.BackupStatus{Last: taken(0)}, due: time.Hour},
		"none by itself":                               {every: &metav1.Duration{}, due: none},
		"an upgrade waits for one":                     {wanted: at(2 * time.Hour), b: v1alpha1.BackupStatus{Last: taken(0)}, due: 2 * time.Hour},
		"an upgrade, and none by itself":               {every: &metav1.Duration{}, wanted: at(time.Hour), due: time.Hour},
		"an upgrade that has it":                       {wanted: at(time.Hour), b: v1alpha1.BackupStatus{Last: taken(time.Hour)}, due: 7 * time.Hour},
		"a failure is tried again after a minute":      {b: v1alpha1.BackupStatus{Failures: 1, TriedAt: at(0), Error: "x"}, due: time.Minute},
		"the third failure waits longer":               {b: v1alpha1.BackupStatus{Failures: 3, TriedAt: at(0), Error: "x"}, due: 4 * time.Minute},
		"no failure waits longer than an hour":         {b: v1alpha1.BackupStatus{Failures: 60, TriedAt: at(0), Error: "x"}, due: time.Hour},
		"a failure does not hurry the next one either": {b: v1alpha1.BackupStatus{Failures: 1, TriedAt: at(time.Minute), Error: "x", Last: taken(0)}, due: 6 * time.Hour},
	} {
		c := &v1alpha1.Cluster{}
		c.Spec.Etcd.Backup.Every, c.Status.BackupWanted = test.every, test.wanted
		c.Status.Conditions = []metav1.Condition{{Type: v1alpha1.ConditionBroughtUp, Status: metav1.ConditionTrue, LastTransitionTime: metav1.NewTime(up)}}
		due := nextBackup(c, test.b)
		if test.due == none {
			if !due.IsZero() {
				t.Errorf("%s: %s", what, due)
			}
		} else if !due.Equal(up.Add(test.due)) {
			t.Errorf("%s: %s after, want %s", what, due.Sub(up), test.due)
		}
	}
}

func TestABackupThatIsOverdueIsTold(t *testing.T) {
	up := time.Date(2026, 11, 30, 12, 0, 0, 0, time.UTC)
	c := &v1alpha1.Cluster{}
	c.Status.Conditions = []metav1.Condition{{Type: v1alpha1.ConditionBroughtUp, Status: metav1.ConditionTrue, LastTransitionTime: metav1.NewTime(up)}}
	for _, test := range []struct {
		after  time.Duration
		b      v1alpha1.BackupStatus
		reason string
		until  time.Duration
	}{
		{time.Hour, v1alpha1.BackupStatus{}, "NoneYet", 12 * time.Hour},
		{12 * time.Hour, v1alpha1.BackupStatus{Error: "the disk is full"}, "Overdue", 0},
		{12 * time.Hour, v1alpha1.BackupStatus{Last: &v1alpha1.BackupRecord{TakenAt: metav1.NewTime(up.Add(time.Hour))}}, "Recent", 13 * time.Hour},
		{13 * time.Hour, v1alpha1.BackupStatus{Last: &v1alpha1.BackupRecord{TakenAt: metav1.NewTime(up.Add(time.Hour))}, Error: "the disk is full"}, "Overdue", 0},
	} {
		condition, until := backedUp(c, test.b, up.Add(test.after))
		if condition.Reason != test.reason || (test.until == 0) != until.IsZero() || test.until != 0 && !until.Equal(up.Add(test.until)) {
			t.Errorf("after %s: %+v until %s", test.after, condition, until)
		}
		if told := strings.Contains(condition.Message, test.b.Error); condition.Reason == "Overdue" && !told {
			t.Errorf("the error is not told: %q", condition.Message)
		}
	}
}

func TestWhetherTheNewestBackupIsCopied(t *testing.T) {
	now := time.Date(2026, 11, 30, 12, 0, 0, 0, time.UTC)
	last := v1alpha1.BackupStatus{Last: &v1alpha1.BackupRecord{ID: "b"}}
	for what, test := range map[string]struct {
		b      v1alpha1.BackupStatus
		copies CopyState
		reason string
		says   string
	}{
		"no backup yet":         {v1alpha1.BackupStatus{}, CopyState{}, "Waiting", ""},
		"an older one is there": {last, CopyState{To: "https://s3/b", Newest: "a"}, "Waiting", ""},
		"others are waiting":    {last, CopyState{To: "https://s3/b", Newest: "b", Waiting: 2}, "Waiting", ""},
		"it is there":           {last, CopyState{To: "https://s3/b", Newest: "b"}, "Copied", "backup b is at https://s3/b"},
		"it fails":              {last, CopyState{To: "https://s3/b", Newest: "b", Error: "connection refused", Since: now}, "Failing", "since 2026-11-30T12:00:00Z; it is tried again: connection refused"},
	} {
		condition := copied(test.b, &test.copies, now)
		if condition.Reason != test.reason || !strings.Contains(condition.Message, test.says) || (condition.Status == metav1.ConditionTrue) != (test.reason == "Copied") {
			t.Errorf("%s: %+v", what, condition)
		}
	}
}
