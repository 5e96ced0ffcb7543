package v1alpha1

import (
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

const (
	// DefaultBGPPort is that of routers.
	DefaultBGPPort = 179
	// DefaultBGPHoldTime is the least that RFC 4271 allows.
	DefaultBGPHoldTime = 3 * time.Second
	maxBGPHoldTime     = math.MaxUint16 * time.Second
)

// validateBGP checks which routers are told of Services' addresses, and that each pool that they are to be told of has one.
func validateBGP(at *field.Path, lb *ClusterLoadBalancer, ranges []poolRange, networks []namedNetwork) field.ErrorList {
	var errs field.ErrorList
	families := map[bool]bool{} // of the peers; true: IPv4
	if bgp := lb.BGP; bgp != nil {
		at := at.Child("bgp")
		errs = append(errs, validateASN(at.Child("localASN"), bgp.LocalASN)...)
		if len(bgp.Peers) == 0 {
			errs = append(errs, field.Required(at.Child("peers"), "name at least one router, or leave bgp out"))
		}
		for i, p := range bgp.Peers {
			at := at.Child("peers").Index(i)
			errs = append(errs, validateBGPPeer(at, p, bgp.LocalASN)...)
			if slices.IndexFunc(bgp.Peers, func(other BGPPeer) bool { return other.Name == p.Name }) < i {
				errs = append(errs, field.Duplicate(at.Child("name"), p.Name))
			}
			address, more := bgpPeerAddress(at.Child("address"), p.Address, ranges, networks)
			if errs = append(errs, more...); !address.IsValid() {
				continue
			}
			families[address.Is4()] = true
			for _, other := range bgp.Peers[:i] {
				if theirs, err := netip.ParseAddr(other.Address); err == nil && theirs == address {
					errs = append(errs, field.Invalid(at.Child("address"), p.Address, fmt.Sprintf("is that of peer %s, too; a router has one session with each node", other.Name)))
				}
			}
		}
	}
	for i, pool := range lb.Pools {
		at := at.Child("pools").Index(i)
		switch pool.Announce {
		case "", AnnounceSegment:
			if len(pool.Communities) > 0 {
				errs = append(errs, field.Forbidden(at.Child("communities"), "are of routes; set announce: bgp, or leave them out"))
			}
			continue
		case AnnounceBGP:
		default:
			errs = append(errs, field.NotSupported(at.Child("announce"), pool.Announce, []LoadBalancerAnnounce{AnnounceSegment, AnnounceBGP}))
			continue
		}
		for j, community := range pool.Communities {
			if err := ValidateBGPCommunity(community); err != nil {
				errs = append(errs, field.Invalid(at.Child("communities").Index(j), community, err.Error()))
			}
		}
		if lb.BGP == nil {
			errs = append(errs, field.Invalid(at.Child("announce"), pool.Announce, "needs routers; name them in spec.network.loadBalancer.bgp"))
			continue
		}
		for j, text := range pool.Addresses {
			r, err := ParsePoolAddresses(text)
			if err != nil || len(families) == 0 || families[r.First.Is4()] {
				continue
			}
			errs = append(errs, field.Invalid(at.Child("addresses").Index(j), text,
				fmt.Sprintf("is %s, and no peer of spec.network.loadBalancer.bgp has an %[1]s address; routers are told of addresses of their own family", familyName(r.First))))
		}
	}
	return errs
}

func familyName(a netip.Addr) string {
	if a.Is4() {
		return "IPv4"
	}
	return "IPv6"
}

func validateASN(at *field.Path, asn int64) field.ErrorList {
	why := ""
	switch {
	case asn == 0:
		why = "0 is nobody's (RFC 7607)"
	case asn == 23456:
		why = "23456 stands for numbers above 65535 towards old routers (RFC 6793), and is nobody's"
	case asn == 65535 || asn == math.MaxUint32:
		why = "the last numbers, 65535 and 4294967295, are nobody's (RFC 7300)"
	case asn < 0 || asn > math.MaxUint32:
		why = "is no number of 32 bits"
	default:
		return nil
	}
	return field.ErrorList{field.Invalid(at, asn, why+"; private ones are 64512 to 65534 and 4200000000 to 4294967294")}
}

func validateBGPPeer(at *field.Path, p BGPPeer, local int64) field.ErrorList {
	var errs field.ErrorList
	for _, problem := range validation.IsDNS1123Label(p.Name) {
		errs = append(errs, field.Invalid(at.Child("name"), p.Name, problem))
	}
	errs = append(errs, validateASN(at.Child("asn"), p.ASN)...)
	if p.Port < 0 || p.Port > math.MaxUint16 {
		errs = append(errs, field.Invalid(at.Child("port"), p.Port, "is no TCP port; want 1 to 65535, usually 179"))
	}
	if p.HoldTime != nil {
		if d := p.HoldTime.Duration; d < DefaultBGPHoldTime || d > maxBGPHoldTime || d%time.Second != 0 {
			errs = append(errs, field.Invalid(at.Child("holdTime"), d.String(), fmt.Sprintf("want whole seconds from %s to %s; RFC 4271 has no shorter ones, and without any a node that is gone would never be noticed", DefaultBGPHoldTime, maxBGPHoldTime)))
		}
	}
	switch {
	case p.Hops < 0 || p.Hops > math.MaxUint8:
		errs = append(errs, field.Invalid(at.Child("hops"), p.Hops, "want 1 to 255"))
	case p.Hops > 1 && p.ASN == local:
		errs = append(errs, field.Invalid(at.Child("hops"), p.Hops, "is for routers of another autonomous system; those of localASN may be any number of hops away, so leave it out"))
	}
	if p.PasswordKey != "" {
		for _, problem := range validation.IsConfigMapKey(p.PasswordKey) {
			errs = append(errs, field.Invalid(at.Child("passwordKey"), p.PasswordKey, "is no key of a Secret: "+problem))
		}
	}
	return errs
}

// bgpPeerAddress is not valid where there is an error.
func bgpPeerAddress(at *field.Path, text string, pools []poolRange, networks []namedNetwork) (netip.Addr, field.ErrorList) {
	address, err := netip.ParseAddr(text)
	problem := ""
	switch {
	case err != nil:
		problem = "is no IP address; want that of the router, for example 10.20.0.1 or fd20::1"
	case address.Zone() != "" || address.IsLinkLocalUnicast():
		problem = "is link-local; want an address of the router that all nodes reach by a route"
	case address.Is4In6():
		problem = "IPv4 addresses are written without the prefix ::ffff: here"
	case address.IsUnspecified() || address.IsLoopback() || address.IsMulticast() || address == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		problem = "is no router's address"
	}
	if problem != "" {
		return netip.Addr{}, field.ErrorList{field.Invalid(at, text, problem)}
	}
	var errs field.ErrorList
	for _, r := range pools {
		if r.Contains(address) {
			errs = append(errs, field.Invalid(at, text, fmt.Sprintf("lies in %s, %s, which Services get", r.at, r.text)))
		}
	}
	for _, n := range networks {
		if n.prefix.Contains(address) {
			errs = append(errs, field.Invalid(at, text, fmt.Sprintf("lies in %s, %s, where no router is", n.at, n.prefix)))
		}
	}
	return address, errs
}

// ValidateBGPCommunity says what is wrong with a community: "ASN:VALUE" of 16 bits each, "ASN:VALUE:VALUE" of 32 bits each, or one of
// the names no-export and no-advertise.
func ValidateBGPCommunity(text string) error {
	const want = "want ASN:VALUE of at most 65535 each, ASN:VALUE:VALUE of at most 4294967295 each, no-export or no-advertise; for example 64512:100"
	if text == "no-export" || text == "no-advertise" {
		return nil
	}
	parts := strings.Split(text, ":")
	bits := map[int]int{2: 16, 3: 32}[len(parts)]
	if bits == 0 {
		return fmt.Errorf("is no community; %s", want)
	}
	for _, part := range parts {
		if n, err := strconv.ParseUint(part, 10, bits); err != nil || strconv.FormatUint(n, 10) != part {
			return fmt.Errorf("%q is no number of a community; %s", part, want)
		}
	}
	return nil
}
