package backups

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/base/durable"
	"coldrack.dev/internal/cluster/backup"
	"coldrack.dev/internal/cluster/etcddata"
	"coldrack.dev/internal/cluster/members"
)

// restoresDir, beside the folders of clusters, holds the members' data of restores that are under way.
const restoresDir = ".restores"

// Get one backup, with its digest checked by reading all of it. One that is only elsewhere is fetched before.
func (s *Service) Get(ctx context.Context, c *v1alpha1.Cluster, id string) (backup.Manifest, error) {
	m, folder, err := s.ensure(ctx, s.setOf(c), id)
	if err != nil {
		return m, err
	}
	return m, folder.Verify(m)
}

// SameKeys says why the cluster's keys of now do not fit what a backup holds: Secrets in it are encrypted with a key, and name authorities, that
// may have been rotated since.
func (s *Service) SameKeys(ctx context.Context, reader client.Reader, c *v1alpha1.Cluster, m backup.Manifest) error {
	folder, err := s.Folder(c)
	if err != nil {
		return err
	}
	sealed, err := folder.SealedKeys(m)
	if err != nil {
		return err
	}
	text, err := s.Keys.Open(sealedUse(m.UID), sealed)
	if err != nil {
		return fmt.Errorf("the keys in backup %s: %w", m.ID, err)
	}
	var then map[string][]byte
	if err := json.Unmarshal(text, &then); err != nil {
		return fmt.Errorf("the keys in backup %s: %w", m.ID, err)
	}
	now := &v1alpha1.Secret{}
	if err := reader.Get(ctx, client.ObjectKey{Name: members.SecretName(c.Name)}, now); err != nil {
		return fmt.Errorf("read the cluster's keys: %w", err)
	}
	if changed := members.ChangedKeys(then, now.Data); len(changed) > 0 {
		return fmt.Errorf("backup %s was taken before these keys of the cluster were rotated: %s; nodes would not understand what it holds. Choose a younger one", m.ID, strings.Join(changed, ", "))
	}
	return nil
}

// Plan of a restore.
type Plan struct {
	// ID of the restore, and of the Backup that it is from.
	ID, Backup string
	// Bump is added to the revision.
	Bump uint64
	// Members of the new cluster, by machine.
	Members map[string]etcddata.Member
}

// Prepared is one member's data.
type Prepared struct {
	Digest   string
	Size     int64
	Revision int64
}

// Prepare makes the data of every member of a restore, which MemberData then gives out. What was made before is made anew.
func (s *Service) Prepare(ctx context.Context, c *v1alpha1.Cluster, p Plan) (map[string]Prepared, error) {
	m, folder, err := s.ensure(ctx, s.setOf(c), p.Backup)
	if err != nil {
		return nil, err
	}
	end, err := s.begin(s.setOf(c), "its restore is prepared")
	if err != nil {
		return nil, err
	}
	defer end()
	if err := folder.Verify(m); err != nil {
		return nil, err
	}
	dir := filepath.Join(s.Dir, restoresDir, p.ID)
	if err := errors.Join(os.RemoveAll(dir), os.MkdirAll(dir, 0o700)); err != nil {
		return nil, err
	}
	// The archives, and the folder that one is made of.
	if err := s.Room(s.Dir, m.Size*int64(len(p.Members)+1)); err != nil {
		return nil, err
	}
	all := map[string]Prepared{}
	for machine, member := range p.Members {
		member.Bump = p.Bump
		made, err := s.prepare(ctx, folder.Snapshot(m.ID), dir, machine, member)
		if err != nil {
			return nil, fmt.Errorf("prepare the data of member %s from backup %s: %w", member.Name, m.ID, err)
		}
		all[machine] = made
	}
	return all, nil
}

func (s *Service) prepare(ctx context.Context, snapshot, dir, machine string, member etcddata.Member) (made Prepared, err error) {
	data := filepath.Join(dir, machine+".data")
	content, err := s.Restore(ctx, snapshot, data, member)
	if err != nil {
		return made, err
	}
	defer os.RemoveAll(data)
	sum := sha256.New()
	size := countWriter(0)
	err = durable.Write(filepath.Join(dir, machine+".tar"), 0o600, func(w io.Writer) error {
		return pack(filepath.Join(data, "member"), io.MultiWriter(w, sum, &size))
	})
	return Prepared{Digest: fmt.Sprintf("sha256:%x", sum.Sum(nil)), Size: int64(size), Revision: content.Revision}, err
}

type countWriter int64

// Write implements io.Writer.
func (c *countWriter) Write(b []byte) (int, error) {
	*c += countWriter(len(b))
	return len(b), nil
}

// pack writes the regular files below a folder as a tar archive.
func pack(root string, w io.Writer) error {
	archive := tar.NewWriter(w)
	err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || !entry.Type().IsRegular() {
			return err
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		name, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		file, err := os.Open(path)
		if err != nil {
			return err
		}
		defer file.Close()
		if err := archive.WriteHeader(&tar.Header{Name: filepath.ToSlash(name), Mode: 0o600, Size: info.Size(), Format: tar.FormatPAX}); err != nil {
			return err
		}
		_, err = io.Copy(archive, file)
		return err
	})
	return errors.Join(err, archive.Close())
}

// MemberData opens the data that was prepared for a machine's member.
func (s *Service) MemberData(restore, machine string) (*os.File, error) {
	for _, name := range []string{restore, machine} {
		if name == "" || strings.ContainsAny(name, "/\\") || strings.HasPrefix(name, ".") {
			return nil, fs.ErrNotExist
		}
	}
	return os.Open(filepath.Join(s.Dir, restoresDir, restore, machine+".tar"))
}

// IsPrepared says whether the data of all machines is there.
func (s *Service) IsPrepared(restore string, machines []string) bool {
	for _, machine := range machines {
		f, err := s.MemberData(restore, machine)
		if err != nil {
			return false
		}
		_ = f.Close()
	}
	return true
}

// Discard removes what was prepared for a restore that has ended.
func (s *Service) Discard(restore string) error {
	if restore == "" || strings.ContainsAny(restore, "/\\") {
		return nil
	}
	return os.RemoveAll(filepath.Join(s.Dir, restoresDir, restore))
}
