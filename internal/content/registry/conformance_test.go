package registry

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"coldrack.dev/internal/content/imagestore"
	"coldrack.dev/test/require"
)

// openLocal opens a store of loaded images that is large enough.
func openLocal(t testing.TB, dir string) *imagestore.Store {
	t.Helper()
	local, err := imagestore.Open(imagestore.Options{Dir: dir, Limit: 1 << 30})
	if err != nil {
		t.Fatal(err)
	}
	return local
}

// writer lets in whoever shows a password.
func writer(password string) Writer {
	return func(request *http.Request) (string, error) {
		name, shown, _ := request.BasicAuth()
		if shown != password {
			return "", errors.New("this needs a password")
		}
		return name, nil
	}
}

// conformance runs the specification's own suite against a registry, and returns its summary.
func conformance(t *testing.T, h http.Handler, settings ...string) string {
	t.Helper()
	require.Need(t, "oci-conformance")
	server := httptest.NewServer(h)
	defer server.Close()
	dir := t.TempDir()
	command := exec.CommandContext(t.Context(), "oci-conformance")
	command.Dir = dir
	command.Env = append(os.Environ(), "OCI_REGISTRY="+strings.TrimPrefix(server.URL, "http://"), "OCI_TLS=disabled", "OCI_VERSION=1.1",
		"OCI_RESULTS_DIR="+filepath.Join(dir, "results"), "OCI_DATA_SHA512=false")
	command.Env = append(command.Env, settings...)
	raw, err := command.Output()
	out := string(raw)
	// The exit code says nothing in the read-only form: after its results the suite (of August 2026) ends there with a panic, when it
	// writes those of tests that it left out into a file.
	_, result, ended := strings.Cut(out, "OCI Conformance Result: ")
	if !ended || !strings.HasPrefix(result, "Pass\n") || !noneFailed.MatchString(result) {
		t.Errorf("the suite says (%v):\n%s", err, out)
	}
	if file := os.Getenv("COLDRACK_OCI_REPORT"); file != "" {
		keep(t, file, result)
	}
	return out
}

var noneFailed = regexp.MustCompile(`(?m)^  FAIL\.+: +0\n  Error\.+: +0$`)

// keep adds a result to a report.
func keep(t *testing.T, path, result string) {
	t.Helper()
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
	if err == nil {
		_, err = file.WriteString("== " + t.Name() + ": " + strings.TrimRight(result, "\n") + "\n\n")
		err = errors.Join(err, file.Close())
	}
	if err != nil {
		t.Error(err)
	}
}

var passedTests = regexp.MustCompile(`(?m)^.*: Pass$`)

// TestConformanceOfWhatIsImported runs the suite in its read-only form on the images of a bundle.
func TestConformanceOfWhatIsImported(t *testing.T) {
	image := imageOf(t, 2, 2000, types.OCIManifestSchema1)
	store := openStore(t)
	storeWith(t, store, "first", map[string]v1.Image{"rack.example/a/one:v1": image})
	r := running(t, Options{Content: storeContent{store}})
	var blobs []string
	layers, err := image.Layers()
	if err != nil {
		t.Fatal(err)
	}
	for _, layer := range layers {
		hash, err := layer.Digest()
		if err != nil {
			t.Fatal(err)
		}
		blobs = append(blobs, hash.String())
	}
	out := conformance(t, r, "OCI_API_PUSH=false", "OCI_API_BLOBS_DELETE=false", "OCI_API_MANIFESTS_DELETE=false", "OCI_API_TAGS_DELETE=false",
		"OCI_REPO1=rack.example/a/one", "OCI_RO_DATA_TAGS=v1", "OCI_RO_DATA_MANIFESTS="+digestOf(t, image), "OCI_RO_DATA_BLOBS="+strings.Join(blobs, " "),
		"OCI_RO_DATA_REFERRERS="+digestOf(t, image))
	if n := len(passedTests.FindAllString(out, -1)); n < 8 {
		t.Errorf("%d lines of the suite say that something passed:\n%s", n, out)
	}
}

// TestConformanceOfPush runs the whole suite, with passwords.
func TestConformanceOfPush(t *testing.T) {
	r := running(t, Options{Content: storeContent{openStore(t)}, Local: openLocal(t, t.TempDir())})
	out := conformance(t, r.Writable(Access{By: writer("secret"), Challenge: true}), "OCI_USERNAME=ann", "OCI_PASSWORD=secret",
		"OCI_REPO1=rack.example/a/one", "OCI_REPO2=rack.example/a/two",
		"OCI_API_BLOBS_UPLOAD_CANCEL=true", "OCI_API_BLOBS_DIGEST_HEADER=true", "OCI_API_MANIFESTS_DIGEST_HEADER=true")
	if n := len(passedTests.FindAllString(out, -1)); n < 100 {
		t.Errorf("%d lines of the suite say that something passed:\n%s", n, out)
	}
}
