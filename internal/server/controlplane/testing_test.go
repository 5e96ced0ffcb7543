package controlplane

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"coldrack.dev/test/ca"
)

// testCA issues the certificates that Config takes and people authenticate with.
type testCA struct {
	*ca.CA
	pem []byte
}

func newTestCA(t testing.TB) *testCA {
	t.Helper()
	authority := ca.New(t, "test CA")
	return &testCA{authority, authority.PEM()}
}

func (a *testCA) serving() (certPEM, keyPEM []byte) { return a.IssuePEM(ca.Server("127.0.0.1")) }

// person is a configuration for a person with a client certificate.
func (a *testCA) person(t testing.TB, address, name string, groups ...string) *rest.Config {
	t.Helper()
	cert, key := a.IssuePEM(ca.Client(name, groups...))
	return &rest.Config{
		Host: "https://" + address, QPS: -1,
		TLSClientConfig: rest.TLSClientConfig{CAData: a.pem, CertData: cert, KeyData: key},
	}
}

// kubeconfig writes a configuration to a file, as kubectl wants it.
func kubeconfig(t testing.TB, c *rest.Config) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "kubeconfig")
	check(t, clientcmd.WriteToFile(clientcmdapi.Config{
		Clusters:  map[string]*clientcmdapi.Cluster{"c": {Server: c.Host, CertificateAuthorityData: c.CAData}},
		AuthInfos: map[string]*clientcmdapi.AuthInfo{"u": {ClientCertificateData: c.CertData, ClientKeyData: c.KeyData, Token: c.BearerToken}},
		Contexts:  map[string]*clientcmdapi.Context{"x": {Cluster: "c", AuthInfo: "u"}}, CurrentContext: "x",
	}, name))
	return name
}

// testConfig is a configuration with the embedded engine that works.
func testConfig(t testing.TB, ca *testCA) Config {
	t.Helper()
	cert, key := ca.serving()
	return Config{
		Logger: testLogger(), DataDir: t.TempDir(), Address: "127.0.0.1:0",
		ServingCert: cert, ServingKey: key, ClientCAs: ca.pem, Version: "v0.1.0-test",
		EncryptionKey: bytes.Repeat([]byte{7}, encryptionKeySize),
	}
}

// testLogger shows everything with COLDRACK_TEST_DEBUG set, otherwise warnings.
func testLogger() *slog.Logger {
	level := slog.LevelWarn
	if os.Getenv("COLDRACK_TEST_DEBUG") != "" {
		level = slog.LevelDebug
	}
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level}))
}

func startTest(t testing.TB, cfg Config) *ControlPlane {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	c, err := Start(ctx, cfg)
	check(t, err)
	t.Cleanup(c.Stop)
	return c
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestMain(m *testing.M) {
	SendKlogTo(testLogger())
	if config := os.Getenv(serveEnv); config != "" {
		if err := serve(config); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}
