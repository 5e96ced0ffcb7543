package daemon

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"

	"coldrack.dev/internal/cluster/kube"
	"coldrack.dev/internal/cluster/members"
	"coldrack.dev/internal/netns"
	"coldrack.dev/internal/wire"
)

// Programs implements members.Programs.
func (c content) Programs(kubernetes string) ([]wire.Program, error) {
	stored, err := c.store.Programs(kubernetes)
	if err != nil {
		return nil, err
	}
	var programs []wire.Program
	for _, p := range stored {
		programs = append(programs, wire.Program{
			Name: p.Name, Path: p.Path, Content: wire.Content{Digest: p.Content.Digest, Size: p.Content.Size}, Digest: p.Digest, Size: p.Size, Version: p.Version,
		})
	}
	return programs, nil
}

// newClusters holds what nodes of clusters are handed out. Without boot services nobody is handed anything.
func (s *server) newClusters() (*members.Set, error) {
	options := members.Options{Programs: s.content, Log: s.log.With("part", "clusters")}
	if !s.cfg.NoBoot {
		address, err := s.nodesReach()
		if err != nil {
			return nil, err
		}
		// Files on nodes name it, so it is one address for all of them, and the same after a restart.
		options.Registry = &kube.Registry{
			URL: "https://" + net.JoinHostPort(address.String(), strconv.Itoa(s.cfg.MachinePort)), CA: s.keys.machines.CertPEM(),
		}
		options.KitFrom = s.cfg.SwarmFrom
	}
	return members.New(options), nil
}

// nodesReach is the address by which nodes reach this server: the configured one, or the first of the first
// interface.
func (s *server) nodesReach() (netip.Addr, error) {
	if s.cfg.BootAddress != "" {
		return netip.ParseAddr(s.cfg.BootAddress)
	}
	interfaces := s.cfg.Interfaces
	if len(interfaces) == 0 {
		var err error
		if interfaces, err = bootInterfaces(s.cfg.BootNetns); err != nil {
			return netip.Addr{}, err
		}
	}
	var found []netip.Addr
	err := netns.Do(s.cfg.BootNetns, func() error {
		for _, name := range interfaces {
			i, err := net.InterfaceByName(name)
			if err != nil {
				return fmt.Errorf("interface %s: %w", name, err)
			}
			addresses, err := i.Addrs()
			if err != nil {
				return fmt.Errorf("addresses of interface %s: %w", name, err)
			}
			for _, a := range addresses {
				if prefix, err := netip.ParsePrefix(a.String()); err == nil && !prefix.Addr().IsLinkLocalUnicast() {
					found = append(found, prefix.Addr().Unmap())
				}
			}
		}
		return nil
	})
	if err != nil {
		return netip.Addr{}, err
	}
	// Where there are both, IPv4 is what machines boot with.
	if i := slices.IndexFunc(found, netip.Addr.Is4); i >= 0 {
		return found[i], nil
	}
	if len(found) == 0 {
		return netip.Addr{}, fmt.Errorf("interfaces %v have no address by which nodes could reach this server; set --boot-address", interfaces)
	}
	return found[0], nil
}

// dialNode connects to a node, which is where machines boot.
func (s *server) dialNode(ctx context.Context, network, address string) (net.Conn, error) {
	return netns.Dial(ctx, s.cfg.BootNetns, network, address)
}
