package rack

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/lab/vbmc"
	"coldrack.dev/test/ca"
)

// bmcAddress is where the virtual BMC of the rack answers, for every machine that has one.
const bmcAddress = "10.78.0.3"

// GiveBMC has the named machines switched by a virtual BMC, which the server can reach, and writes that into their objects.
func (r *Rack) GiveBMC(names ...string) {
	t := r.t
	t.Helper()
	password := rand.Text()
	o := vbmc.Options{Username: "rack", Password: password}
	for _, m := range r.pick(names) {
		o.Systems = append(o.Systems, vbmc.System{Name: m.name, Manufacturer: "Rack", Model: "Namespace", UUID: m.uuid, MACs: []string{m.mac}, Machine: plug{m}})
	}
	ns := r.plug("bmc", "", bmcAddress)
	var listener net.Listener
	if err := ns.Do(func() (err error) {
		listener, err = net.Listen("tcp", net.JoinHostPort(bmcAddress, "443"))
		return err
	}); err != nil {
		t.Fatal(err)
	}
	certificate := ca.New(t, "bmc").Issue(ca.Server(bmcAddress))
	server := &http.Server{Handler: vbmc.New(o), TLSConfig: &tls.Config{Certificates: []tls.Certificate{*certificate}}, ErrorLog: log.New(io.Discard, "", 0)}
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = server.ServeTLS(listener, "", "") // until it is closed
	}()
	t.Cleanup(func() {
		_ = server.Close()
		<-served
	})
	secret := &v1alpha1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "bmc-rack"}, Type: v1alpha1.SecretTypeBMC, Data: map[string][]byte{
		v1alpha1.BMCSecretUsername: []byte("rack"), v1alpha1.BMCSecretPassword: []byte(password), v1alpha1.BMCSecretAddresses: []byte(bmcAddress)}}
	if err := r.server.create(secret); err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(certificate.Certificate[0])
	for _, name := range names {
		r.update(name, &v1alpha1.Machine{}, func(o client.Object) {
			o.(*v1alpha1.Machine).Spec.BMC = &v1alpha1.BMC{Address: bmcAddress, Protocol: "redfish", System: name, CredentialsSecret: secret.Name,
				Certificate: "sha256:" + hex.EncodeToString(sum[:])}
		})
	}
}

// plug is a machine as its BMC switches it.
type plug struct{ m *Machine }

func (p plug) On() bool {
	p.m.mu.Lock()
	defer p.m.mu.Unlock()
	return p.m.ns != nil
}

func (p plug) PowerOn(context.Context, vbmc.Device) error {
	p.m.mu.Lock()
	defer p.m.mu.Unlock()
	if p.m.ns != nil {
		return fmt.Errorf("%s has power already", p.m.name)
	}
	return p.m.powerOn()
}

func (p plug) PowerOff(context.Context) error {
	p.m.PowerCut()
	return nil
}

func (p plug) Shutdown(ctx context.Context) error { return p.PowerOff(ctx) }

func (p plug) Reset(ctx context.Context) error {
	if err := p.PowerOff(ctx); err != nil {
		return err
	}
	return p.PowerOn(ctx, vbmc.None)
}
