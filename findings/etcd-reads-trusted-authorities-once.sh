#!/usr/bin/env bash
# etcd 3.7.3: certificate and key are read anew for each connection, the authorities of clients once at the start.
#
# Version      go.etcd.io/etcd/server/v3 v3.7.3
# Expected     The three files of one listener (--cert-file, --key-file, --trusted-ca-file) are read at the same times: either all of them
#              need a restart, or none.
# Behaviour    A new certificate is served with the next connection. A second authority that was added to --trusted-ca-file is not known
#              until etcd is started again: a client whose certificate it signed is refused, and nothing in the log says why.
# Seen         before: certificate 1 is served, a client of the new authority is refused
#              after the files were replaced: certificate 2 is served, a client of the new authority is refused
#              after a restart: certificate 2 is served, a client of the new authority is accepted
# Why it matters  Who rotates an authority sees the new server certificate at once, takes that for the whole, and gives clients new
#              certificates that every member then refuses.
set -euo pipefail
work=$(mktemp -d)
trap 'chmod -R u+w "$work"; rm -rf "$work"' EXIT
cd "$work"
export GOFLAGS='-trimpath -mod=mod' CGO_ENABLED=0
cat >main.go <<'GO'
package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"
)

func must[T any](v T, err error) T {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	return v
}

type pair struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func issue(serial int64, by *pair, usage x509.ExtKeyUsage) *pair {
	key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	template := &x509.Certificate{SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: fmt.Sprint("n", serial)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}}
	parent, signer := template, key
	if by == nil {
		template.IsCA, template.KeyUsage = true, x509.KeyUsageCertSign
	} else {
		parent, signer, template.ExtKeyUsage = by.cert, by.key, []x509.ExtKeyUsage{usage}
	}
	der := must(x509.CreateCertificate(rand.Reader, template, parent, key.Public(), signer))
	return &pair{must(x509.ParseCertificate(der)), key}
}

func (p *pair) pem() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: p.cert.Raw})
}

func write(name string, content []byte) {
	// By rename, as certificates are replaced.
	if err := os.WriteFile(name+".new", content, 0o600); err != nil {
		panic(err)
	}
	if err := os.Rename(name+".new", name); err != nil {
		panic(err)
	}
}

func main() {
	dir := os.Args[1]
	file := func(name string) string { return filepath.Join(dir, name) }
	oldCA, newCA := issue(1001, nil, 0), issue(1002, nil, 0)
	serve := func(serial int64, authorities ...*pair) {
		p := issue(serial, oldCA, x509.ExtKeyUsageServerAuth)
		write(file("key.pem"), pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: must(x509.MarshalECPrivateKey(p.key))}))
		write(file("cert.pem"), p.pem())
		var all []byte
		for _, a := range authorities {
			all = append(all, a.pem()...)
		}
		write(file("ca.pem"), all)
	}
	free := must(net.Listen("tcp", "127.0.0.1:0"))
	at := url.URL{Scheme: "https", Host: free.Addr().String()}
	free.Close()
	label := []url.URL{{Scheme: "unix", Host: "one:0"}}
	start := func() *embed.Etcd {
		cfg := embed.NewConfig()
		cfg.Dir, cfg.Name = file("data"), "one"
		cfg.ListenPeerUrls, cfg.AdvertisePeerUrls = nil, label
		cfg.ListenClientUrls, cfg.AdvertiseClientUrls = []url.URL{at}, []url.URL{at}
		cfg.InitialCluster = cfg.InitialClusterFromName(cfg.Name)
		cfg.LogLevel = "fatal"
		cfg.ClientTLSInfo.CertFile, cfg.ClientTLSInfo.KeyFile, cfg.ClientTLSInfo.TrustedCAFile = file("cert.pem"), file("key.pem"), file("ca.pem")
		cfg.ClientTLSInfo.ClientCertAuth = true
		server := must(embed.StartEtcd(cfg))
		<-server.Server.ReadyNotify()
		return server
	}
	roots := x509.NewCertPool()
	roots.AddCert(oldCA.cert)
	ask := func(by *pair) (served int64, err error) {
		own := issue(77, by, x509.ExtKeyUsageClientAuth)
		client := must(clientv3.New(clientv3.Config{Endpoints: []string{at.String()}, Logger: zap.NewNop(), TLS: &tls.Config{RootCAs: roots,
			Certificates: []tls.Certificate{{Certificate: [][]byte{own.cert.Raw}, PrivateKey: own.key}},
			VerifyPeerCertificate: func(raw [][]byte, _ [][]*x509.Certificate) error {
				served = must(x509.ParseCertificate(raw[0])).SerialNumber.Int64()
				return nil
			}}}))
		defer client.Close()
		ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
		defer cancel()
		_, err = client.Get(ctx, "key")
		return served, err
	}
	look := func(when string, wantSerial int64, wantAccepted bool) {
		served, err := ask(oldCA)
		if err != nil {
			fmt.Println("a client of the old authority:", err)
			os.Exit(1)
		}
		_, err = ask(newCA)
		word := "refused"
		if err == nil {
			word = "accepted"
		}
		fmt.Printf("%s: certificate %d is served, a client of the new authority is %s\n", when, served, word)
		if served != wantSerial || (err == nil) != wantAccepted {
			fmt.Println("changed")
			os.Exit(1)
		}
	}

	serve(1, oldCA)
	server := start()
	look("before", 1, false)
	serve(2, oldCA, newCA)
	look("after the files were replaced", 2, false)
	server.Close()
	server = start()
	defer server.Close()
	look("after a restart", 2, true)
}
GO
go mod init findings.example/etcd >/dev/null 2>&1
go get go.etcd.io/etcd/server/v3@v3.7.3 go.etcd.io/etcd/client/v3@v3.7.3 >/dev/null 2>&1
go mod tidy >/dev/null 2>&1
go build -o authorities .
./authorities "$work"
