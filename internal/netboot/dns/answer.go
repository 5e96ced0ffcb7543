package dns

import (
	"strings"

	mdns "github.com/miekg/dns"
)

// Reply is what is said to a question.
type Reply struct {
	Rcode                     int
	Answer, Authority, Beside []mdns.RR
}

// Answer answers a question of class IN; false: the name is in no zone, or in a part of one that is not ours.
func (z *Zones) Answer(q mdns.Question) (Reply, bool) {
	name := strings.ToLower(q.Name)
	zone := z.zoneOf(name)
	if zone == nil {
		return Reply{}, false
	}
	if zone.part {
		// The rest of the zone, and what it says of itself, are somebody else's.
		if a, ok := reverseAddress(name); !ok || !z.holds(a) {
			return Reply{}, false
		}
	}
	soa := zone.nodes[zone.Name].records[:1]
	at := zone.nodes[name]
	if at == nil {
		return Reply{Rcode: mdns.RcodeNameError, Authority: negative(soa)}, true
	}
	var reply Reply
	if q.Qtype == mdns.TypeANY && len(at.records) > 0 {
		// RFC 8482: one record, so that nobody is flooded by all of them.
		reply.Answer = asked(at.records[:1], q.Name)
		return reply, true
	}
	for _, rr := range at.records {
		if rr.Header().Rrtype == q.Qtype {
			reply.Answer = append(reply.Answer, rr)
		}
	}
	if len(reply.Answer) == 0 {
		return Reply{Authority: negative(soa)}, true
	}
	for _, rr := range reply.Answer {
		switch rr := rr.(type) {
		case *mdns.NS:
			reply.Beside = append(reply.Beside, z.addresses(rr.Ns)...)
		case *mdns.SRV:
			reply.Beside = append(reply.Beside, z.addresses(rr.Target)...)
		}
	}
	reply.Answer = asked(reply.Answer, q.Name)
	return reply, true
}

// negative is the SOA record of an answer that has none, with the time for which that holds (RFC 2308, section 3).
func negative(soa []mdns.RR) []mdns.RR {
	rr := mdns.Copy(soa[0])
	rr.Header().Ttl = negativeTTL
	return []mdns.RR{rr}
}

// asked gives records the name as it was asked for: some clients compare its case.
func asked(records []mdns.RR, name string) []mdns.RR {
	out := make([]mdns.RR, len(records))
	for i, rr := range records {
		out[i] = mdns.Copy(rr)
		out[i].Header().Name = name
	}
	return out
}

func (z *Zones) addresses(name string) []mdns.RR {
	zone := z.zoneOf(name)
	if zone == nil || zone.nodes[name] == nil {
		return nil
	}
	var all []mdns.RR
	for _, rr := range zone.nodes[name].records {
		if kind := rr.Header().Rrtype; kind == mdns.TypeA || kind == mdns.TypeAAAA {
			all = append(all, rr)
		}
	}
	return all
}
