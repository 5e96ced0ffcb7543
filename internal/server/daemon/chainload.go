package daemon

import (
	"maps"
	"sync"
	"time"

	"coldrack.dev/internal/netboot/dhcp"
)

// replacedIPXEs remembers which clients were given our iPXE in place of their firmware's, so that no client is given it for ever.
type replacedIPXEs struct {
	now     func() time.Time
	mu      sync.Mutex
	clients map[string]replacedIPXE // by MAC
}

type replacedIPXE struct {
	at    time.Time
	told  dhcp.IPXE // by the firmware's
	times int
}

const (
	// chainTime is how long our iPXE may take from the firmware's ACK to its own first question.
	chainTime = 2 * time.Minute
	// mostReplacements is how often within chainTime one client may come back just as it was: its machine may have been switched
	// off and on. When ours lacks the same as the firmware's nothing else tells them apart.
	mostReplacements = 3
)

// add notes that a client was told to load our iPXE.
func (r *replacedIPXEs) add(client dhcp.Query) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.now()
	if r.clients == nil {
		r.clients = map[string]replacedIPXE{}
	}
	if len(r.clients) >= manyClients {
		maps.DeleteFunc(r.clients, func(_ string, c replacedIPXE) bool { return now.Sub(c.at) > chainTime })
	}
	before := r.clients[client.MAC]
	if now.Sub(before.at) > chainTime {
		before.times = 0
	}
	r.clients[client.MAC] = replacedIPXE{at: now, told: client.Told, times: before.times + 1}
}

// comesBack says whether a client that is iPXE must be our own: it was given that a moment ago and tells something else now, or has
// come too often.
func (r *replacedIPXEs) comesBack(client dhcp.Query) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	before, ok := r.clients[client.MAC]
	if !ok || r.now().Sub(before.at) > chainTime {
		return false
	}
	return before.told != client.Told || before.times >= mostReplacements
}
