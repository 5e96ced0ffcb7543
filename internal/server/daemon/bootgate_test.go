package daemon

import (
	"encoding/json"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"path/filepath"
	"testing"
	"time"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/contract/wire"
	"coldrack.dev/internal/netboot/dhcp"
	"coldrack.dev/internal/netboot/gate"
	"coldrack.dev/internal/server/peopleapi/peoplewire"
)

// One place: the second firmware waits until the first machine is in the discovery system.
func TestTheBootGateFollowsAMachineToDiscovery(t *testing.T) {
	boots := newBootGate(1, func() bool { return true })
	clock := time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)
	boots.now = func() time.Time { return clock }
	counts := func() (c gate.Counts) {
		t.Helper()
		w := httptest.NewRecorder()
		boots.ServeHTTP(w, httptest.NewRequest(http.MethodGet, peoplewire.PathBoots, nil))
		if err := json.Unmarshal(w.Body.Bytes(), &c); err != nil {
			t.Fatal(err)
		}
		return c
	}
	firmware := func(mac string) dhcp.Query { return dhcp.Query{MAC: mac, PXE: true} }
	acknowledged := func(q dhcp.Query, address string) {
		boots.observe(dhcp.Observation{Event: dhcp.Acknowledged, Client: q, Address: netip.MustParseAddr(address)})
	}
	if !boots.admit(firmware("a")) || boots.admit(firmware("b")) {
		t.Fatal("one place, and it is not a's alone")
	}
	for _, other := range []dhcp.Query{{MAC: "c", PXE: true, IPXE: true}, {MAC: "d"}} {
		if !boots.admit(other) {
			t.Errorf("%+v waits, and is no firmware", other)
		}
	}
	acknowledged(firmware("a"), "10.0.0.1")
	clock = clock.Add(10 * time.Second)
	acknowledged(dhcp.Query{MAC: "a", PXE: true, IPXE: true}, "10.0.0.2")
	boots.decided("a", v1alpha1.BootDiscover)
	if boots.admit(firmware("b")) {
		t.Error("b does not wait while a loads")
	}
	// A slow link: minutes without a word by DHCP.
	for range 4 {
		clock = clock.Add(time.Minute)
		boots.taking(netip.MustParseAddr("10.0.0.2"))
	}
	if c := counts(); c.Loading != 1 || c.Lost != 1 { // b gave up
		t.Errorf("%+v", c)
	}
	acknowledged(dhcp.Query{MAC: "a", VendorClass: wire.DHCPClass}, "10.0.0.2")
	boots.taking(netip.MustParseAddr("10.0.0.2")) // the image
	if c := counts(); c.Loading != 0 || c.Through != 1 {
		t.Errorf("%+v", c)
	}
	if !boots.admit(firmware("b")) {
		t.Error("b waits although nobody loads")
	}
	boots.decided("b", v1alpha1.BootLocalDisk)
	if c := counts(); c.Through != 2 || c.Lost != 0 {
		t.Errorf("%+v", c)
	}
}

// A server that has just been set up and reads its first bundle lets firmware ask again: a file that is not there would be the end.
func TestFirmwareWaitsForTheFirstBundle(t *testing.T) {
	bundle := filepath.Join(t.TempDir(), "absent.tar")
	imports := newImporter(Config{Bundles: []string{bundle}}, nil, slog.New(slog.DiscardHandler))
	boots := newBootGate(1, func() bool { return !imports.beginning() })
	firmware := dhcp.Query{MAC: "a", HTTP: true}
	if boots.admit(firmware) {
		t.Error("firmware is answered while there is nothing to load yet")
	}
	if !boots.admit(dhcp.Query{MAC: "b"}) {
		t.Error("a system that loads nothing here waits")
	}
	if err := imports.run(t.Context()); err != nil {
		t.Fatal(err)
	}
	if !boots.admit(firmware) {
		t.Error("a bundle that cannot be read keeps machines waiting for ever")
	}
}
