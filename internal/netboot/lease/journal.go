package lease

import (
	"bufio"
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"coldrack.dev/internal/base/durable"
)

// Record is a change of a lease as it is kept on disk.
type Record struct {
	State   State // bound, quarantined or free
	Address netip.Addr
	Client  string // a client as the server names it, without white space; empty for quarantined and free
	Until   time.Time
}

// journalHeader is the first line of the file and names the version of its form. Each further line is a checksum
// and a record, readable for a person:
//
//	1c8aa23f bound 192.0.2.17 1767225600 52:54:00:12:34:56
const (
	journalHeader = journalKind + " 1"
	journalKind   = "coldrack-leases"
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

var stateWords = map[State]string{Free: "free", Bound: "bound", Quarantined: "quarantined"}

// appendRecord encodes a record as a line.
func appendRecord(b []byte, r Record) []byte {
	start := len(b)
	b = append(b, "00000000 "...)
	b = append(b, stateWords[r.State]...)
	b = append(b, ' ')
	b = r.Address.AppendTo(b)
	b = append(b, ' ')
	b = strconv.AppendInt(b, r.Until.Unix(), 10)
	b = append(b, ' ')
	b = append(b, r.Client...)
	sum := crc32.Checksum(b[start+9:], castagnoli)
	hex.Encode(b[start:], []byte{byte(sum >> 24), byte(sum >> 16), byte(sum >> 8), byte(sum)})
	return append(b, '\n')
}

var errDamaged = errors.New("damaged record")

func parseRecord(line string) (Record, error) {
	sum, rest, _ := strings.Cut(line, " ")
	want, err := strconv.ParseUint(sum, 16, 32)
	if err != nil || len(sum) != 8 || uint32(want) != crc32.Checksum([]byte(rest), castagnoli) {
		return Record{}, fmt.Errorf("%w: wrong checksum", errDamaged)
	}
	fields := strings.Split(rest, " ")
	if len(fields) != 4 {
		return Record{}, fmt.Errorf("%w: %d fields", errDamaged, len(fields))
	}
	r := Record{Client: fields[3]}
	known := false
	for state, word := range stateWords {
		if word == fields[0] {
			r.State, known = state, true
		}
	}
	if !known {
		return Record{}, fmt.Errorf("%w: state %q", errDamaged, fields[0])
	}
	if r.Address, err = netip.ParseAddr(fields[1]); err != nil || r.Address.Is4In6() || r.Address.Zone() != "" {
		return Record{}, fmt.Errorf("%w: address %q", errDamaged, fields[1])
	}
	seconds, err := strconv.ParseInt(fields[2], 10, 64)
	if err != nil {
		return Record{}, fmt.Errorf("%w: time %q", errDamaged, fields[2])
	}
	r.Until = time.Unix(seconds, 0)
	if (r.State == Bound) != (r.Client != "") {
		return Record{}, fmt.Errorf("%w: %s with client %q", errDamaged, fields[0], r.Client)
	}
	return r, nil
}

// errOtherRelease says that a journal is of a release whose form this one does not know.
var errOtherRelease = errors.New("a lease journal of another release")

// readJournal reads all records that are whole. A file that was being written when the power went
// ends in a torn line; that one was acknowledged to no client. damaged counts lines left out, a first line that is none among
// them: each record has a checksum of its own.
func readJournal(r io.Reader) (records []Record, damaged int, err error) {
	lines := bufio.NewReader(r)
	for first := true; ; first = false {
		line, err := lines.ReadString('\n')
		if err != nil && err != io.EOF {
			return nil, 0, err
		}
		if err == io.EOF && line == "" {
			return records, damaged, nil
		}
		whole := strings.HasSuffix(line, "\n")
		line = strings.TrimSuffix(line, "\n")
		if first {
			if !whole && strings.HasPrefix(journalHeader, line) {
				return nil, 0, nil // torn while it was made
			}
			if line == journalHeader {
				continue
			}
			if strings.HasPrefix(line, journalKind+" ") {
				return nil, 0, fmt.Errorf("first line is %.40q, not %q: %w", line, journalHeader, errOtherRelease)
			}
			damaged++
			continue
		}
		rec, err := parseRecord(line)
		if err != nil || !whole {
			damaged++
			continue
		}
		records = append(records, rec)
	}
}

// Journal keeps leases on disk. Changes are appended; all that wait at one moment are made durable by a
// single fdatasync, so the number of answers a second does not depend on the disk's latency.
type Journal struct {
	path string
	log  *slog.Logger
	// Snapshot gives all that has to survive, for compaction. It is set before Run.
	Snapshot func() []Record

	mu      sync.Mutex
	waiting []change
	wake    chan struct{}

	// Owned by Run.
	file  *os.File // nil: broken; the next batch starts with a compaction
	lines int      // in the file
	kept  int      // lines of the last snapshot

	// Commits are the writes that succeeded, Records the changes in them, Failures the writes that did not.
	Commits, Records, Failures atomic.Uint64
}

// change is one record on its way to the disk. done is called with nil once it is durable.
type change struct {
	record Record
	done   func(error)
}

// maxWaiting bounds the queue before a slow disk. A client whose answer has no room asks again.
const maxWaiting = 16384

var errStoreBusy = errors.New("lease store cannot keep up")

// compactAbove is how many lines beside the needed ones a journal may have.
const compactAbove = 10_000

// Open reads the leases of a file, whose folder it creates if need be.
func Open(path string, log *slog.Logger) (*Journal, []Record, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, nil, fmt.Errorf("lease directory: %w", err)
	}
	var records []Record
	data, err := os.ReadFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return nil, nil, fmt.Errorf("read leases: %w", err)
	default:
		var damaged int
		records, damaged, err = readJournal(bytes.NewReader(data))
		if err != nil {
			return nil, nil, fmt.Errorf("read leases from %s: %w", path, err)
		}
		if damaged > 0 {
			kept := path + ".damaged"
			if err := durable.WriteFile(kept, data, 0o600); err != nil {
				return nil, nil, fmt.Errorf("set the damaged lease journal aside: %w", err)
			}
			log.Warn("lease journal has damaged lines; it is read without them, and clients whose leases they held keep their addresses by asking for them",
				"file", path, "damaged", damaged, "leases", len(records), "kept", kept)
		}
	}
	return &Journal{path: path, log: log, wake: make(chan struct{}, 1)}, records, nil
}

// Add queues a change. done may be nil. It does not block.
func (j *Journal) Add(r Record, done func(error)) {
	j.mu.Lock()
	if len(j.waiting) >= maxWaiting {
		j.mu.Unlock()
		if done != nil {
			done(errStoreBusy)
		}
		return
	}
	j.waiting = append(j.waiting, change{r, done})
	j.mu.Unlock()
	select {
	case j.wake <- struct{}{}:
	default:
	}
}

// Run writes changes until ctx ends, then what still waits, and closes the file.
func (j *Journal) Run(ctx context.Context) {
	for {
		select {
		case <-j.wake:
		case <-ctx.Done():
			j.commit()
			if j.file != nil {
				j.file.Close()
				j.file = nil
			}
			return
		}
		j.commit()
	}
}

// commit makes durable whatever waits.
func (j *Journal) commit() {
	j.mu.Lock()
	batch := j.waiting
	j.waiting = nil
	j.mu.Unlock()
	if len(batch) == 0 {
		return
	}
	err := j.write(batch)
	if err != nil {
		j.Failures.Add(1)
		j.log.Error("cannot store leases; no address is leased from the pools until this works", "file", j.path, "err", err)
	} else {
		j.Commits.Add(1)
		j.Records.Add(uint64(len(batch)))
	}
	for _, c := range batch {
		if c.done != nil {
			c.done(err)
		}
	}
}

func (j *Journal) write(batch []change) error {
	if j.file == nil || j.lines > 2*j.kept+compactAbove {
		if err := j.compact(); err != nil {
			return err
		}
	}
	var b []byte
	for _, c := range batch {
		b = appendRecord(b, c.record)
	}
	_, err := j.file.Write(b)
	if err == nil {
		err = unix.Fdatasync(int(j.file.Fd()))
	}
	if err != nil {
		// What the file holds now is unknown, also after a failed sync: begin a new one.
		j.file.Close()
		j.file = nil
		return err
	}
	j.lines += len(batch)
	return nil
}

// compact replaces the file by a snapshot. The snapshot may contain changes that still wait; they
// are appended after it once more, which changes nothing.
func (j *Journal) compact() error {
	records := j.Snapshot()
	b := []byte(journalHeader + "\n")
	for _, r := range records {
		b = appendRecord(b, r)
	}
	if err := durable.WriteFile(j.path, b, 0o600); err != nil {
		return fmt.Errorf("write %s: %w", j.path, err)
	}
	file, err := os.OpenFile(j.path, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return err
	}
	if j.file != nil {
		j.file.Close()
	}
	j.file, j.lines, j.kept = file, len(records), len(records)
	return nil
}
