package daemon

import (
	"encoding/json"
	"net/http"
	"net/netip"
	"sync"
	"time"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/contract/wire"
	"coldrack.dev/internal/netboot/dhcp"
	"coldrack.dev/internal/netboot/gate"
)

// bootGate tells the gate of boots what the boot services see. A machine is known by the hardware address that it boots with.
type bootGate struct {
	gate *gate.Gate
	now  func() time.Time
	// bootable says whether there is anything to load yet.
	bootable func() bool

	mu        sync.Mutex
	byAddress map[netip.Addr]string
}

func newBootGate(loading int, bootable func() bool) *bootGate {
	limits := gate.Usual()
	limits.Loading = loading
	return &bootGate{gate: gate.New(limits), now: time.Now, bootable: bootable, byAddress: map[netip.Addr]string{}}
}

// admit is asked for each DISCOVER. Only firmware waits for its turn: a boot loader is under way already, and whatever
// else asks for an address does not load anything here.
func (g *bootGate) admit(client dhcp.Query) bool {
	if client.IPXE || !client.PXE && !client.HTTP {
		return true
	}
	if !g.bootable() {
		// A firmware that is told of a file which is not there gives up at once; one that hears nothing asks again for a minute.
		return false
	}
	if wire.IsProbe(client.MAC) {
		return true // it loads next to nothing, and waits for nobody
	}
	if client.Proxied {
		// It has the site's offer already, and boots something else when ours does not come at once.
		g.gate.Seen(client.MAC, g.now())
		return true
	}
	return g.gate.Ask(client.MAC, g.now())
}

// observe follows a machine from its boot loader to the discovery system, which has been loaded when it asks for an address.
func (g *bootGate) observe(seen dhcp.Observation) {
	mac := seen.Client.MAC
	switch {
	case seen.Event != dhcp.Acknowledged && seen.Event != dhcp.Addressed:
	case seen.Client.VendorClass == wire.DHCPClass:
		g.gate.Through(mac, g.now())
	case seen.Client.PXE || seen.Client.HTTP || seen.Client.IPXE:
		g.gate.Seen(mac, g.now())
		g.mu.Lock()
		if len(g.byAddress) > 1<<16 {
			clear(g.byAddress)
		}
		g.byAddress[seen.Address] = mac
		g.mu.Unlock()
	}
}

// taking is told of whoever is being sent something large.
func (g *bootGate) taking(client netip.Addr) {
	g.mu.Lock()
	mac, known := g.byAddress[client]
	g.mu.Unlock()
	if known {
		g.gate.Taking(mac, g.now())
	}
}

// decided is told what a machine boots.
func (g *bootGate) decided(mac string, action v1alpha1.BootAction) {
	switch action {
	case v1alpha1.BootLocalDisk, v1alpha1.BootRefuse:
		g.gate.Through(mac, g.now())
	default:
		g.gate.Seen(mac, g.now())
	}
}

// ServeHTTP answers GET with how many machines boot, wait for their turn and were lost (gate.Counts).
func (g *bootGate) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodGet {
		w.Header().Set("Allow", http.MethodGet)
		http.Error(w, "GET only", http.StatusMethodNotAllowed)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(g.gate.Counts(g.now()))
}
