package bundle

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"golang.org/x/sys/unix"

	"coldrack.dev/internal/base/digest"
	"coldrack.dev/internal/content/diskimage"
	"coldrack.dev/test/require"
)

var created = time.Date(2025, 5, 20, 0, 0, 0, 0, time.UTC)

func testKey(b byte) ed25519.PrivateKey {
	return ed25519.NewKeyFromSeed(bytes.Repeat([]byte{b}, ed25519.SeedSize))
}

func public(key ed25519.PrivateKey) []ed25519.PublicKey {
	return []ed25519.PublicKey{key.Public().(ed25519.PublicKey)}
}

// sampleSpec is a bundle with one artifact of each kind, its files in dir. The image has three chunks.
func sampleSpec(t testing.TB, dir string) Spec {
	t.Helper()
	noise := rand.NewChaCha8([32]byte{7})
	file := func(title string, size int) FileSpec {
		b := make([]byte, size)
		_, _ = noise.Read(b)
		path := filepath.Join(dir, title)
		if err := os.WriteFile(path, b, 0o644); err != nil {
			t.Fatal(err)
		}
		return FileSpec{Title: title, Path: path}
	}
	raw := make([]byte, 2*diskimage.DefaultChunkSize+4096)
	for off := 0; off < len(raw); off += diskimage.DefaultChunkSize {
		_, _ = noise.Read(raw[off:min(off+200_000, len(raw))])
	}
	var blob bytes.Buffer
	idx, err := diskimage.Encode(context.Background(), bytes.NewReader(raw), int64(len(raw)), &blob)
	if err != nil {
		t.Fatal(err)
	}
	index, err := json.Marshal(idx)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.WriteFile(filepath.Join(dir, "image.json"), index, 0o644), os.WriteFile(filepath.Join(dir, "image.chunks"), blob.Bytes(), 0o644)); err != nil {
		t.Fatal(err)
	}
	var boot []FileSpec
	names, _ := requiredFiles(KindBootloaders)
	for _, name := range names {
		boot = append(boot, file(name, 3000))
	}
	return Spec{Name: "test", Created: created, Artifacts: []ArtifactSpec{
		{Kind: KindImage, Name: "debian-12", Config: ImageConfig{
			Name: "debian-12", Family: "debian", Version: "12.11", Arch: "amd64", KernelVersion: "6.1.0", RootFS: "ext4", Size: int64(len(raw)),
		}, Files: []FileSpec{{FileImageIndex, filepath.Join(dir, "image.json")}, {FileImageChunks, filepath.Join(dir, "image.chunks")}}},
		{Kind: KindNetboot, Name: "discovery", Config: NetbootConfig{Name: "discovery", Arch: "amd64", KernelVersion: "6.1.0", AgentVersion: "v0"},
			Files: []FileSpec{file(FileKernel, 50_000), file(FileInitrd, 150_000)}},
		{Kind: KindBootloaders, Name: "amd64", Config: BootloadersConfig{Name: "amd64", Arch: "amd64"}, Files: boot},
		{Kind: KindSBOM, Name: "test", Config: SBOMConfig{Name: "test", Format: "SPDX-2.3"}, Files: []FileSpec{file(FileSBOM, 100)}},
		samplePrograms(t, dir, "kubernetes", "v1.37.2", "kubelet", "cni-bridge"),
		{Kind: KindContainer, Name: "registry.k8s.io/pause:3.10.2", Image: sampleContainer(t, 1)},
	}}
}

// packSample returns the path of a signed bundle and the trusted key.
func packSample(t testing.TB) (string, []ed25519.PublicKey) {
	t.Helper()
	dir := t.TempDir()
	out := filepath.Join(dir, "test.bundle")
	if _, err := Pack(context.Background(), sampleSpec(t, dir), testKey(1), out, nil); err != nil {
		t.Fatal(err)
	}
	return out, public(testKey(1))
}

func newStore(t testing.TB) *Store {
	t.Helper()
	s, err := OpenStore(filepath.Join(t.TempDir(), "store"))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestPackVerifyImportExport(t *testing.T) {
	ctx := context.Background()
	path, trusted := packSample(t)
	inspected, err := Inspect(path)
	if err != nil {
		t.Fatal(err)
	}
	if inspected.Name != "test" || !inspected.Created.Equal(created) || inspected.KeyID != KeyID(trusted[0]) || len(inspected.Artifacts) != 6 {
		t.Fatalf("Inspect says %+v", inspected)
	}
	verified, err := Verify(ctx, path, trusted, nil)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(inspected, verified); diff != "" {
		t.Errorf("Inspect and Verify differ:\n%s", diff)
	}
	s := newStore(t)
	var last Progress
	imported, err := Import(ctx, s, path, trusted, func(p Progress) { last = p })
	if err != nil {
		t.Fatal(err)
	}
	if last.Done != last.Total || last.Total != verified.Size || last.Skipped != 0 {
		t.Errorf("progress ends at %+v, want %d bytes", last, verified.Size)
	}
	if diff := cmp.Diff(imported.Artifacts, s.Artifacts()); diff != "" {
		t.Errorf("what Import says and what the store shows differ:\n%s", diff)
	}
	if err := s.Check(ctx, nil); err != nil {
		t.Error(err)
	}

	a, err := s.Artifact(KindNetboot, "")
	if err != nil {
		t.Fatal(err)
	}
	f, size, err := s.Open(a.Files[FileKernel].Digest)
	if err != nil || size != 50_000 {
		t.Fatalf("kernel has %d bytes, %v", size, err)
	}
	_ = f.Close()
	if _, err := s.Artifact(KindImage, "plan9"); !errors.Is(err, ErrNotFound) || !strings.Contains(err.Error(), "debian-12") {
		t.Errorf("an unknown image gives %v, want what there is", err)
	}

	again := filepath.Join(t.TempDir(), "again.bundle")
	if _, err := Export(ctx, s, "test", again, nil); err != nil {
		t.Fatal(err)
	}
	want, _ := os.ReadFile(path)
	got, _ := os.ReadFile(again)
	if !bytes.Equal(want, got) {
		t.Error("the exported archive differs from the imported one")
	}
	if _, err := Export(ctx, s, "other", again, nil); !errors.Is(err, ErrNotFound) {
		t.Errorf("exporting an unknown bundle gives %v", err)
	}
}

func TestPackIsDeterministic(t *testing.T) {
	a, _ := packSample(t)
	b, _ := packSample(t)
	x, _ := os.ReadFile(a)
	y, _ := os.ReadFile(b)
	if !bytes.Equal(x, y) {
		t.Error("the same content gives two different archives")
	}
}

func TestAnotherOCIImplementationReadsTheStore(t *testing.T) {
	path, trusted := packSample(t)
	s := newStore(t)
	summary, err := Import(context.Background(), s, path, trusted, nil)
	if err != nil {
		t.Fatal(err)
	}
	l, err := layout.FromPath(s.Dir())
	if err != nil {
		t.Fatal(err)
	}
	top, err := l.ImageIndex()
	if err != nil {
		t.Fatal(err)
	}
	im, err := top.IndexManifest()
	if err != nil || len(im.Manifests) != 1 || im.Manifests[0].Digest.String() != summary.Digest {
		t.Fatalf("top index %+v, %v", im, err)
	}
	nested, err := top.ImageIndex(im.Manifests[0].Digest)
	if err != nil {
		t.Fatal(err)
	}
	nm, err := nested.IndexManifest()
	if err != nil || len(nm.Manifests) != len(summary.Artifacts) {
		t.Fatalf("nested index %+v, %v", nm, err)
	}
	for _, d := range nm.Manifests {
		img, err := nested.Image(d.Digest)
		if err != nil {
			t.Fatal(err)
		}
		m, err := img.Manifest()
		if err != nil {
			t.Fatal(err)
		}
		for _, layer := range m.Layers {
			r, err := l.Blob(layer.Digest)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := io.Copy(io.Discard, r); err != nil {
				t.Error(err)
			}
			_ = r.Close()
		}
	}
}

// extents lists where each file of each artifact lies in the archive.
func extents(t testing.TB, path string) map[string]extent {
	t.Helper()
	a, closeFile, err := openArchiveFile(path)
	if err != nil {
		t.Fatal(err)
	}
	defer closeFile()
	c, err := a.contents(false, nil)
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]extent{}
	for _, b := range c.blobs {
		found[b.artifact+", "+b.file] = a.entries[blobEntry(b.Digest)]
	}
	return found
}

func TestATamperedBlobIsRefusedByName(t *testing.T) {
	ctx := context.Background()
	path, trusted := packSample(t)
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for name, e := range extents(t, path) {
		bad := bytes.Clone(good)
		bad[e.offset+e.size/2] ^= 0x20
		if err := os.WriteFile(path, bad, 0o644); err != nil {
			t.Fatal(err)
		}
		s := newStore(t)
		_, verifyErr := Verify(ctx, path, trusted, nil)
		_, importErr := Import(ctx, s, path, trusted, nil)
		for _, err := range []error{verifyErr, importErr} {
			var be *BlobError
			if !errors.As(err, &be) || be.Artifact+", "+be.File != name || be.Want == be.Got || be.Got == "" {
				t.Errorf("%s: error is %v", name, err)
			}
		}
		if got := s.Artifacts(); len(got) != 0 {
			t.Errorf("%s: %d artifacts are visible after a refused import", name, len(got))
		}
	}
}

func TestSignatures(t *testing.T) {
	ctx := context.Background()
	path, _ := packSample(t)
	other := public(testKey(2))
	for name, trusted := range map[string][]ed25519.PublicKey{"another key trusted": other, "no key trusted": nil} {
		_, err := Import(ctx, newStore(t), path, trusted, nil)
		var ue *UntrustedError
		if !errors.As(err, &ue) || ue.KeyID != KeyID(public(testKey(1))[0]) || !strings.Contains(err.Error(), "is not trusted") {
			t.Errorf("%s: error is %v", name, err)
		}
	}
	if _, err := Verify(ctx, path, append(other, public(testKey(1))...), nil); err != nil {
		t.Errorf("one of two trusted keys: %v", err)
	}
	// A byte of the index that parses as before: the name.
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	at := bytes.Index(b, []byte(`"org.opencontainers.image.ref.name":"debian-12"`))
	b[at+len(`"org.opencontainers.image.ref.name":"debian-1`)] = '3'
	if err := os.WriteFile(path, b, 0o644); err != nil {
		t.Fatal(err)
	}
	_, err = Verify(ctx, path, public(testKey(1)), nil)
	var ue *UntrustedError
	if !errors.As(err, &ue) || !strings.Contains(err.Error(), "changed after signing") {
		t.Errorf("a changed index: error is %v", err)
	}
}

func TestKeys(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state", "bundle.key")
	a, made, err := LoadOrCreateKey(path)
	if err != nil || !made {
		t.Fatal(made, err)
	}
	b, made, err := LoadOrCreateKey(path)
	if err != nil || made || !a.Equal(b) {
		t.Fatalf("the second time: made %v, same %v, %v", made, a.Equal(b), err)
	}
	st, err := os.Stat(path)
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Fatalf("mode of the private key is %v, %v", st.Mode(), err)
	}
	keys, err := LoadPublicKeys(PublicKeyPath(path))
	if err != nil || len(keys) != 1 || !keys[0].Equal(a.Public()) {
		t.Fatalf("public key: %v, %v", keys, err)
	}
	if _, err := LoadPublicKeys(path); err == nil || !strings.Contains(err.Error(), `PEM block is "PRIVATE KEY"`) {
		t.Errorf("a private key given as trusted: %v", err)
	}
	if err := os.WriteFile(path, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, err := LoadOrCreateKey(path); err == nil {
		t.Error("a broken key was replaced without a word")
	}
}

func TestATruncatedArchiveIsRefused(t *testing.T) {
	path, trusted := packSample(t)
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	// The last 1024 bytes are the end mark, without which nothing is lost.
	for _, n := range []int{0, 1, 511, 512, 513, 1024, 4096, len(good) / 2, len(good) - 1024 - 512} {
		if err := os.WriteFile(path, good[:n], 0o644); err != nil {
			t.Fatal(err)
		}
		_, err := Verify(context.Background(), path, trusted, nil)
		if err == nil || !(strings.Contains(err.Error(), "cut short") || strings.Contains(err.Error(), "archive has no")) {
			t.Errorf("cut to %d bytes of %d: error is %v", n, len(good), err)
		}
	}
}

type entry struct {
	header tar.Header
	body   string
}

func writeTar(t testing.TB, entries ...entry) string {
	t.Helper()
	var buf bytes.Buffer
	tw := tar.NewWriter(&buf)
	for _, e := range entries {
		h := e.header
		if h.Typeflag == 0 {
			h.Typeflag = tar.TypeReg
		}
		if h.Typeflag == tar.TypeReg {
			h.Size = int64(len(e.body))
		}
		if err := tw.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		_, _ = io.WriteString(tw, e.body)
	}
	_ = tw.Close()
	path := filepath.Join(t.TempDir(), "x.bundle")
	if err := os.WriteFile(path, buf.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestHostileArchives(t *testing.T) {
	key := testKey(1)
	file := func(name, body string) entry { return entry{tar.Header{Name: name}, body} }
	// signed is an archive with the given index, correctly signed.
	signed := func(index string, more ...entry) []entry {
		sig, err := marshalLine(sign(key, []byte(index)))
		if err != nil {
			t.Fatal(err)
		}
		return append([]entry{file(entryLayout, ociLayout), file(entryIndex, index), file(entrySignature, string(sig))}, more...)
	}
	index := func(artifact string) string {
		return `{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","annotations":{"org.opencontainers.image.ref.name":"x"},"manifests":[` + artifact + `]}`
	}
	artifact := func(kind, name, digest string, size int64) string {
		return fmt.Sprintf(`{"mediaType":"application/vnd.oci.image.manifest.v1+json","artifactType":%q,"digest":%q,"size":%d,"annotations":{"org.opencontainers.image.ref.name":%q}}`, kind, digest, size, name)
	}
	sbom := artifactType(KindSBOM)
	blob := func(body string) entry { return file(blobEntry(digest.Of([]byte(body)).String()), body) }
	manifest := `{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","artifactType":"` + sbom + `","config":{"mediaType":"x","digest":"` + digest.Of([]byte(`{"name":"x","format":"SPDX-2.3"}`)).String() + `","size":32},"layers":[%s]}`
	config := blob(`{"name":"x","format":"SPDX-2.3"}`)
	withLayers := func(layers string, more ...entry) []entry {
		m := fmt.Sprintf(manifest, layers)
		return signed(index(artifact(sbom, "x", digest.Of([]byte(m)).String(), int64(len(m)))), append([]entry{blob(m), config}, more...)...)
	}
	layer := func(title, body string) string {
		return fmt.Sprintf(`{"mediaType":"x","digest":%q,"size":%d,"annotations":{"org.opencontainers.image.title":%q}}`, digest.Of([]byte(body)).String(), len(body), title)
	}
	ok := layer(FileSBOM, "sbom")

	tests := map[string]struct {
		entries []entry
		want    string // "" means accepted
	}{
		"a small bundle that is right":           {withLayers(ok, blob("sbom")), ""},
		"directories beside the files":           {append(withLayers(ok, blob("sbom")), entry{header: tar.Header{Name: "blobs/", Typeflag: tar.TypeDir}}), ""},
		"a name that climbs out":                 {[]entry{file("../../etc/passwd", "x")}, "does not belong into a bundle"},
		"an absolute name":                       {[]entry{file("/etc/passwd", "x")}, "does not belong into a bundle"},
		"a blob name that climbs out":            {[]entry{file("blobs/sha256/../../index.json", "x")}, "does not belong into a bundle"},
		"a symbolic link":                        {[]entry{{header: tar.Header{Name: entryIndex, Typeflag: tar.TypeSymlink, Linkname: "/etc/passwd"}}}, "want plain files"},
		"a hard link":                            {[]entry{{header: tar.Header{Name: entryIndex, Typeflag: tar.TypeLink, Linkname: entryLayout}}}, "want plain files"},
		"a device":                               {[]entry{{header: tar.Header{Name: entryIndex, Typeflag: tar.TypeBlock}}}, "want plain files"},
		"no signature":                           {[]entry{file(entryLayout, ociLayout), file(entryIndex, "{}")}, "archive has no index.json.sig"},
		"two indexes":                            {append(signed("{}"), file(entryIndex, "{}")), "two entries"},
		"an index that is not JSON":              {signed("<html>"), "index.json: is not the JSON expected"},
		"data after the index":                   {signed(index("") + "{}"), "index.json: has data after its JSON"},
		"an empty index":                         {signed(index("")), "lists 0 artifacts"},
		"an index of megabytes":                  {signed(strings.Repeat(" ", maxIndexSize+1)), "want at most"},
		"another layout version":                 {append([]entry{file(entryLayout, `{"imageLayoutVersion":"2"}`)}, signed("{}")[1:]...), "oci-layout: want"},
		"an unknown kind":                        {signed(index(artifact("application/vnd.coldrack.rootkit.v1+json", "x", digest.Of(nil).String(), 0))), `"application/vnd.coldrack.rootkit.v1+json" is unknown`},
		"a later version of a kind":              {signed(index(artifact("application/vnd.coldrack.image.v2+json", "x", digest.Of(nil).String(), 0))), "is unknown"},
		"an artifact name with a slash":          {signed(index(artifact(sbom, "../x", digest.Of(nil).String(), 0))), "want letters, digits"},
		"a manifest that is not there":           {signed(index(artifact(sbom, "x", digest.Of(nil).String(), 0))), `sbom "x": manifest: archive has no blobs/sha256/`},
		"a manifest of exabytes":                 {signed(index(artifact(sbom, "x", digest.Of(nil).String(), 1<<62))), "want at most"},
		"a manifest of negative size":            {signed(index(artifact(sbom, "x", digest.Of(nil).String(), -1))), "size is -1 bytes"},
		"a digest that is a path":                {signed(index(artifact(sbom, "x", "sha256:../../x", 0))), "index.json: is not the JSON expected"},
		"two artifacts of one name":              {signed(index(strings.Repeat(artifact(sbom, "x", digest.Of([]byte(fmt.Sprintf(manifest, ok))).String(), int64(len(fmt.Sprintf(manifest, ok))))+",", 1)+artifact(sbom, "x", digest.Of([]byte(fmt.Sprintf(manifest, ok))).String(), int64(len(fmt.Sprintf(manifest, ok))))), blob(fmt.Sprintf(manifest, ok)), config, blob("sbom")), `a second sbom of the name "x"`},
		"a required file missing":                {withLayers(layer("other", "sbom"), blob("sbom")), `has no file "sbom.spdx.json"`},
		"two files of one title":                 {withLayers(ok+","+ok, blob("sbom")), "a second file"},
		"a title that is a path":                 {withLayers(layer("../x", "sbom"), blob("sbom")), "want letters, digits"},
		"a file that is not there":               {withLayers(ok), `sbom "x", file "sbom.spdx.json": archive has no`},
		"a file of another length":               {withLayers(strings.Replace(ok, `"size":4`, `"size":5`, 1), blob("sbom")), "has 4 bytes, want 5"},
		"a file elsewhere":                       {withLayers(strings.Replace(ok, `"size":4`, `"size":4,"urls":["http://x"]`, 1), blob("sbom")), "lies elsewhere"},
		"a blob that nothing refers to":          {withLayers(ok, blob("sbom"), blob("stowaway")), "the signature does not cover it"},
		"an artifact type that differs inside":   {signed(index(artifact(artifactType(KindNetboot), "x", digest.Of([]byte(fmt.Sprintf(manifest, ok))).String(), int64(len(fmt.Sprintf(manifest, ok))))), blob(fmt.Sprintf(manifest, ok)), config, blob("sbom")), "its manifest says artifact type"},
		"a name in the config that is different": {signed(index(artifact(sbom, "y", digest.Of([]byte(fmt.Sprintf(manifest, ok))).String(), int64(len(fmt.Sprintf(manifest, ok))))), blob(fmt.Sprintf(manifest, ok)), config, blob("sbom")), `name is "x", but the index says "y"`},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			s := newStore(t)
			_, err := Import(context.Background(), s, writeTar(t, tt.entries...), public(key), nil)
			if tt.want == "" {
				if err != nil {
					t.Fatal(err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Fatalf("error is %v, want %q in it", err, tt.want)
			}
			if len(s.Artifacts()) != 0 {
				t.Error("something is visible")
			}
		})
	}
}

func TestPackRefusesWhatVerifyWouldRefuse(t *testing.T) {
	for name, tt := range map[string]struct {
		change func(*Spec)
		want   string
	}{
		"an image whose size is not its index's": {func(s *Spec) {
			c := s.Artifacts[0].Config.(ImageConfig)
			c.Size++
			s.Artifacts[0].Config = c
		}, "config: size is"},
		"chunks of another image": {func(s *Spec) { s.Artifacts[0].Files[1].Path = s.Artifacts[1].Files[0].Path }, "describes blob"},
		"a config without a kernel version": {func(s *Spec) {
			s.Artifacts[1].Config = NetbootConfig{Name: "discovery", Arch: "amd64", AgentVersion: "v0"}
		}, `netboot "discovery": config: kernelVersion is empty`},
		"a file that does not exist": {func(s *Spec) { s.Artifacts[1].Files[0].Path += ".gone" }, "no such file"},
		"a bundle without a name":    {func(s *Spec) { s.Name = "" }, "want 1 to"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			spec := sampleSpec(t, dir)
			tt.change(&spec)
			out := filepath.Join(dir, "out.bundle")
			_, err := Pack(context.Background(), spec, testKey(1), out, nil)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Fatalf("error is %v, want %q in it", err, tt.want)
			}
			if _, err := os.Stat(out); !errors.Is(err, os.ErrNotExist) {
				t.Error("an archive was left behind")
			}
		})
	}
}

func TestAnInterruptedImportContinues(t *testing.T) {
	path, trusted := packSample(t)
	s := newStore(t)
	ctx, cancel := context.WithCancel(context.Background())
	var done int64
	_, err := Import(ctx, s, path, trusted, func(p Progress) {
		if p.Done > p.Total/2 {
			cancel()
		}
		done = p.Done
	})
	if !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	if len(s.Artifacts()) != 0 || len(s.Bundles()) != 0 {
		t.Fatal("half a bundle is visible")
	}
	var last Progress
	if _, err := Import(context.Background(), s, path, trusted, func(p Progress) { last = p }); err != nil {
		t.Fatal(err)
	}
	if last.Skipped == 0 || last.Done != last.Total {
		t.Errorf("after an interruption at %d bytes: %+v, want some skipped", done, last)
	}
	if err := s.Check(context.Background(), nil); err != nil {
		t.Error(err)
	}
}

// TestMain lets the test binary be an importer that can be killed.
func TestMain(m *testing.M) {
	if store := os.Getenv("TEST_IMPORT_STORE"); store != "" {
		s, err := OpenStore(store)
		if err == nil {
			_, err = Import(context.Background(), s, os.Getenv("TEST_IMPORT_BUNDLE"), public(testKey(1)), func(p Progress) {
				if p.Done > p.Total*2/3 {
					_ = unix.Kill(os.Getpid(), unix.SIGKILL)
				}
			})
		}
		fmt.Fprintln(os.Stderr, "not killed:", err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

func TestAKilledImportLeavesNothingVisibleAndContinues(t *testing.T) {
	path, trusted := packSample(t)
	dir := filepath.Join(t.TempDir(), "store")
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "TEST_IMPORT_STORE="+dir, "TEST_IMPORT_BUNDLE="+path)
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != -1 {
		t.Fatalf("the importer was to die by SIGKILL: %v\n%s", err, out)
	}
	if left, _ := os.ReadDir(filepath.Join(dir, "tmp")); len(left) == 0 {
		t.Fatal("the importer died between two files; this test wants it within one")
	}
	s, err := OpenStore(dir)
	if err != nil {
		t.Fatal(err)
	}
	if left, _ := os.ReadDir(filepath.Join(dir, "tmp")); len(left) != 0 {
		t.Errorf("%d temporary files are left", len(left))
	}
	if len(s.Artifacts()) != 0 {
		t.Fatal("half a bundle is visible")
	}
	var last Progress
	if _, err := Import(context.Background(), s, path, trusted, func(p Progress) { last = p }); err != nil {
		t.Fatal(err)
	}
	if last.Skipped == 0 {
		t.Error("everything was copied again")
	}
	if err := s.Check(context.Background(), nil); err != nil {
		t.Error(err)
	}
}

func TestAFullDiskIsReportedAndTheImportContinues(t *testing.T) {
	require.Need(t, "netns") // that is: may mount
	path, trusted := packSample(t)
	mnt := t.TempDir()
	if err := unix.Mount("tmpfs", mnt, "tmpfs", 0, "size=400k"); err != nil {
		t.Fatalf("mount a small tmpfs: %v", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(mnt, unix.MNT_DETACH) })
	s, err := OpenStore(mnt)
	if err != nil {
		t.Fatal(err)
	}
	_, err = Import(context.Background(), s, path, trusted, nil)
	if !errors.Is(err, unix.ENOSPC) || !strings.Contains(err.Error(), "bytes are still missing; make room and import again") {
		t.Fatal(err)
	}
	if len(s.Artifacts()) != 0 {
		t.Fatal("half a bundle is visible")
	}
	if err := unix.Mount("tmpfs", mnt, "tmpfs", unix.MS_REMOUNT, "size=8m"); err != nil {
		t.Fatal(err)
	}
	var last Progress
	if _, err := Import(context.Background(), s, path, trusted, func(p Progress) { last = p }); err != nil {
		t.Fatal(err)
	}
	if last.Skipped == 0 {
		t.Error("everything was copied again")
	}
}

func TestStorePut(t *testing.T) {
	s := newStore(t)
	body := "hello"
	if err := s.Put(context.Background(), strings.NewReader("hellO"), digest.Of([]byte(body)).String()); err == nil || !strings.Contains(err.Error(), "content is sha256:") {
		t.Fatalf("the wrong bytes: %v", err)
	}
	if s.Has(digest.Of([]byte(body)).String()) {
		t.Fatal("the wrong bytes are there")
	}
	for _, bad := range []string{"", "sha256:", "sha256:../../x", "md5:00", "sha256:" + strings.Repeat("A", 64)} {
		if err := s.Put(context.Background(), strings.NewReader(body), bad); err == nil {
			t.Errorf("digest %q was accepted", bad)
		}
		if _, _, err := s.Open(bad); err == nil || s.Has(bad) {
			t.Errorf("digest %q opens something", bad)
		}
	}
	for range 2 {
		if err := s.Put(context.Background(), strings.NewReader(body), digest.Of([]byte(body)).String()); err != nil {
			t.Fatal(err)
		}
	}
	if _, _, err := s.Open(digest.Of([]byte("other")).String()); !errors.Is(err, ErrNotFound) {
		t.Errorf("a blob that is not there: %v", err)
	}
}

func TestTheNewestBundleComesFirst(t *testing.T) {
	ctx := context.Background()
	dir := t.TempDir()
	spec := sampleSpec(t, dir)
	s, watcher := newStore(t), (*Store)(nil)
	watcher, err := OpenStore(s.Dir()) // as another process would have it
	if err != nil {
		t.Fatal(err)
	}
	var digests []string
	for _, name := range []string{"one", "two", "one"} {
		spec.Name = name
		path := filepath.Join(dir, name)
		if _, err := Pack(ctx, spec, testKey(1), path, nil); err != nil {
			t.Fatal(err)
		}
		sum, err := Import(ctx, s, path, public(testKey(1)), nil)
		if err != nil {
			t.Fatal(err)
		}
		digests = append(digests, sum.Digest)
		a, err := watcher.Artifact(KindImage, "debian-12")
		if err != nil || a.Bundle.Digest != sum.Digest {
			t.Fatalf("after importing %s the image comes from bundle %s, %v", name, a.Bundle.Name, err)
		}
	}
	names := []string{}
	for _, b := range s.Bundles() {
		names = append(names, b.Name)
	}
	if !slices.Equal(names, []string{"one", "two"}) || digests[0] != digests[2] {
		t.Errorf("bundles are %q", names)
	}
}

// An older bundle that is imported later does not take the place of what is there, and that is said.
func TestAnOlderBundleDoesNotBecomeTheNewest(t *testing.T) {
	ctx, dir, s := context.Background(), t.TempDir(), newStore(t)
	built := time.Date(2026, 5, 1, 0, 0, 0, 0, time.UTC)
	bring := func(name string, created time.Time) Summary {
		t.Helper()
		spec := sampleSpec(t, t.TempDir())
		spec.Name, spec.Created = name, created
		config := spec.Artifacts[0].Config.(ImageConfig)
		config.Version = created.Format(time.RFC3339)
		spec.Artifacts[0].Config = config
		path := filepath.Join(dir, name+created.Format("20060102"))
		if _, err := Pack(ctx, spec, testKey(1), path, nil); err != nil {
			t.Fatal(err)
		}
		sum, err := Import(ctx, s, path, public(testKey(1)), nil)
		if err != nil {
			t.Fatal(err)
		}
		return sum
	}
	wantFrom := func(want Summary) {
		t.Helper()
		a, err := s.Artifact(KindImage, "debian-12")
		if err != nil || a.Bundle.Digest != want.Digest {
			t.Errorf("the image comes from the bundle built %s, %v; want %s", a.Bundle.Created, err, want.Created)
		}
	}
	middle := bring("site", built)
	for _, name := range []string{"site", "other"} { // of the same product, and of another that has the same image
		if older := bring(name, built.AddDate(0, -1, 0)); len(older.Behind) != 1 || older.Behind[0].Digest != middle.Digest {
			t.Errorf("an older bundle %s is behind %+v, want %s", name, older.Behind, middle.Digest)
		}
		wantFrom(middle)
	}
	newest := bring("site", built.AddDate(0, 1, 0))
	if len(newest.Behind) != 0 {
		t.Errorf("the newest bundle is behind %+v", newest.Behind)
	}
	wantFrom(newest)
	// Who wants to go back withdraws it.
	if _, err := s.Remove(ctx, newest.Digest); err != nil {
		t.Fatal(err)
	}
	wantFrom(middle)
}

func TestRotInTheStoreIsFoundByName(t *testing.T) {
	path, trusted := packSample(t)
	s := newStore(t)
	if _, err := Import(context.Background(), s, path, trusted, nil); err != nil {
		t.Fatal(err)
	}
	a, err := s.Artifact(KindNetboot, "discovery")
	if err != nil {
		t.Fatal(err)
	}
	hex := digest.Hex(a.Files[FileInitrd].Digest)
	if err := os.WriteFile(s.path("blobs", "sha256", hex), make([]byte, a.Files[FileInitrd].Size), 0o644); err != nil {
		t.Fatal(err)
	}
	var be *BlobError
	if err := s.Check(context.Background(), nil); !errors.As(err, &be) || be.File != FileInitrd {
		t.Fatal(err)
	}
	if _, err := Export(context.Background(), s, "test", filepath.Join(t.TempDir(), "rotten"), nil); !errors.As(err, &be) {
		t.Fatalf("the rot was exported: %v", err)
	}
	if _, err := Import(context.Background(), s, path, trusted, nil); err != nil {
		t.Fatal(err)
	}
	if err := s.Check(context.Background(), nil); err != nil {
		t.Errorf("importing again did not repair it: %v", err)
	}
}

// importNamed imports the sample under another name, with a bill of materials that only it has. The archive is dir/name.
func importNamed(t *testing.T, s *Store, dir string, spec Spec, name string) Summary {
	t.Helper()
	spec.Name = name
	config := spec.Artifacts[3].Config.(SBOMConfig)
	config.Name, spec.Artifacts[3].Name = name, name
	spec.Artifacts[3].Config = config
	path := filepath.Join(dir, name)
	if _, err := Pack(t.Context(), spec, testKey(1), path, nil); err != nil {
		t.Fatal(err)
	}
	summary, err := Import(t.Context(), s, path, public(testKey(1)), nil)
	if err != nil {
		t.Fatal(err)
	}
	return summary
}

func TestADamagedBundleDoesNotHideTheOthers(t *testing.T) {
	ctx := context.Background()
	dir := t.TempDir()
	spec := sampleSpec(t, dir)
	s := newStore(t)
	var damaged Artifact
	for _, name := range []string{"one", "two"} {
		importNamed(t, s, dir, spec, name)
		var err error
		if damaged, err = s.Artifact(KindSBOM, ""); err != nil {
			t.Fatal(err)
		}
	}
	hex := digest.Hex(damaged.Digest)
	if err := os.WriteFile(s.path("blobs", "sha256", hex), []byte("{}"), 0o644); err != nil {
		t.Fatal(err)
	}
	again, err := OpenStore(s.Dir())
	if err != nil {
		t.Fatal(err)
	}
	if b := again.Bundles(); len(b) != 1 || b[0].Name != "one" {
		t.Errorf("bundles are %+v, want only the whole one", b)
	}
	if p := again.Problems(); len(p) != 1 || !strings.Contains(p[0].Error(), `sbom "two"`) {
		t.Errorf("problems are %v", p)
	}
	if err := again.Check(ctx, nil); err == nil {
		t.Error("Check finds nothing")
	}
}

// The list of bundles is damaged on the disk. The store opens all the same, with what its copy says.
func TestADamagedIndexIsRestored(t *testing.T) {
	ctx, dir := context.Background(), t.TempDir()
	s, path := newStore(t), filepath.Join(dir, "bundle")
	if _, err := Pack(ctx, sampleSpec(t, dir), testKey(1), path, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := Import(ctx, s, path, public(testKey(1)), nil); err != nil {
		t.Fatal(err)
	}
	damage := func(name string) {
		if err := os.WriteFile(s.path(name), []byte(`{"manifests": [`), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	reopened := func(bundles int, problem string) {
		t.Helper()
		again, err := OpenStore(s.Dir())
		if err != nil {
			t.Fatal(err)
		}
		if got := again.Bundles(); len(got) != bundles {
			t.Errorf("%d bundles, want %d", len(got), bundles)
		}
		switch p := again.Problems(); {
		case problem == "" && len(p) > 0, problem != "" && (len(p) != 1 || !strings.Contains(p[0].Error(), problem)):
			t.Errorf("problems %v, want %q", p, problem)
		}
	}
	damage(indexFile)
	reopened(1, "restored from its copy")
	reopened(1, "")
	damage(indexFile)
	damage(indexCopy)
	reopened(0, "import the bundles again")
	if _, err := os.Stat(s.path(indexFile + ".damaged")); err != nil {
		t.Error(err)
	}
	if _, err := Import(ctx, s, path, public(testKey(1)), nil); err != nil {
		t.Fatal(err)
	}
	reopened(1, "")
}

// What only the removed bundle has is deleted, what another has stays; a removal beside an import keeps all blobs.
func TestRemove(t *testing.T) {
	ctx, dir := context.Background(), t.TempDir()
	s := newStore(t)
	spec := sampleSpec(t, dir)
	digests := map[string]string{}
	for _, name := range []string{"old", "new"} {
		digests[name] = importNamed(t, s, dir, spec, name).Digest
	}
	blobs := func() int {
		entries, err := os.ReadDir(s.path("blobs", "sha256"))
		if err != nil {
			t.Fatal(err)
		}
		return len(entries)
	}
	both := blobs()
	if _, err := s.Remove(ctx, "sha256:"+strings.Repeat("0", 64)); !errors.Is(err, ErrNotFound) {
		t.Errorf("a bundle that is not there: %v", err)
	}

	importing, err := s.lock("lock", unix.LOCK_SH)
	if err != nil {
		t.Fatal(err)
	}
	removed, err := s.Remove(ctx, digests["new"])
	if err != nil || removed.Name != "new" || removed.Freed != 0 || !strings.Contains(removed.Kept, "being imported") || blobs() != both {
		t.Errorf("beside an import: %+v, %v, %d blobs of %d", removed, err, blobs(), both)
	}
	if b := s.Bundles(); len(b) != 1 || b[0].Name != "old" {
		t.Errorf("bundles %+v", b)
	}
	importing()

	if _, err := Import(ctx, s, filepath.Join(dir, "new"), public(testKey(1)), nil); err != nil {
		t.Fatal(err)
	}
	if removed, err = s.Remove(ctx, digests["new"]); err != nil || removed.Freed == 0 || removed.Kept != "" || blobs() >= both {
		t.Errorf("alone: %+v, %v, %d blobs of %d", removed, err, blobs(), both)
	}
	if err := s.Check(ctx, nil); err != nil {
		t.Errorf("the other bundle: %v", err)
	}
	if _, err := s.Remove(ctx, digests["old"]); err != nil || blobs() != 0 {
		t.Errorf("the last one: %v, %d blobs are left", err, blobs())
	}
}

// FuzzArchive feeds hostile archives to everything that reads one before trust is established.
func FuzzArchive(f *testing.F) {
	for _, e := range [][]entry{
		{{tar.Header{Name: entryLayout}, ociLayout}, {tar.Header{Name: entryIndex}, "{}"}, {tar.Header{Name: entrySignature}, "{}"}},
		{{tar.Header{Name: "../x"}, "x"}},
	} {
		b, err := os.ReadFile(writeTar(f, e...))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	dir := f.TempDir()
	spec := sampleSpec(f, dir)
	spec.Artifacts = spec.Artifacts[3:]
	out := filepath.Join(dir, "seed")
	if _, err := Pack(context.Background(), spec, testKey(1), out, nil); err != nil {
		f.Fatal(err)
	}
	b, err := os.ReadFile(out)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		a, err := openArchive(bytes.NewReader(b), int64(len(b)))
		if err != nil {
			return
		}
		c, err := a.contents(false, nil)
		if err != nil {
			return
		}
		for _, ref := range c.blobs {
			if _, err := a.blob(ref.Descriptor); err != nil {
				t.Fatalf("contents accepted a blob that is not there: %v", err)
			}
		}
	})
}

func TestVerifyHead(t *testing.T) {
	path, trusted := packSample(t)
	head, err := Head(path)
	if err != nil || head == nil {
		t.Fatalf("head: %d bytes, %v", len(head), err)
	}
	whole, err := os.ReadFile(path)
	if err != nil || !bytes.HasPrefix(whole, head) {
		t.Fatalf("the head is not how the archive begins: %v", err)
	}
	other := public(testKey(9))
	changed := bytes.Replace(head, []byte(`"org.opencontainers.image.ref.name":"debian-12"`), []byte(`"org.opencontainers.image.ref.name":"debian-13"`), 1)
	for name, test := range map[string]struct {
		archive []byte
		trusted []ed25519.PublicKey
		want    string
	}{
		"a trusted key":               {head, trusted, ""},
		"another key":                 {head, other, "is not trusted"},
		"no key":                      {head, nil, "is not trusted"},
		"changed after signing":       {changed, trusted, "was changed after signing"},
		"a head that is cut short":    {head[:700], other, ""},
		"something that is no bundle": {[]byte("hello"), other, ""},
	} {
		err := VerifyHead(bytes.NewReader(test.archive), test.trusted)
		var untrusted *UntrustedError
		if test.want == "" && err != nil || test.want != "" && (!errors.As(err, &untrusted) || !strings.Contains(err.Error(), test.want)) {
			t.Errorf("%s: error is %v, want %q", name, err, test.want)
		}
	}
	rest := bytes.NewReader(whole)
	if err := VerifyHead(rest, trusted); err != nil || len(whole)-rest.Len() != len(head) {
		t.Errorf("it read %d bytes of a head of %d: %v", len(whole)-rest.Len(), len(head), err)
	}
	advised := Advise(VerifyHead(bytes.NewReader(head), other), "ask her")
	if advised == nil || !strings.HasSuffix(advised.Error(), "if you know the key, ask her") {
		t.Errorf("the advice is %v", advised)
	}
	if err := Advise(VerifyHead(bytes.NewReader(changed), trusted), "ask her"); strings.Contains(err.Error(), "ask her") {
		t.Errorf("a changed bundle is no matter of trust: %v", err)
	}
}
