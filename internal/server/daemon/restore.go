package daemon

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	etcdversion "go.etcd.io/etcd/api/v3/version"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/base/durable"
	"coldrack.dev/internal/base/pki"
	"coldrack.dev/internal/cluster/backup"
	"coldrack.dev/internal/cluster/etcddata"
	"coldrack.dev/internal/server/backups"
	"coldrack.dev/internal/server/controlplane"
	"coldrack.dev/internal/server/peopleapi/credentials"
)

// RestoreOptions say what a server's own store is restored from.
type RestoreOptions struct {
	// File that an export wrote; empty: a backup of the data folder, or a copy.
	File string
	// From is the ID of the backup; empty: the newest.
	From string
	// Server is the UID of the store, where there are backups of several.
	Server string
	// MasterKeyFile is a copy of the master key; empty: it is where the server looks for it.
	MasterKeyFile string
	// Credentials for where copies are kept; asked only when they are needed.
	Credentials func() (v1alpha1.BackupCredentials, error)
	// Tell hears what is done, and what could not be looked at.
	Tell func(format string, args ...any)
}

// Restorable is a backup of a server's own store.
type Restorable struct {
	backup.Manifest
	Here, There bool
}

// Restored is what came of a restore.
type Restored struct {
	backup.Manifest
	// Files that were written, and those that were there already and stayed.
	Files, Kept []string
}

// restoringDir, in the data folder, is where a restore works.
const restoringDir = "restoring"

// restoredBump is added to the revision of the store, so that clients that have seen what came after the backup do not see time go back.
const restoredBump = 1_000_000_000

// restoration is a restore, or a look at what could be restored.
type restoration struct {
	cfg    Config
	o      RestoreOptions
	master pki.MasterKey
	// elsewhere is nil without copies.
	elsewhere *backup.Elsewhere
}

// openRestoration checks that the data folder is one to restore into, and holds it. No server runs on it until close.
func openRestoration(cfg Config, o RestoreOptions) (r *restoration, close func(), err error) {
	if cfg.Kubeconfig != "" || len(cfg.EtcdEndpoints) > 0 {
		return nil, nil, backups.ErrNoOwn
	}
	lock, err := lockDataDir(cfg)
	if err != nil {
		return nil, nil, err
	}
	defer func() {
		if err != nil {
			lock.Close()
		}
	}()
	r = &restoration{cfg: cfg, o: o}
	switch {
	case o.MasterKeyFile != "":
		r.master, err = pki.ReadMasterKey(o.MasterKeyFile, cfg.path("pki"))
	case pki.HasMasterKey(cfg.path("pki")):
		r.master, err = pki.OpenMasterKey(cfg.path("pki"))
	default:
		err = fmt.Errorf("the master key is missing: it is in no backup. Name the copy that you keep of pki/master.key (--master-key), put it at %s, or run this with the systemd credential %s",
			cfg.path("pki", "master.key"), pki.CredentialName)
	}
	if err != nil {
		return nil, nil, err
	}
	if cfg.BackupCopies != "" && o.File == "" {
		store, err := cfg.openCopies(o.Credentials)
		if err != nil {
			return nil, nil, err
		}
		r.elsewhere = &backup.Elsewhere{Store: store, Keys: r.master, Known: &backup.Known{}}
	}
	return r, func() { lock.Close() }, nil
}

// ListRestorable lists the backups of servers' own stores, the newest first: those in the data folder and, where it is set, among the copies.
func ListRestorable(ctx context.Context, cfg Config, o RestoreOptions) ([]Restorable, error) {
	r, end, err := openRestoration(cfg, o)
	if err != nil {
		return nil, err
	}
	defer end()
	return r.list(ctx)
}

func (r *restoration) list(ctx context.Context) ([]Restorable, error) {
	all := map[string]Restorable{}
	var problems []error
	folders, err := filepath.Glob(r.cfg.path(backupsDir, backups.OwnPrefix+"*"))
	if err != nil {
		return nil, err
	}
	for _, folder := range folders {
		here, more := backup.Folder{Path: folder, UID: filepath.Base(folder)}.List()
		problems = append(problems, more...)
		for _, m := range here {
			all[m.UID+m.ID] = Restorable{Manifest: m, Here: true}
		}
	}
	if r.elsewhere != nil {
		there, err := backups.OwnBackups(ctx, *r.elsewhere)
		if err != nil {
			problems = append(problems, err)
		}
		for _, copies := range there {
			problems = append(problems, copies.Problems...)
			for _, m := range copies.Backups {
				all[m.UID+m.ID] = Restorable{Manifest: m, Here: all[m.UID+m.ID].Here, There: true}
			}
		}
	}
	for _, problem := range problems {
		r.o.Tell("%v", problem)
	}
	return slices.SortedFunc(maps.Values(all), func(a, b Restorable) int { return b.TakenAt.Compare(a.TakenAt) }), nil
}

// Restore brings back the server's own store, and what belongs to it, into a data folder that has none. What the folder holds already stays. A
// restore that was cut short is done again.
func Restore(ctx context.Context, cfg Config, o RestoreOptions) (done Restored, err error) {
	r, end, err := openRestoration(cfg, o)
	if err != nil {
		return done, err
	}
	defer end()
	if _, err := os.Lstat(cfg.path("etcd")); err == nil {
		return done, fmt.Errorf("%s holds a store already, and a restore replaces none: if it is really to go, move it away (mv %s %s.before) and run this again",
			cfg.DataDir, cfg.path("etcd"), cfg.path("etcd"))
	} else if !errors.Is(err, fs.ErrNotExist) {
		return done, err
	}
	work := cfg.path(restoringDir)
	if err := os.RemoveAll(work); err != nil {
		return done, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(work)) }()
	if err := os.MkdirAll(work, 0o700); err != nil {
		return done, err
	}
	m, snapshot, sealed, err := r.obtain(ctx, work)
	if err != nil {
		return done, err
	}
	files, err := r.state(m, sealed, filepath.Join(work, "pki"))
	if err != nil {
		return done, fmt.Errorf("backup %s: %w", m.ID, err)
	}
	if newer(m.Etcd, etcdversion.Version) {
		return done, fmt.Errorf("backup %s was written by Coldrack %s with etcd %s, and this Coldrack has etcd %s, which cannot read it: restore with that version, or a newer one",
			m.ID, m.Coldrack, m.Etcd, etcdversion.Version)
	}
	r.o.Tell("restoring backup %s: %d keys at revision %d", m.ID, m.Keys, m.Revision)
	if err := r.makeStore(ctx, snapshot, filepath.Join(work, "etcd")); err != nil {
		return done, fmt.Errorf("backup %s: %w", m.ID, err)
	}
	done.Manifest = m
	if err := r.master.Install(cfg.path("pki")); err != nil {
		return done, err
	}
	earlier := files[restoredFile]
	delete(files, restoredFile)
	if here, err := os.ReadFile(cfg.path(restoredFile)); err == nil {
		earlier = here
	}
	if err := markRestored(cfg, m, earlier, time.Now()); err != nil {
		return done, err
	}
	for _, name := range slices.Sorted(maps.Keys(files)) {
		if _, err := os.Lstat(cfg.path(name)); err == nil && name != settingsFile {
			done.Kept = append(done.Kept, name)
			continue
		}
		if err := os.MkdirAll(filepath.Dir(cfg.path(name)), 0o700); err != nil {
			return done, err
		}
		if err := durable.WriteFile(cfg.path(name), files[name], 0o600); err != nil {
			return done, err
		}
		done.Files = append(done.Files, name)
	}
	if err := r.give(filepath.Join(work, "etcd")); err != nil {
		return done, err
	}
	// The store comes last: without it nothing was restored, and the same command does it again.
	return done, durable.Rename(filepath.Join(work, "etcd"), cfg.path("etcd"))
}

// give makes what was restored belong to whom the data folder belongs to, when the superuser restores for a server that runs as another user.
func (r *restoration) give(store string) error {
	if os.Geteuid() != 0 {
		return nil
	}
	info, err := os.Stat(r.cfg.DataDir)
	if err != nil {
		return err
	}
	owner, ok := info.Sys().(*syscall.Stat_t)
	if !ok || owner.Uid == 0 {
		return nil
	}
	roots := []string{store, r.cfg.path("lock"), r.cfg.path(settingsFile)}
	for _, name := range keptState() {
		roots = append(roots, r.cfg.path(name))
	}
	for _, root := range roots {
		err := filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			return errors.Join(err, os.Lchown(path, int(owner.Uid), int(owner.Gid)))
		})
		if err != nil {
			return fmt.Errorf("give %s to user %d, to whom the data folder belongs: %w", root, owner.Uid, err)
		}
	}
	return nil
}

// obtain has a backup's snapshot as a file, checked, and what is sealed beside it.
func (r *restoration) obtain(ctx context.Context, work string) (m backup.Manifest, snapshot string, sealed []byte, err error) {
	if r.o.File != "" {
		return r.fromFile(work)
	}
	all, err := r.list(ctx)
	if err != nil {
		return m, "", nil, err
	}
	chosen, err := choose(all, r.o.From, r.o.Server)
	if err != nil {
		return m, "", nil, err
	}
	m = chosen.Manifest
	if err := r.sameServer(m); err != nil {
		return m, "", nil, err
	}
	if chosen.Here {
		folder := backup.Folder{Path: r.cfg.path(backupsDir, m.UID), UID: m.UID}
		if sealed, err = folder.SealedKeys(m); err == nil {
			err = folder.Verify(m)
		}
		if err == nil || !chosen.There {
			return m, folder.Snapshot(m.ID), sealed, err
		}
		r.o.Tell("%v; taking the copy", err)
	}
	if err := roomAt(work, 2*m.Size); err != nil {
		return m, "", nil, err
	}
	r.o.Tell("fetching backup %s from %s", m.ID, r.elsewhere)
	folder := backup.Folder{Path: filepath.Join(work, "backup"), UID: m.UID}
	draft, sealed, err := r.elsewhere.Fetch(ctx, folder, m)
	if err != nil {
		return m, "", nil, err
	}
	return m, draft.Snapshot.Name(), sealed, draft.Snapshot.Close()
}

func (r *restoration) fromFile(work string) (m backup.Manifest, snapshot string, sealed []byte, err error) {
	file, err := os.Open(r.o.File)
	if err != nil {
		return m, "", nil, err
	}
	defer file.Close()
	in, err := backup.ReadArchive(file)
	if err != nil {
		return m, "", nil, fmt.Errorf("%s: %w", r.o.File, err)
	}
	m = in.Manifest
	if !strings.HasPrefix(m.UID, backups.OwnPrefix) {
		return m, "", nil, fmt.Errorf("%s is a backup of cluster %s, not of a server's own store: coldrack cluster backup import", r.o.File, m.Cluster)
	}
	if err := r.sameServer(m); err != nil {
		return m, "", nil, err
	}
	if err := roomAt(work, 2*m.Size); err != nil {
		return m, "", nil, err
	}
	draft, err := backup.Folder{Path: filepath.Join(work, "backup"), UID: m.UID}.Import(in)
	if err != nil {
		return m, "", nil, fmt.Errorf("%s: %w", r.o.File, err)
	}
	return m, draft.Snapshot.Name(), in.SealedKeys, draft.Snapshot.Close()
}

// choose one of the backups, the newest first.
func choose(all []Restorable, id, server string) (chosen Restorable, err error) {
	servers := map[string]string{}
	var fitting []Restorable
	for _, b := range all {
		if server != "" && b.UID != server {
			continue
		}
		servers[b.UID] = fmt.Sprintf("%s (last backed up on host %s at %s)", b.UID, b.Member, b.TakenAt.Format("2006-01-02 15:04 MST"))
		if id == "" || b.ID == id {
			fitting = append(fitting, b)
		}
	}
	switch {
	case len(fitting) == 0:
		return chosen, fmt.Errorf("%w of a server's own store; `coldrack server restore --list` lists those that there are", backup.ErrNone)
	case len(servers) > 1:
		return chosen, fmt.Errorf("there are backups of several servers; name one with --server: %s", strings.Join(slices.Sorted(maps.Values(servers)), ", "))
	}
	return fitting[0], nil
}

// sameServer refuses a backup of another server than the one whose authorities the data folder has.
func (r *restoration) sameServer(m backup.Manifest) error {
	text, err := os.ReadFile(r.cfg.path("pki", machineAuthority+".crt"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	authority, err := pki.FingerprintOf(text)
	if err != nil {
		return fmt.Errorf("%s: %w", r.cfg.path("pki", machineAuthority+".crt"), err)
	}
	if is := backups.OwnUID(strings.TrimPrefix(authority, "sha256:")); is != m.UID {
		return fmt.Errorf("backup %s is of %s (host %s), and the data folder %s belongs to %s: the machines of one do not know the other. Restore into another folder (--data-dir)",
			m.ID, m.UID, m.Member, r.cfg.DataDir, is)
	}
	return nil
}

// state opens what is sealed, and checks that the authorities in it are the server's own and can be used, by a copy of them in scratch.
func (r *restoration) state(m backup.Manifest, sealed []byte, scratch string) (map[string][]byte, error) {
	packed, err := r.master.Open(stateUse(m.UID), sealed)
	if err != nil {
		return nil, err
	}
	files, err := unpackState(packed)
	if err != nil {
		return nil, err
	}
	for name, content := range files {
		if base, ok := strings.CutPrefix(name, "pki/"); ok {
			if err := os.MkdirAll(filepath.Dir(filepath.Join(scratch, base)), 0o700); err != nil {
				return nil, err
			}
			if err := os.WriteFile(filepath.Join(scratch, base), content, 0o600); err != nil {
				return nil, err
			}
		}
	}
	for _, name := range []string{machineAuthority, credentials.Authority} {
		if files["pki/"+name+".crt"] == nil {
			return nil, fmt.Errorf("it lacks the authority %s", name)
		}
		authority, err := pki.OpenAuthority(scratch, name, r.master)
		if err != nil {
			return nil, err
		}
		if name == machineAuthority && ownUID(authority) != m.UID {
			return nil, fmt.Errorf("it is of %s by its manifest, and of %s by its authority", m.UID, ownUID(authority))
		}
	}
	return files, nil
}

// makeStore makes the data of the store.
func (r *restoration) makeStore(ctx context.Context, snapshot, folder string) error {
	token := make([]byte, 8)
	if _, err := rand.Read(token); err != nil {
		return err
	}
	member := etcddata.Member{
		Name: controlplane.EtcdName, PeerURL: controlplane.EtcdPeerURL, InitialCluster: []string{controlplane.EtcdName + "=" + controlplane.EtcdPeerURL},
		Token: hex.EncodeToString(token), Bump: restoredBump,
	}
	content, err := readSnapshot(ctx, etcddata.Request{Snapshot: snapshot, Folder: folder, Member: &member})
	if err != nil {
		return err
	}
	if content.Keys == 0 {
		return errors.New("its store holds nothing")
	}
	return os.Chmod(folder, 0o700)
}

// newer says whether version a is of a newer minor release than b.
func newer(a, b string) bool {
	minor := func(version string) (major, minor int) {
		_, _ = fmt.Sscanf(strings.TrimPrefix(version, "v"), "%d.%d", &major, &minor)
		return major, minor
	}
	majorA, minorA := minor(a)
	majorB, minorB := minor(b)
	return majorA > majorB || majorA == majorB && minorA > minorB
}
