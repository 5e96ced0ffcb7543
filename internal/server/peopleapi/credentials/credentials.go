// Package credentials makes the client certificates and kubeconfigs by which people reach the server's API.
package credentials

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"time"

	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"coldrack.dev/internal/base/durable"
	"coldrack.dev/internal/base/pki"
	"coldrack.dev/internal/server/controlplane"
)

// Authority is the name of the authority that signs people's certificates, in the folder of the server's keys.
const Authority = "people-ca"

const (
	adminTTL = 365 * 24 * time.Hour
	// RenewBefore is how long before its end a certificate of people's API is replaced: a month before a person would be told of it.
	RenewBefore = 120 * 24 * time.Hour
)

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

// Issue makes a kubeconfig for an API that listens at address, from the keys in a data folder, whether the server runs
// or not.
func Issue(dataDir, address, user string, groups []string, ttl time.Duration) ([]byte, error) {
	keys := filepath.Join(dataDir, "pki")
	if _, err := os.Stat(filepath.Join(keys, Authority+".crt")); err != nil {
		return nil, fmt.Errorf("%s holds no server's keys: %w; name the server's data folder with --data-dir, and read it as its owner", dataDir, err)
	}
	master, err := pki.OpenMasterKey(keys)
	if err != nil {
		return nil, err
	}
	people, err := pki.OpenAuthority(keys, Authority, master)
	if err != nil {
		return nil, err
	}
	return Kubeconfig(people, URL(address), user, groups, ttl)
}

// WriteAdmin writes the first administrator's kubeconfig to path when there is none, when it points elsewhere, was
// signed by another authority, or ends soon after now.
func WriteAdmin(path string, people *pki.Authority, server string, now time.Time) (written bool, err error) {
	content, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, fmt.Errorf("read %s: %w", path, err)
	}
	if err == nil && adminServes(content, people, server, now) {
		return false, nil
	}
	content, err = Kubeconfig(people, server, "admin", []string{controlplane.GroupAdmin}, adminTTL)
	if err != nil {
		return false, err
	}
	if err := durable.WriteFile(path, content, 0o600); err != nil {
		return false, fmt.Errorf("write %s: %w", path, err)
	}
	return true, nil
}

// AdminUntil is when the certificate in an administrator's kubeconfig ends.
func AdminUntil(path string) (time.Time, error) {
	config, err := clientcmd.LoadFromFile(path)
	if err != nil {
		return time.Time{}, fmt.Errorf("read %s: %w", path, err)
	}
	user := config.AuthInfos["admin"]
	if user == nil {
		return time.Time{}, fmt.Errorf("%s has no user admin", path)
	}
	cert, err := pki.ParseCertificate(user.ClientCertificateData)
	if err != nil {
		return time.Time{}, fmt.Errorf("%s: %w", path, err)
	}
	return cert.NotAfter, nil
}

func adminServes(content []byte, people *pki.Authority, server string, now time.Time) bool {
	config, err := clientcmd.Load(content)
	if err != nil {
		return false
	}
	cluster, user := config.Clusters["coldrack"], config.AuthInfos["admin"]
	if cluster == nil || user == nil || cluster.Server != server || string(cluster.CertificateAuthorityData) != string(people.CertPEM()) {
		return false
	}
	cert, err := pki.ParseCertificate(user.ClientCertificateData)
	return err == nil && cert.NotAfter.Sub(now) > RenewBefore
}

// URL is how people on this machine reach an API that listens at address.
func URL(address string) string {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return "https://" + address
	}
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		host = "127.0.0.1"
	}
	return "https://" + net.JoinHostPort(host, port)
}
