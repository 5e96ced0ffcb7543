package objectstore_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"coldrack.dev/internal/base/objectstore"
	"coldrack.dev/test/s3server"
)

func optionsOf(s *s3server.Server) objectstore.S3Options {
	return objectstore.S3Options{
		Endpoint: s.URL, Bucket: s3server.Bucket, Prefix: "racks/one", Region: "us-east-1", PathStyle: true, Authorities: s.CA, AccessKey: s.AccessKey, SecretKey: s.SecretKey,
	}
}

func openS3(t *testing.T, o objectstore.S3Options) *objectstore.S3 {
	t.Helper()
	store, err := objectstore.OpenS3(o)
	if err != nil {
		t.Fatal(err)
	}
	return store
}

func openFolder(t *testing.T) objectstore.Folder {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, objectstore.Marker), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	return objectstore.OpenFolder(dir)
}

// TestStores is what every store does.
func TestStores(t *testing.T) {
	for name, open := range map[string]func(t *testing.T) objectstore.Store{
		"folder": func(t *testing.T) objectstore.Store { return openFolder(t) },
		"S3":     func(t *testing.T) objectstore.Store { return openS3(t, optionsOf(s3server.New(t))) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			contract(t, open(t))
		})
	}
}

func contract(t *testing.T, s objectstore.Store) {
	ctx := t.Context()
	names := func(prefix string) (names []string) {
		t.Helper()
		all, err := s.List(ctx, prefix)
		if err != nil {
			t.Fatal(err)
		}
		for _, o := range all {
			if time.Since(o.Modified) > time.Hour || o.Modified.IsZero() {
				t.Errorf("%s was modified at %s", o.Name, o.Modified)
			}
			names = append(names, o.Name)
		}
		slices.Sort(names)
		return names
	}
	read := func(name string) []byte {
		t.Helper()
		r, err := s.Get(ctx, name)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		b, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	if got := names(""); len(got) != 0 {
		t.Errorf("in the beginning: %v", got)
	}
	// More than two parts of an upload.
	large := make([]byte, 40<<20)
	for i := range large {
		large[i] = byte(rand.Uint32())
	}
	for name, content := range map[string][]byte{"a/1/small": []byte("small"), "a/2/large": large, "ab/1/small": []byte("other"), "a/empty": {}} {
		if err := s.Put(ctx, name, int64(len(content)), bytes.NewReader(content)); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(read(name), content) {
			t.Errorf("%s came back as something else", name)
		}
	}
	if got := names("a/"); !slices.Equal(got, []string{"a/1/small", "a/2/large", "a/empty"}) {
		t.Errorf("below a/: %v", got)
	}
	if got := names(""); len(got) != 4 {
		t.Errorf("everything: %v", got)
	}
	for what, content := range map[string]io.Reader{
		"fails":        io.MultiReader(bytes.NewReader(large[:30<<20]), iotest.ErrReader(errors.New("the disk is broken"))),
		"is too short": bytes.NewReader(large[:100]),
	} {
		for _, name := range []string{"a/2/large", "a/3/new"} {
			err := s.Put(ctx, name, int64(len(large)), content)
			if err == nil || what == "fails" && name == "a/2/large" && !strings.Contains(err.Error(), "the disk is broken") {
				t.Errorf("content that %s: %v", what, err)
			}
		}
	}
	if !bytes.Equal(read("a/2/large"), large) || len(names("a/3/")) != 0 {
		t.Errorf("a Put that failed has changed something: %v", names(""))
	}
	if err := s.Clear(ctx, "a/", time.Now().Add(time.Hour)); err != nil {
		t.Error(err)
	}
	if err := s.Put(ctx, "a/1/small", 5, strings.NewReader("again")); err != nil || string(read("a/1/small")) != "again" {
		t.Errorf("a second time: %v", err)
	}
	for range 2 {
		if err := s.Remove(ctx, "a/1/small"); err != nil {
			t.Error(err)
		}
	}
	if _, err := s.Get(ctx, "a/1/small"); !errors.Is(err, objectstore.ErrNone) {
		t.Errorf("one that was removed: %v", err)
	}
	ended, cancel := context.WithCancelCause(ctx)
	cancel(errors.New("nobody waits any more"))
	if err := s.Put(ended, "a/4", 5, strings.NewReader("small")); err == nil || !strings.Contains(err.Error(), "nobody waits") {
		t.Errorf("a context that has ended: %v", err)
	}
}

// TestWhatS3Refuses shows that errors say what to do, and hold no secret.
func TestWhatS3Refuses(t *testing.T) {
	t.Parallel()
	server := s3server.New(t)
	for what, test := range map[string]struct {
		change func(*objectstore.S3Options)
		want   string
	}{
		"another secret":    {func(o *objectstore.S3Options) { o.SecretKey = "hunter2-wrong" }, "does not accept the credentials"},
		"another key":       {func(o *objectstore.S3Options) { o.AccessKey = "nobody" }, "does not accept the credentials"},
		"no such bucket":    {func(o *objectstore.S3Options) { o.Bucket = "elsewhere" }, `there is no bucket "elsewhere"`},
		"unknown authority": {func(o *objectstore.S3Options) { o.Authorities = nil }, "certificate"},
	} {
		o := optionsOf(server)
		test.change(&o)
		store := openS3(t, o)
		_, listing := store.List(t.Context(), "")
		putting := store.Put(t.Context(), "a", 1, strings.NewReader("a"))
		for _, err := range []error{listing, putting} {
			if err == nil || !strings.Contains(err.Error(), test.want) || !strings.Contains(err.Error(), o.Endpoint.Host) || strings.Contains(err.Error(), o.SecretKey) {
				t.Errorf("%s: %v", what, err)
			}
		}
	}
	o := optionsOf(server)
	o.Authorities = []byte("no certificate")
	if _, err := objectstore.OpenS3(o); err == nil || !strings.Contains(err.Error(), "PEM") {
		t.Errorf("a file without certificates: %v", err)
	}
}

// TestAnUploadThatIsCut leaves nothing that counts, and what it leaves can be cleared.
func TestAnUploadThatIsCut(t *testing.T) {
	t.Parallel()
	server := s3server.New(t)
	store := openS3(t, optionsOf(server))
	large := bytes.Repeat([]byte("large"), 10<<20)
	server.CutAfter(24 << 20)
	if err := store.Put(t.Context(), "a/1", int64(len(large)), bytes.NewReader(large)); err == nil {
		t.Fatal("an upload went through a connection that was cut")
	}
	server.Mend()
	if all, err := store.List(t.Context(), ""); err != nil || len(all) != 0 {
		t.Errorf("%v, %v", all, err)
	}
	if err := store.Clear(t.Context(), "a/", time.Now().Add(time.Hour)); err != nil {
		t.Error(err)
	}
	if err := store.Put(t.Context(), "a/1", int64(len(large)), bytes.NewReader(large)); err != nil {
		t.Error(err)
	}
	server.Stop()
	if _, err := store.List(t.Context(), ""); err == nil {
		t.Error("a server that is away answers")
	}
	server.Start()
	if all, err := store.List(t.Context(), ""); err != nil || len(all) != 1 || all[0].Size != int64(len(large)) {
		t.Errorf("back again: %v, %v", all, err)
	}
}

func TestAFolderThatIsNotMounted(t *testing.T) {
	store := openFolder(t)
	if err := store.Put(t.Context(), "a/1", 1, strings.NewReader("a")); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(store.String(), objectstore.Marker)); err != nil {
		t.Fatal(err)
	}
	_, listing := store.List(t.Context(), "")
	_, getting := store.Get(t.Context(), "a/1")
	for what, err := range map[string]error{"list": listing, "get": getting, "put": store.Put(t.Context(), "a/2", 1, strings.NewReader("a")), "remove": store.Remove(t.Context(), "a/1")} {
		if err == nil || !strings.Contains(err.Error(), "is not mounted") {
			t.Errorf("%s: %v", what, err)
		}
	}
	if err := store.Put(t.Context(), "../a", 1, strings.NewReader("a")); err == nil {
		t.Error("a name that leads out of the folder")
	}
}
