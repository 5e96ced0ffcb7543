package doctor

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strings"

	"coldrack.dev/internal/netboot/dhcp"
)

// probeARP asks on an interface whether somebody answers ARP for the addresses of others.
func probeARP(ctx context.Context, i net.Interface) Result {
	check := "ARP on " + i.Name
	var found []string
	asked := 0
	for _, a := range ipv4Of(i) {
		prefix, err := netip.ParsePrefix(a)
		if err != nil {
			continue
		}
		n, proxies, err := dhcp.FindProxies(ctx, i.Name, prefix)
		if err != nil {
			return warn(check, "not asked: "+err.Error(), "run as root")
		}
		asked += n
		for _, p := range proxies {
			found = append(found, fmt.Sprintf("%s answers for %d of %d addresses that were asked for in %s", p.Holder, p.Answered, n, prefix.Masked()))
		}
	}
	if asked == 0 {
		return ok(check, "the network is too small for an ARP proxy to be told from a machine")
	}
	if len(found) == 0 {
		return ok(check, "nobody answers for the addresses of others")
	}
	return warn(check, strings.Join(found, "; ")+": an ARP proxy",
		"switch proxy ARP off for this network, on the router or switch with this address: while it answers, addresses that are in use behind it cannot be found")
}
