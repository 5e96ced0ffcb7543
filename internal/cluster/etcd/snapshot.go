package etcd

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"slices"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// stallTimeout is how long a member may send nothing of a snapshot.
const stallTimeout = time.Minute

// Origin is where a snapshot comes from.
type Origin struct {
	// Member is its name.
	Member string
	// Version of etcd that wrote it, for example 3.7.3: an older minor release does not start on it.
	Version string
	// Size in bytes, with the digest at its end.
	Size int64
	// Digest of the whole file, as sha256:HEX.
	Digest string
}

// Snapshot writes a snapshot of the whole store into an empty file, of the first member that gives one: followers before the leader, which
// has enough to do. tell hears how many bytes have come, of about how many, and stops it by an error. The digest that etcd appends is checked; the file is flushed.
func (c *Client) Snapshot(ctx context.Context, file *os.File, tell func(done, total int64) error) (Origin, error) {
	members, err := c.Members(ctx)
	if err != nil {
		return Origin{}, err
	}
	// A learner may lack what was acknowledged.
	members = slices.DeleteFunc(members, func(m Member) bool { return m.Learner || !m.Answers })
	slices.SortStableFunc(members, func(a, b Member) int { return rank(a) - rank(b) })
	var problems []error
	for _, m := range members {
		origin, err := c.snapshotOf(ctx, m, file, tell)
		if err == nil {
			return origin, nil
		}
		problems = append(problems, fmt.Errorf("%s: %w", m.Name, reason(err)))
		if ctx.Err() != nil || errors.As(err, new(*os.PathError)) || errors.As(err, new(localError)) {
			break // no other member changes that
		}
	}
	if len(problems) == 0 {
		problems = append(problems, errors.New("no member answers"))
	}
	return Origin{}, fmt.Errorf("take a snapshot of the etcd of cluster %s: %w", c.target.Cluster, errors.Join(problems...))
}

// rank of a member to be asked for a snapshot.
func rank(m Member) int {
	switch {
	case m.Leader:
		return 1
	case !m.InSync:
		return 2
	}
	return 0
}

// localError is one of tell, which stops everything.
type localError struct{ error }

func (c *Client) snapshotOf(ctx context.Context, m Member, file *os.File, tell func(done, total int64) error) (Origin, error) {
	client, err := c.at(m.Node)
	if err != nil {
		return Origin{}, err
	}
	origin, err := Snapshot(ctx, client, clientURL(m.Node), file, tell)
	origin.Member = m.Name
	return origin, err
}

// Snapshot is Client.Snapshot of the one member that a client of etcd's own speaks to, at an endpoint.
func Snapshot(ctx context.Context, client *clientv3.Client, endpoint string, file *os.File, tell func(done, total int64) error) (Origin, error) {
	if _, err := file.Seek(0, io.SeekStart); err != nil {
		return Origin{}, err
	}
	if err := file.Truncate(0); err != nil {
		return Origin{}, err
	}
	asking, done := context.WithTimeout(ctx, askTimeout)
	status, err := client.Status(asking, endpoint)
	done()
	if err != nil {
		return Origin{}, err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stalled := time.AfterFunc(stallTimeout, func() { cancel(fmt.Errorf("it has sent nothing for %s", stallTimeout)) })
	defer stalled.Stop()
	answer, err := client.SnapshotWithVersion(ctx)
	if err != nil {
		return Origin{}, err
	}
	defer answer.Snapshot.Close()
	sum := &tailSum{hash: sha256.New()}
	whole := sha256.New()
	out := io.MultiWriter(file, sum, whole)
	if err := tell(0, status.DbSize); err != nil {
		return Origin{}, localError{err}
	}
	var size int64
	for buffer := make([]byte, 256<<10); ; {
		n, err := answer.Snapshot.Read(buffer)
		stalled.Reset(stallTimeout)
		if n > 0 {
			if _, err := out.Write(buffer[:n]); err != nil {
				return Origin{}, err
			}
			size += int64(n)
			if err := tell(size, max(status.DbSize, size)); err != nil {
				return Origin{}, localError{err}
			}
		}
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			if cause := context.Cause(ctx); cause != nil {
				err = cause
			}
			return Origin{}, err
		}
	}
	if err := sum.check(size); err != nil {
		return Origin{}, err
	}
	if err := file.Sync(); err != nil {
		return Origin{}, err
	}
	return Origin{Version: firstOf(status.Version, answer.Version), Size: size, Digest: fmt.Sprintf("sha256:%x", whole.Sum(nil))}, nil
}

func firstOf(texts ...string) string {
	if i := slices.IndexFunc(texts, func(t string) bool { return t != "" }); i >= 0 {
		return texts[i]
	}
	return ""
}

// tailSum hashes everything but the last bytes, which are the digest of the rest.
type tailSum struct {
	hash hash.Hash
	tail []byte
}

// Write implements io.Writer.
func (s *tailSum) Write(b []byte) (int, error) {
	s.tail = append(s.tail, b...)
	if extra := len(s.tail) - sha256.Size; extra > 0 {
		s.hash.Write(s.tail[:extra])
		s.tail = append(s.tail[:0], s.tail[extra:]...)
	}
	return len(b), nil
}

// check says whether size bytes were a whole snapshot: pages of the store, and their digest.
func (s *tailSum) check(size int64) error {
	if size%512 != sha256.Size {
		return fmt.Errorf("the snapshot ended after %d bytes, which is no whole one", size)
	}
	if !bytes.Equal(s.tail, s.hash.Sum(nil)) {
		return errors.New("the snapshot is not what its digest says: it was damaged on its way")
	}
	return nil
}
