package lab

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"coldrack.dev/internal/base/durable"
	"coldrack.dev/internal/lab/vbmc"
)

// Files of the lab's BMC, in the lab's folder. They are made once, so that its certificate and password stay.
const (
	bmcKeyFile      = "bmc.pem"
	bmcPasswordFile = "bmc.password"
)

// BMCUser is who logs in at the lab's BMC.
const BMCUser = "lab"

// BMC is what clients need to know of the lab's BMC: one Redfish service, in which each machine is a system of its name.
type BMC struct {
	User, Password string
	// Certificate is sha256: and the hexadecimal digest of its DER bytes.
	Certificate string

	pair tls.Certificate
	lab  *Lab
}

// OpenBMC returns the lab's BMC, and makes its key and password if there are none yet.
func (l *Lab) OpenBMC(ctx context.Context) (*BMC, error) {
	unlock, err := lock(ctx, l.dir)
	if err != nil {
		return nil, err
	}
	defer unlock()
	b := &BMC{User: BMCUser, lab: l}
	if b.Password, err = kept(filepath.Join(l.dir, bmcPasswordFile), func() (string, error) { return rand.Text(), nil }); err != nil {
		return nil, fmt.Errorf("password of the lab's BMC: %w", err)
	}
	text, err := kept(filepath.Join(l.dir, bmcKeyFile), func() (string, error) { return newBMCKey(l.Name()) })
	if err != nil {
		return nil, fmt.Errorf("key of the lab's BMC: %w", err)
	}
	if b.pair, err = tls.X509KeyPair([]byte(text), []byte(text)); err != nil {
		return nil, fmt.Errorf("key of the lab's BMC: %s: %w", bmcKeyFile, err)
	}
	sum := sha256.Sum256(b.pair.Certificate[0])
	b.Certificate = "sha256:" + hex.EncodeToString(sum[:])
	return b, nil
}

// kept is the text of a file, which is made when there is none.
func kept(path string, make func() (string, error)) (string, error) {
	text, err := os.ReadFile(path)
	if !errors.Is(err, os.ErrNotExist) {
		return strings.TrimSpace(string(text)), err
	}
	made, err := make()
	if err != nil {
		return "", err
	}
	return strings.TrimSpace(made), durable.WriteFile(path, []byte(made+"\n"), 0o600)
}

// newBMCKey is a certificate that signs itself, as BMCs have it from the factory, and its key.
func newBMCKey(name string) (string, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return "", err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "BMC of lab " + name},
		NotBefore: time.Unix(0, 0), NotAfter: time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	certificate, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return "", err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return "", err
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: certificate})) + string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})), nil
}

// Serve answers at the listener until ctx ends. The machines are those that the lab has now.
func (b *BMC) Serve(ctx context.Context, listener net.Listener) error {
	o := vbmc.Options{Username: b.User, Password: b.Password}
	for _, m := range b.lab.Machines() {
		s := m.Spec()
		o.Systems = append(o.Systems, vbmc.System{Name: s.Name, Manufacturer: Manufacturer, Model: Product, Serial: s.Serial, UUID: s.UUID, UEFI: s.Firmware == UEFI, MACs: s.MACs, Machine: plug{m}})
	}
	server := &http.Server{
		Handler: vbmc.New(o), TLSConfig: &tls.Config{Certificates: []tls.Certificate{b.pair}},
		ReadHeaderTimeout: 10 * time.Second, ErrorLog: log.New(io.Discard, "", 0),
	}
	stop := context.AfterFunc(ctx, func() {
		end, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		_ = server.Shutdown(end)
	})
	defer stop()
	if err := server.ServeTLS(listener, "", ""); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("BMC of lab %s: %w", b.lab.Name(), err)
	}
	return nil
}

// plug is a machine as its BMC switches it.
type plug struct{ m *Machine }

func (p plug) On() bool { return p.m.State() == On }

// PowerOn starts from the disks alone if the disk is chosen. Otherwise the network comes first, as in every lab machine.
func (p plug) PowerOn(ctx context.Context, from vbmc.Device) error {
	if from == vbmc.Disk {
		return p.m.PowerOn(ctx, DiskOnly())
	}
	return p.m.PowerOn(ctx)
}

func (p plug) PowerOff(ctx context.Context) error { return p.m.PowerOff(ctx) }
func (p plug) Shutdown(ctx context.Context) error { return p.m.Shutdown(ctx) }
func (p plug) Reset(ctx context.Context) error    { return p.m.Reset(ctx) }

// BMCPasswordFile is where the password of the lab's BMC is.
func (l *Lab) BMCPasswordFile() string { return filepath.Join(l.dir, bmcPasswordFile) }
