package daemon

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// diskReserve holds back some of the data folder's disk, as a file that is given up when everything else is full: a store that
// cannot write ends the server. Whatever may grow (uploads) stops before that.
type diskReserve struct {
	dir, file string
	// store is the store's file. Its blocks, and some for its growth, are allocated before they are written, so that what the store
	// writes until the reserve is given up finds room. stored is its size at the last look.
	store  string
	stored int64
	log    *slog.Logger

	mu   sync.Mutex
	last diskSpace
}

// diskSpace is how the data folder's disk stands, in bytes.
type diskSpace struct {
	Total, Free int64
	// Held is the size of the reserve; 0 when it was given up, or never had room.
	Held int64
}

// wanted is the size of the reserve: 512 MiB is some days of the store's writes.
func (d diskSpace) wanted() int64 { return min(512<<20, d.Total/20) }

// giveUp says whether the store needs the reserve.
func (d diskSpace) giveUp() bool { return d.Held > 0 && d.Free < d.wanted()/4 }

// takeBack says whether there is room for the reserve again.
func (d diskSpace) takeBack() bool { return d.Held == 0 && d.Free > 3*d.wanted() }

// room is how much uploads may still take.
func (d diskSpace) room() int64 { return d.Free - d.wanted() }

// reserveLook is how often the disk is looked at. A disk may be filled by hundreds of megabytes a second, and the first write of the
// store that finds no room is its last.
const reserveLook = 200 * time.Millisecond

func newDiskReserve(cfg Config, log *slog.Logger) *diskReserve {
	return &diskReserve{dir: cfg.DataDir, file: cfg.path("reserve"), store: cfg.path("etcd", "member", "snap", "db"), log: log}
}

// run keeps the reserve until ctx ends.
func (r *diskReserve) run(ctx context.Context) error {
	tick := time.NewTicker(reserveLook)
	defer tick.Stop()
	for {
		if err := r.look(); err != nil {
			r.log.Warn("cannot look after the disk's reserve; trying again", "dir", r.dir, "err", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// look reads how the disk stands, and gives the reserve up or takes it back.
func (r *diskReserve) look() error {
	r.allocateStore()
	now, err := r.read()
	if err != nil {
		return err
	}
	switch {
	case now.giveUp():
		if err := os.Remove(r.file); err != nil {
			return err
		}
		r.log.Error("the disk is full: the reserve was given up, so that the store can go on; make room", "dir", r.dir, "reserve", now.Held, "free", now.Free)
	case now.takeBack():
		if err := r.take(now.wanted()); err != nil {
			return err
		}
		r.log.Info("space is held back on the disk for the store", "dir", r.dir, "reserve", now.wanted())
	}
	if now, err = r.read(); err != nil {
		return err
	}
	r.mu.Lock()
	r.last = now
	r.mu.Unlock()
	return nil
}

// storeAhead is how much the store may grow between two looks, bytes.
const storeAhead = 16 << 20

// allocateStore gives the store's file its blocks. What the file system cannot do, or has no room for, is left.
func (r *diskReserve) allocateStore() {
	file, err := os.OpenFile(r.store, os.O_WRONLY, 0)
	if err != nil {
		return // there is none, here or yet
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil || info.Size() == r.stored {
		return
	}
	if unix.Fallocate(int(file.Fd()), unix.FALLOC_FL_KEEP_SIZE, 0, info.Size()+storeAhead) == nil {
		r.stored = info.Size()
	}
}

func (r *diskReserve) take(size int64) error {
	file, err := os.OpenFile(r.file, os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	if err := unix.Fallocate(int(file.Fd()), 0, 0, size); err != nil {
		return errors.Join(fmt.Errorf("hold back %d bytes: %w", size, err), file.Close(), os.Remove(r.file))
	}
	return file.Close()
}

func (r *diskReserve) read() (diskSpace, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(r.dir, &st); err != nil {
		return diskSpace{}, fmt.Errorf("space on the disk of %s: %w", r.dir, err)
	}
	now := diskSpace{Total: int64(st.Blocks) * st.Bsize, Free: int64(st.Bavail) * st.Bsize}
	info, err := os.Stat(r.file)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return diskSpace{}, err
	}
	if err == nil {
		now.Held = info.Size()
	}
	return now, nil
}

// space is as of the last look.
func (r *diskReserve) space() diskSpace {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.last
}

// errDiskFull is what somebody who sends something large is told.
var errDiskFull = errors.New("the server's disk is full")

// roomFor says that so many bytes more would take what the store needs.
func (r *diskReserve) roomFor(bytes int64) error {
	now, err := r.read()
	if err != nil {
		return err
	}
	if now.room() < bytes {
		return fmt.Errorf("%w: %d MiB are free, %d MiB are left for the store, and %d MiB are needed", errDiskFull, now.Free>>20, now.wanted()>>20, bytes>>20)
	}
	return nil
}

// checkRoom says that more would take what the store needs.
func (r *diskReserve) checkRoom() error {
	now, err := r.read()
	if err != nil {
		return err
	}
	if now.room() <= 0 {
		return fmt.Errorf("%w: %d MiB are free, and %d MiB are left for the store", errDiskFull, now.Free>>20, now.wanted()>>20)
	}
	return nil
}
