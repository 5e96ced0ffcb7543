package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"net"
	"net/http"
	"os"

	certificatesv1 "k8s.io/api/certificates/v1"
	"k8s.io/client-go/util/certificate/csr"
)

const (
	servingPair = "/var/lib/kubelet/pki/kubelet-server-current.pem"
	servingPort = "10250"
)

// serve answers where an API server looks for a kubelet, with a certificate that the cluster has signed. There are no logs and no
// shells to be had.
func (k *hollow) serve(ctx context.Context) error {
	pair, err := tls.LoadX509KeyPair(servingPair, servingPair)
	if err != nil {
		if err := k.requestServing(ctx); err != nil {
			return fmt.Errorf("serving certificate: %w", err)
		}
		if pair, err = tls.LoadX509KeyPair(servingPair, servingPair); err != nil {
			return err
		}
	}
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", ":"+servingPort)
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "ok") })
	server := &http.Server{Handler: mux, TLSConfig: &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12}}
	defer context.AfterFunc(ctx, func() { _ = server.Close() })()
	return server.ServeTLS(listener, "", "")
}

// requestServing makes a key and waits until somebody has signed for it.
func (k *hollow) requestServing(ctx context.Context) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	template := &x509.CertificateRequest{Subject: pkix.Name{CommonName: "system:node:" + k.name, Organization: []string{"system:nodes"}}, DNSNames: []string{k.name}}
	for _, ip := range k.ips {
		template.IPAddresses = append(template.IPAddresses, net.ParseIP(ip))
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, template, key)
	if err != nil {
		return err
	}
	request := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})
	name, id, err := csr.RequestCertificateWithContext(ctx, k.api, request, "", certificatesv1.KubeletServingSignerName, nil,
		[]certificatesv1.KeyUsage{certificatesv1.UsageDigitalSignature, certificatesv1.UsageServerAuth}, key)
	if err != nil {
		return err
	}
	chain, err := csr.WaitForCertificate(ctx, k.api, name, id)
	if err != nil {
		return err
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	var pair bytes.Buffer
	pair.Write(chain)
	if err := pem.Encode(&pair, &pem.Block{Type: "PRIVATE KEY", Bytes: secret}); err != nil {
		return err
	}
	return os.WriteFile(servingPair, pair.Bytes(), 0o600)
}
