package daemon

import (
	"crypto/tls"
	"fmt"
	"net/http"
	"os"
	"testing"
	"time"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"coldrack.dev/internal/machine/fleet"
	"coldrack.dev/internal/server/peopleapi"
	"coldrack.dev/internal/server/peopleapi/credentials"
)

// A server that runs for years renews the certificates of people's API, and the administrator's, while it serves.
func TestCertificatesOfPeoplesAPIAreRenewed(t *testing.T) {
	cfg := testConfig(t)
	keys, err := openKeys(cfg)
	check(t, err)
	s := &server{cfg: cfg, log: discard(), keys: keys, clusterAPI: peopleapi.NewClusterAPI(discard()), fleet: fleet.New(fleet.Options{Log: discard()}),
		bootGate: newBootGate(1000, func() bool { return true })}
	s.metrics, s.importer = newMetrics(s.fleet), newImporter(cfg, nil, discard())
	s.images, err = s.newImages(s.importer.reserve)
	check(t, err)
	s.audit, err = cfg.openAudit(discard())
	check(t, err)
	t.Cleanup(s.audit.Close)
	s.plane, err = s.startControlPlane(t.Context())
	check(t, err)
	t.Cleanup(s.plane.Stop)
	s.people = s.plane
	_, err = s.greet()
	check(t, err)
	served := func() string {
		conn, err := tls.Dial("tcp", s.plane.Address(), &tls.Config{RootCAs: keys.people.Pool(), ServerName: "localhost"})
		check(t, err)
		defer conn.Close()
		return conn.ConnectionState().PeerCertificates[0].SerialNumber.String()
	}
	admin := func() (text string, client *http.Client, host string) {
		content, err := os.ReadFile(cfg.AdminKubeconfig())
		check(t, err)
		config, err := clientcmd.RESTConfigFromKubeConfig(content)
		check(t, err)
		client, err = rest.HTTPClientFor(config)
		check(t, err)
		return string(content), client, config.Host
	}
	ask := func(client *http.Client, host string) {
		t.Helper()
		response, err := client.Get(host + "/readyz")
		check(t, err)
		defer response.Body.Close()
		if response.StatusCode != http.StatusOK {
			t.Errorf("readyz: %s", response.Status)
		}
	}
	serial := served()
	kubeconfig, old, host := admin()
	ask(old, host)

	check(t, s.renewPeopleAt(time.Now().Add(200*24*time.Hour)))
	if text, _, _ := admin(); served() != serial || text != kubeconfig {
		t.Error("renewed long before the end")
	}
	check(t, s.renewPeopleAt(time.Now().Add(servingTTL-credentials.RenewBefore+time.Hour)))
	eventually(t, func() error {
		if served() == serial {
			return fmt.Errorf("the API still has the old certificate")
		}
		return nil
	})
	text, client, _ := admin()
	if text == kubeconfig {
		t.Error("the administrator's kubeconfig is the old one")
	}
	ask(client, host)
	ask(old, host) // the connection of before goes on
}
