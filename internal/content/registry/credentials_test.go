package registry

import (
	"encoding/base64"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

func writeFile(t *testing.T, content string, mode os.FileMode) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "auth.json")
	if err := os.WriteFile(path, []byte(content), mode); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestReadCredentials(t *testing.T) {
	secret := base64.StdEncoding.EncodeToString([]byte("ann:pass:word"))
	path := writeFile(t, `{"auths":{"https://index.docker.io/v1/":{"auth":"`+secret+`"},"Rack.example:5000":{"username":"bob","password":"x"},"ghcr.io":{"identitytoken":"t"}}}`, 0o600)
	got, err := ReadCredentials(path)
	if err != nil || len(got) != 3 || got["docker.io"].Username != "ann" || got["docker.io"].Password != "pass:word" ||
		got["rack.example:5000"].Username != "bob" || got["ghcr.io"].IdentityToken != "t" {
		t.Errorf("%+v: %v", got, err)
	}
	for name, test := range map[string]struct {
		content string
		mode    os.FileMode
		want    string
	}{
		"everybody may read it": {`{}`, 0o644, "chmod 600"},
		"no JSON":               {`auths`, 0o600, "is no file of docker login"},
		"a helper":              {`{"credsStore":"pass"}`, 0o600, "skopeo login --authfile"},
		"no base64":             {`{"auths":{"ghcr.io":{"auth":"ann:secret"}}}`, 0o600, "auth of ghcr.io is not NAME:PASSWORD in base64"},
		"no host":               {`{"auths":{"a b":{"auth":"` + secret + `"}}}`, 0o600, "is no host of a registry"},
	} {
		if _, err := ReadCredentials(writeFile(t, test.content, test.mode)); err == nil || !strings.Contains(err.Error(), test.want) || strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: %v, want %q", name, err, test.want)
		}
	}
	if _, err := ReadCredentials(filepath.Join(t.TempDir(), "none")); err == nil {
		t.Error("a file that is not there")
	}
}

// TestUpstreamWithAPassword fetches from a registry that asks for one, by way of a proxy, which is the only way to it.
func TestUpstreamWithAPassword(t *testing.T) {
	const host = "private.rack.test"
	there := openStore(t)
	image := imageOf(t, 1, 5000, types.OCIManifestSchema1)
	storeWith(t, there, "private", map[string]v1.Image{host + "/team/app:v1": image})
	private := running(t, Options{Content: storeContent{there}})
	var proxied, anonymous atomic.Int32
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, request *http.Request) {
		if request.URL.Host != host {
			http.Error(w, "this proxy leads to one host", http.StatusBadGateway)
			return
		}
		proxied.Add(1)
		if name, password, _ := request.BasicAuth(); name != "ann" || password != "secret" {
			anonymous.Add(1)
			w.Header().Set("WWW-Authenticate", `Basic realm="private"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		private.ServeHTTP(w, request)
	}))
	defer proxy.Close()
	for _, name := range []string{"HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "NO_PROXY", "no_proxy", "all_proxy"} {
		t.Setenv(name, "")
	}
	t.Setenv("ALL_PROXY", proxy.URL)
	layers, err := image.Layers()
	if err != nil {
		t.Fatal(err)
	}
	hash, err := layers[0].Digest()
	if err != nil {
		t.Fatal(err)
	}
	secret := base64.StdEncoding.EncodeToString([]byte("ann:secret"))
	for name, test := range map[string]struct {
		file   string
		status int
	}{
		"the right password":   {`{"auths":{"` + host + `":{"auth":"` + secret + `"}}}`, 200},
		"one of another host":  {`{"auths":{"other.rack.test":{"auth":"` + secret + `"}}}`, 404},
		"a file without any":   {`{}`, 404},
		"one that was changed": {`{"auths":{"` + host + `":{"username":"ann","password":"old"}}}`, 404},
	} {
		r := running(t, Options{
			Content: storeContent{openStore(t)}, Upstreams: []string{"http://" + host}, CacheDir: t.TempDir(), CacheBytes: 1 << 20,
			Credentials: writeFile(t, test.file, 0o600),
		})
		for _, path := range []string{"manifests/v1", "blobs/" + hash.String()} {
			response := get(t, r, "GET", "/v2/team/app/"+path+"?ns="+host, nil)
			if body, err := io.ReadAll(response.Body); err != nil || response.StatusCode != test.status {
				t.Errorf("%s: %s: %s: %s", name, path, response.Status, body)
			}
		}
	}
	if proxied.Load() == 0 || anonymous.Load() == 0 {
		t.Errorf("%d requests came to the proxy, %d of them without the password", proxied.Load(), anonymous.Load())
	}
}

func TestProxies(t *testing.T) {
	for _, name := range []string{"HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "NO_PROXY", "no_proxy"} {
		t.Setenv(name, "")
	}
	for name, test := range map[string]struct{ https, all, no, want, fails string }{
		"none":                   {"", "", "", "", ""},
		"one for all":            {"", "socks5://10.0.0.1:1080", "", "socks5://10.0.0.1:1080", ""},
		"one for TLS goes first": {"http://10.0.0.2:3128", "socks5://10.0.0.1:1080", "", "http://10.0.0.2:3128", ""},
		"a host that needs none": {"http://10.0.0.2:3128", "", "quay.io", "", ""},
		"what is no proxy":       {"", "ftp://10.0.0.1", "", "", "begins with ftp://"},
		"what is no URL":         {"", "http://user:secret@[", "", "", "is no URL"},
	} {
		t.Setenv("HTTPS_PROXY", test.https)
		t.Setenv("NO_PROXY", test.no)
		choose, err := proxyOf(func(name string) string {
			if name == "ALL_PROXY" {
				return test.all
			}
			return ""
		})
		if test.fails != "" {
			if err == nil || !strings.Contains(err.Error(), test.fails) || strings.Contains(err.Error(), "secret") {
				t.Errorf("%s: %v", name, err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		got := ""
		if proxy, err := choose(httptest.NewRequest("GET", "https://quay.io/v2/", nil)); err == nil && proxy != nil {
			got = proxy.String()
		}
		if got != test.want {
			t.Errorf("%s: %q, want %q", name, got, test.want)
		}
	}
}
