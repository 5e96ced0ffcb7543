package lease

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

const journalName = "leases.journal"

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

var compareRecords = cmp.Options{cmpopts.EquateComparable(netip.Addr{})}

func lease(n int) Record {
	return Record{Bound, netip.AddrFrom4([4]byte{10, 0, byte(n >> 8), byte(n)}), fmt.Sprintf("52:54:00:00:%02x:%02x", n>>8, n&255), time.Unix(1_800_000_000+int64(n), 0)}
}

// startJournal opens and runs a journal; stop ends it in order.
func startJournal(t testing.TB, dir string, snapshot func() []Record) (j *Journal, read []Record, stop func()) {
	t.Helper()
	j, read, err := Open(filepath.Join(dir, journalName), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	if snapshot == nil {
		snapshot = func() []Record { return read }
	}
	j.Snapshot = snapshot
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { j.Run(ctx) })
	stop = sync.OnceFunc(func() { cancel(); running.Wait() })
	t.Cleanup(stop)
	return j, read, stop
}

// put stores records and waits for each.
func put(j *Journal, records ...Record) error {
	var errs []error
	var mu sync.Mutex
	var done sync.WaitGroup
	done.Add(len(records))
	for _, r := range records {
		j.Add(r, func(err error) {
			mu.Lock()
			errs = append(errs, err)
			mu.Unlock()
			done.Done()
		})
	}
	done.Wait()
	return errors.Join(errs...)
}

func TestTheJournalKeepsWhatItConfirmed(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "not", "yet", "there")
	want := []Record{lease(1), lease(2), {Quarantined, addr("10.0.0.9"), "", time.Unix(1_800_000_000, 0)}, {Free, addr("10.0.0.1"), "", time.Unix(1, 0)}}
	j, read, stop := startJournal(t, dir, nil)
	if len(read) != 0 {
		t.Fatalf("read %v", read)
	}
	if err := put(j, want...); err != nil {
		t.Fatal(err)
	}
	stop()
	_, read, _ = startJournal(t, dir, nil)
	if diff := cmp.Diff(want, read, compareRecords); diff != "" {
		t.Error(diff)
	}
	data, err := os.ReadFile(filepath.Join(dir, journalName))
	if err != nil || !strings.Contains(string(data), " bound 10.0.0.1 1800000001 52:54:00:00:00:01\n") {
		t.Errorf("%v: %s", err, data)
	}
}

func TestATornOrDamagedJournalLosesOnlyWhatIsTorn(t *testing.T) {
	file := []byte(journalHeader + "\n")
	var ends []int
	for i := range 5 {
		ends = append(ends, len(file))
		file = appendRecord(file, lease(i))
	}
	for cut := range len(file) {
		records, _, err := readJournal(bytes.NewReader(file[:cut]))
		if err != nil {
			t.Fatalf("cut at %d: %v", cut, err)
		}
		whole := 0
		for i := range 5 {
			if end := append(ends, len(file))[i+1]; cut >= end {
				whole++
			}
		}
		if len(records) != whole {
			t.Fatalf("cut at %d: %d records, want %d", cut, len(records), whole)
		}
	}
	for at := len(journalHeader) + 1; at < len(file); at++ {
		damaged := append([]byte(nil), file...)
		damaged[at] ^= 0x10
		records, lines, err := readJournal(bytes.NewReader(damaged))
		if err != nil || len(records) < 3 || lines == 0 {
			t.Fatalf("damage at %d: %d records, %d damaged lines, %v", at, len(records), lines, err)
		}
		for _, r := range records {
			if r != lease(int(r.Until.Unix()-1_800_000_000)) {
				t.Fatalf("damage at %d made %+v", at, r)
			}
		}
	}
}

func TestAfterATornTailTheJournalGoesOn(t *testing.T) {
	dir := t.TempDir()
	file := appendRecord([]byte(journalHeader+"\n"), lease(1))
	file = append(file, "1c8aa23f bound 10.0"...)
	if err := os.WriteFile(filepath.Join(dir, journalName), file, 0o600); err != nil {
		t.Fatal(err)
	}
	j, read, stop := startJournal(t, dir, nil)
	if len(read) != 1 {
		t.Fatalf("read %v", read)
	}
	if err := put(j, lease(2)); err != nil {
		t.Fatal(err)
	}
	stop()
	if _, read, _ = startJournal(t, dir, nil); len(read) != 2 {
		t.Errorf("read %v", read)
	}
}

// The first line is damaged. Every lease has a checksum of its own, so all of them are read; the file is set aside.
func TestADamagedFirstLineCostsNoLease(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, journalName)
	lease := Record{Bound, netip.MustParseAddr("192.0.2.17"), "52:54:00:12:34:56", time.Unix(2_000_000_000, 0)}
	damaged := append([]byte("co\x00drack-leases 1\n"), appendRecord(nil, lease)...)
	if err := os.WriteFile(path, damaged, 0o600); err != nil {
		t.Fatal(err)
	}
	_, records, err := Open(filepath.Join(dir, journalName), slog.New(slog.DiscardHandler))
	if err != nil || len(records) != 1 || records[0] != lease {
		t.Errorf("read %v, %v", records, err)
	}
	if kept, err := os.ReadFile(path + ".damaged"); err != nil || !bytes.Equal(kept, damaged) {
		t.Errorf("set aside: %q, %v", kept, err)
	}
}

func TestAFileThatIsNoJournalIsNotTouched(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, journalName)
	if err := os.WriteFile(path, []byte("coldrack-leases 2\nwhat the future holds\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, _, err := Open(filepath.Join(dir, journalName), slog.New(slog.DiscardHandler))
	if err == nil || !strings.Contains(err.Error(), "coldrack-leases 2") || !strings.Contains(err.Error(), path) {
		t.Errorf("got %v", err)
	}
}

func TestTheJournalIsCompacted(t *testing.T) {
	dir := t.TempDir()
	current := []Record{lease(1), lease(2)}
	j, _, stop := startJournal(t, dir, func() []Record { return current })
	batch := make([]Record, compactAbove+10)
	for i := range batch {
		batch[i] = lease(1 + i%2)
	}
	for range 2 {
		if err := put(j, batch...); err != nil {
			t.Fatal(err)
		}
	}
	if err := put(j, lease(2)); err != nil {
		t.Fatal(err)
	}
	stop()
	_, read, _ := startJournal(t, dir, nil)
	if len(read) > 3+len(batch) {
		t.Errorf("%d records are left", len(read))
	}
	if got := Latest(read); !cmp.Equal(got, current, compareRecords) {
		t.Errorf("left is %v", got)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, ".*")); left != nil {
		t.Errorf("left over: %v", left)
	}
}

func TestManyWaitingLeasesShareOneSync(t *testing.T) {
	j, _, _ := startJournal(t, t.TempDir(), nil)
	records := make([]Record, 2000)
	for i := range records {
		records[i] = lease(i)
	}
	if err := put(j, records...); err != nil {
		t.Fatal(err)
	}
	if n := j.Commits.Load(); n > 200 || j.Records.Load() != 2000 {
		t.Errorf("%d commits for %d records", n, j.Records.Load())
	}
}

func TestAfterAFailedWriteTheJournalRecovers(t *testing.T) {
	dir := t.TempDir()
	var current []Record
	var mu sync.Mutex
	j, _, stop := startJournal(t, dir, func() []Record {
		mu.Lock()
		defer mu.Unlock()
		return current
	})
	if err := put(j, lease(1)); err != nil {
		t.Fatal(err)
	}
	mu.Lock()
	current = []Record{lease(1)}
	mu.Unlock()
	// A directory in the place of the file makes the compaction fail, as a full disk would.
	j.file.Close()
	file, aside := filepath.Join(dir, journalName), filepath.Join(dir, "aside")
	if err := errors.Join(os.Rename(file, aside), os.MkdirAll(filepath.Join(file, "x"), 0o755)); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := put(j, lease(2)); err == nil {
			t.Fatal("stored although it cannot be")
		}
	}
	if err := errors.Join(os.RemoveAll(file), os.Rename(aside, file)); err != nil {
		t.Fatal(err)
	}
	if err := put(j, lease(3)); err != nil {
		t.Fatal(err)
	}
	stop()
	_, read, _ := startJournal(t, dir, nil)
	if diff := cmp.Diff([]Record{lease(1), lease(3)}, read, compareRecords); diff != "" {
		t.Error(diff)
	}
	if j.Failures.Load() != 2 {
		t.Errorf("%d failures", j.Failures.Load())
	}
}

func TestAFullQueueIsRefusedAtOnce(t *testing.T) {
	j, _, err := Open(filepath.Join(t.TempDir(), journalName), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	var refused atomic.Int64
	for i := range maxWaiting + 5 { // nobody runs it
		j.Add(lease(i), func(err error) {
			if errors.Is(err, errStoreBusy) {
				refused.Add(1)
			}
		})
	}
	if refused.Load() != 5 {
		t.Errorf("%d refused", refused.Load())
	}
}

func FuzzJournal(f *testing.F) {
	file := appendRecord([]byte(journalHeader+"\n"), lease(1))
	f.Add(file)
	f.Add(file[:len(file)-5])
	f.Add([]byte("coldrack-leases 2\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		records, _, err := readJournal(bytes.NewReader(data))
		if err != nil {
			return
		}
		again := []byte(journalHeader + "\n")
		for _, r := range records {
			again = appendRecord(again, r)
		}
		reread, damaged, err := readJournal(bytes.NewReader(again))
		if err != nil || damaged != 0 || !cmp.Equal(records, reread, compareRecords) {
			t.Errorf("%v became %v, %v", records, reread, err)
		}
		for _, r := range records {
			p := NewPool(Range{addr("10.0.0.0"), addr("10.0.0.255")})
			p.Restore(r)
			if err := p.Check(); err != nil {
				t.Fatal(err)
			}
		}
	})
}
