package daemon

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"os"
	"syscall"
	"testing"
	"time"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"coldrack.dev/internal/machine/fleet"
	"coldrack.dev/internal/pki"
	"coldrack.dev/test/require"
)

// TestAFullDiskKeepsTheAdministratorsKubeconfig starts a server whose address changed on a disk that has no room
// left: the administrator keeps the kubeconfig that worked until now.
func TestAFullDiskKeepsTheAdministratorsKubeconfig(t *testing.T) {
	require.Need(t, "root")
	keys := t.TempDir()
	master, err := pki.OpenMasterKey(keys)
	check(t, err)
	people, err := pki.OpenAuthority(keys, peopleAuthority, master)
	check(t, err)
	cfg := Config{DataDir: t.TempDir()}
	check(t, syscall.Mount("tmpfs", cfg.DataDir, "tmpfs", 0, "size=256k"))
	t.Cleanup(func() { _ = syscall.Unmount(cfg.DataDir, syscall.MNT_DETACH) })
	_, err = writeAdminKubeconfig(cfg, people, "https://192.0.2.1:6443", time.Now())
	check(t, err)
	good, err := os.ReadFile(cfg.AdminKubeconfig())
	check(t, err)

	ballast, err := os.Create(cfg.path("ballast"))
	check(t, err)
	for err == nil {
		_, err = ballast.Write(make([]byte, 4<<10))
	}
	written, err := writeAdminKubeconfig(cfg, people, "https://192.0.2.2:6443", time.Now())
	if written || !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("wrote %v, %v; want no space left", written, err)
	}
	left, err := os.ReadFile(cfg.AdminKubeconfig())
	check(t, err)
	if string(left) != string(good) || !adminKubeconfigServes(left, people, "https://192.0.2.1:6443", time.Now()) {
		t.Errorf("%d bytes are left of %d", len(left), len(good))
	}

	check(t, errors.Join(ballast.Close(), os.Remove(ballast.Name())))
	_, err = writeAdminKubeconfig(cfg, people, "https://192.0.2.2:6443", time.Now())
	check(t, err)
	left, err = os.ReadFile(cfg.AdminKubeconfig())
	check(t, err)
	if !adminKubeconfigServes(left, people, "https://192.0.2.2:6443", time.Now()) {
		t.Error("the new address is not in the kubeconfig once there is room")
	}
}

// A server that runs for years renews the certificates of people's API, and the administrator's, while it serves.
func TestCertificatesOfPeoplesAPIAreRenewed(t *testing.T) {
	cfg := testConfig(t)
	keys, err := openKeys(cfg)
	check(t, err)
	s := &server{cfg: cfg, log: discard(), keys: keys, desk: newClusterDesk(discard()), fleet: fleet.New(fleet.Options{Log: discard()}),
		turns: newTurns(1000, func() bool { return true })}
	s.metrics, s.importer = newMetrics(s.fleet), newImporter(cfg, nil, discard())
	s.plane, err = s.startControlPlane(t.Context())
	check(t, err)
	t.Cleanup(s.plane.Stop)
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
	check(t, s.renewPeopleAt(time.Now().Add(servingTTL-renewBefore+time.Hour)))
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
