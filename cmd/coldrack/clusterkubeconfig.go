package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"strings"
	"time"

	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"coldrack.dev/internal/base/durable"
	"coldrack.dev/internal/cli/exit"
	"coldrack.dev/internal/cli/request"
	"coldrack.dev/internal/server/peopleapi/peoplewire"
)

// clusterKubeconfig are the flags of kubeconfig that belong to a cluster.
type clusterKubeconfig struct {
	cluster           string
	user, server      string
	groups            []string
	ttl               time.Duration
	admin, breakGlass bool
	reason            string
	write             string
	merge             bool
}

// issue makes a key here, has it signed by the server, and writes the kubeconfig.
func (k *clusterKubeconfig) issue(ctx context.Context, a *app) error {
	if k.server != "" {
		u, err := url.Parse(k.server)
		if err != nil || u.Scheme != "https" || u.Host == "" {
			return exit.Usagef("--server %q: must be a URL such as https://api.example.org:6443", k.server)
		}
	}
	switch {
	case k.merge && k.write == "":
		return exit.Usagef("--merge needs --write FILE, the kubeconfig to merge into")
	case k.breakGlass && strings.TrimSpace(k.reason) == "":
		return exit.Usagef("--break-glass needs --reason TEXT, for the audit log")
	case k.ttl != 0 && k.ttl < time.Minute:
		return exit.Usagef("--ttl %s: must be at least 1m", k.ttl)
	}
	keyPEM, csrPEM, err := newRequest(k.user)
	if err != nil {
		return err
	}
	ask := peoplewire.CertificateRequest{
		CSR: string(csrPEM), User: k.user, Groups: k.groups, TTL: int64(k.ttl / time.Second),
		Admin: k.admin, BreakGlass: k.breakGlass, Reason: k.reason,
	}
	var response peoplewire.CertificateResponse
	config, err := a.connect()
	if err != nil {
		return err
	}
	if err := request.Post(ctx, config, "kubeconfig of cluster "+k.cluster, ask, &response, peoplewire.PathCertificates, url.PathEscape(k.cluster)); err != nil {
		return err
	}
	if k.server != "" {
		response.Server = k.server
	}
	if response.Server == "" {
		return fmt.Errorf("the endpoint of cluster %s is not known yet; name it with --server URL", k.cluster)
	}
	if err := k.deliver(a, kubeconfigOf(&response, keyPEM)); err != nil {
		return err
	}
	if k.write != "" {
		fmt.Fprintf(a.err, "wrote %s: %s (%s) at %s, until %s; try: kubectl --kubeconfig %s get nodes\n", k.write, response.User,
			strings.Join(response.Groups, ", "), response.Server, response.ExpiresAt.Local().Format("2006-01-02 15:04"), k.write)
	}
	return nil
}

// newRequest makes a key and a request for a certificate of it.
func newRequest(user string) (keyPEM, csrPEM []byte, err error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, nil, err
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: user}}, key)
	if err != nil {
		return nil, nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}),
		pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: csr}), nil
}

// kubeconfigOf names things as kubeadm does: the context is user@cluster.
func kubeconfigOf(response *peoplewire.CertificateResponse, keyPEM []byte) *clientcmdapi.Config {
	name := response.User + "@" + response.Cluster
	return &clientcmdapi.Config{
		Clusters: map[string]*clientcmdapi.Cluster{response.Cluster: {Server: response.Server, CertificateAuthorityData: []byte(response.Authority)}},
		// Two clusters may know a person by the same name, so the entry has both.
		AuthInfos:      map[string]*clientcmdapi.AuthInfo{name: {ClientCertificateData: []byte(response.Certificate), ClientKeyData: keyPEM}},
		Contexts:       map[string]*clientcmdapi.Context{name: {Cluster: response.Cluster, AuthInfo: name}},
		CurrentContext: name,
	}
}

// deliver writes the kubeconfig to standard output, to a file of its own, or into one that exists.
func (k *clusterKubeconfig) deliver(a *app, config *clientcmdapi.Config) error {
	if k.merge {
		into, err := clientcmd.LoadFromFile(k.write)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			into = clientcmdapi.NewConfig()
		case err != nil:
			return fmt.Errorf("merge into %s: %w", k.write, err)
		}
		for name, entry := range config.Clusters {
			into.Clusters[name] = entry
		}
		for name, entry := range config.AuthInfos {
			into.AuthInfos[name] = entry
		}
		for name, entry := range config.Contexts {
			into.Contexts[name] = entry
		}
		into.CurrentContext = config.CurrentContext
		config = into
	}
	content, err := clientcmd.Write(*config)
	if err != nil {
		return err
	}
	if k.write == "" {
		_, err = a.out.Write(content)
		return err
	}
	if !k.merge {
		if existing, err := clientcmd.LoadFromFile(k.write); err == nil && len(existing.Clusters) > 0 && existing.Clusters[config.Contexts[config.CurrentContext].Cluster] == nil {
			return exit.Refusedf("%s is a kubeconfig of something else; --merge adds to it, or choose another file", k.write)
		} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return exit.Refusedf("%s exists and is no kubeconfig; choose another file", k.write)
		}
	}
	// A link is followed, so that ~/.kube/config may be one.
	path := k.write
	if target, err := os.Readlink(path); err == nil && strings.HasPrefix(target, "/") {
		path = target
	}
	return durable.Update(path, content, 0o600)
}
