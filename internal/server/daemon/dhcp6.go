package daemon

import (
	"context"
	"net/netip"
	"slices"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/machine/fleet"
	"coldrack.dev/internal/netboot/boot"
	"coldrack.dev/internal/netboot/dhcp"
	"coldrack.dev/internal/netboot/dhcp6"
)

// dhcp6Backend tells the DHCPv6 server what it needs of the product. Which machine it is, whose turn it is and what is booted are as with
// DHCPv4; only how a machine is recognized differs.
type dhcp6Backend struct{ dhcpBackend }

// known is the machine that a client is: by its hardware address, and firmware also by its SMBIOS UUID.
func (b dhcp6Backend) known(client dhcp6.Query) (fleet.Reservation, string, bool) {
	if known, ok := b.fleet.ByMAC(client.MAC); ok {
		return known, client.MAC, true
	}
	if !client.PXE && !client.HTTP && !client.IPXE {
		return fleet.Reservation{}, client.MAC, false // a DUID made of the machine's identifier in an operating system is no SMBIOS UUID
	}
	var found *v1alpha1.Machine
	for _, uuid := range client.UUIDs {
		machine, _, _ := b.fleet.Lookup(v1alpha1.Identifiers{UUID: uuid})
		if machine == nil || len(machine.Spec.Identifiers.MACs) == 0 {
			continue
		}
		if found != nil && found.Name != machine.Name {
			return fleet.Reservation{}, client.MAC, false
		}
		found = machine
	}
	if found == nil {
		return fleet.Reservation{}, client.MAC, false
	}
	mac := found.Spec.Identifiers.MACs[0]
	if n := found.Spec.Network; n != nil && n.MAC != "" {
		mac = n.MAC
	}
	known, ok := b.fleet.ByMAC(mac)
	return known, mac, ok
}

// asV4 is a client in DHCPv4's words.
func (b dhcp6Backend) asV4(client dhcp6.Query) dhcp.Query {
	_, mac, _ := b.known(client)
	if mac == "" {
		mac = "duid " + client.DUID // nobody's, but it takes turns like any other
	}
	return dhcp.Query{MAC: mac, VendorClass: client.VendorClass, UserClass: client.UserClass, Arch: client.Arch, PXE: client.PXE, HTTP: client.HTTP, IPXE: client.IPXE,
		Interface: client.Interface, Server: client.Server, Relay: client.Relay}
}

// Reservation gives a known machine the address of its plan.
func (b dhcp6Backend) Reservation(subnet netip.Prefix, client dhcp6.Query) (netip.Addr, bool) {
	known, _, ok := b.known(client)
	return known.Address, ok && subnet.Contains(known.Address)
}

// BootFile is the first stage for a firmware. BIOS is not assumed of who tells nothing: it does not boot by IPv6.
func (b dhcp6Backend) BootFile(subnet netip.Prefix, client dhcp6.Query) (dhcp6.BootFile, bool) {
	if client.Arch == boot.ArchUnknown && !client.IPXE {
		return dhcp6.BootFile{}, false
	}
	file, ok := b.dhcpBackend.BootFile(subnet, b.asV4(client))
	return dhcp6.BootFile{NextServer: file.NextServer, File: file.File}, ok
}

// Observe notes the addresses that known machines boot with. What a person must know the server has logged.
func (b dhcp6Backend) Observe(seen dhcp6.Observation) {
	if seen.Event == dhcp6.Acknowledged {
		b.dhcpBackend.Observe(dhcp.Observation{Time: seen.Time, Event: dhcp.Acknowledged, Client: b.asV4(seen.Client), Subnet: seen.Subnet, Address: seen.Address, Detail: seen.Detail})
	}
}

// dhcp6Subnet is an IPv6 plan as the DHCPv6 server takes it; plan is the same as DHCPv4's.
func dhcp6Subnet(subnet v1alpha1.Subnet, plan dhcp.Subnet) (dhcp6.Subnet, error) {
	addresses, errs := subnet.IPPlan()
	ipv6 := func(all []netip.Addr) []netip.Addr {
		return slices.DeleteFunc(all, func(a netip.Addr) bool { return !a.Is6() })
	}
	return dhcp6.Subnet{Name: plan.Name, CIDR: plan.CIDR, Pool: plan.Pool, Router: plan.Router, DNS: ipv6(addresses.DNS), NTP: ipv6(addresses.NTP),
		OwnDNS: plan.OwnDNS, OwnNTP: plan.OwnNTP, Domain: plan.Domain, LeaseTime: plan.LeaseTime, Mode: dhcp6.Mode(plan.Mode), Relays: plan.Relays}, errs.ToAggregate()
}

// managed are the networks on an interface in which DHCPv6 gives the addresses.
func managed(server *dhcp6.Server, device string) []netip.Prefix {
	var all []netip.Prefix
	for _, s := range server.Services() {
		if slices.Contains(s.Interfaces, device) {
			all = append(all, s.CIDR)
		}
	}
	return all
}

// newDHCP6 makes the DHCPv6 server beside DHCPv4's.
func (s *server) newDHCP6(backend dhcpBackend, config dhcp6.Config, changed func(), beside func(ctx context.Context, device string)) (*dhcp6.Server, error) {
	b := dhcp6Backend{backend}
	server, err := dhcp6.New(dhcp6.Options{Backend: b, Admit: func(client dhcp6.Query) bool { return s.admitDHCP(b.asV4(client)) },
		Dir: s.cfg.path("leases"), Log: backend.log, Inside: s.inside, Changed: changed, Beside: beside}, config)
	if err != nil {
		return nil, err
	}
	s.metrics.watchDHCP6(server.Stats)
	return server, nil
}
