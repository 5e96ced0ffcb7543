package swarm

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	innetns "coldrack.dev/internal/base/netns"
	"coldrack.dev/internal/content/diskimage"
	"coldrack.dev/internal/content/swarm"
	"coldrack.dev/internal/content/swarm/peer"
	"coldrack.dev/internal/contract/wire"
	"coldrack.dev/test/ca"
	"coldrack.dev/test/netns"
	"coldrack.dev/test/require"
)

// site is an origin and machines, each in a network namespace behind a link of its own to one switch.
type site struct {
	t        testing.TB
	origin   *netns.NS
	machines []*machine
	index    diskimage.Index
	blob     []byte
	server   *http.Server
	tracker  *swarm.Tracker
	ca       *ca.CA
}

type machine struct {
	*site
	ns      *netns.NS
	name    string
	address string
	cert    *tls.Certificate
	client  *http.Client
	ended   time.Duration
	dead    atomic.Bool
}

// newSite builds it; rates are in Mbit/s.
func newSite(t testing.TB, machines int, link, origin float64, index diskimage.Index, blob []byte) *site {
	t.Helper()
	require.Need(t, "netns", "ip", "tc")
	s := &site{t: t, index: index, blob: blob}
	s.ca = ca.New(t, "machines")
	hub := netns.New(t)
	hub.Bridge("br0")
	var all []*netns.NS
	plug := func(i int, rate float64) *netns.NS {
		ns := netns.New(t)
		all = append(all, ns)
		port := fmt.Sprint("p", i)
		hub.Plug("br0", port, ns, "eth0")
		ns.Run("ip", "link", "set", "eth0", "address", fmt.Sprintf("02:99:00:00:%02x:%02x", i/250, i%250+1))
		// With a broadcast address and a way for multicast, which udp-sender wants.
		ns.Run("ip", "address", "add", fmt.Sprintf("10.99.%d.%d/16", i/250, i%250+1), "broadcast", "+", "dev", "eth0")
		ns.Run("ip", "link", "set", "eth0", "up")
		ns.Run("ip", "route", "add", "224.0.0.0/4", "dev", "eth0")
		for where, dev := range map[*netns.NS]string{ns: "eth0", hub: port} {
			where.Run("tc", "qdisc", "add", "dev", dev, "root", "tbf", "rate", fmt.Sprintf("%.0fkbit", rate*1000), "burst", "128kb", "latency", "40ms")
		}
		return ns
	}
	// The kernel's neighbour tables have one limit for all namespaces together, 1024; entries that are permanent do
	// not count.
	var neighbours strings.Builder
	for i := range machines + 1 {
		fmt.Fprintf(&neighbours, "neigh replace 10.99.%d.%d lladdr 02:99:00:00:%02x:%02x nud permanent dev eth0\n", i/250, i%250+1, i/250, i%250+1)
	}
	batch := filepath.Join(t.TempDir(), "neighbours")
	if err := os.WriteFile(batch, []byte(neighbours.String()), 0o644); err != nil {
		t.Fatal(err)
	}
	s.origin = plug(0, origin)
	for i := range machines {
		m := &machine{site: s, ns: plug(i+1, link), name: fmt.Sprint("m", i), address: fmt.Sprintf("10.99.%d.%d", (i+1)/250, (i+1)%250+1)}
		m.cert = s.ca.Issue(ca.Client("machine:"+m.name, "coldrack:session"))
		m.client = &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 8, DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			return innetns.Dial(ctx, m.ns.Path(), network, address)
		}}}
		s.machines = append(s.machines, m)
	}
	for _, ns := range all {
		ns.Run("ip", "-batch", batch)
	}
	l, err := innetns.Listen(t.Context(), s.origin.Path(), "tcp", "10.99.0.1:80")
	if err != nil {
		t.Fatal(err)
	}
	s.server = &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(blob))
	})}
	go func() { _ = s.server.Serve(l) }()
	t.Cleanup(func() { _ = s.server.Close() })
	return s
}

// ReadChunk is the agent's plain fetch from the boot listener.
func (m *machine) ReadChunk(ctx context.Context, c diskimage.Chunk) ([]byte, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://10.99.0.1/content", nil)
	if err != nil {
		return nil, err
	}
	r.Header.Set("Range", fmt.Sprintf("bytes=%d-%d", c.BlobOffset, c.BlobOffset+c.BlobLength-1))
	resp, err := m.client.Do(r)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	return io.ReadAll(resp.Body)
}

// Swarm is the machine API in the same process: what it says is little beside the image.
func (m *machine) Swarm(ctx context.Context, in wire.SwarmAnnounce) (wire.SwarmAnswer, error) {
	if m.dead.Load() {
		<-ctx.Done()
		return wire.SwarmAnswer{}, ctx.Err()
	}
	have, err := swarm.ParseSet(in.Have, in.Chunks)
	if err != nil {
		return wire.SwarmAnswer{}, err
	}
	sum := sha256.Sum256(m.cert.Leaf.RawSubjectPublicKeyInfo)
	me := swarm.Member{ID: m.name, Address: net.JoinHostPort(m.address, strconv.Itoa(in.Port)), Key: "sha256:" + hex.EncodeToString(sum[:])}
	told := m.tracker.Announce(time.Now(), in.Blob, me, swarm.Announcement{
		Have: have, Wants: in.Wants, Idle: in.Idle, Returned: in.Returned, Lost: in.Lost, Bad: in.Bad, Known: in.Known, Leaving: in.Leaving,
	})
	out := wire.SwarmAnswer{PeersVersion: told.PeersVersion, Fetch: told.Grants, AgainMillis: int(told.Again.Milliseconds()), AskMillis: int(told.Ask.Milliseconds())}
	for _, p := range told.Peers {
		out.Peers = append(out.Peers, wire.SwarmPeer{Machine: p.ID, Address: p.Address, Key: p.Key, Near: p.Near})
	}
	return out, nil
}

// shared is every machine's store at once: what it keeps was verified, so it is the image.
type shared struct{ blob []byte }

func (s shared) ReadAt(p []byte, at int64) (int, error) { return copy(p, s.blob[at:]), nil }
func (s shared) WriteAt(p []byte, _ int64) (int, error) { return len(p), nil }

// outcome of one run.
type outcome struct {
	first, last time.Duration
	images      float64 // that left the origin's link
	survivors   int
	stats       peer.Stats
}

// run has all machines fetch the image; ours says how. kill is the share of machines that lose their power once the origin
// has sent so much of the image.
func (s *site) run(ours bool, kill, sent float64) (outcome, error) {
	s.tracker = swarm.NewTracker(swarm.TrackerOptions{})
	before := s.sent()
	began := time.Now()
	pool := s.ca.Pool()
	var group errgroup.Group
	var joined []*peer.Exchange
	doomed := int(kill * float64(len(s.machines)))
	ctx, stop := context.WithCancel(s.t.Context())
	defer stop()
	doom, die := context.WithCancel(ctx)
	defer die()
	for i, m := range s.machines {
		dies := i < doomed
		m.ended = 0
		own := ctx
		if dies {
			own = doom
		}
		var source diskimage.Source = m
		if ours {
			x, err := peer.Join(own, peer.Config{
				Log: slog.New(slog.DiscardHandler), Server: m,
				Certificate: func() *tls.Certificate { return m.cert }, CAs: func() *x509.CertPool { return pool },
				Listen: func(ctx context.Context) (net.Listener, error) {
					return innetns.Listen(ctx, m.ns.Path(), "tcp", m.address+":0")
				},
				Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
					ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
					defer cancel()
					return innetns.Dial(ctx, m.ns.Path(), network, address)
				},
			}, s.index, m, shared{s.blob})
			if err != nil {
				return outcome{}, err
			}
			joined = append(joined, x)
			source = x
		}
		group.Go(func() error {
			err := fetch(own, s.index, source)
			m.ended = time.Since(began)
			if dies {
				return nil
			}
			return err
		})
	}
	if doomed > 0 {
		group.Go(func() error {
			for float64(s.sent()-before) < sent*float64(s.index.BlobSize) && ctx.Err() == nil {
				time.Sleep(5 * time.Millisecond)
			}
			for _, m := range s.machines[:doomed] {
				m.dead.Store(true)
				m.ns.Run("ip", "link", "set", "eth0", "down")
			}
			die()
			return nil
		})
	}
	err := group.Wait()
	out := outcome{images: float64(s.sent()-before) / float64(s.index.BlobSize), survivors: len(s.machines) - doomed}
	for _, m := range s.machines[doomed:] {
		out.last = max(out.last, m.ended)
		if out.first == 0 || m.ended < out.first {
			out.first = m.ended
		}
	}
	for _, x := range joined {
		st := x.Stats()
		out.stats.FromPeers += st.FromPeers
		out.stats.FromOrigin += st.FromOrigin
		out.stats.Wasted += st.Wasted
		out.stats.Refused += st.Refused
		out.stats.Bad += st.Bad
	}
	stop() // all at once, without farewell
	for _, x := range joined {
		x.Leave()
	}
	return out, err
}

// fetch reads all chunks in order, four at a time, and compares their digests, as diskimage.Write does.
func fetch(ctx context.Context, index diskimage.Index, source diskimage.Source) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(4)
	for _, c := range index.Chunks {
		group.Go(func() error {
			b, err := source.ReadChunk(ctx, c)
			if err != nil {
				return err
			}
			return c.Verify(b)
		})
	}
	return group.Wait()
}

// sent is what has left the origin's link, headers included.
func (s *site) sent() int64 {
	s.t.Helper()
	var b []byte
	err := s.origin.Do(func() (err error) {
		b, err = os.ReadFile("/proc/thread-self/net/dev")
		return err
	})
	if err != nil {
		s.t.Fatal(err)
	}
	for line := range strings.SplitSeq(string(b), "\n") {
		if f := strings.Fields(line); len(f) > 9 && f[0] == "eth0:" {
			n, err := strconv.ParseInt(f[9], 10, 64)
			if err != nil {
				s.t.Fatal(err)
			}
			return n
		}
	}
	s.t.Fatal("the origin has no eth0")
	return 0
}
