package dhcp

import (
	"sync/atomic"

	"github.com/insomniacslk/dhcp/dhcpv4"

	"coldrack.dev/internal/netboot/lease"
)

// counters are the totals behind Stats.
type counters struct {
	in, out                                                                            [16]atomic.Uint64 // by message type
	malformed, noSubnet, exhausted, deferred, conflicts, foreign, unstored, sendErrors atomic.Uint64
}

func (c *counters) received(kind dhcpv4.MessageType) { c.in[kind&15].Add(1) }
func (c *counters) sent(kind dhcpv4.MessageType)     { c.out[kind&15].Add(1) }

// Stats are totals since the server was made, but for Subnets.
type Stats struct {
	// Received and Sent are by message type, such as "discover" or "ack".
	Received, Sent map[string]uint64
	Malformed      uint64 // dropped messages
	NoSubnet       uint64 // messages from where no subnet is configured
	Exhausted      uint64 // clients that found a pool empty
	Deferred       uint64 // DISCOVERs left unanswered until their client asks again, because it was not its turn
	Conflicts      uint64 // addresses found in use by who they were not given to
	ForeignServer  uint64 // signs of another DHCP server
	Unstored       uint64 // ACKs withheld because the lease could not be stored
	SendErrors     uint64
	StoreCommits   uint64 // group commits of the lease store
	StoreRecords   uint64 // lease changes in them
	StoreFailures  uint64
	Subnets        []SubnetStats
}

// SubnetStats is the present use of a pool.
type SubnetStats struct {
	Name                            string
	Size, Leased, Held, Quarantined int
}

var messageWords = map[dhcpv4.MessageType]string{
	dhcpv4.MessageTypeDiscover: "discover", dhcpv4.MessageTypeOffer: "offer", dhcpv4.MessageTypeRequest: "request",
	dhcpv4.MessageTypeDecline: "decline", dhcpv4.MessageTypeAck: "ack", dhcpv4.MessageTypeNak: "nak",
	dhcpv4.MessageTypeRelease: "release", dhcpv4.MessageTypeInform: "inform",
}

func (c *counters) snapshot() Stats {
	s := Stats{Received: map[string]uint64{}, Sent: map[string]uint64{},
		Malformed: c.malformed.Load(), NoSubnet: c.noSubnet.Load(), Exhausted: c.exhausted.Load(),
		Deferred: c.deferred.Load(), Conflicts: c.conflicts.Load(), ForeignServer: c.foreign.Load(), Unstored: c.unstored.Load(), SendErrors: c.sendErrors.Load()}
	for kind, word := range messageWords {
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
			stats.Size = int(toUint32(s.Pool.To)-toUint32(s.Pool.From)) + 1
			stats.Leased, stats.Held, stats.Quarantined = p.Count(lease.Bound), p.Count(lease.Held), p.Count(lease.Quarantined)
		}
		all = append(all, stats)
	}
	return all
}
