package registry

import (
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"

	"coldrack.dev/internal/content/imagestore"
)

func TestParsePath(t *testing.T) {
	digest := "sha256:" + strings.Repeat("a", 64)
	for path, want := range map[string]target{
		"/v2/":                                  {kindBase, "", ""},
		"/v2/pause/manifests/3.10":              {kindManifest, "pause", "3.10"},
		"/v2/manifests/manifests/manifests":     {kindManifest, "manifests", "manifests"},
		"/v2/a/blobs/b/tags/list":               {kindTags, "a/blobs/b", ""},
		"/v2/a/tags/list/blobs/" + digest:       {kindBlob, "a/tags/list", digest},
		"/v2/a/b/blobs/uploads/":                {kindUpload, "a/b", ""},
		"/v2/a/b/blobs/uploads/ABC":             {kindUpload, "a/b", "ABC"},
		"/v2/a/blobs/uploads/manifests/v1":      {kindManifest, "a/blobs/uploads", "v1"},
		"/v2/a.b/c__d/e--f/referrers/" + digest: {kindReferrers, "a.b/c__d/e--f", digest},
	} {
		if got, err := parsePath(path); err != nil || got != want {
			t.Errorf("%s is %+v, %v, want %+v", path, got, err, want)
		}
	}
	for _, path := range []string{"", "/", "/v1/", "/v2x/", "/v2/a", "/v2/a/b", "/v2/manifests/x", "/v2//manifests/x", "/v2/a//b/manifests/x",
		"/v2/a/./manifests/x", "/v2/A/manifests/x", "/v2/a..b/manifests/x", "/v2/a___b/manifests/x", "/v2/-a/manifests/x", "/v2/a-/manifests/x", "/v2/a/manifests"} {
		if got, err := parsePath(path); err == nil {
			t.Errorf("%s was accepted as %+v", path, got)
		}
	}
}

func TestParseHost(t *testing.T) {
	for text, want := range map[string]string{
		"registry.k8s.io": "registry.k8s.io", "index.docker.io": "docker.io", "registry-1.docker.io": "docker.io", "localhost:5000": "localhost:5000",
		"10.0.0.5": "10.0.0.5", "[fd00::1]:5000": "[fd00::1]:5000", "[fd00::1]": "[fd00::1]", "Quay.IO": "quay.io",
	} {
		if got, err := parseHost(text); err != nil || got != want {
			t.Errorf("%s is %q, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "a/b", "a b", "a:", "a:b", "a:123456", "https://a", "a..b", "-a", "fd00::1", "[x]", "a@b", "a?b", strings.Repeat("a", 300)} {
		if got, err := parseHost(text); err == nil {
			t.Errorf("%q was accepted as %q", text, got)
		}
	}
}

// FuzzParsePath compares the grammar with another implementation's: what we accept, it must accept, too, and
// nothing that leads elsewhere is accepted.
func FuzzParsePath(f *testing.F) {
	f.Add("/v2/coredns/coredns/manifests/v1.14.2", "registry.k8s.io")
	f.Add("/v2/a/blobs/sha256:"+strings.Repeat("0", 64), "localhost:5000")
	f.Add("/v2/a/tags/list", "[fd00::1]:5000")
	f.Add("/v2/../../x/referrers/y", "a_b.example")
	f.Fuzz(func(t *testing.T, path, host string) {
		if h, err := parseHost(host); err == nil {
			if again, err := parseHost(h); err != nil || again != h {
				t.Errorf("host %q became %q, which becomes %q, %v", host, h, again, err)
			}
			if strings.ContainsAny(h, "/\\@?#% \n") {
				t.Errorf("host %q was accepted as %q", host, h)
			}
		}
		got, err := parsePath(path)
		if err != nil || got.kind == kindBase {
			return
		}
		if strings.Contains(got.name, "..") || strings.HasPrefix(got.name, "/") || strings.Contains(got.reference, "/") {
			t.Errorf("%q became %+v", path, got)
		}
		// The other implementation wants two characters at least.
		if len(got.name) > 1 {
			if _, err := name.NewRepository("registry.example/"+got.name, name.StrictValidation); err != nil {
				t.Errorf("name of %+v: %v", got, err)
			}
		}
		if isTag(got.reference) {
			if _, err := name.NewTag("registry.example/name:"+got.reference, name.StrictValidation); err != nil {
				t.Errorf("tag of %+v: %v", got, err)
			}
		}
	})
}

// FuzzParseManifest feeds what an upstream may send.
func FuzzParseManifest(f *testing.F) {
	f.Add([]byte(`{"schemaVersion":2,"config":{"digest":"sha256:a"},"layers":[{"digest":"x"}]}`))
	f.Add([]byte(`{"schemaVersion":2,"mediaType":"` + mediaTypeIndex + `","manifests":[]}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		if m, err := imagestore.ParseManifest("sha256:x", raw); err == nil && m.MediaType == "" {
			t.Error("a manifest without a type")
		}
	})
}
