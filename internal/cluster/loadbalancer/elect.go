package loadbalancer

import (
	"hash/fnv"
	"net/netip"
	"slices"
)

// Standing is what a node may do for addresses. A higher one goes before a lower one.
type Standing uint8

const (
	// Absent nodes announce nothing: they are not heard, start, or end.
	Absent Standing = iota
	// Reserve nodes announce only what no Ready node can: they are cordoned, or their service proxy is not healthy.
	Reserve
	// Ready nodes announce.
	Ready
)

func (s Standing) String() string {
	switch s {
	case Reserve:
		return "reserve"
	case Ready:
		return "ready"
	}
	return "absent"
}

// Member is a node as an election sees it.
type Member struct {
	Name     string
	Standing Standing
	// Networks of the node's interfaces.
	Networks []netip.Prefix
}

// Address is one that a node is wanted for.
type Address struct {
	netip.Addr
	// Nodes that may answer for it; nil: any. Empty: none (a Service with externalTrafficPolicy Local and no endpoint).
	Nodes []string
	// Routed: routers are told, by all nodes that answer for it. Otherwise one node answers, on the segment.
	Routed bool
}

func (a Address) may(m Member) bool {
	return m.Standing != Absent && (a.Nodes == nil || slices.Contains(a.Nodes, m.Name))
}

// Holder is the node that answers for the address, "" for none.
//
// Of the nodes that have an interface in the address's network (of all, if none has), those of the best standing take part.
// Among them the address and the names decide (rendezvous hashing): addresses spread evenly, and when a node goes, its
// addresses alone move. Nodes that see the same members agree without a word.
func Holder(address Address, members []Member) string {
	local := func(m Member) bool {
		return slices.ContainsFunc(m.Networks, func(n netip.Prefix) bool { return n.Contains(address.Addr) })
	}
	anyLocal := slices.ContainsFunc(members, func(m Member) bool { return m.Standing > Absent && local(m) })
	var best Member
	var bestWeight uint64
	for _, m := range members {
		if !address.may(m) || anyLocal && !local(m) {
			continue
		}
		w := weight(address.Addr, m.Name)
		if m.Standing > best.Standing || m.Standing == best.Standing && (w > bestWeight || w == bestWeight && m.Name < best.Name) {
			best, bestWeight = m, w
		}
	}
	return best.Name
}

// Tells says whether the node tells routers of the address: it does if no other node that may answer for it has a better standing.
func Tells(node string, address Address, members []Member) bool {
	var own, best Standing
	for _, m := range members {
		if !address.may(m) {
			continue
		}
		best = max(best, m.Standing)
		if m.Name == node {
			own = m.Standing
		}
	}
	return own > Absent && own == best
}

// weight is even over names that differ in one letter, which FNV alone is not.
func weight(address netip.Addr, node string) uint64 {
	h := fnv.New64a()
	bytes := address.As16()
	h.Write(bytes[:])
	h.Write([]byte(node))
	return mix(h.Sum64())
}

// mix spreads each bit over all (the finalizer of MurmurHash3).
func mix(x uint64) uint64 {
	x = (x ^ x>>33) * 0xff51afd7ed558ccd
	x = (x ^ x>>33) * 0xc4ceb9fe1a85ec53
	return x ^ x>>33
}
