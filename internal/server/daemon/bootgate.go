package daemon

import (
	"encoding/json"
	"net/http"
	"net/netip"
	"sync"
	"time"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/netboot/dhcp"
	"coldrack.dev/internal/netboot/gate"
	"coldrack.dev/internal/wire"
)

// turns tells the gate of boots what the boot services see. A machine is known by the hardware address that it boots with.
type turns struct {
	gate *gate.Gate
	now  func() time.Time
	// bootable says whether there is anything to load yet.
	bootable func() bool

	mu        sync.Mutex
	byAddress map[netip.Addr]string
}

func newTurns(loading int, bootable func() bool) *turns {
	limits := gate.Usual()
	limits.Loading = loading
	return &turns{gate: gate.New(limits), now: time.Now, bootable: bootable, byAddress: map[netip.Addr]string{}}
}

// admit is asked for each DISCOVER. Only firmware waits for its turn: a boot loader is under way already, and whatever
// else asks for an address does not load anything here.
func (t *turns) admit(client dhcp.Query) bool {
	if client.IPXE || !client.PXE && !client.HTTP {
		return true
	}
	if !t.bootable() {
		// A firmware that is told of a file which is not there gives up at once; one that hears nothing asks again for a minute.
		return false
	}
	return t.gate.Ask(client.MAC, t.now())
}

// observe follows a machine from its boot loader to the discovery system, which has been loaded when it asks for an address.
func (t *turns) observe(seen dhcp.Observation) {
	mac := seen.Client.MAC
	switch {
	case seen.Event != dhcp.Acknowledged:
	case seen.Client.VendorClass == wire.DHCPClass:
		t.gate.Through(mac, t.now())
	case seen.Client.PXE || seen.Client.HTTP || seen.Client.IPXE:
		t.gate.Seen(mac, t.now())
		t.mu.Lock()
		if len(t.byAddress) > 1<<16 {
			clear(t.byAddress)
		}
		t.byAddress[seen.Address] = mac
		t.mu.Unlock()
	}
}

// taking is told of whoever is being sent something large.
func (t *turns) taking(client netip.Addr) {
	t.mu.Lock()
	mac, known := t.byAddress[client]
	t.mu.Unlock()
	if known {
		t.gate.Taking(mac, t.now())
	}
}

// decided is told what a machine boots.
func (t *turns) decided(mac string, action v1alpha1.BootAction) {
	switch action {
	case v1alpha1.BootLocalDisk, v1alpha1.BootRefuse:
		t.gate.Through(mac, t.now())
	default:
		t.gate.Seen(mac, t.now())
	}
}

// ServeHTTP answers GET with how many machines boot, wait for their turn and were lost (gate.Counts).
func (t *turns) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodGet {
		w.Header().Set("Allow", http.MethodGet)
		http.Error(w, "GET only", http.StatusMethodNotAllowed)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(t.gate.Counts(t.now()))
}
