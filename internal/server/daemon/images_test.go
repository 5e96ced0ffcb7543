package daemon

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"coldrack.dev/internal/server/controlplane"
	"coldrack.dev/internal/server/peopleapi/peoplewire"
	"coldrack.dev/test/require"
)

const sampleImage = "registry.k8s.io/pause:3.10.2"

// containerImage is the same image each time.
func containerImage(t testing.TB) v1.Image {
	t.Helper()
	image, err := mutate.ConfigFile(mutate.MediaType(empty.Image, types.OCIManifestSchema1), &v1.ConfigFile{OS: "linux", Architecture: "amd64"})
	check(t, err)
	image, err = mutate.AppendLayers(mutate.ConfigMediaType(image, types.OCIConfigJSON), static.NewLayer([]byte("a layer\n"), types.OCIUncompressedLayer))
	check(t, err)
	return image
}

func TestContainerImagesBesideTheMachineAPI(t *testing.T) {
	require.Need(t, "netns")
	rack := newBootRack(t)
	authorities := x509.NewCertPool()
	if !authorities.AppendCertsFromPEM(rack.server.keys.machines.CertPEM()) {
		t.Fatal("no certificate")
	}
	dial := rack.web.Transport.(*http.Transport).DialContext
	// As containerd does with hosts.toml: whatever registry an image names, the machine API's address is asked.
	transport := &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: authorities, ServerName: rackAddress},
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return dial(ctx, network, net.JoinHostPort(rackAddress, "7444"))
		},
	}
	defer transport.CloseIdleConnections()
	tag, err := name.NewTag(sampleImage)
	check(t, err)
	image, err := remote.Image(tag, remote.WithTransport(asMirror{transport}))
	check(t, err)
	layers, err := image.Layers()
	check(t, err)
	layer, err := layers[0].Compressed()
	check(t, err)
	content, err := io.ReadAll(layer)
	check(t, err)
	if string(content) != "a layer\n" {
		t.Errorf("the layer is %q", content)
	}

	client := &http.Client{Transport: transport}
	for path, want := range map[string]int{"/v2/": http.StatusOK, "/v2": http.StatusOK, "/v2x": http.StatusServiceUnavailable, "/v1/time": http.StatusOK, "/v1/assignment": http.StatusUnauthorized} {
		response, err := client.Get("https://" + rackAddress + ":7444" + path)
		check(t, err)
		response.Body.Close()
		if response.StatusCode != want {
			t.Errorf("%s: %s, want %d", path, response.Status, want)
		}
	}
	families, err := rack.server.metrics.registry.Gather()
	check(t, err)
	sent := 0.0
	for _, family := range families {
		if family.GetName() == "coldrack_registry_sent_bytes_total" {
			sent = family.GetMetric()[0].GetCounter().GetValue()
		}
	}
	if sent < 100 {
		t.Errorf("the metrics tell of %v bytes of images", sent)
	}
}

// TestPushOnTheMachinesPort pushes as clients in the field do, with a token as password.
func TestPushOnTheMachinesPort(t *testing.T) {
	require.Need(t, "netns")
	rack := newBootRack(t, func(cfg *Config) { cfg.RegistryPush = true })
	s := rack.server
	var err error
	s.audit, err = s.cfg.openAudit(discard())
	check(t, err)
	t.Cleanup(s.audit.Close)
	authorities := x509.NewCertPool()
	authorities.AppendCertsFromPEM(s.keys.machines.CertPEM())
	transport := &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: authorities},
		DialContext:     rack.web.Transport.(*http.Transport).DialContext,
	}
	defer transport.CloseIdleConnections()
	tokens := controlplane.OpenTokens(controlplane.TokensPath(s.cfg.DataDir))
	operator, err := tokens.Create("ci", []string{controlplane.GroupOperator}, 0)
	check(t, err)
	viewer, err := tokens.Create("eve", []string{controlplane.GroupViewer}, 0)
	check(t, err)
	tag, err := name.NewTag(rackAddress + ":7444/rack.example/team/app:v1")
	check(t, err)
	push := func(password string) error {
		return remote.Write(tag, containerImage(t), remote.WithContext(t.Context()), remote.WithTransport(transport), remote.WithAuth(&authn.Basic{Username: "any", Password: password}))
	}
	for password, want := range map[string]string{"": "log in with a token", "coldrack-wrong": "unknown or revoked token", viewer: "needs role operator, and token eve is not of it"} {
		if err := push(password); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("with %.12q: %v, want %q", password, err, want)
		}
	}
	check(t, push(operator))
	image, err := remote.Image(tag, remote.WithTransport(transport))
	check(t, err)
	if _, err := image.ConfigFile(); err != nil {
		t.Error(err)
	}
	list := s.images.List().Images
	if len(list) != 2 || list[0].Name != "rack.example/team/app:v1" || list[0].By != "ci" || list[0].Source != peoplewire.SourceLoaded ||
		list[1].Name != sampleImage || list[1].Source != peoplewire.SourceBundle || list[1].Size < 8 {
		t.Errorf("images are %+v", list)
	}
	check(t, tokens.Revoke("ci"))
	tag = tag.Context().Tag("v2") // what is there needs no push
	if err := push(operator); err == nil || s.images.local.Has("rack.example/team/app:v2") {
		t.Error("a token that was revoked still counts")
	}
	records, err := os.ReadFile(s.cfg.path("audit", "audit.log"))
	check(t, err)
	if !strings.Contains(string(records), `"resource":"containerimages"`) || !strings.Contains(string(records), `rack.example/team/app:v1`) || !strings.Contains(string(records), `"username":"ci"`) {
		t.Errorf("the audit log has %s", records)
	}
}

type asMirror struct{ base http.RoundTripper }

func (m asMirror) RoundTrip(request *http.Request) (*http.Response, error) {
	clone := request.Clone(request.Context())
	query := clone.URL.Query()
	query.Set("ns", clone.URL.Host)
	clone.URL.RawQuery = query.Encode()
	return m.base.RoundTrip(clone)
}
