package daemon

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"coldrack.dev/internal/base/durable"
	"coldrack.dev/internal/base/pki"
	"coldrack.dev/internal/base/version"
	"coldrack.dev/internal/cluster/etcd"
	"coldrack.dev/internal/server/backups"
	"coldrack.dev/internal/server/controlplane"
)

// settingsFile, in a backup of the server's own store, are the settings that the server ran with. A restore writes it for people to compare.
const settingsFile = "settings-of-backup.json"

// keptState are the files and folders of the data folder that a backup of the server's own store holds beside the store. The master key is
// not among them: a backup alone opens nothing. What can be made again, or is fetched again, is left out.
func keptState() []string {
	return []string{"pki", "leases", "trusted-keys", "addresses.json", "tokens.json", restoredFile}
}

// leftOut says whether a file of these stays out of backups.
func leftOut(name string) bool { return name == "pki/master.key" || durable.IsTemporary(name) }

// ownUID tells the store of this server from others.
func ownUID(machines *pki.Authority) string {
	return backups.OwnUID(strings.TrimPrefix(machines.Fingerprint(), "sha256:"))
}

// stateUse is the use of the master key for what goes beside the snapshot of the store.
func stateUse(uid string) string { return "state of " + uid }

// useOwnStore has the server's own store backed up, where there is one.
func (s *server) useOwnStore() {
	if s.cfg.Kubeconfig != "" || len(s.cfg.EtcdEndpoints) > 0 {
		return
	}
	host, err := os.Hostname()
	if err != nil {
		host = "unknown"
	}
	uid := ownUID(s.keys.machines)
	s.backups.UseOwn(backups.Own{
		UID: uid, Host: host, Version: version.Get().Version, Every: s.cfg.BackupEvery, Keep: s.cfg.BackupKeep,
		State: func() ([]byte, error) {
			archive, err := packState(s.cfg)
			if err != nil {
				return nil, err
			}
			return s.keys.master.Seal(stateUse(uid), archive)
		},
		Snapshot: func(ctx context.Context, file *os.File, tell func(done, total int64) error) (etcd.Origin, error) {
			plane := s.current.Load()
			if plane == nil {
				return etcd.Origin{}, fmt.Errorf("%w: %s", controlplane.ErrStore, *s.noStore.Load())
			}
			return plane.Snapshot(ctx, file, tell)
		},
	})
}

// packState packs what is kept beside the store.
func packState(cfg Config) ([]byte, error) {
	var packed bytes.Buffer
	archive := tar.NewWriter(&packed)
	add := func(name string, content []byte) error {
		if err := archive.WriteHeader(&tar.Header{Name: name, Mode: 0o600, Size: int64(len(content)), ModTime: time.Now(), Format: tar.FormatPAX}); err != nil {
			return err
		}
		_, err := archive.Write(content)
		return err
	}
	settings, err := json.MarshalIndent(cfg, "", "  ")
	if err != nil {
		return nil, err
	}
	if err := add(settingsFile, append(settings, '\n')); err != nil {
		return nil, err
	}
	for _, root := range keptState() {
		err := filepath.WalkDir(cfg.path(root), func(path string, entry fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) {
				return nil // there is none, or it has just gone
			}
			if err != nil || !entry.Type().IsRegular() {
				return err
			}
			name, err := filepath.Rel(cfg.DataDir, path)
			if err != nil {
				return err
			}
			if name = filepath.ToSlash(name); leftOut(name) {
				return nil
			}
			content, err := os.ReadFile(path)
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			} else if err != nil {
				return err
			}
			return add(name, content)
		})
		if err != nil {
			return nil, fmt.Errorf("back up %s: %w", cfg.path(root), err)
		}
	}
	return packed.Bytes(), archive.Close()
}

// unpackState reads what packState packed. Other names than those of kept files are an error.
func unpackState(packed []byte) (files map[string][]byte, err error) {
	files = map[string][]byte{}
	for archive := tar.NewReader(bytes.NewReader(packed)); ; {
		header, err := archive.Next()
		if errors.Is(err, io.EOF) {
			return files, nil
		} else if err != nil {
			return nil, fmt.Errorf("the files beside the store: %w", err)
		}
		name := header.Name
		root, _, _ := strings.Cut(name, "/")
		if path.Clean(name) != name || leftOut(name) || name != settingsFile && !slices.Contains(keptState(), root) {
			return nil, fmt.Errorf("the files beside the store hold %q, which belongs to no backup", name)
		}
		if files[name], err = io.ReadAll(archive); err != nil {
			return nil, fmt.Errorf("the files beside the store: %w", err)
		}
	}
}
