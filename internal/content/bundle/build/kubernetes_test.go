package build

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/google/go-containerregistry/pkg/v1/validate"
	"github.com/klauspost/compress/zstd"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/cluster/kube"
	"coldrack.dev/internal/content/bundle"
)

const goodKubernetes = `
name: x
sourceDate: "2025-01-01T00:00:00Z"
apt: {suite: bookworm, components: [main]}
go:
- name: tools
  folder: ../tools
  module: example.com/tools
  version: v1.2.3
  programs: {hello: example.com/tools/cmd/hello}
  stamps: {main.version: "{version}"}
layers: [{name: base, packages: [nftables], files: [/usr/sbin/nft], links: {/usr/sbin/x: nft}, temporary: [/tmp]}]
programs:
  name: node
  kubernetes: v1.37.2
  files:
  - {name: hello, path: /usr/bin/hello, go: tools/hello}
  - {name: other, path: /usr/bin/other, version: v9, url: "https://example.com/other.tar.gz", member: bin/other, digest: "sha256:DIGEST"}
containers:
- {image: "example.com/hello:v1", layers: [base], files: [{path: /hello, go: tools/hello}], entrypoint: [/hello], user: "1:1"}
- {image: "example.com/archive:v1", url: "https://example.com/archive.tar", digest: "sha256:DIGEST"}
- {image: "example.com/pulled:v1", pull: "example.com/pulled@sha256:DIGEST"}
`

func TestParseKubernetesRecipe(t *testing.T) {
	good := strings.ReplaceAll(goodKubernetes, "DIGEST", strings.Repeat("ab", 32))
	if _, err := ParseRecipe([]byte(good)); err != nil {
		t.Fatal(err)
	}
	archive := `url: "https://example.com/archive.tar", digest: "sha256:` + strings.Repeat("ab", 32) + `"`
	for name, tt := range map[string]struct{ from, to, want string }{
		"a program that nothing builds":        {"path: /usr/bin/hello, go: tools/hello", "path: /usr/bin/hello, go: tools/hullo", `programs.files[0].go: is "tools/hullo", which the recipe's part go does not build`},
		"a program from two places":            {"path: /usr/bin/hello, go: tools/hello", "path: /usr/bin/hello, go: tools/hello, " + archive, "programs.files[0]: has go and url, or neither"},
		"a program from nowhere":               {", go: tools/hello}\n  - {name: other", "}\n  - {name: other", "programs.files[0]: has go and url, or neither"},
		"a relative path on the node":          {"path: /usr/bin/hello,", "path: bin/hello,", "programs.files[0].path"},
		"a path that climbs":                   {"path: /usr/bin/hello,", "path: /usr/../etc/passwd,", "programs.files[0].path"},
		"two programs in one place":            {"path: /usr/bin/other", "path: /usr/bin/hello", "programs.files[1]: is a second other or a second file at /usr/bin/hello"},
		"a download without its version":       {"version: v9, ", "", `programs.files[1].version: is ""`},
		"a download without a digest":          {`member: bin/other, digest: "sha256:` + strings.Repeat("ab", 32) + `"`, "member: bin/other", "programs.files[1].digest"},
		"a digest in capitals":                 {`member: bin/other, digest: "sha256:` + strings.Repeat("ab", 32), `member: bin/other, digest: "sha256:` + strings.Repeat("AB", 32), "programs.files[1].digest"},
		"a digest that is too short":           {`member: bin/other, digest: "sha256:ab`, `member: bin/other, digest: "sha256:`, "programs.files[1].digest"},
		"a member that climbs":                 {"member: bin/other", "member: ../other", "programs.files[1].member"},
		"a file of this machine":               {"https://example.com/other.tar.gz", "file:///etc/shadow", "programs.files[1].url"},
		"a version that is none":               {"kubernetes: v1.37.2", "kubernetes: latest", "programs.kubernetes"},
		"an unknown layer":                     {"layers: [base]", "layers: [bass]", `containers[0].layers[0]: is "bass"`},
		"an image without a tag":               {"example.com/hello:v1", "example.com/hello", "containers[0].image"},
		"an image twice":                       {"example.com/archive:v1", "example.com/hello:v1", `containers[1].image: "example.com/hello:v1" is there twice`},
		"an image of nothing":                  {", " + archive, "", "containers[1]: wants one of"},
		"an image from two places":             {archive, archive + ", pull: x", "containers[1]: wants one of"},
		"an image pulled by tag":               {"example.com/pulled@sha256:" + strings.Repeat("ab", 32), "example.com/pulled:v1", "containers[2].pull"},
		"an entrypoint for a foreign image":    {archive, archive + ", entrypoint: [/x]", "containers[1]: is taken whole"},
		"a user that is a command":             {`user: "1:1"`, `user: "1; x"`, "containers[0].user"},
		"a package path like an option":        {"hello: example.com/tools/cmd/hello", "hello: -o/x", "go[0].programs[hello]"},
		"a program's name that climbs":         {"{hello: example.com", "{../hello: example.com", "go[0].programs"},
		"no version":                           {"version: v1.2.3\n", "version: ''\n", "go[0].version"},
		"an absolute folder":                   {"folder: ../tools", "folder: /tools", "go[0].folder"},
		"a stamp that ends the linker's flags": {`main.version: "{version}"`, `main.version: "x -extld=y"`, "go[0].stamps[main.version]"},
		"a stamp of nothing":                   {`main.version: "{version}"`, `version: "x"`, "go[0].stamps"},
		"a link that leads nowhere":            {"/usr/sbin/x: nft", "/usr/sbin/x: ''", "layers[0].links[/usr/sbin/x]"},
		"files of no package":                  {"packages: [nftables], ", "", "layers[0].packages: is empty"},
		"layers without packages' source":      {"apt: {suite: bookworm, components: [main]}\n", "", "apt: is missing"},
		"certificates without their package":   {"temporary: [/tmp]", "certificates: true", "layers[0].certificates"},
	} {
		t.Run(name, func(t *testing.T) {
			raw := strings.Replace(good, tt.from, tt.to, 1)
			if raw == good {
				t.Fatal("the test changes nothing")
			}
			_, err := ParseRecipe([]byte(raw))
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Fatalf("error is %v, want %q in it", err, tt.want)
			}
		})
	}
	if _, err := ParseRecipe([]byte("name: x\nsourceDate: \"2025-01-01T00:00:00Z\"\n")); err == nil || !strings.Contains(err.Error(), "are all missing") {
		t.Errorf("a recipe of nothing: %v", err)
	}
}

func writeFiles(t testing.TB, dir string, files map[string]string) {
	t.Helper()
	for name, content := range files {
		file := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o755), os.WriteFile(file, []byte(content), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
}

func TestRecipesOfOneBundleMustGoTogether(t *testing.T) {
	programs := func(name, artifact, apt string) string {
		return "name: " + name + "\nsourceDate: \"2025-01-01T00:00:00Z\"\n" + apt + "programs: {name: " + artifact + `, files: [{name: a, path: /a, version: v1, url: "http://x/a", digest: "sha256:` +
			strings.Repeat("ab", 32) + "\"}]}\n"
	}
	dir := t.TempDir()
	writeFiles(t, dir, map[string]string{
		"a/recipe.yaml": programs("a", "one", "apt: {suite: bookworm, components: [main]}\n"),
		"b/recipe.yaml": programs("b", "one", ""),
		"c/recipe.yaml": programs("c", "two", "apt: {suite: trixie, components: [main]}\n"),
	})
	load := func(names ...string) ([]*builder, error) {
		var opt Options
		for _, n := range names {
			opt.RecipeDirs = append(opt.RecipeDirs, filepath.Join(dir, n))
		}
		return loadBuilders(opt, &steps{})
	}
	if _, err := load("a", "b"); err == nil || !strings.Contains(err.Error(), "recipes a and b both make programs one") {
		t.Errorf("two recipes with one artifact: %v", err)
	}
	if _, err := load(); err == nil || !strings.Contains(err.Error(), "no recipe was given") {
		t.Errorf("no recipe: %v", err)
	}
	if _, err := load("a", "c"); err != nil {
		t.Errorf("two states of Debian in one bundle: %v", err)
	}
}

// newBuilder keeps everything in a folder that goes away with the test.
func newBuilder(t testing.TB) *builder {
	t.Helper()
	cache := t.TempDir()
	b := &builder{
		opt: Options{CacheDir: cache}, dir: t.TempDir(), log: slog.New(slog.DiscardHandler), retryAfter: time.Millisecond,
		steps: &steps{dir: cache}, recipe: Recipe{Name: "x", SourceDate: time.Unix(1735689600, 0)},
	}
	if err := os.MkdirAll(b.workDir(), 0o755); err != nil {
		t.Fatal(err)
	}
	return b
}

func digestOfString(s string) string {
	h, _, err := v1.SHA256(strings.NewReader(s))
	if err != nil {
		panic(err)
	}
	return h.String()
}

func TestDownload(t *testing.T) {
	body := strings.Repeat("a released program\n", 5000)
	type request struct{ path, contentRange string }
	var asked []request
	var broken atomic.Int32 // requests that end half-way
	files := http.FileServerFS(os.DirFS(t.TempDir()))
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked = append(asked, request{r.URL.Path, r.Header.Get("Range")})
		switch {
		case r.URL.Path == "/missing":
			files.ServeHTTP(w, r)
		case r.URL.Path == "/busy" && len(asked) < 3:
			http.Error(w, "later", http.StatusServiceUnavailable)
		case broken.Load() > 0:
			broken.Add(-1)
			w.Header().Set("Content-Length", fmt.Sprint(len(body)))
			_, _ = io.WriteString(w, body[:len(body)/2])
		case r.URL.Path == "/no-ranges":
			_, _ = io.WriteString(w, body)
		default:
			http.ServeContent(w, r, "", time.Time{}, strings.NewReader(body))
		}
	}))
	defer server.Close()
	half := fmt.Sprintf("bytes=%d-", len(body)/2)
	for name, tt := range map[string]struct {
		path   string
		broken int32
		digest string
		want   string // error
		asked  []request
	}{
		"all at once":                          {"/file", 0, digestOfString(body), "", []request{{"/file", ""}}},
		"one that breaks off continues":        {"/file", 1, digestOfString(body), "", []request{{"/file", ""}, {"/file", half}}},
		"a server that knows no ranges":        {"/no-ranges", 1, digestOfString(body), "", []request{{"/no-ranges", ""}, {"/no-ranges", half}}},
		"a busy server is asked again":         {"/busy", 0, digestOfString(body), "", []request{{"/busy", ""}, {"/busy", ""}, {"/busy", ""}}},
		"a server that never ends gives up":    {"/file", 99, digestOfString(body), "unexpected EOF", slices.Repeat([]request{{"/file", ""}}, 1)},
		"what is not there is asked for once":  {"/missing", 0, digestOfString(body), "404 Not Found", []request{{"/missing", ""}}},
		"another content names both digests":   {"/file", 0, digestOfString("what was published"), digestOfString(body) + ", but the recipe wants " + digestOfString("what was published"), []request{{"/file", ""}}},
		"another content after breaking off":   {"/file", 1, digestOfString("what was published"), "but the recipe wants", []request{{"/file", ""}, {"/file", half}}},
		"nothing is downloaded a second time ": {"/file", 0, digestOfString(body), "", []request{{"/file", ""}}},
	} {
		t.Run(name, func(t *testing.T) {
			asked = nil
			broken.Store(tt.broken)
			b := newBuilder(t)
			file, err := b.download(t.Context(), server.URL+tt.path, tt.digest)
			if tt.want != "" {
				if err == nil || !strings.Contains(err.Error(), tt.want) {
					t.Fatalf("error is %v, want %q in it", err, tt.want)
				}
				var de *DigestError
				if left, _ := filepath.Glob(filepath.Join(b.opt.CacheDir, "downloads", "*")); errors.As(err, &de) && len(left) > 0 {
					t.Errorf("the wrong content is kept: %v", left)
				}
				asked = asked[:len(tt.asked)]
			} else {
				if err != nil {
					t.Fatal(err)
				}
				if got, err := os.ReadFile(file); err != nil || string(got) != body {
					t.Fatalf("%d bytes, want %d, %v", len(got), len(body), err)
				}
				if again, err := b.download(t.Context(), server.URL+tt.path, tt.digest); err != nil || again != file {
					t.Errorf("a second time: %v", err)
				}
			}
			if diff := cmp.Diff(tt.asked, asked, cmp.AllowUnexported(request{})); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// archiveOf makes a tar archive.
func archiveOf(t testing.TB, files map[string]string) []byte {
	t.Helper()
	var buf bytes.Buffer
	tw := tar.NewWriter(&buf)
	for name, content := range files {
		if err := tw.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(content))}); err != nil {
			t.Fatal(err)
		}
		_, _ = io.WriteString(tw, content)
	}
	_ = tw.Close()
	return buf.Bytes()
}

func TestAMemberOfAReleasedArchive(t *testing.T) {
	plain := archiveOf(t, map[string]string{"./bin/ctr": "the program", "bin/other": "another"})
	var gz bytes.Buffer
	w := gzip.NewWriter(&gz)
	_, _ = w.Write(plain)
	_ = w.Close()
	enc, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	archives := map[string][]byte{"/x.tar": plain, "/x.tar.gz": gz.Bytes(), "/x.tar.zst": enc.EncodeAll(plain, nil), "/short.tar": plain[:700], "/empty": nil}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = w.Write(archives[r.URL.Path]) }))
	defer server.Close()
	b := newBuilder(t)
	fetch := func(name, member string) (string, error) {
		file, err := b.fetchFile(t.Context(), SourceRecipe{URL: server.URL + name, Digest: digestOfString(string(archives[name])), Member: member})
		if err != nil {
			return "", err
		}
		content, err := os.ReadFile(file)
		return string(content), err
	}
	for _, name := range []string{"/x.tar", "/x.tar.gz", "/x.tar.zst"} {
		if got, err := fetch(name, "bin/ctr"); err != nil || got != "the program" {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
	if _, err := fetch("/x.tar.gz", "bin/runc"); err == nil || !strings.Contains(err.Error(), "/x.tar.gz") || !strings.Contains(err.Error(), "has no file bin/runc") {
		t.Errorf("a member that is not there: %v", err)
	}
	for _, name := range []string{"/short.tar", "/empty"} {
		if got, err := fetch(name, "bin/none"); err == nil {
			t.Errorf("%s: %q", name, got)
		}
	}
}

// foreignImage is an image as other tools build it: a gzip layer, Docker's media types.
func foreignImage(t testing.TB, arch string) v1.Image {
	t.Helper()
	content := archiveOf(t, map[string]string{"usr/local/bin/kube-scheduler": "a program for " + arch})
	l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(content)), nil })
	if err != nil {
		t.Fatal(err)
	}
	img, err := mutate.AppendLayers(empty.Image, l)
	if err != nil {
		t.Fatal(err)
	}
	img, err = mutate.ConfigFile(img, &v1.ConfigFile{OS: "linux", Architecture: arch, RootFS: v1.RootFS{Type: "layers", DiffIDs: mustDiffIDs(t, img)},
		Config: v1.Config{Entrypoint: []string{"/usr/local/bin/kube-scheduler"}, User: "7"}})
	if err != nil {
		t.Fatal(err)
	}
	return img
}

func mustDiffIDs(t testing.TB, img v1.Image) []v1.Hash {
	t.Helper()
	config, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	return config.RootFS.DiffIDs
}

// filesOf unpacks an image and returns its files' contents and modes.
func filesOf(t testing.TB, img v1.Image) map[string]string {
	t.Helper()
	if err := validate.Image(img, validate.Fast); err != nil {
		t.Fatal(err)
	}
	layers, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	for i, l := range layers {
		compressed, err1 := l.Compressed()
		plain, err2 := l.Uncompressed()
		if err := errors.Join(err1, err2); err != nil {
			t.Fatal(err)
		}
		stored, _, err1 := v1.SHA256(compressed)
		content, _, err2 := v1.SHA256(plain)
		digest, err3 := l.Digest()
		diffID, err4 := l.DiffID()
		if err := errors.Join(err1, err2, err3, err4); err != nil || stored != digest || content != diffID {
			t.Fatalf("layer %d is %s of %s, but is called %s of %s, %v", i, stored, content, digest, diffID, err)
		}
	}
	found := map[string]string{}
	r := mutate.Extract(img)
	defer func() { _ = r.Close() }()
	for tr := tar.NewReader(r); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return found
		}
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(tr)
		if err != nil {
			t.Fatal(err)
		}
		value := fmt.Sprintf("%o %d:%d %d", h.Mode, h.Uid, h.Gid, h.ModTime.Unix())
		switch h.Typeflag {
		case tar.TypeReg:
			value += " " + string(content)
		case tar.TypeSymlink:
			value += " -> " + h.Linkname
		}
		if len(h.PAXRecords) > 0 {
			value += fmt.Sprintf(" %q", h.PAXRecords)
		}
		found[h.Name] = value
	}
}

func TestImagesFromElsewhere(t *testing.T) {
	img := foreignImage(t, "amd64")
	dir := t.TempDir()
	tag, err := name.NewTag("registry.k8s.io/kube-scheduler:v1.37.2")
	if err != nil {
		t.Fatal(err)
	}
	docker := filepath.Join(dir, "docker.tar")
	if err := tarball.WriteToFile(docker, tag, img); err != nil {
		t.Fatal(err)
	}
	index := mutate.AppendManifests(empty.Index,
		mutate.IndexAddendum{Add: foreignImage(t, "arm64"), Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: "arm64"}}},
		mutate.IndexAddendum{Add: img, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: "amd64"}}})
	if _, err := layout.Write(filepath.Join(dir, "layout"), index); err != nil {
		t.Fatal(err)
	}
	nested, err := layout.Write(filepath.Join(dir, "nested"), empty.Index)
	if err == nil {
		err = nested.AppendIndex(index)
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range []string{"layout", "nested"} {
		if out, err := exec.Command("tar", "-C", filepath.Join(dir, l), "-cf", filepath.Join(dir, l+".tar"), ".").CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	writeFiles(t, dir, map[string]string{"text.tar": string(archiveOf(t, map[string]string{"README": "x"})), "page": "<html>"})
	var gz bytes.Buffer
	raw, err := os.ReadFile(docker)
	if err != nil {
		t.Fatal(err)
	}
	w := gzip.NewWriter(&gz)
	_, _ = w.Write(raw)
	_ = w.Close()
	arm := filepath.Join(dir, "arm.tar")
	if err := errors.Join(os.WriteFile(filepath.Join(dir, "docker.tar.gz"), gz.Bytes(), 0o644), tarball.WriteToFile(arm, tag, foreignImage(t, "arm64"))); err != nil {
		t.Fatal(err)
	}
	files := httptest.NewServer(http.FileServer(http.Dir(dir)))
	defer files.Close()
	for file, want := range map[string]string{
		"docker.tar": "", "docker.tar.gz": "", "layout.tar": "", "nested.tar": "",
		"text.tar": "is neither an archive of docker save nor an OCI layout", "page": "is not a readable tar archive", "arm.tar": "is for linux/arm64, want linux/amd64",
	} {
		t.Run(file, func(t *testing.T) {
			digest, _, err := hashFile(filepath.Join(dir, file))
			if err != nil {
				t.Fatal(err)
			}
			got, bill, err := newBuilder(t).container(t.Context(), ContainerRecipe{Image: tag.Name(), URL: files.URL + "/" + file, Digest: digest}, nil, nil)
			if want != "" {
				if err == nil || !strings.Contains(err.Error(), want) {
					t.Fatalf("error is %v, want %q in it", err, want)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if got := filesOf(t, got)["usr/local/bin/kube-scheduler"]; !strings.Contains(got, "a program for amd64") {
				t.Errorf("the program is %q", got)
			}
			config, err := got.ConfigFile()
			if err != nil || config.Config.User != "7" || config.Architecture != "amd64" {
				t.Errorf("config %+v, %v", config, err)
			}
			if len(bill.programs) != 1 || bill.programs[0].Name != tag.Name() {
				t.Errorf("the bill of materials says %+v", bill)
			}
		})
	}

	server := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	defer server.Close()
	host := strings.TrimPrefix(server.URL, "http://")
	source, err := name.NewTag(host + "/mirror/kube-scheduler:v1.37.2")
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.WriteIndex(source, index); err != nil {
		t.Fatal(err)
	}
	whole, err1 := index.Digest()
	one, err2 := img.Digest()
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	for what, digest := range map[string]v1.Hash{"an index": whole, "an image": one} {
		got, _, err := newBuilder(t).container(t.Context(), ContainerRecipe{Image: tag.Name(), Pull: host + "/mirror/kube-scheduler@" + digest.String()}, nil, nil)
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		if h, err := got.Digest(); err != nil || h != one {
			t.Errorf("%s: the image pulled is %s, want %s as it was, %v", what, h, one, err)
		}
		if mediaType, err := got.MediaType(); err != nil || mediaType != types.DockerManifestSchema2 {
			t.Errorf("%s: media type is %s, %v", what, mediaType, err)
		}
	}
	missing := host + "/mirror/kube-scheduler@" + digestOfString("x")
	if _, _, err := newBuilder(t).container(t.Context(), ContainerRecipe{Image: tag.Name(), Pull: missing}, nil, nil); err == nil || !strings.Contains(err.Error(), missing) {
		t.Errorf("an image that is not there: %v", err)
	}
}

// TestARegistryThatLies gives other bytes than those asked for.
func TestARegistryThatLies(t *testing.T) {
	manifest := `{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json"}`
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if path.Base(path.Dir(r.URL.Path)) == "manifests" {
			w.Header().Set("Content-Type", string(types.OCIManifestSchema1))
			_, _ = io.WriteString(w, manifest)
		}
	}))
	defer server.Close()
	want := digestOfString("the real manifest")
	reference := strings.TrimPrefix(server.URL, "http://") + "/pause@" + want
	_, _, err := newBuilder(t).container(t.Context(), ContainerRecipe{Image: "registry.k8s.io/pause:1", Pull: reference}, nil, nil)
	if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), digestOfString(manifest)) {
		t.Errorf("error is %v, want both digests in it", err)
	}
}

const helloMain = `package main

import "fmt"

var version = "none"

func main() { fmt.Println("hello", version) }
`

// helloRecipe builds one program of a module of its own, as a program and in two containers.
const helloRecipe = `
name: hello
sourceDate: "2025-01-01T00:00:00Z"
go:
- {name: tools, folder: ../tools, version: v1.2.3, programs: {hello: example.com/tools/cmd/hello}, stamps: {main.version: "{version}+{major}.{minor}"}}
layers: [{name: base, overlay: ../base, links: {/bin/sh: hello}, temporary: [/tmp]}]
apt: {suite: bookworm, components: [main]}
programs:
  name: node
  kubernetes: v1.37.2
  files: [{name: hello, path: /usr/bin/hello, go: tools/hello}]
containers:
- {image: "example.com/hello:v1", layers: [base], files: [{path: /bin/hello, go: tools/hello, bindLowPorts: true}], entrypoint: [/bin/hello], user: "1:1", labels: {a: b}}
- {image: "example.com/bare:v1", files: [{path: /hello, go: tools/hello}], command: [/hello]}
`

func helloFiles(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	writeFiles(t, dir, map[string]string{
		"recipe/recipe.yaml":      helloRecipe,
		"tools/go.mod":            "module example.com/tools\n\ngo 1.26.0\n",
		"tools/cmd/hello/main.go": helloMain,
		"base/etc/passwd":         "root:x:0:0::/root:/sbin/nologin\n",
	})
	return dir
}

// makeHello is buildAll without packages.
func makeHello(t testing.TB, dir string, b *builder) product {
	t.Helper()
	recipe, err := LoadRecipe(filepath.Join(dir, "recipe"))
	if err != nil {
		t.Fatal(err)
	}
	b.recipe, b.dir = recipe, filepath.Join(dir, "recipe")
	var p product
	if err := b.addKubernetes(t.Context(), &p); err != nil {
		t.Fatal(err)
	}
	return p
}

// imported brings a product into a content store.
func imported(t testing.TB, p product) {
	t.Helper()
	dir := t.TempDir()
	out, keyFile := filepath.Join(dir, "hello.bundle"), filepath.Join(dir, "key")
	key, _, err := bundle.LoadOrCreateKey(keyFile)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := bundle.Pack(t.Context(), bundle.Spec{Name: "hello", Artifacts: p.artifacts}, key, out, nil); err != nil {
		t.Fatal(err)
	}
	trusted, err := bundle.LoadPublicKeys(bundle.PublicKeyPath(keyFile))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := bundle.Verify(t.Context(), out, trusted, nil); err != nil {
		t.Fatal(err)
	}
	store, err := bundle.OpenStore(filepath.Join(dir, "store"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := bundle.Import(t.Context(), store, out, trusted, nil); err != nil {
		t.Fatal(err)
	}
	if programs, err := store.Programs("v1.37.2"); err != nil || len(programs) != 1 || programs[0].Path != "/usr/bin/hello" || !store.Has(programs[0].Content.Digest) {
		t.Errorf("the store has programs %+v, %v", programs, err)
	}
	if diff := cmp.Diff([]string{"example.com/bare:v1", "example.com/hello:v1"}, store.Containers()); diff != "" {
		t.Error(diff)
	}
}

func TestProgramsAndContainersOfAGoModule(t *testing.T) {
	dir := helloFiles(t)
	b := newBuilder(t)
	p := makeHello(t, dir, b)
	imported(t, p)
	img := p.artifacts[1].Image
	want := map[string]string{
		"etc":        "755 0:0 1735689600",
		"etc/passwd": "644 0:0 1735689600 root:x:0:0::/root:/sbin/nologin\n",
		"tmp":        "1777 0:0 1735689600",
		"usr":        "755 0:0 1735689600",
		"usr/bin":    "755 0:0 1735689600",
		"usr/bin/sh": "777 0:0 1735689600 -> hello",
	}
	got := filesOf(t, img)
	program := got["usr/bin/hello"]
	delete(got, "usr/bin/hello")
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if !strings.HasPrefix(program, "755 0:0 1735689600 \x7fELF") || !strings.Contains(program, "SCHILY.xattr.security.capability") {
		t.Errorf("the program begins with %.30q and ends with %q", program, program[max(0, len(program)-120):])
	}
	config, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	if config.OS != "linux" || config.Architecture != "amd64" || config.Config.User != "1:1" || !slices.Equal(config.Config.Entrypoint, []string{"/bin/hello"}) {
		t.Errorf("config is %+v", config)
	}
	if diff := cmp.Diff(map[string]string{"a": "b", "org.opencontainers.image.title": "hello", "org.opencontainers.image.version": "v1.2.3"}, config.Config.Labels); diff != "" {
		t.Error(diff)
	}
	if bare := filesOf(t, p.artifacts[2].Image); len(bare) != 1 || bare["hello"] == "" {
		t.Errorf("the image of one program has %d files", len(bare))
	}
	programs := p.artifacts[0].Config.(bundle.ProgramsConfig)
	if programs.Kubernetes != "v1.37.2" || len(programs.Programs) != 1 || programs.Programs[0].Version != "v1.2.3" {
		t.Errorf("programs are %+v", programs)
	}
	hello, err := filepath.Glob(filepath.Join(b.opt.CacheDir, "steps", "go-tools", "*", "hello"))
	if err != nil || len(hello) != 1 {
		t.Fatal(hello, err)
	}
	if said, err := exec.Command(hello[0]).Output(); err != nil || string(said) != "hello v1.2.3+1.2\n" {
		t.Errorf("the program says %q, %v", said, err)
	}
	var modules int
	for _, part := range p.bill {
		for _, a := range part.programs {
			modules += len(a.modules)
		}
	}
	if len(p.bill) != 3 || modules != 3 { // the standard library, for each
		t.Errorf("the bill of materials has %d parts with %d modules", len(p.bill), modules)
	}

	// Elsewhere, later, with an empty cache: the same bytes.
	second := makeHello(t, helloFiles(t), newBuilder(t))
	for i, a := range p.artifacts {
		if a.Image == nil {
			if diff := cmp.Diff(a.Config, second.artifacts[i].Config); diff != "" {
				t.Error(diff)
			}
			continue
		}
		x, err1 := a.Image.Digest()
		y, err2 := second.artifacts[i].Image.Digest()
		if err := errors.Join(err1, err2); err != nil || x != y {
			t.Errorf("%s is %s and then %s, %v", a.Name, x, y, err)
		}
	}

	// In the same cache: nothing is made.
	var made []string
	b.steps.report = func(e Event) {
		if e.State == Started {
			made = append(made, e.Step)
		}
	}
	makeHello(t, dir, b)
	if len(made) > 0 {
		t.Errorf("a second build makes %q again", made)
	}
	// After a change of the sources: what depends on them.
	writeFiles(t, dir, map[string]string{"tools/cmd/hello/main.go": strings.Replace(helloMain, "hello", "hullo", 1)})
	makeHello(t, dir, b)
	if diff := cmp.Diff([]string{"go-tools", "programs-node", "container-hello-v1", "container-bare-v1"}, made); diff != "" {
		t.Error(diff)
	}
}

func TestARecipeCannotNameAnotherVersionThanItBuilds(t *testing.T) {
	dir := helloFiles(t)
	writeFiles(t, dir, map[string]string{"recipe/recipe.yaml": strings.Replace(helloRecipe, "version: v1.2.3,", "module: example.com/tools, version: v1.2.3,", 1)})
	recipe, err := LoadRecipe(filepath.Join(dir, "recipe"))
	if err != nil {
		t.Fatal(err)
	}
	b := newBuilder(t)
	b.recipe, b.dir = recipe, filepath.Join(dir, "recipe")
	_, err = b.goPrograms(t.Context(), recipe.Go[0])
	var fe *FieldError
	if !errors.As(err, &fe) || fe.Field != "version" {
		t.Errorf("error is %v", err)
	}
	writeFiles(t, dir, map[string]string{"tools/cmd/hello/main.go": "package main\n\nfunc main() { undefined() }\n"})
	recipe.Go[0].Module = ""
	if _, err = b.goPrograms(t.Context(), recipe.Go[0]); err == nil || !strings.Contains(err.Error(), "undefined: undefined") {
		t.Errorf("a program that does not compile: %v", err)
	}
}

// What clusters of every preset need is in the recipe of their version.
func TestTheRecipesHoldWhatClustersNeed(t *testing.T) {
	versions := map[string]Recipe{}
	files, err := filepath.Glob(filepath.Join(recipes, "*", "recipe.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var system Recipe
	for _, file := range files {
		r, err := LoadRecipe(filepath.Dir(file))
		if err != nil {
			t.Fatal(err)
		}
		if r.Programs != nil {
			versions[r.Programs.Kubernetes] = r
		}
		if r.Image != nil {
			system = r
		}
	}
	for _, version := range kube.KnownVersions() {
		r, ok := versions[version]
		if !ok {
			t.Errorf("no recipe makes programs for Kubernetes %s", version)
			continue
		}
		supply := kube.Supply{Images: map[string]string{}, Systems: []kube.System{{Name: system.Image.Name, Place: "default", Packages: system.Image.Packages}}}
		built := map[string]string{}
		for _, g := range r.Go {
			for program := range g.Programs {
				built[g.Name+"/"+program] = g.Version
			}
		}
		for _, c := range r.Containers {
			supply.Images[c.Image] = r.Name
			// A tag is the version of what is in the image; etcd's has a suffix for its rebuilds.
			for _, f := range c.Files[:1] {
				_, tag, _ := strings.Cut(path.Base(c.Image), ":")
				if got := strings.TrimPrefix(built[f.Go], "v"); !strings.HasPrefix(strings.TrimPrefix(tag, "v")+"-", got+"-") {
					t.Errorf("%s: %s is built from version %s", r.Name, c.Image, got)
				}
			}
		}
		for _, f := range r.Programs.Files {
			supply.Programs = append(supply.Programs, kube.SuppliedProgram{Name: f.Name, Path: f.Path, Version: built[f.Go], Place: r.Name})
		}
		for _, topology := range kube.Presets() {
			for _, network := range []v1alpha1.NetworkPlugin{v1alpha1.NetworkRouted, v1alpha1.NetworkFlannel} {
				cluster, _, err := kube.Preset(topology, kube.PresetOptions{Name: "x"})
				if err != nil {
					t.Fatal(err)
				}
				cluster.Spec.Version, cluster.Spec.Network.Plugin = version, network
				needs, err := kube.RequirementsOf(cluster)
				if err != nil {
					t.Fatal(err)
				}
				for _, need := range needs.Check(supply) {
					if need.Found == "" {
						t.Errorf("%s %s with %s: %s %s %s is missing: %s", version, topology, network, need.Kind, need.Name, need.Wanted, need.Note)
					}
				}
			}
		}
	}
}
