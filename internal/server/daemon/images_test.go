package daemon

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"io"
	"net"
	"net/http"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"

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

type asMirror struct{ base http.RoundTripper }

func (m asMirror) RoundTrip(request *http.Request) (*http.Response, error) {
	clone := request.Clone(request.Context())
	query := clone.URL.Query()
	query.Set("ns", clone.URL.Host)
	clone.URL.RawQuery = query.Encode()
	return m.base.RoundTrip(clone)
}
