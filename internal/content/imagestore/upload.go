package imagestore

import (
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"sync"
	"time"

	"coldrack.dev/internal/base/digest"
	"coldrack.dev/internal/base/durable"
)

// Upload is a blob on its way into a repository, in one part or several, one after another.
type Upload struct {
	// ID names it in the store.
	ID    string
	store *Store
	repo  string

	// Of the store, under its lock.
	touched  time.Time
	reserved int64

	mu   sync.Mutex
	file *os.File
	sum  hash.Hash
	size int64
	err  error // ends it
}

// Begin starts an upload into a repository.
func (s *Store) Begin(repo string) (*Upload, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if now := s.opts.Now(); len(s.uploads) >= maxUploads || now.Sub(s.swept) > grace {
		if _, err := s.sweep(grace); err != nil {
			return nil, err
		}
	}
	if len(s.uploads) >= maxUploads {
		return nil, fmt.Errorf("%w, %d; wait for one to end", ErrTooMany, len(s.uploads))
	}
	if err := s.room(); err != nil {
		return nil, err
	}
	id := rand.Text()
	file, err := os.OpenFile(s.path("uploads", id), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, fmt.Errorf("begin an upload: %w", err)
	}
	u := &Upload{ID: id, store: s, repo: repo, touched: s.opts.Now(), file: file, sum: sha256.New()}
	s.uploads[id] = u
	return u, nil
}

func (s *Store) room() error {
	if s.opts.Room == nil {
		return nil
	}
	if err := s.opts.Room(); err != nil {
		return fmt.Errorf("%w: %w", ErrFull, err)
	}
	return nil
}

// Upload finds a running one.
func (s *Store) Upload(repo, id string) (*Upload, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	u := s.uploads[id]
	if u == nil || u.repo != repo {
		return nil, fmt.Errorf("upload %.40q into %s: %w; begin it again", id, repo, ErrNotFound)
	}
	u.touched = s.opts.Now()
	return u, nil
}

// drop forgets an upload and gives its room back. s.mu is held.
func (s *Store) drop(id string) {
	u := s.uploads[id]
	if u == nil {
		return
	}
	delete(s.uploads, id)
	s.used -= u.reserved
	u.reserved = 0
	_ = u.file.Close() // whoever just writes to it gets an error, which ends the upload
	_ = os.Remove(s.path("uploads", id))
}

// Size is how many bytes have come.
func (u *Upload) Size() int64 {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.size
}

// Cancel ends an upload; nothing of it stays.
func (u *Upload) Cancel() {
	u.store.mu.Lock()
	defer u.store.mu.Unlock()
	u.store.drop(u.ID)
}

// step is how much room is asked for at a time, bytes.
const step = 8 << 20

// Append adds bytes, which begin at that offset; -1: at the end. What came before an error stays, and can be gone on from, unless the
// error is of the store.
func (u *Upload) Append(r io.Reader, at int64) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.err != nil {
		return u.err
	}
	if at >= 0 && at != u.size {
		return fmt.Errorf("%w: it begins at byte %d, and %d have come", ErrOffset, at, u.size)
	}
	for buffer := make([]byte, 256<<10); ; {
		n, readErr := r.Read(buffer)
		if n > 0 {
			if err := u.write(buffer[:n]); err != nil {
				u.err = err
				u.Cancel()
				return err
			}
		}
		switch {
		case errors.Is(readErr, io.EOF):
			return nil
		case readErr != nil:
			return fmt.Errorf("receive content: %w", readErr)
		}
	}
}

func (u *Upload) write(b []byte) error {
	if err := u.reserve(u.size + int64(len(b))); err != nil {
		return err
	}
	if _, err := u.file.Write(b); err != nil {
		return fmt.Errorf("keep an upload: %w", err)
	}
	u.sum.Write(b)
	u.size += int64(len(b))
	return nil
}

// reserve sees to it that so many bytes are reserved.
func (u *Upload) reserve(size int64) error {
	s := u.store
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.uploads[u.ID] != u {
		return fmt.Errorf("the upload was ended: %w", ErrNotFound)
	}
	u.touched = s.opts.Now()
	if size <= u.reserved {
		return nil
	}
	if err := s.room(); err != nil {
		return err
	}
	// As much as is left, if that is enough.
	more := max(size-u.reserved, min(step, s.opts.Limit-s.used))
	if err := s.reserve(more); err != nil {
		return err
	}
	u.reserved += more
	return nil
}

// Commit makes what has come a blob of the repository, if it has that digest. The upload has ended then, in any case.
func (u *Upload) Commit(want string) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	defer u.Cancel()
	if u.err != nil {
		return u.err
	}
	u.err = fmt.Errorf("the upload has ended: %w", ErrNotFound)
	if got := digest.Sum(u.sum).String(); got != want {
		return fmt.Errorf("%w: %d bytes came with %s, want %s", ErrDigest, u.size, got, want)
	}
	s := u.store
	if err := errors.Join(u.file.Chmod(0o644), u.file.Sync()); err != nil {
		return fmt.Errorf("keep content %s: %w", want, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.uploads[u.ID] != u {
		return fmt.Errorf("the upload was ended: %w", ErrNotFound)
	}
	if _, twice := s.blobs[want]; !twice {
		if err := durable.Rename(s.path("uploads", u.ID), s.blobPath(want)); err != nil {
			return fmt.Errorf("keep content %s: %w", want, err)
		}
		s.blobs[want] = blob{u.size, s.opts.Now()}
		s.used += u.size - u.reserved
		u.reserved = 0
	}
	s.link(u.repo, want)
	return nil
}
