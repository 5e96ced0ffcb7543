package bringup

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path"
	"path/filepath"
	"strings"
	"syscall"

	"coldrack.dev/internal/agent/nodefile"
	"coldrack.dev/internal/contract/wire"
)

// A restore gives every member of etcd other data at the same time. First etcd and the control plane stop on all nodes; then each member gets
// its data, and all start. What is done here may be done again from any point: the new data is put in place as a whole, and the file that
// says so is written before etcd may start on it.

const (
	etcdDir      = "/var/lib/etcd"
	memberDir    = etcdDir + "/member"
	restoredFile = StateDir + "/restored.json"
	// asideSuffix and freshSuffix are beside the member's folder: what it was before, and what it is to be.
	asideSuffix = ".before-"
	freshSuffix = ".fresh-"
)

// restored is the restore whose data the member has.
type restored struct {
	ID string `json:"id"`
}

// restoreFirst does what a restore wants before, or instead of, the phases, as often as it takes. It says whether that was done.
func (p *pass) restoreFirst() bool {
	r := p.restoring
	if r == nil {
		p.forgetFormerData()
		return true
	}
	for failures := 0; p.open.Err() == nil; {
		state, err := p.carryOutRestore(r)
		if err == nil {
			p.track.restore(&wire.RestoreReport{ID: r.ID, State: state})
			return true
		}
		if p.soft.Err() != nil {
			return false
		}
		failures++
		wait := p.Pace.backoff(failures)
		if errors.Is(err, errStillRuns) {
			wait = p.Pace.Probe
		} else if failures&(failures-1) == 0 {
			p.Log.Error("restore of etcd failed; trying again", "restore", r.ID, "err", err, "failures", failures, "again", wait)
		}
		p.track.restore(&wire.RestoreReport{ID: r.ID, Message: err.Error()})
		p.Sleep(p.open, wait)
	}
	return false
}

var errStillRuns = errors.New("still runs")

func (p *pass) carryOutRestore(r *wire.EtcdRestore) (state string, err error) {
	if r.Stop {
		return wire.RestoreStopped, p.stopServers()
	}
	if r.Data == nil {
		return wire.RestoreDone, nil
	}
	var has restored
	if err := nodefile.ReadJSON(p.disk, restoredFile, &has); err == nil && has.ID == r.ID {
		return wire.RestoreDone, nil
	}
	// A machine that was installed anew has nothing to stop.
	if err := p.stopServers(); err != nil {
		return "", err
	}
	if err := p.takeData(r); err != nil {
		return "", err
	}
	if err := nodefile.WriteJSON(p.disk, restoredFile, restored{r.ID}); err != nil {
		return "", err
	}
	p.Log.Info("etcd has the data of a backup", "restore", r.ID)
	return wire.RestoreDone, nil
}

// stopServers takes the manifests of static pods away and waits until etcd and the API server have ended. The phases write them again.
func (p *pass) stopServers() error {
	removed := false
	for _, f := range p.plan.Files {
		if path.Dir(f.Path) != manifestsDir || f.Dir {
			continue
		}
		switch err := os.Remove(p.disk.At(f.Path)); {
		case err == nil:
			removed = true
			p.Log.Info("static pod stops for a restore of etcd", "pod", podOf(f.Path))
		case !errors.Is(err, fs.ErrNotExist):
			return err
		}
	}
	if removed {
		if err := p.disk.Sync(manifestsDir); err != nil {
			return err
		}
	}
	if runs, err := lockedByOther(p.disk.At(memberDir + "/snap/db")); err != nil {
		return err
	} else if runs {
		return fmt.Errorf("etcd %w", errStillRuns)
	}
	for _, backend := range balancerOf(p.plan).Backends {
		at, err := netip.ParseAddrPort(backend)
		if err != nil || at.Addr().String() != p.plan.Address {
			continue
		}
		ctx, cancel := context.WithTimeout(p.soft, p.Pace.ProbeLimit)
		conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", backend)
		cancel()
		if err == nil {
			_ = conn.Close()
			return fmt.Errorf("the API server %w", errStillRuns)
		}
		if !errors.Is(err, syscall.ECONNREFUSED) {
			return fmt.Errorf("whether the API server runs is not known: %w", err)
		}
	}
	return nil
}

// lockedByOther says whether another process has a file locked, as etcd has its store while it runs.
func lockedByOther(file string) (bool, error) {
	f, err := os.Open(file)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	} else if err != nil {
		return false, err
	}
	defer f.Close() // and the lock with it
	switch err := syscall.Flock(int(f.Fd()), syscall.LOCK_SH|syscall.LOCK_NB); {
	case errors.Is(err, syscall.EWOULDBLOCK):
		return true, nil
	case err != nil:
		return false, fmt.Errorf("whether etcd runs is not known: %w", err)
	}
	return false, nil
}

// takeData fetches the member's data and puts it in place of what is there, which is kept beside it.
func (p *pass) takeData(r *wire.EtcdRestore) error {
	fresh, aside := memberDir+freshSuffix+r.ID, memberDir+asideSuffix+r.ID
	if err := p.disk.MakeDir(etcdDir, 0o700); err != nil {
		return err
	}
	if err := p.removeBeside(freshSuffix, ""); err != nil {
		return err
	}
	if free, total := p.disk.Space(etcdDir); total > 0 && free < r.Data.Size+spare {
		return fmt.Errorf("%s needs %s for the data of the backup and has %s free of %s: remove what is not needed there; %s%s* is data from before an earlier restore",
			etcdDir, nodefile.Size(r.Data.Size+spare), nodefile.Size(free), nodefile.Size(total), memberDir, asideSuffix)
	}
	p.track.restore(&wire.RestoreReport{ID: r.ID, Message: "fetches the data of the backup"})
	if err := p.fetchData(r, fresh); err != nil {
		return errors.Join(err, os.RemoveAll(p.disk.At(fresh)))
	}
	// What is in place now was there before the restore, unless that is beside it already: then it came by an earlier try, and no etcd
	// has run on it.
	if _, err := os.Lstat(p.disk.At(aside)); errors.Is(err, fs.ErrNotExist) {
		if err := os.Rename(p.disk.At(memberDir), p.disk.At(aside)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return p.disk.Explain(aside, err)
		}
	} else if err := os.RemoveAll(p.disk.At(memberDir)); err != nil {
		return err
	}
	if err := os.Rename(p.disk.At(fresh), p.disk.At(memberDir)); err != nil {
		return p.disk.Explain(memberDir, err)
	}
	return p.disk.Sync(etcdDir)
}

// fetchData unpacks the archive into a folder while it arrives, and says whether it was the one that is wanted.
func (p *pass) fetchData(r *wire.EtcdRestore, into string) error {
	packed, arriving := io.Pipe()
	ctx, cancel := context.WithCancel(p.soft)
	defer cancel()
	fetched := make(chan error, 1)
	go func() {
		err := p.Server.EtcdData(ctx, r.ID, arriving)
		arriving.CloseWithError(err)
		fetched <- err
	}()
	sum := sha256.New()
	count := &counter{w: sum, tell: func(int64) {}}
	in := io.TeeReader(io.LimitReader(packed, r.Data.Size+1), count)
	err := p.unpackData(in, into)
	if err == nil {
		_, err = io.Copy(io.Discard, in) // what tar leaves at the end
	}
	packed.CloseWithError(err)
	cancel()
	if late := <-fetched; late != nil && !errors.Is(late, context.Canceled) && !errors.Is(late, io.ErrClosedPipe) {
		return fmt.Errorf("fetch the data of the backup: %w", late)
	}
	if err != nil {
		return fmt.Errorf("the data of the backup: %w", err)
	}
	if got := digestOf(sum); got != r.Data.Digest || count.n != r.Data.Size {
		return fmt.Errorf("the data of the backup is not what was announced: %d bytes with digest %s, want %d with %s", count.n, got, r.Data.Size, r.Data.Digest)
	}
	return nil
}

// unpackData writes the files of a member: regular ones, below its folder, and nothing else.
func (p *pass) unpackData(from io.Reader, into string) error {
	for archive := tar.NewReader(from); ; {
		header, err := archive.Next()
		if errors.Is(err, io.EOF) {
			return p.syncDirs(into)
		}
		if err != nil {
			return err
		}
		if header.Typeflag != tar.TypeReg || !filepath.IsLocal(header.Name) {
			return fmt.Errorf("%q has no business in it", header.Name)
		}
		file := p.disk.At(path.Join(into, header.Name))
		if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
			return err
		}
		f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return err
		}
		_, err = io.Copy(f, archive)
		if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
			return err
		}
	}
}

func (p *pass) syncDirs(root string) error {
	return filepath.WalkDir(p.disk.At(root), func(file string, entry fs.DirEntry, err error) error {
		if err != nil || !entry.IsDir() {
			return err
		}
		d, err := os.Open(file)
		if err != nil {
			return err
		}
		return errors.Join(d.Sync(), d.Close())
	})
}

// forgetFormerData removes what etcd had before a restore: a backup that was taken since has been found good.
func (p *pass) forgetFormerData() {
	p.track.restore(nil)
	for _, suffix := range []string{asideSuffix, freshSuffix} {
		if err := p.removeBeside(suffix, "data from before a restore removed"); err != nil {
			p.Log.Warn("cannot remove data from before a restore; trying again", "err", err)
		}
	}
}

// removeBeside removes folders beside the member's, and says so in the log.
func (p *pass) removeBeside(suffix, say string) error {
	found, err := filepath.Glob(p.disk.At(memberDir) + suffix + "*")
	if err != nil {
		return err
	}
	for _, dir := range found {
		if err := os.RemoveAll(dir); err != nil {
			return err
		}
		if say != "" {
			p.Log.Info(say, "path", strings.TrimPrefix(dir, p.disk.Root))
		}
	}
	return nil
}
