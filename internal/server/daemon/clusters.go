package daemon

import (
	"context"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"coldrack.dev/internal/base/netns"
	"coldrack.dev/internal/cluster/kube"
	"coldrack.dev/internal/cluster/members"
	"coldrack.dev/internal/contract/wire"
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
func (s *server) newClusters() *members.Set {
	options := members.Options{Programs: s.content, ImageDigest: imageContent{s.content.store}.digestOf, Log: s.log.With("part", "clusters")}
	options.FetchesFrom = func(host string) bool {
		return slices.ContainsFunc(s.cfg.RegistryUpstreams, func(text string) bool { return strings.TrimPrefix(text, "http://") == host })
	}
	if !s.cfg.NoBoot {
		options.Registry = &kube.Registry{CA: s.keys.machines.CertPEM()}
		options.RegistryURL = func(node netip.Addr, subnet netip.Prefix) (string, error) {
			own, err := s.reach.node(node, subnet)
			return "https://" + net.JoinHostPort(own.String(), strconv.Itoa(s.cfg.MachinePort)), err
		}
		options.KitFrom = s.cfg.SwarmFrom
	}
	return members.New(options)
}

// dialNode connects to a node, which is where machines boot.
func (s *server) dialNode(ctx context.Context, network, address string) (net.Conn, error) {
	return netns.Dial(ctx, s.cfg.BootNetns, network, address)
}
