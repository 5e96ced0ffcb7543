package backups

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"coldrack.dev/internal/cluster/backup"
	"coldrack.dev/internal/cluster/etcd"
)

// OwnUID is what tells the store of a server from others: servers that share one, and hosts that it is restored on, have the same machine authority.
func OwnUID(authorityFingerprint string) string { return OwnPrefix + authorityFingerprint[:32] }

// OwnPrefix begins the UID of a server's own store.
const OwnPrefix = "server-"

// Own is what backups of the server's own store are made of.
type Own struct {
	// UID of the store.
	UID string
	// Host and Version of this server.
	Host, Version string
	// Every is the time between two backups; 0: none is taken by itself. Keep is how many stay.
	Every time.Duration
	Keep  int
	// State is what else is needed to come back, sealed.
	State func() ([]byte, error)
	// Snapshot writes a snapshot of the store into an empty file.
	Snapshot func(ctx context.Context, file *os.File, tell func(done, total int64) error) (etcd.Origin, error)
}

type own struct {
	Own
	set set
}

// UseOwn says what the server's own store is backed up by. It is called before anything else.
func (s *Service) UseOwn(o Own) {
	folder := backup.Folder{Path: filepath.Join(s.Dir, o.UID), UID: o.UID}
	s.own = &own{o, set{uid: o.UID, keep: o.Keep, folder: func() (backup.Folder, error) { return folder, nil }}}
}

// ErrNoOwn is the error where the store is not the server's own.
var ErrNoOwn = errors.New("this server's store is not its own: back up the etcd or the Kubernetes that holds it by their own means, and keep a copy of pki/")

// TakeOwn takes a backup of the server's own store. tell may be nil.
func (s *Service) TakeOwn(ctx context.Context, why string, tell func(Progress)) (m backup.Manifest, err error) {
	if s.own == nil {
		return m, ErrNoOwn
	}
	o := s.own
	return s.taking(ctx, o.set, why, tell, func() (source, error) {
		return source{draft: backup.Manifest{Member: o.Host, Coldrack: o.Version}, snapshot: o.Snapshot, close: func() {}, seal: o.State}, nil
	})
}

// ListOwn lists the backups of the server's own store, here and elsewhere.
func (s *Service) ListOwn(ctx context.Context) (all []Located, problem, err error) {
	if s.own == nil {
		return nil, nil, ErrNoOwn
	}
	return s.listAll(ctx, s.own.set)
}

// ExportOwn writes a backup of the server's own store as one file.
func (s *Service) ExportOwn(ctx context.Context, id string, w io.Writer) error {
	if s.own == nil {
		return ErrNoOwn
	}
	return s.export(ctx, s.own.set, id, w)
}

const (
	// ownFirst is how long after a start the first backup of all is taken, and ownSettled one that is due.
	ownFirst, ownSettled = 10 * time.Minute, time.Minute
	// ownRetry and ownRetryMost are how long a failed backup of the own store waits for another try; it doubles.
	ownRetry, ownRetryMost = time.Minute, time.Hour
)

// KeepOwn takes backups of the server's own store when they are due, until ctx ends.
func (s *Service) KeepOwn(ctx context.Context) error {
	if s.own == nil {
		return nil
	}
	var (
		failures  int
		began     = s.Now()
		notBefore time.Time // after a failure
	)
	for {
		taken := s.newest()
		last, err := s.lastOwn()
		if err != nil {
			return err
		}
		wait := max(ownDue(last, s.own.Every, began, s.Now()), notBefore.Sub(s.Now()))
		if wait <= 0 {
			if _, err := s.TakeOwn(ctx, "schedule", nil); ctx.Err() != nil {
				return nil
			} else if err != nil {
				wait = min(ownRetry<<min(failures, 10), ownRetryMost)
				failures, notBefore = failures+1, s.Now().Add(wait)
				s.Log.Error("backup of the server's own store failed; trying again", "err", err, "in", wait)
			} else {
				failures = 0
				continue
			}
		}
		again := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			again.Stop()
			return nil
		case <-taken:
			again.Stop()
		case <-again.C:
		}
	}
}

// lastOwn is when the newest backup here was taken; zero: there is none. One of the future, by a clock that was wrong, does not count.
func (s *Service) lastOwn() (last time.Time, err error) {
	list, err := s.list(s.own.set)
	for _, m := range list {
		if !m.TakenAt.After(s.Now().Add(time.Minute)) {
			s.note("", func(is *Stats) { is.Last = m.TakenAt })
			return m.TakenAt, nil
		}
	}
	return last, err
}

// ownDue is how long it is until the next backup, of a store that is there since began.
func ownDue(last time.Time, every time.Duration, began, now time.Time) time.Duration {
	if every <= 0 {
		return 24 * time.Hour // nothing is due; a person's order wakes it
	}
	due, least := last.Add(every), began.Add(ownSettled)
	if last.IsZero() {
		due = began.Add(min(ownFirst, every))
	}
	if due.Before(least) {
		due = least
	}
	return max(due.Sub(now), 0)
}

// OwnBackups finds backups of servers' own stores in an object store, by UID, that keys open.
func OwnBackups(ctx context.Context, elsewhere backup.Elsewhere) (map[string]backup.Copies, error) {
	uids, err := elsewhere.UIDs(ctx, OwnPrefix)
	if err != nil {
		return nil, fmt.Errorf("look for backups of servers: %w", err)
	}
	return elsewhere.List(ctx, uids...)
}
