package bmc

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

// MaxScan is how many addresses one scan may have.
const MaxScan = 4096

// Found is a BMC that answered a scan.
type Found struct {
	Address  string
	Protocol Protocol
	// Probe has what it tells everybody, and with credentials the rest.
	Probe Probe
	// Problem is why it told no more.
	Problem string
}

// Scan looks for BMCs at every address of a network, at most so many at once, and tells each that it finds. One that speaks
// Redfish and IPMI is told once, as Redfish. Without a user name it asks for what everybody may know; with one it logs in, and
// whoever answers Redfish is given the password: no certificate is known yet.
func Scan(ctx context.Context, network netip.Prefix, credentials Target, o Options, atOnce int, tell func(Found)) error {
	addresses, err := addressesOf(network)
	if err != nil {
		return err
	}
	var mu sync.Mutex
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(atOnce)
	for _, address := range addresses {
		if ctx.Err() != nil {
			break
		}
		group.Go(func() error {
			if found, ok := lookAt(ctx, address.String(), credentials, o); ok {
				mu.Lock()
				defer mu.Unlock()
				tell(found)
			}
			return ctx.Err()
		})
	}
	return group.Wait()
}

// addressesOf are the hosts of a network.
func addressesOf(network netip.Prefix) ([]netip.Addr, error) {
	network = network.Masked()
	bits := network.Addr().BitLen() - network.Bits()
	if bits > 12 {
		return nil, fmt.Errorf("network %s has more than %d addresses; scan parts of it", network, MaxScan)
	}
	var all []netip.Addr
	for a := network.Addr(); network.Contains(a); a = a.Next() {
		all = append(all, a)
	}
	if network.Addr().Is4() && bits >= 2 {
		all = all[1 : len(all)-1] // not the network's own and its broadcast address
	}
	return all, nil
}

// presence is how long an address may take to show that something is there.
const presence = 3 * time.Second

// Look asks one address what it is. See Scan for credentials.
func Look(ctx context.Context, address string, credentials Target, o Options) (Found, bool) {
	return lookAt(ctx, address, credentials, o)
}

func lookAt(ctx context.Context, address string, credentials Target, o Options) (Found, bool) {
	host, redfishPort, udpPort := address, "443", strconv.Itoa(ipmiPort)
	if h, port, err := net.SplitHostPort(address); err == nil {
		host, redfishPort, udpPort = h, port, port
	}
	t := credentials
	t.Address, t.AnyCertificate, t.Certificate, t.Authority = address, true, "", ""
	found := Found{Address: address}
	probe := func(p Protocol) bool {
		t.Protocol = p
		d, err := Open(t, o)
		if err != nil {
			return false
		}
		defer d.Close()
		found.Protocol = p
		found.Probe, err = d.Probe(ctx)
		if err != nil {
			found.Problem = err.Error()
		}
		return err == nil || found.Probe.Version != "" || KindOf(err) == Refused
	}
	if listens(ctx, net.JoinHostPort(host, redfishPort)) && probe(Redfish) {
		return found, true
	}
	if !speaksIPMI(ctx, net.JoinHostPort(host, udpPort)) {
		return Found{}, false
	}
	found = Found{Address: address, Protocol: IPMI, Probe: Probe{Protocol: IPMI, Version: "2.0", EventLog: -1, Power: Unknown}}
	if credentials.Username != "" {
		probe(IPMI)
	}
	return found, true
}

func listens(ctx context.Context, address string) bool {
	conn, err := (&net.Dialer{Timeout: presence}).DialContext(ctx, "tcp", address)
	if err != nil {
		return false
	}
	_ = conn.Close()
	return true
}

// capabilities asks for the channel's authentication capabilities (section 22.13), which a BMC tells everybody. The checksums
// are those of section 13.8.
func capabilities() []byte {
	return []byte{6, 0, 0xff, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9, 0x20, 0x18, 0xc8, 0x81, 0, 0x38, 0x0e, 0x04, 0x35}
}

// speaksIPMI says whether a BMC answers.
func speaksIPMI(ctx context.Context, address string) bool {
	conn, err := (&net.Dialer{}).DialContext(ctx, "udp", address)
	if err != nil {
		return false
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	for range 2 { // datagrams get lost
		if _, err := conn.Write(capabilities()); err != nil {
			return false
		}
		_ = conn.SetReadDeadline(time.Now().Add(presence / 2))
		answer := make([]byte, 512)
		n, err := conn.Read(answer)
		if err == nil && n >= 21 && answer[0] == 6 && answer[3] == 7 && answer[19] == 0x38 {
			return true
		}
	}
	return false
}
