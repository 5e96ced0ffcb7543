package backups

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/base/objectstore"
	"coldrack.dev/internal/cluster/backup"
	"coldrack.dev/test/require"
	"coldrack.dev/test/s3server"
)

func TestWhichCopiesAreMadeAndRemoved(t *testing.T) {
	list := func(days string) (all []backup.Manifest) {
		for _, day := range strings.Fields(days) {
			at, err := time.Parse("02", day)
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, backup.Manifest{ID: day, TakenAt: at})
		}
		return all
	}
	for what, test := range map[string]struct {
		here, there  string
		keep         int
		hold         string
		copy, remove string
	}{
		"nothing":                                 {keep: 3},
		"all are copied, the newest first":        {here: "01 03 02", keep: 3, copy: "03 02 01"},
		"those that are there are not":            {here: "03 02 01", there: "02", keep: 3, copy: "03 01"},
		"the oldest goes":                         {here: "04 03 02", there: "03 02 01", keep: 3, copy: "04", remove: "01"},
		"one that would go at once is not copied": {here: "02 01", there: "05 04 03", keep: 3},
		"a new server removes nothing":            {there: "03 02 01", keep: 3},
		"fewer are kept from now on":              {here: "03", there: "03 02 01", keep: 1, remove: "02 01"},
		"one that is being restored stays":        {here: "04 03", there: "03 01", keep: 2, hold: "01", copy: "04"},
		"one stays whatever is kept":              {there: "01", keep: 0},
	} {
		plan := planCopies(list(test.here), list(test.there), test.keep, test.hold)
		var ids []string
		for _, m := range plan.copy {
			ids = append(ids, m.ID)
		}
		if got := strings.Join(ids, " "); got != test.copy || strings.Join(plan.remove, " ") != test.remove {
			t.Errorf("%s: copies %q and removes %q", what, got, plan.remove)
		}
	}
}

func TestWhenTheOwnStoreIsBackedUp(t *testing.T) {
	began := time.Date(2026, 11, 30, 12, 0, 0, 0, time.UTC)
	for what, test := range map[string]struct {
		last  time.Time
		every time.Duration
		now   time.Duration // since began
		due   time.Duration
	}{
		"the first one, when people have had time":     {time.Time{}, 6 * time.Hour, 0, 10 * time.Minute},
		"the first one, of a short period":             {time.Time{}, 2 * time.Minute, 0, 2 * time.Minute},
		"the next one a period later":                  {began.Add(-time.Hour), 6 * time.Hour, 0, 5 * time.Hour},
		"one that was due while the server was away":   {began.Add(-24 * time.Hour), 6 * time.Hour, 0, time.Minute},
		"one that is due":                              {began, 6 * time.Hour, 7 * time.Hour, 0},
		"none by itself, looked at once a day at most": {began, 0, 7 * time.Hour, 24 * time.Hour},
	} {
		if due := ownDue(test.last, test.every, began, began.Add(test.now)); due != test.due {
			t.Errorf("%s: in %s, want %s", what, due, test.due)
		}
	}
}

// copier is a service with copies on a real S3 server, and the cluster that they are of.
type copier struct {
	*Service
	r      *rig
	server *s3server.Server
	// secret that the store is opened with.
	secret string
}

func newCopier(r *rig, name string, server *s3server.Server, keys backup.Keys) *copier {
	c := &copier{Service: r.service(name, keys), r: r, server: server, secret: server.SecretKey}
	c.Elsewhere = func(context.Context) (objectstore.Store, error) {
		return objectstore.OpenS3(objectstore.S3Options{Endpoint: server.URL, Bucket: s3server.Bucket, Prefix: "lab", Region: "us-east-1", PathStyle: true, Authorities: server.CA,
			AccessKey: server.AccessKey, SecretKey: c.secret})
	}
	return c
}

func (c *copier) take() backup.Manifest {
	c.r.t.Helper()
	m, err := c.Take(c.r.t.Context(), c.r, c.r.cluster, "test", nil)
	if err != nil {
		c.r.t.Fatal(err)
	}
	return m
}

func (c *copier) clusters(context.Context) ([]v1alpha1.Cluster, error) {
	return []v1alpha1.Cluster{*c.r.cluster}, nil
}

// look is one look at the copies.
func (c *copier) look() CopyState {
	ok := c.copyAll(c.r.t.Context(), c.clusters)
	state := c.CopyStates()["lab"]
	if ok != (state.Error == "") {
		c.r.t.Errorf("ok %t, and %+v", ok, state)
	}
	return state
}

// where lists the backups with where each one is.
func (c *copier) where() string {
	c.r.t.Helper()
	all, problem, err := c.ListAll(c.r.t.Context(), c.r.cluster)
	if err != nil {
		c.r.t.Fatal(err)
	}
	var texts []string
	for _, b := range all {
		text := b.ID
		if b.Here {
			text += " here"
		}
		if b.There {
			text += " there"
		}
		texts = append(texts, text)
	}
	if problem != nil {
		texts = append(texts, "problem")
	}
	return strings.Join(texts, ", ")
}

// object is the file in which the S3 server has part of a backup.
func (c *copier) object(m backup.Manifest, name string) string {
	return filepath.Join(c.server.Dir, s3server.Bucket, "lab", m.UID, m.ID, name)
}

// TestCopies keeps copies on a real S3 server, and restores from there on a server that has nothing else.
func TestCopies(t *testing.T) {
	require.Need(t, "netns", "etcd", "versitygw")
	t.Parallel()
	r := newRig(t)
	server := s3server.New(t)
	master := r.master("a")
	s := newCopier(r, "a", server, master)
	r.change(func(ctx context.Context, c *clientv3.Client) error {
		_, err := c.Put(ctx, "/registry/a", strings.Repeat("content", 1000))
		return err
	})

	first := s.take()
	if got := s.where(); got != first.ID+" here" {
		t.Errorf("before the first copy: %s", got)
	}
	if state := s.look(); state.Error != "" || state.Newest == nil || state.Newest.ID != first.ID || state.Waiting != 0 || !strings.HasPrefix(state.To, server.URL.String()) {
		t.Errorf("%+v", state)
	}
	if got := s.where(); got != first.ID+" here there" {
		t.Errorf("after it: %s", got)
	}
	sealed, err := os.ReadFile(s.object(first, "manifest.sealed"))
	if err != nil || strings.Contains(string(sealed), first.ID) {
		t.Errorf("the manifest is not sealed: %v", err)
	}

	// While the server is away, backups are taken all the same.
	server.Stop()
	second := s.take()
	if state := s.look(); state.Error == "" || state.Since.IsZero() || state.Failures != 1 || state.Newest.ID != first.ID {
		t.Errorf("away: %+v", state)
	}
	if got := s.where(); got != second.ID+" here, "+first.ID+" here, problem" {
		t.Errorf("away: %s", got)
	}
	server.Start()
	if state := s.look(); state.Error != "" || state.Newest.ID != second.ID || state.Failures != 1 {
		t.Errorf("back: %+v", state)
	}

	s.secret = "wrong-secret"
	third := s.take() // two are kept
	if state := s.look(); !strings.Contains(state.Error, "does not accept the credentials") || strings.Contains(state.Error, s.secret) {
		t.Errorf("wrong credentials: %+v", state)
	}
	s.secret = server.SecretKey
	if state := s.look(); state.Error != "" {
		t.Errorf("%+v", state)
	}
	if got := s.where(); got != third.ID+" here there, "+second.ID+" here there" {
		t.Errorf("the oldest copy is still there, or more than it went: %s", got)
	}

	// A copy that lacks a part, or whose snapshot is cut short, is none, and is made again.
	for what, spoil := range map[string]func(){
		"no keys":         func() { check(t, os.Remove(s.object(third, "keys.sealed"))) },
		"no manifest":     func() { check(t, os.Remove(s.object(third, "manifest.sealed"))) },
		"snapshot is cut": func() { check(t, os.Truncate(s.object(third, "snapshot.db"), third.Size/2)) },
	} {
		spoil()
		if got := s.where(); got != third.ID+" here, "+second.ID+" here there" {
			t.Errorf("%s: %s", what, got)
		}
		if state := s.look(); state.Error != "" || s.where() != third.ID+" here there, "+second.ID+" here there" {
			t.Errorf("%s: %+v", what, state)
		}
	}

	// A server that has nothing but its master key restores from there.
	fresh := newCopier(r, "fresh", server, master)
	if got := fresh.where(); got != third.ID+" there, "+second.ID+" there" {
		t.Errorf("a fresh server: %s", got)
	}
	if state := fresh.look(); state.Error != "" || state.Newest.ID != third.ID {
		t.Errorf("a fresh server: %+v", state)
	}
	if got, err := fresh.Get(t.Context(), r.cluster, third.ID); err != nil || got.Digest != third.Digest || got.Keys != third.Keys || got.Revision != third.Revision {
		t.Errorf("%+v, %v", got, err)
	}
	if err := fresh.SameKeys(t.Context(), r, r.cluster, third); err != nil {
		t.Error(err)
	}
	if got := fresh.where(); got != third.ID+" here there, "+second.ID+" there" {
		t.Errorf("fetched: %s", got)
	}
	if _, err := fresh.Get(t.Context(), r.cluster, "20200101t000000z"); !errors.Is(err, backup.ErrNone) {
		t.Errorf("one that is nowhere: %v", err)
	}
	stranger := newCopier(r, "stranger", server, r.master("stranger"))
	if got := stranger.where(); got != "problem" {
		t.Errorf("another master key: %s", got)
	}

	// What was altered on the S3 server is not taken, and leaves nothing.
	content, err := os.ReadFile(s.object(second, "snapshot.db"))
	check(t, err)
	check(t, os.WriteFile(s.object(second, "snapshot.db"), flipped(content, len(content)/2), 0o600))
	if _, err := fresh.Get(t.Context(), r.cluster, second.ID); !errors.Is(err, backup.ErrDamaged) {
		t.Errorf("an altered snapshot: %v", err)
	}
	// Neither is another backup under its name.
	for _, name := range []string{"snapshot.db", "keys.sealed", "manifest.sealed"} {
		content, err := os.ReadFile(s.object(third, name))
		check(t, err)
		check(t, os.WriteFile(s.object(second, name), content, 0o600))
	}
	if got := fresh.where(); got != third.ID+" here there, problem" {
		t.Errorf("a backup under another's name: %s", got)
	}
	if folder, err := fresh.Folder(r.cluster); err != nil || len(entries(t, folder.Path)) != 1 {
		t.Errorf("left behind: %v", entries(t, folder.Path))
	}

	// A backup that is damaged here is not copied, and does not keep others from it.
	folder, err := s.Folder(r.cluster)
	check(t, err)
	fourth := s.take()
	snapshot := folder.Snapshot(fourth.ID)
	content, err = os.ReadFile(snapshot)
	check(t, err)
	check(t, os.WriteFile(snapshot, flipped(content, 100), 0o600))
	if state := s.look(); !strings.Contains(state.Error, "damaged") || state.Newest.ID != third.ID {
		t.Errorf("damaged here: %+v", state)
	}
	if left, err := os.ReadFile(s.object(fourth, "snapshot.db")); err == nil {
		t.Errorf("of a damaged snapshot, %d of %d bytes were copied", len(left), fourth.Size)
	}
}

// TestCopyGoesOn runs the loop: what is taken is copied, and what was cut off is copied when another backup is taken.
func TestCopyGoesOn(t *testing.T) {
	require.Need(t, "netns", "etcd", "versitygw")
	t.Parallel()
	r := newRig(t)
	server := s3server.New(t)
	s := newCopier(r, "a", server, r.master("a"))
	r.change(func(ctx context.Context, c *clientv3.Client) error {
		_, err := c.Put(ctx, "/registry/a", "content")
		return err
	})
	await := func(what string, is func(CopyState) bool) {
		t.Helper()
		ctx, cancel := context.WithTimeoutCause(t.Context(), 2*time.Minute, fmt.Errorf("%s: it does not come to that: %+v", what, s.CopyStates()))
		defer cancel()
		for {
			changed := s.Changed()
			if is(s.CopyStates()["lab"]) {
				return
			}
			select {
			case <-changed:
			case <-ctx.Done():
				t.Fatalf("%v: %+v", context.Cause(ctx), s.CopyStates())
			}
		}
	}
	done := make(chan error)
	go func() { done <- s.Copy(t.Context(), s.clusters) }()
	first := s.take()
	await("the first copy", func(c CopyState) bool { return c.Newest != nil && c.Newest.ID == first.ID && c.Error == "" })
	server.CutAfter(10 << 10)
	second := s.take()
	await("a connection that is cut", func(c CopyState) bool { return c.Error != "" })
	if got := s.where(); !strings.Contains(got, "problem") {
		t.Errorf("the server is there: %s", got)
	}
	server.Mend()
	if got := s.where(); got != second.ID+" here, "+first.ID+" here there" {
		t.Errorf("a copy that was cut off: %s", got)
	}
	third := s.take()
	await("the third copy", func(c CopyState) bool { return c.Newest.ID == third.ID && c.Error == "" && c.Waiting == 0 })
	if got := s.where(); got != third.ID+" here there, "+second.ID+" here there" {
		t.Errorf("in the end: %s", got)
	}
	select {
	case err := <-done:
		t.Fatalf("it has ended: %v", err)
	default:
	}
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func entries(t *testing.T, dir string) (names []string) {
	t.Helper()
	all, err := os.ReadDir(dir)
	check(t, err)
	for _, e := range all {
		names = append(names, e.Name())
	}
	return slices.Sorted(slices.Values(names))
}
