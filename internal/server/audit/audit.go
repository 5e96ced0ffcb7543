// Package audit keeps the records of who did what, and sends them on.
//
// A record is one line of JSON, an Event of audit.k8s.io/v1. Log appends it to a file, says beforehand whether the next one can be
// kept, and removes old files by size, but none that is younger than a number of days. Exports send each record to syslog
// and to a webhook as well; a receiver that is slow or gone costs a bounded queue, never a request.
package audit

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Options of a Log.
type Options struct {
	// File that records are appended to. Its folder is made with mode 0700.
	File string
	// MaxBytes is how large all files together may become, in bytes, before the oldest are removed. 0: nothing is removed and
	// no file is begun, as befits a program that writes a record beside the server.
	MaxBytes int64
	// Keep is the age that a file must have to be removed.
	Keep time.Duration
	// Export says where records are sent as well.
	Export Export
	Log    *slog.Logger
	// Now is the clock; nil means time.Now.
	Now func() time.Time
}

const (
	// files is how many parts MaxBytes has: when a tenth is written, the next file begins.
	files = 10
	// ahead is allocated on the disk for records to come, in bytes, and again when less than half is left. It must hold the
	// records of all requests that are being answered when the disk becomes full.
	ahead = 8 << 20
	// maxWaiting bounds the records that wait in memory for a disk that takes them, in bytes.
	maxWaiting = 16 << 20
	// recheck is how often the file is looked for under its name.
	recheck = time.Second
)

// Stats are counts since the start, and the present state.
type Stats struct {
	Kept uint64
	// Lost are records that neither the disk nor the memory had room for.
	Lost uint64
	// Waiting are records that wait in memory for the disk, in bytes.
	Waiting int
	Exports []ExportStats
}

// Log is safe for concurrent use.
type Log struct {
	opts    Options
	exports []*exporter

	mu   sync.Mutex
	file *os.File
	// size is how much of the file is written, allocated how much of it has its place on the disk.
	size, allocated int64
	checked         time.Time
	// torn: the file ends within a record.
	torn    bool
	waiting [][]byte
	stats   Stats
}

// Open returns a Log. One that cannot write yet says so in Ready and tries again. It fails only when an export is described wrongly.
func Open(opts Options) (*Log, error) {
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	if opts.Now == nil {
		opts.Now = time.Now
	}
	l := &Log{opts: opts}
	senders, err := opts.Export.senders()
	if err != nil {
		return nil, err
	}
	for _, s := range senders {
		l.exports = append(l.exports, startExporter(s, opts.Log))
	}
	return l, nil
}

// Keep writes a record, one JSON object without a line feed, and sends it on. A record that the disk does not take waits in
// memory; the error says why, and what became of it. The caller does not change the record any more.
func (l *Log) Keep(record []byte) error {
	for _, e := range l.exports {
		e.add(record)
	}
	line := append(bytes.Clone(record), '\n')
	l.mu.Lock()
	defer l.mu.Unlock()
	err := l.flush()
	if err == nil {
		if err = l.write(line); err == nil {
			l.stats.Kept++
			_ = l.allocate() // Ready says when there is no room
			l.rotate()
			return nil
		}
	}
	if l.stats.Waiting+len(line) > maxWaiting {
		l.stats.Lost++
		return fmt.Errorf("an audit record is lost: %w", err)
	}
	l.waiting = append(l.waiting, line)
	l.stats.Waiting += len(line)
	return fmt.Errorf("an audit record waits in memory: %w", err)
}

// Ready says whether the next record can be kept: the file is there, has its place on the disk, and nothing waits to be written.
func (l *Log) Ready() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.flush(); err != nil {
		return err
	}
	return l.allocate()
}

// Stats of the log and its exports.
func (l *Log) Stats() Stats {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.stats
	for _, e := range l.exports {
		s.Exports = append(s.Exports, e.stats())
	}
	return s
}

// Close gives exports a few seconds to send what they have.
func (l *Log) Close() {
	for _, e := range l.exports {
		e.stop()
	}
	for _, e := range l.exports {
		e.wait()
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if _ = l.flush(); len(l.waiting) > 0 {
		l.opts.Log.Error("audit records are lost: the disk did not take them", "file", l.opts.File, "records", len(l.waiting))
	}
	l.closeFile()
}

// flush opens the file and writes what waits.
func (l *Log) flush() error {
	if err := l.open(); err != nil {
		return fmt.Errorf("the audit log cannot be written: %w", err)
	}
	for len(l.waiting) > 0 {
		if err := l.write(l.waiting[0]); err != nil {
			return err
		}
		l.stats.Kept++
		l.stats.Waiting -= len(l.waiting[0])
		l.waiting = slices.Delete(l.waiting, 0, 1)
	}
	return nil
}

// open opens the file, anew when another or none has its name.
func (l *Log) open() error {
	now := l.opts.Now()
	if l.file != nil && now.Sub(l.checked) < recheck {
		return nil
	}
	if l.file != nil {
		open, err := l.file.Stat()
		named, err2 := os.Stat(l.opts.File)
		if err == nil && err2 == nil && os.SameFile(open, named) {
			l.checked = now
			return nil
		}
		l.closeFile()
	}
	file, err := openAppend(l.opts.File)
	if err != nil {
		return err
	}
	info, err := file.Stat()
	if err != nil {
		file.Close()
		return err
	}
	if !l.owner() {
		// The server does not cut the file off meanwhile.
		if err := unix.Flock(int(file.Fd()), unix.LOCK_SH); err != nil {
			file.Close()
			return err
		}
	}
	l.file, l.size, l.allocated, l.checked = file, info.Size(), 0, now
	l.torn = endsTorn(l.opts.File, l.size)
	return nil
}

// openAppend opens or makes the file. What root makes in another's folder belongs to that folder's owner, who is to write on.
func openAppend(name string) (*os.File, error) {
	dir := filepath.Dir(name)
	if err := os.Mkdir(dir, 0o700); err == nil {
		inherit(dir)
	} else if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	_, before := os.Lstat(name)
	file, err := os.OpenFile(name, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err == nil && errors.Is(before, fs.ErrNotExist) {
		inherit(name)
	}
	return file, err
}

// inherit gives what root has made to the owner of the folder that it is in.
func inherit(name string) {
	info, err := os.Stat(filepath.Dir(name))
	if err != nil || os.Geteuid() != 0 {
		return
	}
	if owner, ok := info.Sys().(*syscall.Stat_t); ok {
		_ = os.Lchown(name, int(owner.Uid), int(owner.Gid))
	}
}

// endsTorn says whether a file does not end with a line feed: a process died, or the disk was full, within a record.
func endsTorn(name string, size int64) bool {
	if size == 0 {
		return false
	}
	file, err := os.Open(name)
	if err != nil {
		return true // an empty line more does no harm
	}
	defer file.Close()
	last := []byte{0}
	_, err = file.ReadAt(last, size-1)
	return err != nil || last[0] != '\n'
}

// write appends a line. After a line of which only a part was written, the next begins on a line of its own.
func (l *Log) write(line []byte) error {
	if l.torn {
		line = append([]byte{'\n'}, line...)
	}
	n, err := l.file.Write(line)
	l.size += int64(n)
	if n > 0 {
		l.torn = n < len(line)
	}
	if err != nil {
		return fmt.Errorf("the audit log cannot be written: %w", err)
	}
	return nil
}

// allocate takes the disk's space for the records to come.
func (l *Log) allocate() error {
	if !l.owner() || l.allocated-l.size >= ahead/2 {
		return nil
	}
	err := unix.Fallocate(int(l.file.Fd()), unix.FALLOC_FL_KEEP_SIZE, l.size, ahead)
	switch {
	case err == nil:
		l.allocated = l.size + ahead
	case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.ENOSYS):
		l.allocated = 1 << 62 // a file system without it: the first record that does not fit will tell
	default:
		return fmt.Errorf("the audit log cannot be written: room for records in %s: %w", l.opts.File, err)
	}
	return nil
}

// closeFile gives back the space that was taken for records to come, unless another program is about to append one.
func (l *Log) closeFile() {
	if l.file == nil {
		return
	}
	if l.owner() && unix.Flock(int(l.file.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
		if info, err := l.file.Stat(); err == nil {
			_ = l.file.Truncate(info.Size())
		}
	}
	l.file.Close()
	l.file = nil
}

// owner says whether this is the log of the server, which keeps the files in order.
func (l *Log) owner() bool { return l.opts.MaxBytes > 0 }

// rotate begins the next file when this one is large, and removes old ones.
func (l *Log) rotate() {
	if !l.owner() || l.size < l.opts.MaxBytes/files {
		return
	}
	if err := os.Rename(l.opts.File, l.oldName()); err != nil {
		l.opts.Log.Error("the audit log goes on in a file that should be closed", "file", l.opts.File, "err", err)
		return
	}
	l.closeFile()
	if err := l.removeOld(); err != nil {
		l.opts.Log.Error("old audit logs cannot be removed", "file", l.opts.File, "err", err)
	}
}

// oldNames is the pattern of the files that are full. Their names sort by time.
func (l *Log) oldNames() (prefix, suffix string) {
	suffix = filepath.Ext(l.opts.File)
	return strings.TrimSuffix(l.opts.File, suffix) + "-", suffix
}

func (l *Log) oldName() string {
	prefix, suffix := l.oldNames()
	at := l.opts.Now().UTC()
	for {
		name := prefix + at.Format("2006-01-02T15-04-05.000") + suffix
		if _, err := os.Lstat(name); err != nil {
			return name
		}
		at = at.Add(time.Millisecond)
	}
}

// removeOld removes the oldest files while there is too much, but none whose last record is younger than the floor.
func (l *Log) removeOld() error {
	prefix, suffix := l.oldNames()
	names, err := filepath.Glob(prefix + "*" + suffix)
	if err != nil {
		return err
	}
	slices.Sort(names)
	sizes := map[string]int64{}
	var total int64
	for _, name := range names {
		if info, err := os.Stat(name); err == nil {
			sizes[name] = info.Size()
			total += info.Size()
		}
	}
	for _, name := range names {
		if total <= l.opts.MaxBytes-l.opts.MaxBytes/files {
			return nil
		}
		info, err := os.Stat(name)
		if err != nil {
			continue
		}
		if l.opts.Now().Sub(info.ModTime()) < l.opts.Keep {
			return nil
		}
		if err := os.Remove(name); err != nil {
			return err
		}
		total -= sizes[name]
	}
	return nil
}
