package loadbalancer

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"coldrack.dev/api/v1alpha1"
)

// Pool is addresses that Services may get.
type Pool struct {
	Name   string
	Ranges []v1alpha1.AddressRange
	// OnRequest: only Services that name the pool, or one of its addresses, get one.
	OnRequest bool
	// Routed: routers are told of the addresses, with these communities.
	Routed      bool
	Communities []string
}

// Pools reads the pools of a cluster.
func Pools(spec []v1alpha1.LoadBalancerPool) ([]Pool, error) {
	var pools []Pool
	for _, s := range spec {
		p := Pool{Name: s.Name, OnRequest: s.OnRequest, Routed: s.Announce == v1alpha1.AnnounceBGP, Communities: s.Communities}
		for _, text := range s.Addresses {
			r, err := v1alpha1.ParsePoolAddresses(text)
			if err != nil {
				return nil, fmt.Errorf("pool %s: %q: %w", s.Name, text, err)
			}
			p.Ranges = append(p.Ranges, r)
		}
		pools = append(pools, p)
	}
	return pools, nil
}

// Contains says whether the address is of the pool.
func (p Pool) Contains(a netip.Addr) bool {
	return slices.ContainsFunc(p.Ranges, func(r v1alpha1.AddressRange) bool { return r.Contains(a) })
}

// PoolOf an address, if it is of any.
func PoolOf(pools []Pool, a netip.Addr) (Pool, bool) {
	i := slices.IndexFunc(pools, func(p Pool) bool { return p.Contains(a) })
	if i < 0 {
		return Pool{}, false
	}
	return pools[i], true
}

// InPools says whether the address is of any pool. No other is ever announced: status is written by others, too.
func InPools(pools []Pool, a netip.Addr) bool {
	return slices.ContainsFunc(pools, func(p Pool) bool { return p.Contains(a) })
}

// Service is one that wants an address of each of its families.
type Service struct {
	// Key is "namespace/name".
	Key     string
	Created time.Time
	// Families in the Service's order.
	Families []Family
	// Either: one of the families is enough (PreferDualStack).
	Either bool
	// Requested addresses; empty: any.
	Requested []netip.Addr
	// Pool that the addresses shall be of; empty: any that is not OnRequest.
	Pool string
	// Problem is why the request cannot be read. Then nothing changes.
	Problem string
	// Current addresses.
	Current []netip.Addr
}

// Family of addresses.
type Family string

// The families, as a Service names them.
const (
	IPv4 Family = "IPv4"
	IPv6 Family = "IPv6"
)

// FamilyOf an address.
func FamilyOf(a netip.Addr) Family {
	if a.Is4() {
		return IPv4
	}
	return IPv6
}

// Reason of a Problem, in the words of events.
type Reason string

// Reasons.
const (
	ReasonBadRequest Reason = "BadRequest"
	ReasonTaken      Reason = "AddressTaken"
	ReasonOutside    Reason = "AddressNotInPool"
	ReasonNoPool     Reason = "NoSuchPool"
	ReasonExhausted  Reason = "PoolExhausted"
)

// Problem is why a Service does not get what it wants, for its owner.
type Problem struct {
	Reason  Reason
	Message string
}

// Grant is what a Service gets.
type Grant struct {
	// Addresses in the order of the Service's families. With a Problem: those that it has and keeps.
	Addresses []netip.Addr
	// Problem is set when it does not get what it wants.
	Problem *Problem
}

// Allocate says which addresses each Service gets, by key. A Service keeps what it has as long as that is what it wants; of
// two that have the same address the older keeps it. Then requests are granted, then the rest, the older ones first.
func Allocate(pools []Pool, services []Service) map[string]Grant {
	a := &allocation{pools: pools, owner: map[netip.Addr]string{}}
	sorted := slices.Clone(services)
	slices.SortFunc(sorted, func(x, y Service) int { return cmp.Or(x.Created.Compare(y.Created), cmp.Compare(x.Key, y.Key)) })
	grants := map[string]Grant{}
	for _, s := range sorted {
		kept := a.keep(s)
		if s.Problem != "" {
			grants[s.Key] = Grant{kept, &Problem{ReasonBadRequest, s.Problem}}
		} else if len(kept) == len(s.Families) {
			grants[s.Key] = Grant{Addresses: kept}
		}
	}
	for _, asked := range []bool{true, false} {
		for _, s := range sorted {
			if _, done := grants[s.Key]; !done && asked == (len(s.Requested) > 0) {
				grants[s.Key] = a.grant(s)
			}
		}
	}
	return grants
}

type allocation struct {
	pools []Pool
	owner map[netip.Addr]string
}

// keep takes those of a Service's current addresses that it may keep, in the order of its families.
func (a *allocation) keep(s Service) []netip.Addr {
	var kept []netip.Addr
	for _, family := range s.Families {
		for _, address := range s.Current {
			if FamilyOf(address) == family && a.owner[address] == "" && a.wants(s, address) {
				a.owner[address] = s.Key
				kept = append(kept, address)
				break
			}
		}
	}
	return kept
}

// wants says whether an address is one that the Service may have.
func (a *allocation) wants(s Service, address netip.Addr) bool {
	if s.Problem != "" {
		return InPools(a.pools, address)
	}
	if len(s.Requested) > 0 && !slices.Contains(s.Requested, address) {
		return false
	}
	return slices.ContainsFunc(a.pools, func(p Pool) bool {
		return p.Contains(address) && (s.Pool == p.Name || s.Pool == "" && (!p.OnRequest || len(s.Requested) > 0))
	})
}

func (a *allocation) grant(s Service) Grant {
	var addresses []netip.Addr
	var problem *Problem
	for _, family := range s.Families {
		address, p := a.one(s, family)
		if p != nil {
			problem = p
			continue
		}
		a.owner[address] = s.Key
		addresses = append(addresses, address)
	}
	if problem == nil || s.Either && len(addresses) > 0 {
		return Grant{Addresses: addresses}
	}
	for _, address := range addresses {
		delete(a.owner, address)
	}
	// What it has goes on working while it cannot have what it wants.
	var kept []netip.Addr
	for _, address := range s.Current {
		if a.owner[address] == "" && InPools(a.pools, address) {
			a.owner[address] = s.Key
			kept = append(kept, address)
		}
	}
	return Grant{Addresses: kept, Problem: problem}
}

// one finds an address of a family: the one it has, the one it requests, or the first that is free.
func (a *allocation) one(s Service, family Family) (netip.Addr, *Problem) {
	for _, address := range s.Current {
		if a.owner[address] == s.Key && FamilyOf(address) == family {
			return address, nil
		}
	}
	if s.Pool != "" && !slices.ContainsFunc(a.pools, func(p Pool) bool { return p.Name == s.Pool }) {
		return netip.Addr{}, &Problem{ReasonNoPool, fmt.Sprintf("there is no pool %s; the cluster has %s", s.Pool, a.names())}
	}
	if len(s.Requested) > 0 {
		return a.requested(s, family)
	}
	of := "no pool"
	for _, p := range a.pools {
		if s.Pool != p.Name && (s.Pool != "" || p.OnRequest) {
			continue
		}
		for _, r := range p.Ranges {
			if FamilyOf(r.First) != family {
				continue
			}
			of = "every pool"
			for address := r.First; r.Contains(address); address = address.Next() {
				if a.owner[address] == "" {
					return address, nil
				}
			}
		}
	}
	switch {
	case s.Pool != "" && of == "no pool":
		return netip.Addr{}, &Problem{ReasonExhausted, fmt.Sprintf("pool %s has no %s addresses; add some to spec.network.loadBalancer.pools of the Cluster", s.Pool, family)}
	case s.Pool != "":
		return netip.Addr{}, &Problem{ReasonExhausted, fmt.Sprintf("all %s addresses of pool %s are in use; add some to spec.network.loadBalancer.pools of the Cluster", family, s.Pool)}
	case of == "no pool":
		return netip.Addr{}, &Problem{ReasonExhausted, fmt.Sprintf("no pool that is not onRequest has %s addresses; add some to spec.network.loadBalancer.pools of the Cluster", family)}
	}
	return netip.Addr{}, &Problem{ReasonExhausted, fmt.Sprintf("all %s addresses of the pools are in use; add some to spec.network.loadBalancer.pools of the Cluster", family)}
}

func (a *allocation) requested(s Service, family Family) (netip.Addr, *Problem) {
	i := slices.IndexFunc(s.Requested, func(address netip.Addr) bool { return FamilyOf(address) == family })
	if i < 0 {
		return netip.Addr{}, &Problem{ReasonBadRequest, fmt.Sprintf("it requests no %s address, and the Service wants one", family)}
	}
	address := s.Requested[i]
	switch owner := a.owner[address]; {
	case !InPools(a.pools, address):
		return netip.Addr{}, &Problem{ReasonOutside, fmt.Sprintf("%s is in no pool; the cluster has %s", address, a.names())}
	case !a.wants(s, address):
		return netip.Addr{}, &Problem{ReasonOutside, fmt.Sprintf("%s is not in pool %s", address, s.Pool)}
	case owner != "":
		return netip.Addr{}, &Problem{ReasonTaken, fmt.Sprintf("%s is the address of Service %s", address, owner)}
	}
	return address, nil
}

func (a *allocation) names() string {
	if len(a.pools) == 0 {
		return "none"
	}
	var names []string
	for _, p := range a.pools {
		var ranges []string
		for _, r := range p.Ranges {
			ranges = append(ranges, r.String())
		}
		names = append(names, fmt.Sprintf("%s (%s)", p.Name, strings.Join(ranges, ", ")))
	}
	return strings.Join(names, ", ")
}
