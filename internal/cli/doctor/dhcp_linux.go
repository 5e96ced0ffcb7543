package doctor

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv4/nclient4"

	"coldrack.dev/api/v1alpha1"
)

// probeTime is how long a probe listens for offers. Servers that check an address for conflicts first
// answer after one or two seconds.
const probeTime = 4 * time.Second

// probeSegments asks on every interface for an address, takes none, and tells who offered one, and who answers ARP for
// the addresses of others.
func probeSegments(ctx context.Context, wanted []string, subnets []v1alpha1.Subnet, patience time.Duration) []Result {
	all, err := net.Interfaces()
	if err != nil {
		return []Result{fail("other DHCP servers", err.Error(), "")}
	}
	var candidates []net.Interface
	for _, i := range all {
		usable := i.Flags&net.FlagLoopback == 0 && i.Flags&net.FlagRunning != 0 && len(i.HardwareAddr) == 6 && len(ipv4Of(i)) > 0
		if usable && (len(wanted) == 0 || slices.Contains(wanted, i.Name)) {
			candidates = append(candidates, i)
		}
	}
	results := make([]Result, 2*len(candidates))
	var wait sync.WaitGroup
	for n, i := range candidates {
		wait.Go(func() { results[2*n] = probeOn(ctx, i, theirs(subnets, ipv4Of(i)), patience) })
		wait.Go(func() { results[2*n+1] = probeARP(ctx, i) })
	}
	wait.Wait()
	return results
}

// theirs is the Subnet of a segment in which the site's own server gives the addresses, "" where ours does or where that is not known. own are
// the interface's addresses, with prefix lengths.
func theirs(subnets []v1alpha1.Subnet, own []string) string {
	for _, s := range subnets {
		network, err := netip.ParsePrefix(s.Spec.CIDR)
		if err != nil || s.Spec.DHCP == v1alpha1.DHCPServer {
			continue
		}
		for _, text := range own {
			if a, err := netip.ParsePrefix(text); err == nil && network.Contains(a.Addr()) {
				return s.Name
			}
		}
	}
	return ""
}

// probeOn asks on one interface. subnet is the one in which the site's own server may answer, or "".
func probeOn(ctx context.Context, i net.Interface, subnet string, patience time.Duration) Result {
	check := "DHCP on " + i.Name
	client, err := nclient4.New(i.Name, nclient4.WithTimeout(patience), nclient4.WithRetry(1))
	if err != nil {
		return warn(check, "not asked: "+err.Error(), "stop what has port 68, and run as root")
	}
	defer client.Close()
	discover, err := dhcpv4.NewDiscovery(i.HardwareAddr, dhcpv4.WithBroadcast(true))
	if err != nil {
		return warn(check, "not asked: "+err.Error(), "")
	}
	var mu sync.Mutex
	offers := map[string]bool{}
	// Every offer is looked at and none taken, so the call always ends by its time limit.
	_, err = client.SendAndRead(ctx, nclient4.DefaultServers, discover, func(p *dhcpv4.DHCPv4) bool {
		if p.MessageType() == dhcpv4.MessageTypeOffer {
			mu.Lock()
			defer mu.Unlock()
			offers[offerText(p)] = true
		}
		return false
	})
	if !errors.Is(err, nclient4.ErrNoResponse) && !errors.Is(err, context.DeadlineExceeded) {
		return warn(check, fmt.Sprintf("not asked: %v", err), "run as root")
	}
	mu.Lock()
	defer mu.Unlock()
	if len(offers) == 0 && subnet != "" {
		return warn(check, "nobody answers, and in Subnet "+subnet+" it is the site's own DHCP server that gives addresses", "see whether that one runs, and whether it answers everybody")
	}
	if len(offers) == 0 {
		return ok(check, "nobody answers")
	}
	var texts []string
	foreign := false
	for text := range offers {
		texts = append(texts, text)
		foreign = foreign || !strings.HasSuffix(text, ownServer)
	}
	slices.Sort(texts)
	if !foreign {
		return ok(check, "only this machine answers: %s", strings.Join(texts, "; "))
	}
	if subnet != "" {
		return ok(check, "%s: the site's own, as Subnet %s has it", strings.Join(texts, "; "), subnet)
	}
	return fail(check, strings.Join(texts, "; "),
		"two servers on one segment race for every machine: stop the other one, or set the Subnet's spec.dhcp to proxy")
}

// ownServer marks an offer that came from an address of this machine.
const ownServer = "(this machine)"

func offerText(p *dhcpv4.DHCPv4) string {
	server := p.ServerIdentifier()
	text := fmt.Sprintf("%s offers %s", server, p.YourIPAddr)
	addresses, err := net.InterfaceAddrs()
	if err != nil {
		return text
	}
	for _, a := range addresses {
		if prefix, isNet := a.(*net.IPNet); isNet && prefix.IP.Equal(server) {
			return text + " " + ownServer
		}
	}
	return text
}
