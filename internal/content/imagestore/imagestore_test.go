package imagestore

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"coldrack.dev/internal/base/digest"
)

const repo = "rack.example/team/app"

func open(t testing.TB, opts Options) *Store {
	t.Helper()
	if opts.Limit == 0 {
		opts.Limit = 1 << 30
	}
	s, err := Open(opts)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// put brings a blob into a repository.
func put(t testing.TB, s *Store, repo string, content []byte) Descriptor {
	t.Helper()
	u, err := s.Begin(repo)
	check(t, err)
	check(t, u.Append(bytes.NewReader(content), 0))
	name := digest.Of(content).String()
	check(t, u.Commit(name))
	return Descriptor{MediaType: "application/vnd.oci.image.layer.v1.tar", Digest: name, Size: int64(len(content))}
}

func manifestOf(t testing.TB, arch string, layers ...Descriptor) (config, raw []byte) {
	t.Helper()
	config = fmt.Appendf(nil, `{"os":"linux","architecture":%q}`, arch)
	raw, err := json.Marshal(map[string]any{
		"schemaVersion": 2, "mediaType": MediaTypeManifest, "layers": layers,
		"config": Descriptor{MediaType: "application/vnd.oci.image.config.v1+json", Digest: digest.Of(config).String(), Size: int64(len(config))},
	})
	check(t, err)
	return config, raw
}

// putImage brings an image of one layer into a repository.
func putImage(t testing.TB, s *Store, repo, tag, arch string, layer []byte) Manifest {
	t.Helper()
	config, raw := manifestOf(t, arch, put(t, s, repo, layer))
	put(t, s, repo, config)
	m, err := s.PutManifest(repo, tag, MediaTypeManifest, raw, "ann")
	check(t, err)
	return m
}

func index(t testing.TB, manifests ...string) []byte {
	t.Helper()
	list := []Descriptor{}
	for _, name := range manifests {
		list = append(list, Descriptor{MediaType: MediaTypeManifest, Digest: name, Size: 1})
	}
	raw, err := json.Marshal(map[string]any{"schemaVersion": 2, "mediaType": MediaTypeIndex, "manifests": list})
	check(t, err)
	return raw
}

func names(images []Image) []string {
	var all []string
	for _, i := range images {
		all = append(all, i.Name)
	}
	return all
}

func TestWhatWasKeptIsThereAfterARestart(t *testing.T) {
	dir := t.TempDir()
	s := open(t, Options{Dir: dir})
	amd, arm := putImage(t, s, repo, "", "amd64", []byte("one")), putImage(t, s, repo, "", "arm64", []byte("two"))
	m, err := s.PutManifest(repo, "v1", MediaTypeIndex, index(t, amd.Digest, arm.Digest, digest.Of([]byte("another platform")).String()), "ann")
	check(t, err)
	check(t, s.Pin(repo+":v1", true))
	put(t, s, repo, []byte("nothing names this"))
	used, _ := s.Size()

	s = open(t, Options{Dir: dir})
	images := s.Images()
	if len(images) != 1 || images[0].Name != repo+":v1" || images[0].Digest != m.Digest || !images[0].Pinned || images[0].By != "ann" ||
		!slices.Equal(images[0].Platforms, []string{"linux/amd64", "linux/arm64"}) {
		t.Fatalf("images are %+v", images)
	}
	if again, _ := s.Size(); again != used-int64(len("nothing names this")) || images[0].Size != again {
		t.Errorf("%d bytes are used, %d by the image; before the restart %d were", again, images[0].Size, used)
	}
	if !s.Has(repo+":v1") || !s.Has(repo+"@"+arm.Digest) || s.Has(repo+":v2") || s.Has("x") {
		t.Error("what is there, and what is not")
	}
	file, _, err := s.Open(m.Digest)
	check(t, err)
	file.Close()
}

// TestAKillLeavesNothing runs a process that is killed in the middle of an upload.
func TestAKillLeavesNothing(t *testing.T) {
	const inside = "COLDRACK_TEST_IMAGESTORE"
	if dir := os.Getenv(inside); dir != "" {
		s := open(t, Options{Dir: dir})
		config, raw := manifestOf(t, "amd64", put(t, s, repo, []byte("whole")))
		put(t, s, repo, config)
		u, err := s.Begin(repo)
		check(t, err)
		check(t, u.Append(strings.NewReader("half of a layer"), -1))
		fmt.Printf("READY %s\n", raw)
		select {}
	}
	dir := t.TempDir()
	command := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestAKillLeavesNothing$")
	command.Env = append(os.Environ(), inside+"="+dir)
	out, err := command.StdoutPipe()
	check(t, err)
	check(t, command.Start())
	lines := bufio.NewScanner(out)
	for lines.Scan() && !strings.HasPrefix(lines.Text(), "READY ") {
	}
	raw := strings.TrimPrefix(lines.Text(), "READY ")
	for _, folder := range []string{"uploads", "blobs/sha256"} {
		if files, err := os.ReadDir(filepath.Join(dir, folder)); err != nil || len(files) == 0 {
			t.Errorf("before the kill there is nothing in %s: %v", folder, err)
		}
	}
	check(t, command.Process.Kill())
	_ = command.Wait() // it was killed

	s := open(t, Options{Dir: dir})
	if used, _ := s.Size(); used != 0 || len(s.Images()) != 0 {
		t.Errorf("%d bytes and the images %q are left", used, names(s.Images()))
	}
	for _, folder := range []string{"uploads", "blobs/sha256", "repositories"} {
		if files, err := os.ReadDir(filepath.Join(dir, folder)); err != nil || len(files) > 0 {
			t.Errorf("%s has %v: %v", folder, files, err)
		}
	}
	if _, err := s.PutManifest(repo, "v1", MediaTypeManifest, []byte(raw), "ann"); !errors.Is(err, ErrLacking) {
		t.Errorf("its manifest: %v", err)
	}
}

func TestRoomIsBounded(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	var disk error
	s := open(t, Options{Dir: t.TempDir(), Limit: 1000, Now: func() time.Time { return now }, Room: func() error { return disk }})
	u, err := s.Begin(repo)
	check(t, err)
	err = u.Append(bytes.NewReader(make([]byte, 1001)), -1)
	if !errors.Is(err, ErrFull) {
		t.Fatalf("too much: %v", err)
	}
	if used, _ := s.Size(); used != 0 {
		t.Errorf("%d bytes of what was refused are counted", used)
	}
	if err := u.Commit(digest.Of(nil).String()); err == nil {
		t.Error("an upload that was ended could be committed")
	}
	// What nobody names makes room for what comes, but not at once.
	put(t, s, repo, make([]byte, 900))
	u, err = s.Begin(repo)
	check(t, err)
	if err := u.Append(bytes.NewReader(make([]byte, 200)), -1); !errors.Is(err, ErrFull) {
		t.Fatalf("beside what came a moment ago: %v", err)
	}
	now = now.Add(2 * grace)
	m := putImage(t, s, repo, "v1", "amd64", make([]byte, 200))
	if used, _ := s.Size(); used > 1000 || !s.Has(repo+":v1") {
		t.Errorf("%d bytes are used", used)
	}
	now = now.Add(2 * grace)
	u, err = s.Begin(repo)
	check(t, err)
	if err := u.Append(bytes.NewReader(make([]byte, 900)), -1); !errors.Is(err, ErrFull) || !s.Has(repo+"@"+m.Digest) {
		t.Errorf("an image made room for an upload: %v", err)
	}
	disk = errors.New("a full disk")
	if _, err := s.Begin(repo); !errors.Is(err, ErrFull) || !errors.Is(err, disk) {
		t.Errorf("a full disk: %v", err)
	}
}

func TestAnUploadThatNothingComesForEnds(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	s := open(t, Options{Dir: t.TempDir(), Now: func() time.Time { return now }})
	u, err := s.Begin(repo)
	check(t, err)
	check(t, u.Append(strings.NewReader("half"), -1))
	if used, _ := s.Size(); used == 0 {
		t.Error("what has come is not counted")
	}
	now = now.Add(2 * grace)
	_, err = s.Begin(repo)
	check(t, err)
	if _, err := s.Upload(repo, u.ID); !errors.Is(err, ErrNotFound) {
		t.Errorf("the upload is still there: %v", err)
	}
	if used, _ := s.Size(); used != 0 {
		t.Errorf("%d bytes are counted", used)
	}
	if err := u.Append(strings.NewReader("more"), -1); err == nil {
		t.Error("it goes on")
	}
}

func TestUploadsAreChecked(t *testing.T) {
	s := open(t, Options{Dir: t.TempDir()})
	u, err := s.Begin(repo)
	check(t, err)
	check(t, u.Append(strings.NewReader("abc"), 0))
	if err := u.Append(strings.NewReader("def"), 2); !errors.Is(err, ErrOffset) {
		t.Errorf("a part that overlaps: %v", err)
	}
	broken := io.MultiReader(strings.NewReader("de"), errReader{})
	if err := u.Append(broken, 3); err == nil || u.Size() != 5 {
		t.Errorf("a connection that broke: %v, %d bytes", err, u.Size())
	}
	check(t, u.Append(strings.NewReader("f"), 5))
	if err := u.Commit(digest.Of([]byte("abcdeX")).String()); !errors.Is(err, ErrDigest) {
		t.Errorf("other bytes: %v", err)
	}
	if used, _ := s.Size(); used != 0 || s.Linked(repo, digest.Of([]byte("abcdef")).String()) {
		t.Errorf("%d bytes are left", used)
	}
	for range maxUploads {
		_, err := s.Begin(repo)
		check(t, err)
	}
	if _, err := s.Begin(repo); !errors.Is(err, ErrTooMany) {
		t.Errorf("one more: %v", err)
	}
}

type errReader struct{}

func (errReader) Read([]byte) (int, error) { return 0, errors.New("connection reset") }

func TestManifestsAreChecked(t *testing.T) {
	s := open(t, Options{Dir: t.TempDir()})
	layer := put(t, s, repo, []byte("layer"))
	config, whole := manifestOf(t, "amd64", layer)
	put(t, s, repo, config)
	missing := layer
	missing.Digest = digest.Of([]byte("nobody has it")).String()
	_, lacking := manifestOf(t, "amd64", missing)
	longer := layer
	longer.Size++
	_, wrong := manifestOf(t, "amd64", longer)
	for name, test := range map[string]struct {
		repo, mediaType string
		raw             []byte
		want            error
	}{
		"no JSON":                              {repo, MediaTypeManifest, []byte("{"), ErrInvalid},
		"another type than it says":            {repo, MediaTypeIndex, whole, ErrInvalid},
		"another size than it says":            {repo, MediaTypeManifest, wrong, ErrInvalid},
		"a layer that did not come":            {repo, MediaTypeManifest, lacking, ErrLacking},
		"layers that are of another one":       {"rack.example/other", MediaTypeManifest, whole, ErrLacking},
		"an index of what is not there":        {repo, MediaTypeIndex, index(t, missing.Digest), ErrLacking},
		"an index of what is no digest at all": {repo, MediaTypeIndex, index(t, "../../etc/passwd"), ErrInvalid},
		"one with everything":                  {repo, MediaTypeManifest, whole, nil},
	} {
		if _, err := s.PutManifest(test.repo, "v1", test.mediaType, test.raw, "ann"); !errors.Is(err, test.want) {
			t.Errorf("%s: %v, want %v", name, err, test.want)
		}
	}
}

func TestPrune(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	dir := t.TempDir()
	s := open(t, Options{Dir: dir, Now: func() time.Time { return now }})
	shared := bytes.Repeat([]byte("shared"), 1000)
	old := putImage(t, s, repo, "old", "amd64", bytes.Repeat([]byte("old"), 1000))
	putImage(t, s, repo, "new", "amd64", shared)
	putImage(t, s, "rack.example/other", "v1", "arm64", shared)
	putImage(t, s, "rack.example/pinned", "v1", "amd64", []byte("pinned"))
	signature, err := json.Marshal(map[string]any{"schemaVersion": 2, "mediaType": MediaTypeIndex, "artifactType": "a/signature", "manifests": []Descriptor{}, "subject": Descriptor{Digest: old.Digest}})
	check(t, err)
	signed, err := s.PutManifest(repo, "", MediaTypeIndex, signature, "ann")
	check(t, err)
	part := putImage(t, s, repo, "", "riscv64", []byte("an index is to come"))
	check(t, s.Pin("rack.example/pinned:v1", true))
	keep := func(i Image) string {
		if i.Name == repo+":new" {
			return "cluster lab runs it"
		}
		return ""
	}
	before, _ := s.Size()
	images, would, err := s.Prune(keep, true)
	check(t, err)
	if size, _ := s.Size(); size != before || len(s.Images()) != 5 {
		t.Errorf("a dry run changed something: %d bytes, %q", size, names(s.Images()))
	}
	kept := map[string]string{}
	for _, p := range images {
		kept[p.Name] = p.Kept
	}
	if len(kept) != 5 || kept[repo+":old"] != "" || kept[repo+":new"] != "cluster lab runs it" || kept["rack.example/other:v1"] != "" ||
		kept["rack.example/pinned:v1"] != "pinned" || kept[repo+"@"+part.Digest] == "" {
		t.Errorf("kept: %q", kept)
	}
	_, freed, err := s.Prune(keep, false)
	check(t, err)
	after, _ := s.Size()
	if freed != would || before-after != freed || freed < 3000 || freed > 5000 {
		t.Errorf("freed %d of %d bytes, to %d, and would free %d", freed, before, after, would)
	}
	if got := names(s.Images()); !slices.Equal(got, []string{"rack.example/pinned:v1", repo + ":new", repo + "@" + part.Digest}) {
		t.Errorf("left are %q", got)
	}
	if s.Has(repo+"@"+signed.Digest) || len(s.Referrers(repo, old.Digest)) > 0 {
		t.Error("the signature of an image that is gone is left")
	}
	now = now.Add(2 * grace)
	_, _, err = s.Prune(keep, false)
	check(t, err)
	s = open(t, Options{Dir: dir})
	if got := names(s.Images()); !slices.Equal(got, []string{"rack.example/pinned:v1", repo + ":new"}) {
		t.Errorf("left after an hour are %q", got)
	}
}

func TestWhatIsNeededIsNotDeleted(t *testing.T) {
	s := open(t, Options{Dir: t.TempDir()})
	m := putImage(t, s, repo, "v1", "amd64", []byte("layer"))
	check(t, s.Pin(repo+":v1", true))
	for name, err := range map[string]error{
		"a layer":         s.DeleteBlob(repo, m.Blobs[1].Digest),
		"a pinned tag":    s.DeleteTag(repo, "v1"),
		"what is pinned":  s.DeleteManifest(repo, m.Digest),
		"the config, too": s.DeleteBlob(repo, m.Config.Digest),
	} {
		if !errors.Is(err, ErrInUse) {
			t.Errorf("%s: %v", name, err)
		}
	}
	check(t, s.Pin(repo+":v1", false))
	check(t, s.DeleteManifest(repo, m.Digest))
	check(t, s.DeleteBlob(repo, m.Blobs[1].Digest))
	if s.Has(repo+":v1") || s.Linked(repo, m.Blobs[1].Digest) {
		t.Error("it is still there")
	}
	for name, err := range map[string]error{"tag": s.DeleteTag(repo, "v1"), "manifest": s.DeleteManifest(repo, m.Digest), "blob": s.DeleteBlob(repo, m.Blobs[1].Digest)} {
		if !errors.Is(err, ErrNotFound) {
			t.Errorf("the %s again: %v", name, err)
		}
	}
}

// TestDamage loses one repository's file: the others are served, and nothing is deleted before a person has looked.
func TestDamage(t *testing.T) {
	dir := t.TempDir()
	s := open(t, Options{Dir: dir})
	putImage(t, s, repo, "v1", "amd64", []byte("layer"))
	putImage(t, s, "rack.example/other", "v1", "amd64", []byte("another"))
	path := filepath.Join(dir, "repositories", repositoryFile(repo))
	check(t, os.Truncate(path, 10))
	used, _ := s.Size()
	s = open(t, Options{Dir: dir})
	if again, _ := s.Size(); again != used || len(s.Problems()) != 1 || !s.Has("rack.example/other:v1") {
		t.Errorf("%d bytes of %d, problems %v", again, used, s.Problems())
	}
	if _, _, err := s.Prune(func(Image) string { return "" }, false); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("prune: %v", err)
	}
	putImage(t, s, repo, "v1", "amd64", []byte("layer"))
	s = open(t, Options{Dir: dir})
	if len(s.Problems()) != 0 || !s.Has(repo+":v1") {
		t.Errorf("loaded again: %v", s.Problems())
	}
}
