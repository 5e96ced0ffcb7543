package audit

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"coldrack.dev/test/require"
)

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func open(t testing.TB, opts Options) *Log {
	t.Helper()
	l, err := Open(opts)
	check(t, err)
	t.Cleanup(l.Close)
	return l
}

func record(n int) []byte { return fmt.Appendf(nil, `{"kind":"Event","n":%d}`, n) }

// lines reads all records in a folder, oldest file first, and fails on one that is no JSON.
func lines(t testing.TB, file string) (numbers []int) {
	t.Helper()
	names, err := filepath.Glob(strings.TrimSuffix(file, ".log") + "*.log")
	check(t, err)
	// audit-TIME.log sorts before audit.log.
	for _, name := range names {
		content, err := os.ReadFile(name)
		check(t, err)
		for scan := bufio.NewScanner(bytes.NewReader(content)); scan.Scan(); {
			var r struct{ N int }
			if len(scan.Bytes()) == 0 {
				continue
			}
			if err := json.Unmarshal(scan.Bytes(), &r); err != nil {
				t.Errorf("%s: %q: %v", name, scan.Text(), err)
			}
			numbers = append(numbers, r.N)
		}
	}
	return numbers
}

func TestOldFilesGoBySizeButNoneYoungerThanTheFloor(t *testing.T) {
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	file := filepath.Join(t.TempDir(), "audit", "audit.log")
	l := open(t, Options{File: file, MaxBytes: 10_000, Keep: 30 * 24 * time.Hour, Now: func() time.Time { return now }})
	write := func(from, to int) {
		for n := from; n < to; n++ {
			check(t, l.Keep(record(n)))
		}
	}
	write(0, 2000) // five times as much as there may be, within a moment
	if got := lines(t, file); len(got) != 2000 {
		t.Errorf("%d of 2000 records are there; all are younger than the floor", len(got))
	}
	old, err := filepath.Glob(filepath.Join(filepath.Dir(file), "audit-*.log"))
	check(t, err)
	for _, name := range old {
		check(t, os.Chtimes(name, now.AddDate(0, -2, 0), now.AddDate(0, -2, 0)))
	}
	write(2000, 2100)
	got := lines(t, file)
	if len(got) > 600 || len(got) < 300 || got[len(got)-1] != 2099 {
		t.Errorf("%d records, the last %d: want about 10,000 bytes of the newest", len(got), got[len(got)-1])
	}
	info, err := os.Stat(file)
	check(t, err)
	if info.Mode().Perm() != 0o600 {
		t.Errorf("the file has mode %v", info.Mode())
	}
}

// A program beside the server writes a record while the server begins new files.
func TestTwoProgramsWriteRecords(t *testing.T) {
	file := filepath.Join(t.TempDir(), "audit.log")
	server := open(t, Options{File: file, MaxBytes: 20_000, Keep: time.Hour})
	var both sync.WaitGroup
	both.Go(func() {
		for n := range 2000 {
			if err := server.Keep(record(n)); err != nil {
				t.Error(err)
			}
		}
	})
	both.Go(func() {
		for n := range 200 {
			guest, err := Open(Options{File: file})
			if err == nil {
				err = guest.Keep(record(10_000 + n))
				guest.Close()
			}
			if err != nil {
				t.Error(err)
			}
		}
	})
	both.Wait()
	if got := lines(t, file); len(got) != 2200 {
		t.Errorf("%d records of 2200", len(got))
	}
}

func TestAFileThatWasTakenAwayIsMadeAnew(t *testing.T) {
	now := time.Now()
	file := filepath.Join(t.TempDir(), "audit.log")
	l := open(t, Options{File: file, MaxBytes: 1 << 20, Now: func() time.Time { return now }})
	check(t, l.Keep(record(1)))
	check(t, os.Remove(file))
	now = now.Add(time.Minute)
	check(t, l.Keep(record(2)))
	if got := lines(t, file); len(got) != 1 || got[0] != 2 {
		t.Errorf("got %v", got)
	}
}

// Root runs the command line, and the server, another user, goes on in the same file.
func TestWhatRootMakesBelongsToTheServer(t *testing.T) {
	require.Need(t, "root")
	data := filepath.Join(t.TempDir(), "data")
	check(t, os.Mkdir(data, 0o700))
	check(t, os.Chown(data, 12345, 12345))
	file := filepath.Join(data, "audit", "audit.log")
	check(t, open(t, Options{File: file}).Keep(record(1)))
	for _, name := range []string{file, filepath.Dir(file)} {
		info, err := os.Stat(name)
		check(t, err)
		if owner := info.Sys().(*syscall.Stat_t).Uid; owner != 12345 {
			t.Errorf("%s belongs to %d", name, owner)
		}
	}
}

func TestARecordAfterATornOneBeginsALine(t *testing.T) {
	file := filepath.Join(t.TempDir(), "audit.log")
	check(t, os.WriteFile(file, []byte(`{"kind":"Ev`), 0o600))
	l := open(t, Options{File: file, MaxBytes: 1 << 20})
	check(t, l.Keep(record(1)))
	content, err := os.ReadFile(file)
	check(t, err)
	if want := "{\"kind\":\"Ev\n" + string(record(1)) + "\n"; string(content) != want {
		t.Errorf("got %q", content)
	}
}

// smallDisk mounts a file system of some bytes until the test ends.
func smallDisk(t testing.TB, size int) string {
	t.Helper()
	require.Need(t, "root")
	dir := t.TempDir()
	check(t, unix.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%d", size)))
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	return dir
}

func TestAFullDiskIsKnownBeforeARecordIsLost(t *testing.T) {
	dir := smallDisk(t, 24<<20)
	file := filepath.Join(dir, "audit.log")
	l := open(t, Options{File: file, MaxBytes: 1 << 30})
	check(t, l.Keep(record(0)))
	// Somebody else takes all that is left.
	hog, err := os.Create(filepath.Join(dir, "hog"))
	check(t, err)
	defer hog.Close()
	for block := make([]byte, 1<<16); ; {
		if _, err := hog.Write(block); err != nil {
			break
		}
	}
	// What is being answered is recorded, in the room that was taken before.
	n, padding := 1, strings.Repeat("x", 10_000)
	big := func(n int) []byte { return fmt.Appendf(nil, `{"n":%d,"padding":%q}`, n, padding) }
	for ; l.Ready() == nil; n++ {
		if err := l.Keep(big(n)); err != nil {
			t.Fatalf("record %d: %v although the log was ready", n, err)
		}
	}
	if err := l.Ready(); !strings.Contains(err.Error(), "no space left") {
		t.Errorf("not ready because of %v", err)
	}
	for end := n + 100; n < end; n++ { // requests that had begun
		check(t, l.Keep(big(n)))
	}
	for end := n + 1000; n < end; n++ { // more than the room that was taken: they wait in memory
		_ = l.Keep(big(n))
	}
	if l.Stats().Waiting == 0 {
		t.Error("nothing waits, so this test shows nothing")
	}
	check(t, hog.Truncate(0))
	check(t, l.Ready())
	content, err := os.ReadFile(file)
	check(t, err)
	if got := bytes.Count(content, []byte("}\n")); got != n || l.Stats().Lost != 0 {
		t.Errorf("%d records of %d, %+v", got, n, l.Stats())
	}
}

func TestAFolderThatCannotBeWrittenTo(t *testing.T) {
	dir := smallDisk(t, 24<<20)
	check(t, unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""))
	var text bytes.Buffer
	l := open(t, Options{File: filepath.Join(dir, "audit", "audit.log"), MaxBytes: 1 << 20, Log: slog.New(slog.NewTextHandler(&text, nil))})
	if err := l.Ready(); err == nil || !strings.Contains(err.Error(), "read-only file system") {
		t.Errorf("got %v", err)
	}
	if err := l.Keep(record(1)); err == nil || !strings.Contains(err.Error(), "waits in memory") {
		t.Errorf("got %v", err)
	}
	check(t, unix.Mount("", dir, "", unix.MS_REMOUNT, ""))
	check(t, l.Keep(record(2)))
	if got := lines(t, filepath.Join(dir, "audit", "audit.log")); len(got) != 2 || got[0] != 1 {
		t.Errorf("got %v", got)
	}
}

func TestIssued(t *testing.T) {
	t.Setenv("SUDO_USER", "ada")
	event := Issued{What: "tokens", Name: "prometheus", Verb: "create", Details: map[string]string{"groups": "coldrack:viewer", "reason": ""}}.Event(time.Unix(1e9, 0))
	for _, want := range []string{`"kind":"Event"`, `"apiVersion":"audit.k8s.io/v1"`, `"resource":"tokens"`, `"name":"prometheus"`, `"username":"local:`,
		`"credential.coldrack.dev/groups":"coldrack:viewer"`, `"credential.coldrack.dev/sudo-user":"ada"`, `"stageTimestamp":"2001-09-09T01:46:40.000000Z"`} {
		if !strings.Contains(string(event), want) {
			t.Errorf("lacks %s: %s", want, event)
		}
	}
	if strings.Contains(string(event), "reason") {
		t.Errorf("has an empty detail: %s", event)
	}
}
