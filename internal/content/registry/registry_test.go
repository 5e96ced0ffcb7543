package registry

import (
	"bytes"
	"context"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/google/go-containerregistry/pkg/v1/validate"

	"coldrack.dev/internal/content/bundle"
	"coldrack.dev/test/require"
)

// storeContent is a real store of bundles as the registry sees it.
type storeContent struct{ store *bundle.Store }

func (c storeContent) Images() []Image {
	var all []Image
	for _, a := range c.store.Artifacts() {
		if a.Kind == bundle.KindContainer {
			all = append(all, Image{Name: a.Name, Digest: a.Digest})
		}
	}
	return all
}

func (c storeContent) Open(digest string) (*os.File, int64, error) { return c.store.Open(digest) }

// imageOf makes an image of random layers for a platform.
func imageOf(t testing.TB, layers, size int64, mediaType types.MediaType) v1.Image {
	t.Helper()
	image, err := random.Image(size, layers)
	if err != nil {
		t.Fatal(err)
	}
	file, err := image.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	file = file.DeepCopy()
	file.OS, file.Architecture = "linux", "amd64"
	file.Config.Entrypoint = []string{"/program"}
	if image, err = mutate.ConfigFile(image, file); err != nil {
		t.Fatal(err)
	}
	if mediaType == types.OCIManifestSchema1 {
		image = mutate.ConfigMediaType(mutate.MediaType(image, mediaType), types.OCIConfigJSON)
	}
	return image
}

func digestOf(t testing.TB, image v1.Image) string {
	t.Helper()
	digest, err := image.Digest()
	if err != nil {
		t.Fatal(err)
	}
	return digest.String()
}

// storeWith imports a bundle of images, and something else that must never be served, into a store.
func storeWith(t testing.TB, store *bundle.Store, bundleName string, images map[string]v1.Image) {
	t.Helper()
	dir := t.TempDir()
	secret := filepath.Join(dir, "file")
	if err := os.WriteFile(secret, []byte("not part of any image"), 0o600); err != nil {
		t.Fatal(err)
	}
	spec := bundle.Spec{Name: bundleName, Artifacts: []bundle.ArtifactSpec{{
		Kind: bundle.KindSBOM, Name: bundleName, Config: bundle.SBOMConfig{Name: bundleName, Format: "SPDX-2.3"},
		Files: []bundle.FileSpec{{Title: bundle.FileSBOM, Path: secret}},
	}}}
	for name, image := range images {
		spec.Artifacts = append(spec.Artifacts, bundle.ArtifactSpec{Kind: bundle.KindContainer, Name: name, Image: image})
	}
	key, _, err := bundle.LoadOrCreateKey(filepath.Join(dir, "bundle.key"))
	if err != nil {
		t.Fatal(err)
	}
	trusted, err := bundle.LoadPublicKeys(filepath.Join(dir, "bundle.pub"))
	if err != nil {
		t.Fatal(err)
	}
	archive := filepath.Join(dir, "bundle.tar")
	if _, err := bundle.Pack(t.Context(), spec, key, archive, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := bundle.Import(t.Context(), store, archive, trusted, nil); err != nil {
		t.Fatal(err)
	}
}

func openStore(t testing.TB) *bundle.Store {
	t.Helper()
	store, err := bundle.OpenStore(filepath.Join(t.TempDir(), "content"))
	if err != nil {
		t.Fatal(err)
	}
	return store
}

// running starts a registry that ends with the test.
func running(t testing.TB, opts Options) *Registry {
	t.Helper()
	opts.Log = slog.New(slog.DiscardHandler)
	r, err := New(opts)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- r.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return r
}

const (
	pause   = "registry.k8s.io/pause:3.10.2"
	coreDNS = "registry.k8s.io/coredns/coredns:v1.15.0"
	flannel = "ghcr.io/flannel-io/flannel:v0.28.0"
)

// site is a store with some images, and a registry over it.
func site(t testing.TB) (*bundle.Store, map[string]v1.Image, *Registry) {
	t.Helper()
	images := map[string]v1.Image{
		pause:                            imageOf(t, 1, 3000, types.OCIManifestSchema1),
		coreDNS:                          imageOf(t, 3, 200_000, types.DockerManifestSchema2),
		flannel:                          imageOf(t, 2, 70_000, types.OCIManifestSchema1),
		"registry.k8s.io/twice:v1":       imageOf(t, 1, 10, types.OCIManifestSchema1),
		"quay.io/twice:v1":               imageOf(t, 1, 10, types.OCIManifestSchema1),
		"registry.k8s.io/pause:3.9":      imageOf(t, 1, 3000, types.OCIManifestSchema1),
		"rack.example:5000/a/b-c_d:v1.0": imageOf(t, 1, 10, types.OCIManifestSchema1),
	}
	store := openStore(t)
	storeWith(t, store, "first", images)
	return store, images, running(t, Options{Content: storeContent{store}})
}

func get(t *testing.T, h http.Handler, method, target string, header map[string]string) *http.Response {
	t.Helper()
	request := httptest.NewRequest(method, target, nil)
	for k, v := range header {
		request.Header.Set(k, v)
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, request)
	return w.Result()
}

// errorCode reads the specification's error body.
func errorCode(t *testing.T, response *http.Response) string {
	t.Helper()
	var body struct {
		Errors []struct{ Code, Message string } `json:"errors"`
	}
	if err := json.NewDecoder(response.Body).Decode(&body); err != nil || len(body.Errors) != 1 || body.Errors[0].Message == "" {
		t.Fatalf("error body: %v %+v", err, body)
	}
	return body.Errors[0].Code
}

func TestProtocol(t *testing.T) {
	store, images, r := site(t)
	digest := digestOf(t, images[pause])
	layers, err := images[pause].Layers()
	if err != nil {
		t.Fatal(err)
	}
	layerHash, _ := layers[0].Digest()
	layer := layerHash.String()
	configHash, _ := images[pause].ConfigName()
	var other string // a blob of the store that is in no image
	for _, a := range store.Artifacts() {
		if a.Kind == bundle.KindSBOM {
			other = a.Files[bundle.FileSBOM].Digest
		}
	}
	unknown := "sha256:" + strings.Repeat("0", 64)
	const json, manifest, docker = "application/json", mediaTypeManifest, mediaTypeDockerManifest

	for name, test := range map[string]struct {
		method, path string
		status       int
		mediaType    string
		code         string // of an error
		digest       string // of Docker-Content-Digest
	}{
		"the base says that this is a registry":             {"GET", "/v2/", 200, json, "", ""},
		"the base without a slash":                          {"GET", "/v2", 200, json, "", ""},
		"a manifest by tag, as containerd asks a mirror":    {"GET", "/v2/pause/manifests/3.10.2?ns=registry.k8s.io", 200, manifest, "", digest},
		"a manifest by digest":                              {"GET", "/v2/pause/manifests/" + digest + "?ns=registry.k8s.io", 200, manifest, "", digest},
		"a manifest's existence":                            {"HEAD", "/v2/pause/manifests/3.10.2?ns=registry.k8s.io", 200, manifest, "", digest},
		"Docker's manifests keep their type":                {"GET", "/v2/coredns/coredns/manifests/v1.15.0?ns=registry.k8s.io", 200, docker, "", digestOf(t, images[coreDNS])},
		"the registry in front of the name":                 {"GET", "/v2/registry.k8s.io/pause/manifests/3.10.2", 200, manifest, "", digest},
		"no registry, and only one has such a repository":   {"GET", "/v2/flannel-io/flannel/manifests/v0.28.0", 200, manifest, "", digestOf(t, images[flannel])},
		"no registry, and two have such a repository":       {"GET", "/v2/twice/manifests/v1", 404, json, codeNameUnknown, ""},
		"two have such a repository, and one is named":      {"GET", "/v2/twice/manifests/v1?ns=quay.io", 200, manifest, "", digestOf(t, images["quay.io/twice:v1"])},
		"a registry with a port":                            {"GET", "/v2/a/b-c_d/manifests/v1.0?ns=rack.example:5000", 200, manifest, "", digestOf(t, images["rack.example:5000/a/b-c_d:v1.0"])},
		"a registry's name in capitals":                     {"GET", "/v2/pause/manifests/3.10.2?ns=Registry.K8s.IO", 200, manifest, "", digest},
		"another registry has no such image":                {"GET", "/v2/pause/manifests/3.10.2?ns=docker.io", 404, json, codeNameUnknown, ""},
		"a registry that is none":                           {"GET", "/v2/pause/manifests/3.10.2?ns=a/b", 400, json, codeNameInvalid, ""},
		"a blob":                                            {"GET", "/v2/pause/blobs/" + layer + "?ns=registry.k8s.io", 200, mediaTypeBlob, "", layer},
		"a blob's existence":                                {"HEAD", "/v2/pause/blobs/" + layer + "?ns=registry.k8s.io", 200, mediaTypeBlob, "", layer},
		"a config is a blob":                                {"GET", "/v2/pause/blobs/" + configHash.String() + "?ns=registry.k8s.io", 200, mediaTypeBlob, "", configHash.String()},
		"a blob of another image":                           {"GET", "/v2/twice/blobs/" + layer + "?ns=registry.k8s.io", 404, json, codeBlobUnknown, ""},
		"content that belongs to no image":                  {"GET", "/v2/pause/blobs/" + other + "?ns=registry.k8s.io", 404, json, codeBlobUnknown, ""},
		"content that belongs to no image, as a manifest":   {"GET", "/v2/pause/manifests/" + other + "?ns=registry.k8s.io", 404, json, codeManifestUnknown, ""},
		"a layer is no manifest":                            {"GET", "/v2/pause/manifests/" + layer + "?ns=registry.k8s.io", 404, json, codeManifestUnknown, ""},
		"a digest that nobody has":                          {"GET", "/v2/pause/blobs/" + unknown, 404, json, codeBlobUnknown, ""},
		"a digest that is none":                             {"GET", "/v2/pause/blobs/sha256:abc", 400, json, codeDigestInvalid, ""},
		"a tag that is not there":                           {"GET", "/v2/pause/manifests/9", 404, json, codeManifestUnknown, ""},
		"a tag that cannot be":                              {"GET", "/v2/pause/manifests/.INVALID", 404, json, codeManifestUnknown, ""},
		"a repository that is not there":                    {"GET", "/v2/nothing/manifests/v1", 404, json, codeNameUnknown, ""},
		"a repository that cannot be":                       {"GET", "/v2/No_Thing/manifests/v1", 400, json, codeNameInvalid, ""},
		"a way out of the folder":                           {"GET", "/v2/../../etc/manifests/v1", 400, json, codeNameInvalid, ""},
		"tags":                                              {"GET", "/v2/pause/tags/list?ns=registry.k8s.io", 200, json, "", ""},
		"tags of nothing":                                   {"GET", "/v2/nothing/tags/list", 404, json, codeNameUnknown, ""},
		"tags that are no list":                             {"GET", "/v2/pause/tags/other", 404, json, codeUnsupported, ""},
		"referrers":                                         {"GET", "/v2/pause/referrers/" + digest + "?ns=registry.k8s.io", 200, mediaTypeIndex, "", ""},
		"referrers of what is no digest":                    {"GET", "/v2/pause/referrers/v1", 400, json, codeDigestInvalid, ""},
		"a list of all repositories is not in the protocol": {"GET", "/v2/_catalog", 404, json, codeUnsupported, ""},
		"an upload":                                         {"POST", "/v2/pause/blobs/uploads/", 405, json, codeUnsupported, ""},
		"a push":                                            {"PUT", "/v2/pause/manifests/new", 405, json, codeUnsupported, ""},
		"a removal":                                         {"DELETE", "/v2/pause/manifests/" + digest, 405, json, codeUnsupported, ""},
	} {
		t.Run(name, func(t *testing.T) {
			response := get(t, r, test.method, test.path, nil)
			if response.StatusCode != test.status || response.Header.Get("Content-Type") != test.mediaType || response.Header.Get("Docker-Content-Digest") != test.digest {
				t.Fatalf("answer is %s, type %q, digest %q", response.Status, response.Header.Get("Content-Type"), response.Header.Get("Docker-Content-Digest"))
			}
			if test.code != "" {
				if code := errorCode(t, response); code != test.code {
					t.Errorf("error code is %s, want %s", code, test.code)
				}
			}
			if response.Header.Get("Content-Length") == "" {
				t.Error("no Content-Length")
			}
		})
	}
}

func TestRangesAndConditions(t *testing.T) {
	_, images, r := site(t)
	layers, err := images[coreDNS].Layers()
	if err != nil {
		t.Fatal(err)
	}
	hash, _ := layers[1].Digest()
	whole, err := layers[1].Compressed()
	if err != nil {
		t.Fatal(err)
	}
	content, err := io.ReadAll(whole)
	if err != nil {
		t.Fatal(err)
	}
	path := "/v2/coredns/coredns/blobs/" + hash.String()
	for name, test := range map[string]struct {
		header map[string]string
		status int
		want   []byte
	}{
		"the whole":                   {nil, 200, content},
		"the middle":                  {map[string]string{"Range": "bytes=100-199"}, 206, content[100:200]},
		"the rest after a broken one": {map[string]string{"Range": "bytes=150000-"}, 206, content[150000:]},
		"the rest, if it is the same": {map[string]string{"Range": "bytes=10-19", "If-Range": `"` + hash.String() + `"`}, 206, content[10:20]},
		"beyond the end":              {map[string]string{"Range": "bytes=99999999-"}, 416, nil},
		"known already":               {map[string]string{"If-None-Match": `"` + hash.String() + `"`}, 304, nil},
	} {
		t.Run(name, func(t *testing.T) {
			response := get(t, r, "GET", path, test.header)
			body, err := io.ReadAll(response.Body)
			if err != nil || response.StatusCode != test.status {
				t.Fatalf("answer is %s, %v", response.Status, err)
			}
			if test.want != nil && !bytes.Equal(body, test.want) {
				t.Errorf("got %d bytes that are not the %d wanted", len(body), len(test.want))
			}
		})
	}
}

func TestTagsComeInPages(t *testing.T) {
	store, _, r := site(t)
	more := map[string]v1.Image{}
	for _, tag := range []string{"3.9", "3.10", "latest"} {
		more["registry.k8s.io/pause:"+tag] = imageOf(t, 1, 10, types.OCIManifestSchema1)
	}
	storeWith(t, store, "second", more)
	list := func(target string) ([]string, string) {
		response := get(t, r, "GET", target, nil)
		var body struct {
			Name string
			Tags []string
		}
		if err := json.NewDecoder(response.Body).Decode(&body); err != nil || body.Name != "pause" {
			t.Fatalf("%v %+v", err, body)
		}
		link := response.Header.Get("Link")
		next, _, _ := strings.Cut(strings.TrimPrefix(link, "<"), ">")
		return body.Tags, next
	}
	all, next := list("/v2/pause/tags/list?ns=registry.k8s.io")
	if want := []string{"3.10", "3.10.2", "3.9", "latest"}; !slices.Equal(all, want) || next != "" {
		t.Fatalf("tags %v, want %v; next %q", all, want, next)
	}
	var paged []string
	for target := "/v2/pause/tags/list?ns=registry.k8s.io&n=3"; target != ""; {
		var page []string
		page, target = list(target)
		paged = append(paged, page...)
	}
	if !slices.Equal(paged, all) {
		t.Errorf("pages are %v, want %v", paged, all)
	}
	if none, _ := list("/v2/pause/tags/list?n=0"); len(none) != 0 || none == nil {
		t.Errorf("no tags were wanted, got %v", none)
	}
	if response := get(t, r, "GET", "/v2/pause/tags/list?n=x", nil); response.StatusCode != 400 {
		t.Errorf("n=x: %s", response.Status)
	}
}

func TestALaterBundleTakesOverATag(t *testing.T) {
	store, images, r := site(t)
	newer := imageOf(t, 1, 5000, types.OCIManifestSchema1)
	storeWith(t, store, "second", map[string]v1.Image{pause: newer})
	if got := get(t, r, "GET", "/v2/pause/manifests/3.10.2", nil).Header.Get("Docker-Content-Digest"); got != digestOf(t, newer) {
		t.Errorf("the tag stands for %s, want the newer image's %s", got, digestOf(t, newer))
	}
	// A node that resolved the tag before must still get what it began.
	if got := get(t, r, "GET", "/v2/pause/manifests/"+digestOf(t, images[pause]), nil); got.StatusCode != 200 {
		t.Errorf("the older image by its digest: %s", got.Status)
	}
}

// asMirror makes a client ask as containerd asks a mirror: for all registries at one address.
type asMirror struct {
	server *url.URL
	base   http.RoundTripper
}

func (m asMirror) RoundTrip(request *http.Request) (*http.Response, error) {
	clone := request.Clone(request.Context())
	query := clone.URL.Query()
	query.Set("ns", clone.URL.Host)
	clone.URL.RawQuery = query.Encode()
	clone.URL.Scheme, clone.URL.Host, clone.Host = m.server.Scheme, m.server.Host, ""
	return m.base.RoundTrip(clone)
}

func mirror(t testing.TB, server *httptest.Server) remote.Option {
	t.Helper()
	u, err := url.Parse(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	return remote.WithTransport(asMirror{u, server.Client().Transport})
}

func TestGoContainerRegistryPulls(t *testing.T) {
	_, images, r := site(t)
	server := httptest.NewUnstartedServer(r)
	server.EnableHTTP2 = true
	server.StartTLS()
	defer server.Close()
	for reference, want := range images {
		tag, err := name.NewTag(reference)
		if err != nil {
			t.Fatal(err)
		}
		byTag, err := remote.Image(tag, mirror(t, server), remote.WithContext(t.Context()))
		if err != nil {
			t.Fatalf("%s: %v", reference, err)
		}
		if err := validate.Image(byTag); err != nil {
			t.Errorf("%s: %v", reference, err)
		}
		if got := digestOf(t, byTag); got != digestOf(t, want) {
			t.Errorf("%s is %s, want %s", reference, got, digestOf(t, want))
		}
		if _, err := remote.Head(tag.Digest(digestOf(t, want)), mirror(t, server)); err != nil {
			t.Errorf("%s by digest: %v", reference, err)
		}
	}
	tags, err := remote.List(mustRepository(t, "registry.k8s.io/pause"), mirror(t, server))
	if err != nil || !slices.Equal(tags, []string{"3.10.2", "3.9"}) {
		t.Errorf("tags are %v, %v", tags, err)
	}
	tag, _ := name.NewTag("registry.k8s.io/pause:new")
	if err := remote.Write(tag, images[pause], mirror(t, server)); err == nil {
		t.Error("an image could be pushed")
	}
	if stats := r.Stats(); stats.Bytes < 600_000 || stats.Requests < 20 || stats.Failed != 0 {
		t.Errorf("counted %+v", stats)
	}
}

func mustRepository(t testing.TB, s string) name.Repository {
	t.Helper()
	r, err := name.NewRepository(s)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestSkopeoPulls(t *testing.T) {
	require.Need(t, "skopeo")
	_, images, r := site(t)
	server := httptest.NewTLSServer(r)
	defer server.Close()
	dir := t.TempDir()
	ca := filepath.Join(dir, "ca.crt")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	skopeo := func(args ...string) (string, error) {
		command := exec.CommandContext(t.Context(), "skopeo", append([]string{"--insecure-policy"}, args...)...)
		command.Env = append(os.Environ(), "HOME="+dir, "XDG_RUNTIME_DIR="+dir)
		out, err := command.CombinedOutput()
		return string(out), err
	}
	host := strings.TrimPrefix(server.URL, "https://")
	for reference, image := range images {
		if strings.Contains(reference, "twice") || strings.Contains(reference, ":5000") {
			continue // a name cannot have a port in its middle
		}
		out, err := skopeo("copy", "--src-cert-dir", dir, "docker://"+host+"/"+reference, "oci:"+filepath.Join(dir, "out")+":"+filepath.Base(reference))
		if err != nil {
			t.Fatalf("%s: %v: %s", reference, err, out)
		}
		raw, err := skopeo("inspect", "--cert-dir", dir, "--format", "{{.Digest}} {{.Os}} {{.Architecture}}", "docker://"+host+"/"+reference)
		if want := digestOf(t, image) + " linux amd64\n"; err != nil || raw != want {
			t.Errorf("%s: %v: skopeo sees %q, want %q", reference, err, raw, want)
		}
	}
	// Without the registry in its name.
	if out, err := skopeo("list-tags", "--cert-dir", dir, "docker://"+host+"/pause"); err != nil || !strings.Contains(out, `"3.10.2"`) || !strings.Contains(out, `"3.9"`) {
		t.Errorf("list-tags: %v: %s", err, out)
	}
	if out, err := skopeo("inspect", "--cert-dir", dir, "docker://"+host+"/pause:none"); err == nil || !strings.Contains(out, "manifest unknown") {
		t.Errorf("an unknown tag: %v: %s", err, out)
	}
	if out, err := skopeo("copy", "--dest-cert-dir", dir, "oci:"+filepath.Join(dir, "out")+":pause:3.10.2", "docker://"+host+"/pause:new"); err == nil {
		t.Errorf("skopeo could push: %s", out)
	}
}

func TestManyNodesAtOnceAndSomeGoAway(t *testing.T) {
	_, images, r := site(t)
	server := httptest.NewServer(r)
	defer server.Close()
	layers, _ := images[coreDNS].Layers()
	hash, _ := layers[0].Digest()
	target := server.URL + "/v2/coredns/coredns/blobs/" + hash.String()
	var wait sync.WaitGroup
	var good atomic.Int32
	for i := range 40 {
		wait.Go(func() {
			response, err := http.Get(target)
			if err != nil {
				t.Error(err)
				return
			}
			defer response.Body.Close()
			if i%4 == 0 {
				return // gone after the headers
			}
			got, size, err := v1.SHA256(response.Body)
			if err != nil || got != hash || size != response.ContentLength {
				t.Errorf("got %s of %d bytes, %v", got, size, err)
				return
			}
			good.Add(1)
		})
	}
	wait.Wait()
	if good.Load() != 30 || r.Stats().Failed != 0 {
		t.Errorf("%d of 30 clients got the blob; %+v", good.Load(), r.Stats())
	}
}

func TestDamagedContentIsAnErrorOfTheServer(t *testing.T) {
	store, images, r := site(t)
	layer, _ := layerOf(t, images[pause], 0)
	target := "/v2/pause/blobs/" + layer
	if response := get(t, r, "GET", target, nil); response.StatusCode != 200 {
		t.Fatal(response.Status)
	}
	if err := os.Remove(filepath.Join(store.Dir(), "blobs", "sha256", strings.TrimPrefix(layer, "sha256:"))); err != nil {
		t.Fatal(err)
	}
	response := get(t, r, "GET", target, nil)
	if response.StatusCode != 500 || errorCode(t, response) != codeUnknown || r.Stats().Failed != 1 {
		t.Errorf("answer is %s, counted %+v", response.Status, r.Stats())
	}
}

// upstreamSite is a second registry on loopback that counts what it is asked.
type upstreamSite struct {
	*httptest.Server
	host   string
	images map[string]v1.Image // by path:tag
	blobs  atomic.Int32
	tags   atomic.Int32
	// gate, when set, is waited for in the middle of every blob.
	gate chan struct{}
	// spoil changes a byte of every blob.
	spoil atomic.Bool
	down  atomic.Bool
}

func newUpstreamSite(t testing.TB) *upstreamSite {
	t.Helper()
	u := &upstreamSite{images: map[string]v1.Image{}}
	var inner http.Handler
	u.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case u.down.Load():
			http.Error(w, "out of order", http.StatusBadGateway)
			return
		case r.Method == "GET" && strings.Contains(r.URL.Path, "/blobs/"):
			u.blobs.Add(1)
			inner.ServeHTTP(&slowWriter{ResponseWriter: w, u: u, ctx: r.Context()}, r)
			return
		case strings.Contains(r.URL.Path, "/manifests/") && !strings.Contains(r.URL.Path, "sha256:"):
			u.tags.Add(1)
		}
		inner.ServeHTTP(w, r)
	}))
	t.Cleanup(u.Close)
	u.host = strings.TrimPrefix(u.URL, "http://")
	u.images["team/app:v1"] = imageOf(t, 2, 300_000, types.OCIManifestSchema1)
	u.images["team/other:v1"] = imageOf(t, 1, 300_000, types.DockerManifestSchema2)
	named := map[string]v1.Image{}
	for path, image := range u.images {
		named[u.host+"/"+path] = image
	}
	store := openStore(t)
	storeWith(t, store, "upstream", named)
	inner = running(t, Options{Content: storeContent{store}})
	return u
}

type slowWriter struct {
	http.ResponseWriter
	u   *upstreamSite
	ctx context.Context
	at  int
}

func (s *slowWriter) Write(p []byte) (int, error) {
	if s.u.spoil.Load() && len(p) > 0 {
		p = slices.Clone(p)
		p[0] ^= 1
	}
	if gate := s.u.gate; gate != nil && s.at > 0 {
		select {
		case <-gate:
		case <-s.ctx.Done():
		}
	}
	n, err := s.ResponseWriter.Write(p)
	s.at += n
	if f, ok := s.ResponseWriter.(http.Flusher); ok {
		f.Flush()
	}
	return n, err
}

func through(t testing.TB, u *upstreamSite, limit int64, now func() time.Time) (*Registry, string) {
	t.Helper()
	dir := t.TempDir()
	return running(t, Options{
		Content: storeContent{openStore(t)}, Upstreams: []string{"http://" + u.host}, CacheDir: dir, CacheBytes: limit, Now: now,
	}), dir
}

func layerOf(t testing.TB, image v1.Image, n int) (digest string, content []byte) {
	t.Helper()
	layers, err := image.Layers()
	if err != nil {
		t.Fatal(err)
	}
	hash, err := layers[n].Digest()
	if err != nil {
		t.Fatal(err)
	}
	reader, err := layers[n].Compressed()
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	if content, err = io.ReadAll(reader); err != nil {
		t.Fatal(err)
	}
	return hash.String(), content
}

func TestPullThrough(t *testing.T) {
	u := newUpstreamSite(t)
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	var clock atomic.Int64
	r, _ := through(t, u, 10<<20, func() time.Time { return now.Add(time.Duration(clock.Load())) })
	server := httptest.NewServer(r)
	defer server.Close()

	pull := func(reference string) error {
		tag, err := name.NewTag(u.host + "/" + reference)
		if err != nil {
			return err
		}
		image, err := remote.Image(tag, mirror(t, server), remote.WithContext(t.Context()))
		if err != nil {
			return err
		}
		if digestOf(t, image) != digestOf(t, u.images[reference]) {
			return fmt.Errorf("digest is %s", digestOf(t, image))
		}
		return validate.Image(image)
	}
	if err := pull("team/app:v1"); err != nil {
		t.Fatal(err)
	}
	if u.blobs.Load() != 3 || u.tags.Load() != 1 {
		t.Errorf("the upstream was asked for %d blobs and %d tags, want config and two layers, and one", u.blobs.Load(), u.tags.Load())
	}
	if err := pull("team/app:v1"); err != nil {
		t.Fatal(err)
	}
	if u.blobs.Load() != 3 || u.tags.Load() != 1 {
		t.Errorf("the second pull asked the upstream: %d blobs, %d tags", u.blobs.Load(), u.tags.Load())
	}
	if err := pull("team/other:v1"); err != nil {
		t.Errorf("an image in Docker's form: %v", err)
	}
	clock.Store(int64(tagAge + time.Second))
	if err := pull("team/app:v1"); err != nil || u.tags.Load() != 3 {
		t.Errorf("an old tag was not asked for again: %v, %d tags", err, u.tags.Load())
	}
	u.down.Store(true)
	clock.Store(int64(3 * tagAge))
	if err := pull("team/app:v1"); err != nil {
		t.Errorf("what is cached must be served while the upstream is away: %v", err)
	}
	unavailable := get(t, r, "GET", "/v2/team/new/manifests/v1?ns="+u.host, nil)
	if unavailable.StatusCode != 503 || errorCode(t, unavailable) != codeUnavailable {
		t.Errorf("what is not cached: %s", unavailable.Status)
	}
	u.down.Store(false)
	for target, code := range map[string]string{
		"/v2/team/app/manifests/none?ns=" + u.host:                                       codeManifestUnknown,
		"/v2/team/none/manifests/v1?ns=" + u.host:                                        codeManifestUnknown,
		"/v2/team/app/blobs/sha256:" + strings.Repeat("0", 64) + "?ns=" + u.host:         codeBlobUnknown,
		"/v2/team/app/manifests/v1?ns=elsewhere.example":                                 codeNameUnknown,
		"/v2/elsewhere.example/team/app/manifests/v1":                                    codeNameUnknown,
		"/v2/team/app/manifests/v1":                                                      codeNameUnknown,
		"/v2/team/app/blobs/sha256:" + strings.Repeat("0", 64) + "?ns=elsewhere.example": codeNameUnknown,
	} {
		response := get(t, r, "GET", target, nil)
		if response.StatusCode != 404 || errorCode(t, response) != code {
			t.Errorf("%s: %s", target, response.Status)
		}
	}
	layer, _ := layerOf(t, u.images["team/app:v1"], 0)
	if response := get(t, r, "GET", "/v2/team/app/manifests/"+layer+"?ns="+u.host, nil); response.StatusCode != 404 {
		t.Errorf("a cached layer was served as a manifest: %s", response.Status)
	}
	if stats := r.Stats(); stats.UpstreamBytes < 900_000 || stats.UpstreamBytes > 1_000_000 || stats.Cached > stats.UpstreamBytes {
		t.Errorf("counted %+v", stats)
	}
}

func TestTwoRequestsForOneBlobFetchOnce(t *testing.T) {
	u := newUpstreamSite(t)
	u.gate = make(chan struct{})
	r, _ := through(t, u, 10<<20, nil)
	server := httptest.NewServer(r)
	defer server.Close()
	digest, content := layerOf(t, u.images["team/app:v1"], 0)
	target := server.URL + "/v2/team/app/blobs/" + digest + "?ns=" + u.host

	// The first client has read the beginning while the rest is not there yet, and goes away.
	ctx, leave := context.WithCancel(t.Context())
	request, _ := http.NewRequestWithContext(ctx, "GET", target, nil)
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	begin := make([]byte, 1000)
	if _, err := io.ReadFull(response.Body, begin); err != nil || !bytes.Equal(begin, content[:1000]) {
		t.Fatalf("the beginning while it comes in: %v", err)
	}
	leave()
	response.Body.Close()

	type outcome struct {
		body []byte
		err  error
	}
	outcomes := make(chan outcome)
	fetch := func(header string) {
		request, _ := http.NewRequestWithContext(t.Context(), "GET", target, nil)
		if header != "" {
			request.Header.Set("Range", header)
		}
		response, err := http.DefaultClient.Do(request)
		if err != nil {
			outcomes <- outcome{nil, err}
			return
		}
		defer response.Body.Close()
		body, err := io.ReadAll(response.Body)
		outcomes <- outcome{body, err}
	}
	for range 5 {
		go fetch("")
	}
	go fetch("bytes=10-19")
	close(u.gate)
	whole, parts := 0, 0
	for range 6 {
		o := <-outcomes
		switch {
		case o.err != nil:
			t.Error(o.err)
		case bytes.Equal(o.body, content):
			whole++
		case bytes.Equal(o.body, content[10:20]):
			parts++
		}
	}
	if whole != 5 || parts != 1 || u.blobs.Load() != 1 {
		t.Errorf("%d whole and %d parts from %d fetches, want 5, 1, 1", whole, parts, u.blobs.Load())
	}
}

// deadlines remembers until when the newest connection may be read.
type deadlines struct {
	net.Listener
	last atomic.Pointer[time.Time]
}

func (d *deadlines) Accept() (net.Conn, error) {
	c, err := d.Listener.Accept()
	return deadlineConn{c, &d.last}, err
}

type deadlineConn struct {
	net.Conn
	last *atomic.Pointer[time.Time]
}

func (c deadlineConn) SetReadDeadline(until time.Time) error {
	c.last.Store(&until)
	return c.Conn.SetReadDeadline(until)
}

func TestASlowFetchOutlivesTheTimeForRequests(t *testing.T) {
	u := newUpstreamSite(t)
	u.gate = make(chan struct{})
	r, _ := through(t, u, 10<<20, nil)
	// The machine API's server gives clients so long to send a request; that is not for how long they may wait.
	server := httptest.NewUnstartedServer(r)
	server.Config.ReadTimeout = time.Hour
	conns := &deadlines{Listener: server.Listener}
	server.Listener = conns
	server.Start()
	defer server.Close()
	digest, content := layerOf(t, u.images["team/app:v1"], 0)
	response, err := http.Get(server.URL + "/v2/team/app/blobs/" + digest + "?ns=" + u.host)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	// The answer has begun and waits for the gate.
	if until := conns.last.Load(); until == nil || !until.IsZero() {
		t.Errorf("while a fetch lasts, its connection is cut off at %v", until)
	}
	close(u.gate)
	if body, err := io.ReadAll(response.Body); err != nil || !bytes.Equal(body, content) {
		t.Errorf("%d of %d bytes: %v", len(body), len(content), err)
	}
}

func TestWrongBytesOfAnUpstreamReachNobodyWhole(t *testing.T) {
	u := newUpstreamSite(t)
	u.spoil.Store(true)
	r, dir := through(t, u, 10<<20, nil)
	server := httptest.NewServer(r)
	defer server.Close()
	digest, content := layerOf(t, u.images["team/app:v1"], 0)
	target := server.URL + "/v2/team/app/blobs/" + digest + "?ns=" + u.host
	if response, err := http.Get(target); err == nil {
		body, err := io.ReadAll(response.Body)
		response.Body.Close()
		if response.StatusCode == 200 && (err == nil || len(body) >= len(content)) {
			t.Errorf("%d of %d spoilt bytes were served, end: %v", len(body), len(content), err)
		}
	}
	// The client may know before the fetch has ended; who asks until then shares its fate.
	for r.Stats().UpstreamFailures == 0 {
		if t.Context().Err() != nil {
			t.Fatal("the failure was never counted")
		}
		time.Sleep(time.Millisecond)
	}
	for _, folder := range []string{"blobs", "tmp"} {
		if left, _ := os.ReadDir(filepath.Join(dir, folder)); len(left) != 0 {
			t.Errorf("%s holds %v", folder, left)
		}
	}
	u.spoil.Store(false)
	response, err := http.Get(target)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	if body, err := io.ReadAll(response.Body); err != nil || !bytes.Equal(body, content) {
		t.Errorf("a good answer after a bad one: %v, %d bytes", err, len(body))
	}
	if stats := r.Stats(); stats.UpstreamFailures != 1 || stats.UpstreamFetches != 1 {
		t.Errorf("counted %+v", stats)
	}
}

func TestCacheIsBoundedAndOutlivesARestart(t *testing.T) {
	u := newUpstreamSite(t)
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	var clock atomic.Int64
	tick := func() time.Time { return now.Add(time.Duration(clock.Add(1)) * time.Second) }
	const limit = 700_000 // two layers of three
	r, dir := through(t, u, limit, tick)
	first, _ := layerOf(t, u.images["team/app:v1"], 0)
	second, _ := layerOf(t, u.images["team/app:v1"], 1)
	third, _ := layerOf(t, u.images["team/other:v1"], 0)
	fetch := func(r *Registry, repository, digest string) {
		t.Helper()
		response := get(t, r, "GET", "/v2/team/"+repository+"/blobs/"+digest+"?ns="+u.host, nil)
		if response.StatusCode != 200 {
			t.Fatalf("%s: %s", digest, response.Status)
		}
		if got, _, err := v1.SHA256(response.Body); err != nil || got.String() != digest {
			t.Fatalf("got %s, %v, want %s", got, err, digest)
		}
	}
	fetch(r, "app", first)
	fetch(r, "app", second)
	fetch(r, "app", first) // so that the second is the oldest
	fetch(r, "other", third)
	if u.blobs.Load() != 3 || r.Stats().Cached > limit {
		t.Fatalf("%d fetches, %+v", u.blobs.Load(), r.Stats())
	}

	again := running(t, Options{Content: storeContent{openStore(t)}, Upstreams: []string{"http://" + u.host}, CacheDir: dir, CacheBytes: limit, Now: tick})
	fetch(again, "app", first)
	fetch(again, "other", third)
	if u.blobs.Load() != 3 {
		t.Errorf("after a restart the cache was asked in vain: %d fetches", u.blobs.Load())
	}
	fetch(again, "app", second)
	if u.blobs.Load() != 4 {
		t.Errorf("the blob used longest ago was not the one that went: %d fetches", u.blobs.Load())
	}

	small := running(t, Options{Content: storeContent{openStore(t)}, Upstreams: []string{"http://" + u.host}, CacheDir: dir, CacheBytes: 1000, Now: tick})
	if small.Stats().Cached > 1000 {
		t.Errorf("a lower limit is not kept: %+v", small.Stats())
	}
	if response := get(t, small, "GET", "/v2/team/app/blobs/"+first+"?ns="+u.host, nil); response.StatusCode != 503 {
		t.Errorf("a blob larger than the cache: %s", response.Status)
	}
}

func TestUpstreamsAreChosenWithCare(t *testing.T) {
	u := newUpstreamSite(t)
	// The same host without http:// in front: it is not spoken to in the clear.
	r := running(t, Options{Content: storeContent{openStore(t)}, Upstreams: []string{u.host}, CacheDir: t.TempDir(), CacheBytes: 1 << 20})
	if response := get(t, r, "GET", "/v2/team/app/manifests/v1?ns="+u.host, nil); response.StatusCode != 503 || u.tags.Load() != 0 {
		t.Errorf("answer is %s, %d requests", response.Status, u.tags.Load())
	}
	if _, err := New(Options{Content: storeContent{openStore(t)}, Log: slog.New(slog.DiscardHandler), Upstreams: []string{"https://docker.io/v2"}, CacheDir: t.TempDir()}); err == nil {
		t.Error("a URL was accepted as an upstream's host")
	}
}

func TestStopEndsFetches(t *testing.T) {
	u := newUpstreamSite(t)
	u.gate = make(chan struct{}) // never opened
	r, err := New(Options{
		Content: storeContent{openStore(t)}, Log: slog.New(slog.DiscardHandler),
		Upstreams: []string{"http://" + u.host}, CacheDir: t.TempDir(), CacheBytes: 1 << 20,
	})
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(r)
	defer server.Close()
	digest, _ := layerOf(t, u.images["team/app:v1"], 0)
	response, err := http.Get(server.URL + "/v2/team/app/blobs/" + digest + "?ns=" + u.host)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := r.Run(ctx); err != nil {
		t.Error(err)
	}
	if _, err := io.Copy(io.Discard, response.Body); err == nil {
		t.Error("the client was not told that the blob is not whole")
	}
	if late := get(t, r, "GET", "/v2/team/other/blobs/sha256:"+strings.Repeat("1", 64)+"?ns="+u.host, nil); late.StatusCode != 503 {
		t.Errorf("a fetch after the end: %s", late.Status)
	}
}
