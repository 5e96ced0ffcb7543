package nodefile

import (
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"slices"
	"strings"
	"testing"

	"coldrack.dev/internal/contract/wire"
)

func TestAFileIsWholeOrNotThere(t *testing.T) {
	d := Disk{t.TempDir()}
	const name = "/etc/a/b.conf"
	if missing := d.MissingParents(name); !slices.Equal(missing, []string{"/etc/a", "/etc"}) {
		t.Errorf("missing %q", missing)
	}
	if err := d.Write(name, []byte("old"), 0o640); err != nil {
		t.Fatal(err)
	}
	cut := errors.New("no more")
	err := d.Stream(name, 0o640, func(w io.Writer) error {
		_, _ = w.Write([]byte("half of the n"))
		return cut
	})
	if !errors.Is(err, cut) {
		t.Errorf("got %v", err)
	}
	if b, err := d.Read(name); string(b) != "old" || err != nil {
		t.Errorf("%q, %v", b, err)
	}
	if _, err := os.Lstat(d.At(PartOf(name))); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a part is left: %v", err)
	}
	if err := d.Write("/etc", []byte("x"), 0o644); err == nil || !strings.Contains(err.Error(), "a person has to remove it") {
		t.Errorf("a file over a folder: %v", err)
	}
}

func TestWhatIsThereIsCompared(t *testing.T) {
	d := Disk{t.TempDir()}
	want := wire.NodeFile{Path: "/etc/x", Mode: 0o600}
	content := []byte("text")
	for _, step := range []struct {
		what  string
		do    func() error
		holds bool
	}{
		{"nothing", func() error { return nil }, false},
		{"the file", func() error { return d.Put(want, content) }, true},
		{"another mode", func() error { return os.Chmod(d.At(want.Path), 0o644) }, false},
		{"put again", func() error { return d.Put(want, content) }, true},
		{"other content", func() error { return os.WriteFile(d.At(want.Path), []byte("test"), 0o600) }, false},
		{"a link", func() error { return d.Link(want.Path, "/etc/y") }, false},
	} {
		if err := step.do(); err != nil {
			t.Fatal(err)
		}
		if got := d.Holds(want, content); got != step.holds {
			t.Errorf("%s: %v", step.what, got)
		}
	}
}

func TestTheLedgerOutlivesTheAgent(t *testing.T) {
	d, log := Disk{t.TempDir()}, slog.New(slog.DiscardHandler)
	const file = "/ledger.json"
	l := OpenLedger(d, file, log)
	if err := l.Prepare([]string{"/a", "/b"}, []string{"a.service"}); err != nil {
		t.Fatal(err)
	}
	due := l.Pending("a.service")
	if err := l.Prepare([]string{"/a"}, []string{"a.service"}); err != nil { // changed again while it restarts
		t.Fatal(err)
	}
	if err := errors.Join(l.Restarted("a.service", due), d.Write("/a", nil, 0o600), os.WriteFile(d.At(PartOf("/b")), nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	l = OpenLedger(d, file, log)
	l.CleanUp()
	if got := l.Paths(); !slices.Equal(got, []string{"/a", "/b"}) || l.Pending("a.service") == 0 {
		t.Errorf("paths %q, restart %d", got, l.Pending("a.service"))
	}
	if _, err := os.Lstat(d.At(PartOf("/b"))); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a part is left: %v", err)
	}
	if err := errors.Join(l.Forget([]string{"/b"}, []string{"a.service"})); err != nil {
		t.Fatal(err)
	}
	if l = OpenLedger(d, file, log); !slices.Equal(l.Paths(), []string{"/a"}) || l.Pending("a.service") != 0 {
		t.Errorf("paths %q", l.Paths())
	}
}
