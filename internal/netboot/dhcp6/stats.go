package dhcp6

import (
	"strings"
	"sync/atomic"

	"github.com/insomniacslk/dhcp/dhcpv6"

	"coldrack.dev/internal/netboot/lease"
)

// counters are the totals behind Stats.
type counters struct {
	in, out                                                                                           [16]atomic.Uint64 // by message type
	malformed, noSubnet, strangeRelays, exhausted, deferred, conflicts, foreign, unstored, sendErrors atomic.Uint64
}

func (c *counters) received(kind dhcpv6.MessageType) { c.in[kind&15].Add(1) }
func (c *counters) sent(kind dhcpv6.MessageType)     { c.out[kind&15].Add(1) }

// Stats are totals since the server was made, but for Subnets.
type Stats struct {
	// Received and Sent are by message type, such as "solicit" or "reply".
	Received, Sent map[string]uint64
	Malformed      uint64 // dropped messages
	NoSubnet       uint64 // messages from where no subnet is configured
	StrangeRelays  uint64 // messages of relays whose address is in no subnet
	Exhausted      uint64 // IAs for which no address was left
	Deferred       uint64 // Solicits left unanswered until their client asks again, because it was not its turn
	Conflicts      uint64 // addresses that clients found in use by others
	ForeignServer  uint64 // signs of another DHCPv6 server
	Unstored       uint64 // Replies withheld because the lease could not be stored
	SendErrors     uint64
	StoreFailures  uint64
	Subnets        []SubnetStats
}

// SubnetStats is the present use of a pool.
type SubnetStats struct {
	Name                      string
	Leased, Held, Quarantined int
}

func (c *counters) snapshot() Stats {
	s := Stats{Received: map[string]uint64{}, Sent: map[string]uint64{}, Malformed: c.malformed.Load(), NoSubnet: c.noSubnet.Load(),
		StrangeRelays: c.strangeRelays.Load(), Exhausted: c.exhausted.Load(), Deferred: c.deferred.Load(), Conflicts: c.conflicts.Load(),
		ForeignServer: c.foreign.Load(), Unstored: c.unstored.Load(), SendErrors: c.sendErrors.Load()}
	for kind := range dhcpv6.MessageTypeRelayForward {
		word := strings.ToLower(kind.String())
		if n := c.in[kind].Load(); n > 0 {
			s.Received[word] = n
		}
		if n := c.out[kind].Load(); n > 0 {
			s.Sent[word] = n
		}
	}
	return s
}

func (e *engine) subnetStats() []SubnetStats {
	e.mu.Lock()
	defer e.mu.Unlock()
	var all []SubnetStats
	for _, s := range e.config.Subnets {
		stats := SubnetStats{Name: s.Name}
		if p := e.pools[s.CIDR]; p != nil {
			p.Expire(e.now())
			stats.Leased, stats.Held, stats.Quarantined = p.Count(lease.Bound), p.Count(lease.Held), p.Count(lease.Quarantined)
		}
		all = append(all, stats)
	}
	return all
}
