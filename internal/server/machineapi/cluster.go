package machineapi

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"net/netip"
	"os"
	"time"

	"coldrack.dev/internal/base/pki"
	"coldrack.dev/internal/base/termtext"
	"coldrack.dev/internal/cluster/members"
	"coldrack.dev/internal/contract/wire"
)

// nodeAssignment answers as soon as what the node must have for its cluster is another than it knows, or when
// the wait is over.
func (a *API) nodeAssignment(ctx context.Context, c call) (any, error) {
	known, wait, err := longPoll(c.request)
	if err != nil {
		return nil, err
	}
	deadline := time.NewTimer(wait)
	defer deadline.Stop()
	for {
		// Taken before the look, so that a change in between is not missed.
		machineChanged, _ := a.Fleet.Changed(c.peer.machine)
		if _, err := a.node(ctx, c.peer); err != nil {
			return nil, err
		}
		answer, planChanged := wire.NodeAssignment{Version: "none", Message: "this server has no clusters"}, (<-chan struct{})(nil)
		if a.Clusters != nil {
			answer, planChanged = a.Clusters.Node(c.peer.machine)
		}
		if answer.Version != known {
			if answer.Plan != nil {
				a.Fleet.Log(c.peer.machine, fmt.Sprintf("told what it must have as node %s of cluster %s (version %s)", answer.Plan.NodeName, answer.Plan.Cluster, answer.Version))
			}
			return a.reachable(answer, c.request), nil
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-deadline.C:
			return a.reachable(answer, c.request), nil
		case <-machineChanged: // it may have been released
		case <-planChanged:
		}
	}
}

// reachable adds where the node fetches content from, which is the way by which it has reached this server.
func (a *API) reachable(answer wire.NodeAssignment, r *http.Request) wire.NodeAssignment {
	if answer.Plan == nil || a.BootURL == nil {
		return answer
	}
	plan := *answer.Plan
	plan.ContentURL = a.BootURL(localAddress(r), remoteAddress(r))
	answer.Plan = &plan
	return answer
}

// localAddress is the server's own address on the caller's connection.
func localAddress(r *http.Request) netip.Addr {
	if local, ok := r.Context().Value(http.LocalAddrContextKey).(net.Addr); ok {
		if at, err := netip.ParseAddrPort(local.String()); err == nil {
			return at.Addr().Unmap().WithZone("")
		}
	}
	return netip.Addr{}
}

// remoteAddress is the caller's address.
func remoteAddress(r *http.Request) netip.Addr {
	at, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return netip.Addr{}
	}
	return at.Addr().Unmap().WithZone("")
}

// nodeCertificate signs one of the certificates that the node's plan names.
func (a *API) nodeCertificate(ctx context.Context, c call, in wire.CertificateRequest) (any, error) {
	m, err := a.node(ctx, c.peer)
	if err != nil {
		return nil, err
	}
	name := termtext.Line(in.Name, 64)
	public, err := pki.ParseCSR([]byte(in.CSR))
	if err != nil {
		return nil, refuse(http.StatusBadRequest, wire.CodeBadRequest, "csr: %v", err)
	}
	if a.Clusters == nil {
		return nil, refuse(http.StatusForbidden, wire.CodeForbidden, "this server has no clusters")
	}
	certificate, leaf, err := a.Clusters.Sign(m.Name, in.Cluster, in.Name, public)
	if errors.Is(err, members.ErrRefused) {
		return nil, refuse(http.StatusForbidden, wire.CodeForbidden, "%s", termtext.Line(err.Error(), 500))
	} else if err != nil {
		return nil, err
	}
	a.Log.Info("certificate signed for a cluster node", "machine", m.Name, "cluster", in.Cluster, "certificate", name,
		"serial", leaf.SerialNumber.Text(16), "until", leaf.NotAfter.UTC())
	a.Fleet.Log(m.Name, fmt.Sprintf("certificate %s was signed until %s", name, leaf.NotAfter.UTC().Format(time.RFC3339)))
	return wire.CertificateResponse{Certificate: string(certificate), ExpiresAt: leaf.NotAfter.UTC()}, nil
}

// kit answers with the chunks of what the node and others like it fetch.
func (a *API) kit(ctx context.Context, c call) (any, error) {
	m, err := a.node(ctx, c.peer)
	if err != nil {
		return nil, err
	}
	if a.Kits != nil && a.Swarm != nil {
		if k, ok, err := a.Kits.Kit(ctx, m.Name); err != nil || ok {
			return k, err
		}
	}
	return nil, refuse(http.StatusNotFound, wire.CodeNotFound, "the nodes of this machine's cluster fetch everything from the server")
}

// etcdData answers with the data of the machine's own member of etcd, as a file.
func (a *API) etcdData(ctx context.Context, c call) (any, error) {
	m, err := a.node(ctx, c.peer)
	if err != nil {
		return nil, err
	}
	err = fs.ErrNotExist
	var file *os.File
	if a.Restores != nil {
		file, err = a.Restores.MemberData(c.request.URL.Query().Get("restore"), m.Name)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil, refuse(http.StatusServiceUnavailable, wire.CodeNotFound, "this server has not prepared data of a restore for this machine; ask again")
	} else if err != nil {
		return nil, err
	}
	a.Fleet.Log(m.Name, "fetches the data of its member of etcd for a restore")
	return file, nil
}

// phases takes in how far a node is, in memory only.
func (a *API) phases(ctx context.Context, c call, in wire.PhaseReport) (any, error) {
	m, err := a.node(ctx, c.peer)
	if err != nil {
		return nil, err
	}
	a.Fleet.BroughtUp(m.Name, in)
	return wire.Empty{}, nil
}
