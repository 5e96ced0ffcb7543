package registry

import (
	"encoding/pem"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"coldrack.dev/internal/base/digest"
	"coldrack.dev/internal/content/imagestore"
	"coldrack.dev/test/require"
)

// TestSkopeoPushes has a real skopeo push an image of two platforms with a password, and copy it back without.
func TestSkopeoPushes(t *testing.T) {
	require.Need(t, "skopeo")
	local := openLocal(t, t.TempDir())
	r := running(t, Options{Content: storeContent{openStore(t)}, Local: local})
	server := httptest.NewTLSServer(r.Writable(Access{By: writer("secret"), Challenge: true}))
	defer server.Close()
	dir := t.TempDir()
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})
	if err := os.WriteFile(filepath.Join(dir, "ca.crt"), ca, 0o600); err != nil {
		t.Fatal(err)
	}
	index := mutate.IndexMediaType(empty.Index, types.OCIImageIndex)
	for _, arch := range []string{"amd64", "arm64"} {
		index = mutate.AppendManifests(index, mutate.IndexAddendum{Add: imageOf(t, 2, 5000, types.OCIManifestSchema1), Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: arch}}})
	}
	path, err := layout.Write(filepath.Join(dir, "in"), empty.Index)
	if err == nil {
		err = path.AppendIndex(index, layout.WithAnnotations(map[string]string{"org.opencontainers.image.ref.name": "v1"}))
	}
	if err != nil {
		t.Fatal(err)
	}
	skopeo := func(args ...string) (string, error) {
		command := exec.CommandContext(t.Context(), "skopeo", append([]string{"--insecure-policy"}, args...)...)
		command.Env = append(os.Environ(), "HOME="+dir, "XDG_RUNTIME_DIR="+dir)
		out, err := command.CombinedOutput()
		return string(out), err
	}
	from, to := "oci:"+filepath.Join(dir, "in")+":v1", "docker://"+strings.TrimPrefix(server.URL, "https://")+"/rack.example/team/app:v1"
	for name, creds := range map[string]string{"nobody": "--dest-no-creds", "a wrong password": "--dest-creds=ann:wrong"} {
		if out, err := skopeo("copy", "--all", "--dest-cert-dir", dir, creds, from, to); err == nil || !strings.Contains(out, "this needs a password") && !strings.Contains(out, "authentication required") && !strings.Contains(out, "invalid username/password") {
			t.Errorf("%s: %v: %s", name, err, out)
		}
	}
	if out, err := skopeo("copy", "--all", "--dest-cert-dir", dir, "--dest-creds=ann:secret", from, to); err != nil {
		t.Fatalf("push: %v: %s", err, out)
	}
	images := local.Images()
	if len(images) != 1 || images[0].Name != "rack.example/team/app:v1" || images[0].By != "ann" || images[0].Size < 20_000 {
		t.Fatalf("the store has %+v", images)
	}
	back := "oci-archive:" + filepath.Join(dir, "out.tar")
	if out, err := skopeo("copy", "--all", "--src-cert-dir", dir, "--src-no-creds", to, back); err != nil {
		t.Fatalf("pull without a password: %v: %s", err, out)
	}
	raw, err := skopeo("inspect", "--raw", back)
	if got := digest.Of([]byte(raw)).String(); err != nil || got != images[0].Digest {
		t.Errorf("%s came back, want %s: %v", got, images[0].Digest, err)
	}
	if out, err := skopeo("delete", "--cert-dir", dir, "--creds=ann:secret", to); err != nil || local.Has("rack.example/team/app:v1") {
		t.Errorf("delete: %v: %s", err, out)
	}
}

// write asks the writable form of a registry, as a client does.
func write(t *testing.T, h http.Handler, method, target string, body io.Reader) *http.Response {
	t.Helper()
	request := httptest.NewRequest(method, target, body)
	request.SetBasicAuth("ann", "secret")
	w := httptest.NewRecorder()
	h.ServeHTTP(w, request)
	return w.Result()
}

func TestWhatMayNotBePushed(t *testing.T) {
	store, images, _ := site(t)
	local, err := imagestore.Open(imagestore.Options{Dir: t.TempDir(), Limit: 10_000})
	if err != nil {
		t.Fatal(err)
	}
	var recorded []string
	r := running(t, Options{Content: storeContent{store}, Local: local})
	h := r.Writable(Access{By: writer("secret"), Record: func(who, verb, image string) error {
		recorded = append(recorded, who+" "+verb+" "+image)
		return nil
	}})
	raw, err := images[pause].RawManifest()
	if err != nil {
		t.Fatal(err)
	}
	other := `{"schemaVersion":2,"mediaType":"` + mediaTypeIndex + `","manifests":[]}`
	for name, test := range map[string]struct {
		method, path, body string
		status             int
		code               string
	}{
		"a tag of a bundle":                {"PUT", "/v2/pause/manifests/3.10.2?ns=registry.k8s.io", other, 409, codeDenied},
		"a repository without registry":    {"POST", "/v2/team/app/blobs/uploads/", "", 400, codeNameInvalid},
		"a manifest whose layers are away": {"PUT", "/v2/rack.example/x/manifests/v1", string(raw), 404, codeManifestBlobUnknown},
		"a tag that is none":               {"PUT", "/v2/rack.example/x/manifests/.v1", other, 400, codeManifestInvalid},
		"another digest than it says":      {"PUT", "/v2/rack.example/x/manifests/sha256:" + strings.Repeat("0", 64), other, 400, codeDigestInvalid},
		"a manifest of five megabytes":     {"PUT", "/v2/rack.example/x/manifests/v1", strings.Repeat(" ", 5<<20), 413, codeManifestInvalid},
		"more than there is room for":      {"POST", "/v2/rack.example/x/blobs/uploads/?digest=sha256:" + strings.Repeat("0", 64), strings.Repeat("x", 20_000), 507, codeDenied},
		"an upload that nobody began":      {"PATCH", "/v2/rack.example/x/blobs/uploads/../../etc", "x", 404, codeUnsupported},
		"an upload that is not there":      {"PATCH", "/v2/rack.example/x/blobs/uploads/XYZ", "x", 404, codeUploadUnknown},
		"what a bundle has, deleted":       {"DELETE", "/v2/pause/manifests/3.10.2?ns=registry.k8s.io", "", 404, codeManifestUnknown},
		"a blob of a bundle, deleted":      {"DELETE", "/v2/pause/blobs/sha256:" + strings.Repeat("0", 64) + "?ns=registry.k8s.io", "", 404, codeBlobUnknown},
		"tags, deleted":                    {"DELETE", "/v2/pause/tags/list?ns=registry.k8s.io", "", 405, codeUnsupported},
	} {
		t.Run(name, func(t *testing.T) {
			response := write(t, h, test.method, test.path, strings.NewReader(test.body))
			if response.StatusCode != test.status {
				t.Errorf("answer is %s, want %d", response.Status, test.status)
			}
			if code := errorCode(t, response); code != test.code {
				t.Errorf("error code is %s, want %s", code, test.code)
			}
		})
	}
	if got := get(t, h, "POST", "/v2/rack.example/x/blobs/uploads/", nil); got.StatusCode != 403 || errorCode(t, got) != codeDenied {
		t.Errorf("without a password: %s", got.Status)
	}
	if got := get(t, r, "POST", "/v2/rack.example/x/blobs/uploads/", map[string]string{"Authorization": "Basic YW5uOnNlY3JldA=="}); got.StatusCode != 405 {
		t.Errorf("where only reading is possible: %s", got.Status)
	}
	if used, _ := local.Size(); used != 0 {
		t.Errorf("%d bytes of what was refused are left", used)
	}
	if got := write(t, h, "PUT", "/v2/rack.example/x/manifests/v1", strings.NewReader(other)); got.StatusCode != 201 {
		t.Errorf("an empty index: %s", got.Status)
	}
	if !slices.Contains(recorded, "ann put rack.example/x:v1") || !slices.Contains(recorded, "ann delete registry.k8s.io/pause:3.10.2") {
		t.Errorf("recorded: %q", recorded)
	}
	// Where a bundle comes to have a tag later, it counts.
	storeWith(t, store, "later", map[string]v1.Image{"rack.example/x:v1": images[flannel]})
	if got := get(t, r, "GET", "/v2/rack.example/x/manifests/v1", nil); got.Header.Get("Docker-Content-Digest") != digestOf(t, images[flannel]) {
		t.Errorf("the tag stands for %s", got.Header.Get("Docker-Content-Digest"))
	}
}

// TestPinnedImagesStayInTheCache fills a cache with another image than the one that is pinned.
func TestPinnedImagesStayInTheCache(t *testing.T) {
	remote := openStore(t)
	old, middle, last := imageOf(t, 1, 30_000, types.OCIManifestSchema1), imageOf(t, 1, 30_000, types.OCIManifestSchema1), imageOf(t, 1, 30_000, types.OCIManifestSchema1)
	there := running(t, Options{Content: storeContent{remote}})
	server := httptest.NewServer(there)
	defer server.Close()
	host := strings.TrimPrefix(server.URL, "http://")
	storeWith(t, remote, "remote", map[string]v1.Image{host + "/old:v1": old, host + "/middle:v1": middle, host + "/last:v1": last})
	r := running(t, Options{
		Content: storeContent{openStore(t)}, Upstreams: []string{server.URL}, CacheDir: t.TempDir(), CacheBytes: 70_000,
		Pinned: func() []string { return []string{host + "/old:v1"} },
	})
	fetch := func(name string, image v1.Image) {
		t.Helper()
		layers, err := image.Layers()
		if err != nil {
			t.Fatal(err)
		}
		hash, err := layers[0].Digest()
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range []string{"/manifests/v1", "/blobs/" + hash.String()} {
			response := get(t, r, "GET", "/v2/"+name+path+"?ns="+host, nil)
			if body, err := io.ReadAll(response.Body); response.StatusCode != 200 || err != nil {
				t.Fatalf("%s%s: %s: %s", name, path, response.Status, body)
			}
		}
	}
	fetch("old", old)
	fetch("middle", middle)
	fetch("last", last)
	images, used, limit := r.Cached()
	if used > limit || !slices.ContainsFunc(images, func(c Cached) bool { return c.Name == host+"/old:v1" && c.Size > 30_000 }) ||
		slices.ContainsFunc(images, func(c Cached) bool { return c.Name == host+"/middle:v1" && c.Size > 30_000 }) {
		t.Errorf("%d of %d bytes, with %+v", used, limit, images)
	}
	keep := func(c Cached) string {
		if c.Name == host+"/old:v1" {
			return "pinned"
		}
		return ""
	}
	_, would, err := r.PruneCache(keep, true)
	if _, now, _ := r.Cached(); err != nil || now != used || would == 0 {
		t.Errorf("a dry run: %v, %d bytes of %d, would free %d", err, now, used, would)
	}
	_, freed, err := r.PruneCache(keep, false)
	left, now, _ := r.Cached()
	if err != nil || freed != would || now != used-freed || len(left) != 1 || left[0].Name != host+"/old:v1" || left[0].Size != now {
		t.Errorf("pruned %d of %d bytes, left %+v with %d: %v", freed, used, left, now, err)
	}
}
