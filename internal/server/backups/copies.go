package backups

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"time"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/cluster/backup"
)

const (
	// copyLook is how often it is looked whether all copies are still there, when nothing else happens.
	copyLook = time.Hour
	// copyRetry and copyRetryMost are how long failed copies wait for another try; it doubles.
	copyRetry, copyRetryMost = time.Minute, time.Hour
	// copyListTimeout is how long somebody waits who wants to see what is elsewhere.
	copyListTimeout = 20 * time.Second
	// partialAge is when a copy that is not whole counts as left behind. Another server may be writing it.
	partialAge = 24 * time.Hour
	// givesUp is how many clusters in a row fail until the rest waits for the next try.
	givesUp = 3
)

// CopyState is how the copies of one cluster's backups stand, as of the last look.
type CopyState struct {
	// To is where they are kept.
	To string
	// Newest of the backups there; nil: there is none.
	Newest *backup.Manifest
	// Waiting are how many backups of this server are still to be copied.
	Waiting int
	// Error is why the last try failed, and Since when tries began to fail.
	Error string
	Since time.Time
	// Failures since the start of this server.
	Failures uint64
}

// Copy keeps copies of all good backups elsewhere until ctx ends. A place that is away is tried again, ever later; backups are taken all the same.
func (s *Service) Copy(ctx context.Context, clusters func(context.Context) ([]v1alpha1.Cluster, error)) error {
	if s.Elsewhere == nil {
		return nil
	}
	for failures := 0; ; {
		taken := s.newest()
		wait := copyLook
		if s.copyAll(ctx, clusters) {
			failures = 0
		} else {
			wait = min(copyRetry<<min(failures, 10), copyRetryMost)
			failures++
		}
		again := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			again.Stop()
			return nil
		case <-taken: // also after a failure: a person may have mended the cause, and orders a backup to see
			again.Stop()
		case <-again.C:
		}
	}
}

// Wake has the copies looked at now, because a person may have changed what they need.
func (s *Service) Wake() { s.hasTaken() }

// copyAll copies what is not elsewhere yet and removes there what is too old. It says whether everything is as it should be.
func (s *Service) copyAll(ctx context.Context, clusters func(context.Context) ([]v1alpha1.Cluster, error)) bool {
	list, err := clusters(ctx)
	if err != nil {
		if ctx.Err() == nil {
			s.Log.Error("cannot copy backups: the clusters are not known; trying again", "err", err)
		}
		return false
	}
	var sets []set
	if s.own != nil {
		sets = append(sets, s.own.set)
	}
	for i := range list {
		sets = append(sets, s.setOf(&list[i]))
	}
	var uids []string
	for _, k := range sets {
		uids = append(uids, k.uid)
	}
	var there map[string]backup.Copies
	store, err := s.elsewhere(ctx)
	if err == nil && len(uids) > 0 {
		there, err = store.List(ctx, uids...)
	}
	ok, inARow := true, 0
	for _, k := range sets {
		if ctx.Err() != nil {
			return false
		}
		state := s.CopyStates()[k.name]
		problem := err
		if problem == nil {
			state.To = store.String()
			problem = s.copySet(ctx, store, k, there[k.uid], &state)
		}
		if problem != nil {
			if ctx.Err() != nil {
				return false
			}
			if ok, inARow = false, inARow+1; inARow == givesUp && err == nil {
				err = problem // the others would wait for the same
			}
		} else {
			inARow = 0
		}
		s.noteCopies(k, state, problem)
	}
	return ok
}

func (s *Service) elsewhere(ctx context.Context) (backup.Elsewhere, error) {
	store, err := s.Elsewhere(ctx)
	if err != nil {
		return backup.Elsewhere{}, fmt.Errorf("where copies of backups are kept: %w", err)
	}
	return backup.Elsewhere{Store: store, Keys: s.Keys, Known: &s.known}, nil
}

// copySet brings the copies of one set up to date, the newest first.
func (s *Service) copySet(ctx context.Context, to backup.Elsewhere, k set, there backup.Copies, state *CopyState) error {
	folder, err := k.folder()
	if err != nil {
		return err
	}
	for _, problem := range there.Problems {
		s.Log.Warn("a copy of a backup cannot be read; it is left alone", "of", k.String(), "err", problem)
	}
	here, _ := folder.List()
	plan := planCopies(here, there.Backups, k.keep, k.hold)
	all := there.Backups
	defer func() {
		slices.SortFunc(all, func(a, b backup.Manifest) int { return b.TakenAt.Compare(a.TakenAt) })
		if state.Newest = nil; len(all) > 0 {
			state.Newest = &all[0]
		}
	}()
	state.Waiting = len(plan.copy)
	var damaged error
	for _, m := range plan.copy {
		began := s.Now()
		switch err := to.Put(ctx, folder, m); {
		case errors.Is(err, backup.ErrDamaged):
			s.Log.Error("a backup is damaged, and is not copied", "of", k.String(), "err", err)
			damaged = errors.Join(damaged, err)
			continue
		case errors.Is(err, fs.ErrNotExist) && isGone(folder, m.ID):
			state.Waiting--
			continue
		case err != nil:
			return err
		}
		state.Waiting--
		all = append(slices.Clone(all), m)
		s.Log.Info("backup copied", "of", k.String(), "backup", m.ID, "to", to.String(), "bytes", m.Size, "took", s.Now().Sub(began).Round(time.Millisecond))
	}
	if damaged != nil {
		return damaged
	}
	for _, id := range plan.remove {
		if err := to.Remove(ctx, k.uid, id); err != nil {
			return err
		}
		s.Log.Info("old copy of a backup removed", "of", k.String(), "backup", id, "from", to.String())
	}
	all = slices.DeleteFunc(slices.Clone(all), func(m backup.Manifest) bool { return slices.Contains(plan.remove, m.ID) })
	before := s.Now().Add(-partialAge)
	for id, written := range there.Partial {
		if written.Before(before) && !slices.ContainsFunc(all, func(m backup.Manifest) bool { return m.ID == id }) {
			if err := to.Remove(ctx, k.uid, id); err != nil {
				return err
			}
		}
	}
	return to.Clear(ctx, k.uid+"/", before)
}

// isGone says whether a backup was removed from here meanwhile.
func isGone(folder backup.Folder, id string) bool {
	_, err := folder.Get(id)
	return errors.Is(err, backup.ErrNone)
}

// copyPlan is what is to be done about copies.
type copyPlan struct {
	copy   []backup.Manifest
	remove []string
}

// planCopies decides which backups are copied, the newest first, and which copies go: the newest of both places stay. One that would have to go
// at once is not copied, and the backup named hold is not removed.
func planCopies(here, there []backup.Manifest, keep int, hold string) (plan copyPlan) {
	all, elsewhere := map[string]backup.Manifest{}, map[string]bool{}
	for _, m := range here {
		all[m.ID] = m
	}
	for _, m := range there {
		all[m.ID], elsewhere[m.ID] = m, true
	}
	order := slices.SortedFunc(maps.Values(all), func(a, b backup.Manifest) int { return b.TakenAt.Compare(a.TakenAt) })
	for i, m := range order {
		switch wanted := i < max(keep, 1); {
		case wanted && !elsewhere[m.ID]:
			plan.copy = append(plan.copy, m)
		case !wanted && elsewhere[m.ID] && m.ID != hold:
			plan.remove = append(plan.remove, m.ID)
		}
	}
	return plan
}

// noteCopies keeps how the copies of a set stand, and wakes who wants to know.
func (s *Service) noteCopies(k set, state CopyState, problem error) {
	was := s.CopyStates()[k.name]
	switch {
	case problem == nil:
		state.Error, state.Since = "", time.Time{}
	default:
		if state.Error == "" {
			state.Since = s.Now()
		}
		state.Error = problem.Error()
		state.Failures++
		s.Log.Error("copies of backups are not up to date; trying again", "of", k.String(), "waiting", state.Waiting, "err", problem)
	}
	s.mu.Lock()
	s.copies[k.name] = state
	s.mu.Unlock()
	if was.Error != state.Error || was.To != state.To || (was.Newest == nil) != (state.Newest == nil) || state.Newest != nil && state.Newest.ID != was.Newest.ID {
		s.changes()
	}
}

// CopyStates by the name of the cluster, that of the server's own store under an empty one; none where no copies are kept.
func (s *Service) CopyStates() map[string]CopyState {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(s.copies)
}

// Located is a backup and where it is.
type Located struct {
	backup.Manifest
	// Here says that this server has it, There that its copy is elsewhere.
	Here, There bool
}

// ListAll lists the backups here and elsewhere, the newest first. problem says why those elsewhere are not known.
func (s *Service) ListAll(ctx context.Context, c *v1alpha1.Cluster) (all []Located, problem, err error) {
	return s.listAll(ctx, s.setOf(c))
}

func (s *Service) listAll(ctx context.Context, k set) (all []Located, problem, err error) {
	here, err := s.list(k)
	if err != nil && s.Elsewhere == nil {
		return nil, nil, err
	}
	problem = err // what is elsewhere can be shown all the same
	byID := map[string]Located{}
	for _, m := range here {
		byID[m.ID] = Located{Manifest: m, Here: true}
	}
	if s.Elsewhere != nil {
		ctx, cancel := context.WithTimeout(ctx, copyListTimeout)
		defer cancel()
		there, away := s.listElsewhere(ctx, k.uid)
		problem = errors.Join(problem, away)
		for _, m := range there {
			byID[m.ID] = Located{Manifest: m, Here: byID[m.ID].Here, There: true}
		}
	}
	return slices.SortedFunc(maps.Values(byID), func(a, b Located) int { return b.TakenAt.Compare(a.TakenAt) }), problem, nil
}

func (s *Service) listElsewhere(ctx context.Context, uid string) ([]backup.Manifest, error) {
	store, err := s.elsewhere(ctx)
	if err != nil {
		return nil, err
	}
	there, err := store.List(ctx, uid)
	if err != nil {
		return nil, err
	}
	return there[uid].Backups, errors.Join(there[uid].Problems...)
}

// ensure has a backup here, and fetches it when it is only elsewhere.
func (s *Service) ensure(ctx context.Context, k set, id string) (m backup.Manifest, folder backup.Folder, err error) {
	if folder, err = k.folder(); err != nil {
		return m, folder, err
	}
	if m, err = folder.Get(id); !errors.Is(err, backup.ErrNone) || s.Elsewhere == nil {
		return m, folder, err
	}
	end, err := s.begin(k, "one is fetched from where copies are kept")
	if err != nil {
		return m, folder, err
	}
	defer end()
	there, err := s.listElsewhere(ctx, k.uid)
	i := slices.IndexFunc(there, func(m backup.Manifest) bool { return m.ID == id })
	if i < 0 {
		if err == nil {
			err = fmt.Errorf("%w, neither here nor elsewhere: %s", backup.ErrNone, id)
		}
		return m, folder, err
	}
	m, err = s.fetch(ctx, folder, there[i])
	if err != nil {
		return m, folder, fmt.Errorf("fetch backup %s: %w", id, err)
	}
	s.Log.Info("backup fetched", "of", k.String(), "backup", id, "bytes", m.Size)
	return m, folder, nil
}

func (s *Service) fetch(ctx context.Context, folder backup.Folder, m backup.Manifest) (backup.Manifest, error) {
	if err := s.Room(folder.Path, 2*m.Size); err != nil {
		return m, err
	}
	store, err := s.elsewhere(ctx)
	if err != nil {
		return m, err
	}
	draft, sealed, err := store.Fetch(ctx, folder, m)
	if err != nil {
		return m, err
	}
	return s.admit(ctx, draft, m, sealed)
}

// admit makes a draft that came from outside a backup, once it was restored on trial.
func (s *Service) admit(ctx context.Context, draft *backup.Draft, m backup.Manifest, sealedKeys []byte) (backup.Manifest, error) {
	err := s.try(ctx, draft, &m)
	if err == nil {
		m, err = draft.Finish(m, sealedKeys)
	}
	if err != nil {
		return m, errors.Join(err, draft.Abandon())
	}
	return m, nil
}
