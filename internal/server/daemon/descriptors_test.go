package daemon

import (
	"crypto/tls"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"testing"
	"time"

	"coldrack.dev/internal/base/pki"
	"coldrack.dev/internal/server/machineapi"
)

func TestDescriptorsAreLeftForTheStore(t *testing.T) {
	for _, limit := range []uint64{0, 256, 1024, 4096, 65536, 1 << 20, 1 << 40} {
		b := budgetOf(limit)
		if taken := b.bootHTTP + b.machine + 4*b.transfers; b.bootHTTP < 1 || b.machine < 1 || b.transfers < 1 || uint64(taken) > max(limit, 256)*3/4 {
			t.Errorf("%d descriptors: %+v, which is %d", limit, b, taken)
		}
	}
	if b := budgetOf(65536); b.machine < 20000 {
		t.Errorf("the unit's limit is for %+v", b)
	}
}

// Strangers open connections to the machine API and say nothing, more than there are places for them. A machine that has a
// certificate keeps its connection, and another one gets in.
func TestSilentStrangersDoNotKeepMachinesAway(t *testing.T) {
	dir := t.TempDir()
	master, err := pki.OpenMasterKey(dir)
	check(t, err)
	ca, err := pki.OpenAuthority(dir, "machine", master)
	check(t, err)
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	limited := limitMachines(inner, 8)
	server := &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			io.WriteString(w, r.TLS.PeerCertificates[0].Subject.CommonName)
		}),
		TLSConfig: provenBy(machineapi.TLSConfig((&machineCertificates{authority: ca, now: time.Now}).get, ca.Pool())),
		ErrorLog:  slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug),
	}
	served := make(chan error, 1)
	go func() { served <- server.ServeTLS(limited, "", "") }()
	t.Cleanup(func() {
		server.Close()
		<-served
	})

	machine := func(name string) *http.Client {
		certificate, key, err := ca.NewClientKeyPair(name, nil, time.Hour)
		check(t, err)
		pair, err := tls.X509KeyPair(certificate, key)
		check(t, err)
		transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: ca.Pool(), Certificates: []tls.Certificate{pair}}}
		t.Cleanup(transport.CloseIdleConnections)
		return &http.Client{Transport: transport}
	}
	ask := func(name string, client *http.Client) {
		t.Helper()
		response, err := client.Get("https://" + inner.Addr().String())
		check(t, err)
		defer response.Body.Close()
		if said, err := io.ReadAll(response.Body); err != nil || string(said) != name {
			t.Errorf("%s is %q (%v)", name, said, err)
		}
	}
	known := machine("known")
	ask("known", known)
	for i := range 20 {
		conn, err := (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 1, byte(i+1))}}).DialContext(t.Context(), "tcp", inner.Addr().String())
		check(t, err)
		defer conn.Close()
	}
	eventually(t, func() error {
		if s := limited.Stats(); s.Evicted < 16 {
			return fmt.Errorf("%d of 20 strangers have given way", s.Evicted)
		}
		return nil
	})
	ask("known", known)
	ask("new", machine("new"))
	if s := limited.Stats(); s.Open != 5 || s.Unproven != 3 {
		t.Errorf("connections %+v, want those of two machines and three strangers", s)
	}
}
