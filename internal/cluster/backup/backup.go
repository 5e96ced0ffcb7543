// Package backup keeps backups of the etcd of clusters in a folder: each is a folder of its own with the snapshot, a manifest that says what
// it is, and the cluster's keys, sealed. A backup is there as a whole or not at all, also after the power was cut.
package backup

import (
	"cmp"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"coldrack.dev/internal/base/durable"
)

const (
	fileSnapshot = "snapshot.db"
	fileKeys     = "keys.sealed"
	fileManifest = "manifest.json"
	// partSuffix ends the name of a folder whose backup is not complete.
	partSuffix = ".part"
	// format of the manifest.
	format = 1
)

// Manifest says what a backup is.
type Manifest struct {
	Format int    `json:"format"`
	ID     string `json:"id"`
	// Cluster is its name, and UID tells it from others of the same name. A Coldrack server's own store has no name.
	Cluster string `json:"cluster"`
	UID     string `json:"uid"`
	// TakenAt is when the snapshot was begun.
	TakenAt time.Time `json:"takenAt"`
	// Reason is why it was taken: schedule, upgrade, or who asked for it.
	Reason string `json:"reason"`
	// Member is the one that gave the snapshot; of a server's own store, its host.
	Member string `json:"member"`
	// Etcd is the version that wrote it, Storage the version of the store's format.
	Etcd       string `json:"etcd"`
	Storage    string `json:"storage,omitempty"`
	Kubernetes string `json:"kubernetes,omitempty"`
	// Coldrack is the version of the server whose own store it is.
	Coldrack string `json:"coldrack,omitempty"`
	// Keys and Revision were read in a trial restore.
	Keys     int   `json:"keys"`
	Revision int64 `json:"revision"`
	// Size and Digest of the snapshot.
	Size   int64  `json:"size"`
	Digest string `json:"digest"`
	// KeysDigest is that of the sealed keys.
	KeysDigest string `json:"keysDigest"`
}

// Folder holds the backups of one cluster.
type Folder struct {
	Path string
	UID  string
}

var idPattern = regexp.MustCompile(`^[0-9]{8}t[0-9]{6}z(-[0-9]+)?$`)

// List of complete backups, the newest first. What cannot be read is skipped and named in problems.
func (f Folder) List() (backups []Manifest, problems []error) {
	entries, err := os.ReadDir(f.Path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, []error{err}
	}
	for _, e := range entries {
		if !e.IsDir() || !idPattern.MatchString(e.Name()) {
			continue
		}
		m, err := f.Get(e.Name())
		if err != nil {
			problems = append(problems, err)
			continue
		}
		backups = append(backups, m)
	}
	slices.SortFunc(backups, func(a, b Manifest) int { return b.TakenAt.Compare(a.TakenAt) })
	return backups, problems
}

// ErrNone is the error for a backup that is not there.
var ErrNone = errors.New("there is no such backup")

// Get reads one manifest.
func (f Folder) Get(id string) (m Manifest, err error) {
	if !idPattern.MatchString(id) {
		return m, fmt.Errorf("%w: %q", ErrNone, id)
	}
	text, err := os.ReadFile(filepath.Join(f.Path, id, fileManifest))
	if errors.Is(err, fs.ErrNotExist) {
		return m, fmt.Errorf("%w: %s", ErrNone, id)
	} else if err != nil {
		return m, fmt.Errorf("backup %s: %w", id, err)
	}
	if err := json.Unmarshal(text, &m); err != nil {
		return m, fmt.Errorf("backup %s: manifest: %w", id, err)
	}
	return m, m.check(id, f.UID)
}

func (m *Manifest) check(id, uid string) error {
	switch {
	case m.Format != format:
		return fmt.Errorf("backup %s: its format is %d, and this Coldrack reads %d", id, m.Format, format)
	case m.ID != id:
		return fmt.Errorf("backup %s: its manifest is that of %q", id, m.ID)
	case m.UID != uid:
		return fmt.Errorf("backup %s is of another cluster: of %s with UID %s, and this one's is %s", id, cmp.Or(m.Cluster, "a server"), m.UID, uid)
	}
	return nil
}

// Snapshot is the path of a backup's snapshot.
func (f Folder) Snapshot(id string) string { return filepath.Join(f.Path, id, fileSnapshot) }

// SealedKeys of a backup, checked.
func (f Folder) SealedKeys(m Manifest) ([]byte, error) {
	sealed, err := os.ReadFile(filepath.Join(f.Path, m.ID, fileKeys))
	if err != nil {
		return nil, err
	}
	if digestOf(sealed) != m.KeysDigest {
		return nil, fmt.Errorf("backup %s: %s is not what its digest says: %w", m.ID, fileKeys, ErrDamaged)
	}
	return sealed, nil
}

// Verify reads a whole snapshot and compares its digest.
func (f Folder) Verify(m Manifest) error {
	file, err := os.Open(f.Snapshot(m.ID))
	if err != nil {
		return err
	}
	defer file.Close()
	sum := sha256.New()
	n, err := io.Copy(sum, file)
	if err != nil {
		return fmt.Errorf("backup %s: %w", m.ID, err)
	}
	if got := fmt.Sprintf("sha256:%x", sum.Sum(nil)); n != m.Size || got != m.Digest {
		return fmt.Errorf("backup %s: %s is not what its digest says: %w", m.ID, fileSnapshot, ErrDamaged)
	}
	return nil
}

func digestOf(b []byte) string { return fmt.Sprintf("sha256:%x", sha256.Sum256(b)) }

// Draft is a backup that is being made. Until Finish nobody takes it for one.
type Draft struct {
	folder Folder
	id     string
	dir    string
	// Snapshot is where its snapshot is written to.
	Snapshot *os.File
}

// Begin makes room for a new backup. Drafts that an earlier process left are removed: there must be one writer of a folder at a time.
func (f Folder) Begin(now time.Time) (*Draft, error) {
	base := strings.ToLower(now.UTC().Format("20060102T150405Z"))
	id := base
	for n := 2; ; n++ {
		_, err := os.Lstat(filepath.Join(f.Path, id))
		if errors.Is(err, fs.ErrNotExist) {
			break
		} else if err != nil {
			return nil, err
		}
		id = fmt.Sprintf("%s-%d", base, n)
	}
	return f.beginAs(id)
}

// beginAs is Begin with an ID that no backup of the folder has.
func (f Folder) beginAs(id string) (*Draft, error) {
	if err := os.MkdirAll(f.Path, 0o700); err != nil {
		return nil, err
	}
	if err := f.Clear(); err != nil {
		return nil, err
	}
	d := &Draft{folder: f, id: id, dir: filepath.Join(f.Path, id+partSuffix)}
	if err := os.Mkdir(d.dir, 0o700); err != nil {
		return nil, err
	}
	file, err := os.OpenFile(filepath.Join(d.dir, fileSnapshot), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(d.dir))
	}
	d.Snapshot = file
	return d, nil
}

// Clear removes drafts that nobody finishes any more.
func (f Folder) Clear() error {
	entries, err := os.ReadDir(f.Path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	for _, e := range entries {
		if e.IsDir() && strings.HasSuffix(e.Name(), partSuffix) {
			if err := os.RemoveAll(filepath.Join(f.Path, e.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}

// Scratch is a folder within the draft that does not exist and goes away with it, or with Finish.
func (d *Draft) Scratch() string { return filepath.Join(d.dir, "trial") }

// Abandon removes the draft.
func (d *Draft) Abandon() error { return errors.Join(d.Snapshot.Close(), os.RemoveAll(d.dir)) }

// Finish makes the draft a backup.
func (d *Draft) Finish(m Manifest, sealedKeys []byte) (Manifest, error) {
	m.Format, m.ID, m.UID, m.KeysDigest = format, d.id, d.folder.UID, digestOf(sealedKeys)
	text, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return m, err
	}
	if err := errors.Join(os.RemoveAll(d.Scratch()), d.Snapshot.Sync()); err != nil {
		return m, err
	}
	if err := durable.WriteFile(filepath.Join(d.dir, fileKeys), sealedKeys, 0o600); err != nil {
		return m, err
	}
	if err := durable.WriteFile(filepath.Join(d.dir, fileManifest), append(text, '\n'), 0o600); err != nil {
		return m, err
	}
	if err := durable.SyncDir(d.dir); err != nil {
		return m, err
	}
	if err := d.Snapshot.Close(); err != nil {
		return m, err
	}
	return m, durable.Rename(d.dir, filepath.Join(d.folder.Path, d.id))
}

// Prune removes the oldest backups until keep are left. The newest always stays, and so does the one named hold.
func (f Folder) Prune(keep int, hold string) (removed []string, err error) {
	backups, _ := f.List()
	for i := len(backups) - 1; i >= max(keep, 1); i-- {
		id := backups[i].ID
		if id == hold {
			continue
		}
		if err := f.Remove(id); err != nil {
			return removed, err
		}
		removed = append(removed, id)
	}
	return removed, nil
}

// Remove a backup. It stops being one before the first of its files goes.
func (f Folder) Remove(id string) error {
	gone := filepath.Join(f.Path, id+partSuffix)
	if err := durable.Rename(filepath.Join(f.Path, id), gone); err != nil {
		return fmt.Errorf("remove backup %s: %w", id, err)
	}
	return os.RemoveAll(gone)
}
