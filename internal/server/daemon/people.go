package daemon

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"time"

	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"coldrack.dev/internal/durable"
	"coldrack.dev/internal/pki"
)

// Groups of people's client certificates and tokens; internal/server/controlplane enforces what each may do.
const (
	GroupAdmin    = "coldrack:admin"
	GroupOperator = "coldrack:operator"
	GroupViewer   = "coldrack:viewer"
)

const (
	peopleAuthority  = "people-ca"
	machineAuthority = "machine-ca"

	adminTTL   = 365 * 24 * time.Hour
	servingTTL = 365 * 24 * time.Hour
	// renewBefore is how long before its end a certificate of people's API is replaced.
	renewBefore = 90 * 24 * time.Hour
	// renewalLook is how often the server looks whether one is due.
	renewalLook = time.Hour
)

// renewPeople replaces the certificates of people's API in time, until ctx ends: a server may run for years.
func (s *server) renewPeople(ctx context.Context) error {
	tick := time.NewTicker(renewalLook)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			if err := s.renewPeopleAt(time.Now()); err != nil {
				s.log.Error("cannot renew the certificates of people's API; trying again", "until", s.servingUntil, "err", err)
			}
		}
	}
}

// renewPeopleAt replaces what ends soon after now.
func (s *server) renewPeopleAt(now time.Time) error {
	if s.servingUntil.Sub(now) <= renewBefore {
		cert, key, err := s.servingCertificate()
		if err != nil {
			return err
		}
		if err := s.plane.ReplaceServingCert(cert, key); err != nil {
			return err
		}
		s.log.Info("certificate of people's API renewed", "until", s.servingUntil)
	}
	written, err := writeAdminKubeconfig(s.cfg, s.keys.people, apiURL(s.plane.Address()), now)
	if err == nil && written {
		s.log.Info("administrator's kubeconfig renewed", "path", s.cfg.AdminKubeconfig())
	}
	return err
}

// Kubeconfig returns a kubeconfig for people's API with a client certificate of its own.
func Kubeconfig(people *pki.Authority, server, user string, groups []string, ttl time.Duration) ([]byte, error) {
	certPEM, keyPEM, err := people.NewClientKeyPair(user, groups, ttl)
	if err != nil {
		return nil, err
	}
	return clientcmd.Write(clientcmdapi.Config{
		Clusters:       map[string]*clientcmdapi.Cluster{"coldrack": {Server: server, CertificateAuthorityData: people.CertPEM()}},
		AuthInfos:      map[string]*clientcmdapi.AuthInfo{user: {ClientCertificateData: certPEM, ClientKeyData: keyPEM}},
		Contexts:       map[string]*clientcmdapi.Context{"coldrack": {Cluster: "coldrack", AuthInfo: user}},
		CurrentContext: "coldrack",
	})
}

// IssueKubeconfig issues a kubeconfig from the keys in a data folder, whether the server runs or not.
func IssueKubeconfig(cfg Config, user string, groups []string, ttl time.Duration) ([]byte, error) {
	if _, err := os.Stat(cfg.path("pki", peopleAuthority+".crt")); err != nil {
		return nil, fmt.Errorf("%s holds no server's keys: %w; name the server's data folder with --data-dir, and read it as its owner", cfg.DataDir, err)
	}
	master, err := pki.OpenMasterKey(cfg.path("pki"))
	if err != nil {
		return nil, err
	}
	people, err := pki.OpenAuthority(cfg.path("pki"), peopleAuthority, master)
	if err != nil {
		return nil, err
	}
	return Kubeconfig(people, apiURL(cfg.APIAddress), user, groups, ttl)
}

// writeAdminKubeconfig writes the first administrator's kubeconfig when there is none, when it points
// elsewhere, was signed by another authority, or is about to expire.
func writeAdminKubeconfig(cfg Config, people *pki.Authority, server string, now time.Time) (written bool, err error) {
	path := cfg.AdminKubeconfig()
	content, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, fmt.Errorf("read %s: %w", path, err)
	}
	if err == nil && adminKubeconfigServes(content, people, server, now) {
		return false, nil
	}
	content, err = Kubeconfig(people, server, "admin", []string{GroupAdmin}, adminTTL)
	if err != nil {
		return false, err
	}
	if err := durable.WriteFile(path, content, 0o600); err != nil {
		return false, fmt.Errorf("write %s: %w", path, err)
	}
	return true, nil
}

func adminKubeconfigServes(content []byte, people *pki.Authority, server string, now time.Time) bool {
	config, err := clientcmd.Load(content)
	if err != nil {
		return false
	}
	cluster, user := config.Clusters["coldrack"], config.AuthInfos["admin"]
	if cluster == nil || user == nil || cluster.Server != server || string(cluster.CertificateAuthorityData) != string(people.CertPEM()) {
		return false
	}
	cert, err := pki.ParseCertificate(user.ClientCertificateData)
	return err == nil && cert.NotAfter.Sub(now) > renewBefore
}

// servingCertificate returns the certificate and key, PEM, of people's API: for the address it listens on,
// the addresses and names of this host, and those that the configuration adds. It is made at every start and renewed (see
// renewPeople), since its authority is what people's kubeconfigs trust.
func (s *server) servingCertificate() (certPEM, keyPEM []byte, err error) {
	names := []string{"localhost"}
	addresses := []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback}
	if name, err := os.Hostname(); err == nil {
		names = append(names, name)
	}
	host, _, err := net.SplitHostPort(s.cfg.APIAddress)
	if err != nil {
		return nil, nil, fmt.Errorf("apiAddress %q: %w", s.cfg.APIAddress, err)
	}
	extra := append([]string{host}, s.cfg.APINames...)
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		all, err := ownAddresses("")
		if err != nil {
			return nil, nil, err
		}
		for _, address := range all {
			addresses = append(addresses, address.AsSlice())
		}
		extra = s.cfg.APINames
	}
	for _, name := range extra {
		if ip := net.ParseIP(name); ip != nil {
			addresses = append(addresses, ip)
		} else {
			names = append(names, name)
		}
	}
	if certPEM, keyPEM, err = s.keys.people.NewServerPEM("coldrack API", names, addresses, servingTTL); err != nil {
		return nil, nil, err
	}
	leaf, err := pki.ParseCertificate(certPEM)
	if err != nil {
		return nil, nil, err
	}
	s.servingUntil = leaf.NotAfter
	return certPEM, keyPEM, nil
}

// apiURL is how people on this machine reach an API that listens at address.
func apiURL(address string) string {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return "https://" + address
	}
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		host = "127.0.0.1"
	}
	return "https://" + net.JoinHostPort(host, port)
}
