package machineapi

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/base/digest"
	"coldrack.dev/internal/base/termtext"
	"coldrack.dev/internal/content/swarm"
	"coldrack.dev/internal/contract/wire"
)

const (
	// maxSwarmList bounds the lists of an announcement: nobody knows more peers or was granted more chunks.
	maxSwarmList = 64
	// nodeUploadLimit, 100 Mbit/s, is what a node that is up gives to others: its workload comes first.
	nodeUploadLimit = 12_500_000
)

// swarm brings machines together that fetch the same blob. What it knows is in memory only: after a restart of
// the server the machines' next announcements bring it back.
func (a *API) swarm(ctx context.Context, c call, in wire.SwarmAnnounce) (any, error) {
	if a.Swarm == nil {
		return wire.SwarmAnswer{Off: true}, nil
	}
	var m *v1alpha1.Machine
	var err error
	answer := wire.SwarmAnswer{}
	if c.peer.kind == kindNode {
		m, err = a.node(ctx, c.peer)
		if err == nil && m.Status.Kubernetes != nil && m.Status.Kubernetes.Done {
			answer.UploadLimit = nodeUploadLimit
		}
	} else {
		m, err = a.machine(ctx, c.peer.machine)
	}
	if err != nil {
		return nil, err
	}
	said, err := announcement(in)
	if err != nil {
		return nil, err
	}
	me := swarm.Member{ID: m.Name, Rack: rackOf(m), Key: c.peer.fingerprint}
	if host := address(c.request); in.Port > 0 && in.Port < 1<<16 && host != "" {
		me.Address = net.JoinHostPort(host, strconv.Itoa(in.Port))
	}
	told := a.Swarm.Announce(a.Now(), in.Blob, me, said)
	for _, id := range said.Bad {
		a.Log.Warn("machine received damaged data from a peer", "machine", m.Name, "from", termtext.Line(id, 64), "blob", in.Blob)
		a.Fleet.Log(m.Name, fmt.Sprintf("got damaged data from machine %s, and takes nothing from it any more", termtext.Line(id, 64)))
	}
	for _, id := range told.Expelled {
		a.Log.Error("machine sends damaged data; it no longer serves peers: check its memory and disk", "machine", id, "blob", in.Blob)
		a.Fleet.Log(id, "several machines got damaged data from this one, so none is sent to it any more: check its memory and its disk")
	}
	for _, p := range told.Peers {
		answer.Peers = append(answer.Peers, wire.SwarmPeer{Machine: p.ID, Address: p.Address, Key: p.Key, Near: p.Near})
	}
	answer.PeersVersion, answer.Alone, answer.Fetch = told.PeersVersion, told.Alone, told.Grants
	answer.AgainMillis, answer.AskMillis = int(told.Again/time.Millisecond), int(told.Ask/time.Millisecond)
	return answer, nil
}

func announcement(in wire.SwarmAnnounce) (swarm.Announcement, error) {
	no := func(format string, args ...any) (swarm.Announcement, error) {
		return swarm.Announcement{}, refuse(http.StatusBadRequest, wire.CodeBadRequest, format, args...)
	}
	if _, err := digest.Parse(in.Blob); err != nil {
		return no("blob: %v", err)
	}
	have, err := swarm.ParseSet(in.Have, in.Chunks)
	if err != nil {
		return no("have: %v", err)
	}
	if max(len(in.Returned), len(in.Lost), len(in.Bad)) > maxSwarmList {
		return no("returned, lost and bad: more than %d entries", maxSwarmList)
	}
	return swarm.Announcement{
		Have: have, Wants: in.Wants, Idle: in.Idle, Returned: in.Returned, Lost: in.Lost, Bad: in.Bad,
		Known: in.Known, Leaving: in.Leaving,
	}, nil
}

// rackOf is the place that a person wrote down, else the switch that the machine's boot interface hears.
func rackOf(m *v1alpha1.Machine) string {
	if l := m.Spec.Location; l.Rack != "" {
		return strings.Join([]string{l.Site, l.Room, l.Rack}, "/")
	}
	if m.Status.Inventory == nil {
		return ""
	}
	heard := ""
	for _, nic := range m.Status.Inventory.NICs {
		if nic.LLDP == nil || nic.LLDP.ChassisID == "" {
			continue
		}
		if nic.Boot {
			return "switch " + nic.LLDP.ChassisID
		}
		heard = "switch " + nic.LLDP.ChassisID
	}
	return heard
}
