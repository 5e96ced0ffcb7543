package peer

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"coldrack.dev/internal/agent/client"
	"coldrack.dev/internal/content/diskimage"
	"coldrack.dev/internal/content/swarm"
	"coldrack.dev/internal/contract/wire"
	"coldrack.dev/test/ca"
	"coldrack.dev/test/noise"
)

// machine is the template of a machine's certificate.
func machine(name string) *x509.Certificate { return ca.Client("machine:"+name, "coldrack:session") }

// origin is the boot listener: it counts what it sends.
type origin struct {
	blob []byte
	sent atomic.Int64
	err  error
	slow time.Duration
}

func (o *origin) ReadChunk(ctx context.Context, c diskimage.Chunk) ([]byte, error) {
	if o.err != nil {
		return nil, o.err
	}
	sleep(ctx, o.slow)
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	o.sent.Add(c.BlobLength)
	return bytes.Clone(o.blob[c.BlobOffset : c.BlobOffset+c.BlobLength]), nil
}

// memory is a Store.
type memory struct {
	mu sync.Mutex
	b  []byte
}

func (m *memory) ReadAt(p []byte, at int64) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return copy(p, m.b[at:]), nil
}

func (m *memory) WriteAt(p []byte, at int64) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return copy(m.b[at:], p), nil
}

// room is everything a test needs: a CA, a tracker behind the machine API's types, and an image.
type room struct {
	t       *testing.T
	ca      *ca.CA
	tracker *swarm.Tracker
	index   diskimage.Index
	origin  *origin
	// answer may replace what the server says.
	answer func(machine string, a wire.SwarmAnnounce) (wire.SwarmAnswer, error)
	racks  map[string]string
	mu     sync.Mutex
	said   map[string][]wire.SwarmAnnounce
}

func newRoom(t *testing.T, chunks int) *room {
	r := &room{t: t, ca: ca.New(t, "machines"), tracker: swarm.NewTracker(swarm.TrackerOptions{Slots: 4, PerMember: 1, Extra: 0.01, Silence: 3 * time.Second}), said: map[string][]wire.SwarmAnnounce{}, racks: map[string]string{}}
	var blob []byte
	r.index, blob = noise.Image(chunks, 64<<10, 8<<10, 48<<10)
	r.origin = &origin{blob: blob}
	return r
}

// api is the machine API as one machine sees it.
type api struct {
	*room
	machine string
	cert    *tls.Certificate
}

func (a api) Swarm(_ context.Context, in wire.SwarmAnnounce) (wire.SwarmAnswer, error) {
	a.mu.Lock()
	a.said[a.machine] = append(a.said[a.machine], in)
	a.mu.Unlock()
	if a.answer != nil {
		return a.answer(a.machine, in)
	}
	return a.track(in)
}

func (a api) track(in wire.SwarmAnnounce) (wire.SwarmAnswer, error) {
	have, err := swarm.ParseSet(in.Have, in.Chunks)
	if err != nil {
		a.t.Error(err)
	}
	me := swarm.Member{ID: a.machine, Rack: a.racks[a.machine], Key: fingerprint(a.cert.Leaf)}
	if in.Port > 0 {
		me.Address = fmt.Sprint("127.0.0.1:", in.Port)
	}
	told := a.tracker.Announce(time.Now(), in.Blob, me, swarm.Announcement{
		Have: have, Wants: in.Wants, Idle: in.Idle, Returned: in.Returned, Lost: in.Lost, Bad: in.Bad, Known: in.Known, Leaving: in.Leaving,
	})
	out := wire.SwarmAnswer{PeersVersion: told.PeersVersion, Fetch: told.Grants, AgainMillis: 200, AskMillis: 20}
	for _, p := range told.Peers {
		out.Peers = append(out.Peers, wire.SwarmPeer{Machine: p.ID, Address: p.Address, Key: p.Key, Near: p.Near})
	}
	return out, nil
}

func (r *room) config(name string) Config {
	cert := r.ca.Issue(machine(name))
	return Config{
		Log: slog.New(slog.DiscardHandler), Server: api{r, name, cert},
		Certificate: func() *tls.Certificate { return cert }, CAs: r.ca.Pool,
		Listen: func(ctx context.Context) (net.Listener, error) {
			return (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
		},
	}
}

func (r *room) join(name string, change func(*Config)) (*Exchange, *memory) {
	r.t.Helper()
	c := r.config(name)
	if change != nil {
		change(&c)
	}
	store := &memory{b: make([]byte, r.index.BlobSize)}
	x, err := Join(r.t.Context(), c, r.index, r.origin, store)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(x.Leave)
	return x, store
}

// read fetches everything in order, as an install does.
func (r *room) read(x *Exchange) error {
	for _, c := range r.index.Chunks {
		ctx, cancel := context.WithTimeout(r.t.Context(), time.Minute)
		b, err := x.ReadChunk(ctx, c)
		cancel()
		if err != nil {
			return err
		}
		if err := c.Verify(b); err != nil {
			return err
		}
	}
	return nil
}

func TestManyMachinesFetchAnImageFromEachOther(t *testing.T) {
	t.Parallel()
	r := newRoom(t, 60)
	var group errgroup.Group
	var all []*Exchange
	for i := range 8 {
		r.racks[fmt.Sprint("m", i)] = fmt.Sprint(i % 2)
	}
	for i := range 8 {
		x, _ := r.join(fmt.Sprint("m", i), nil)
		all = append(all, x)
	}
	for _, x := range all {
		group.Go(func() error { return r.read(x) })
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
	if images := float64(r.origin.sent.Load()) / float64(r.index.BlobSize); images > 2.5 {
		t.Errorf("the origin sent %.1f images to 8 machines", images)
	}
	var got int64
	for _, x := range all {
		got += x.Stats().FromPeers
		if s := x.Stats(); s.Bad > 0 {
			t.Errorf("%+v", s)
		}
	}
	if got < 5*r.index.BlobSize {
		t.Errorf("only %d bytes went from machine to machine", got)
	}
}

func TestWhatCannotStopAnInstall(t *testing.T) {
	t.Parallel()
	final := &client.Error{Status: http.StatusNotFound, Code: wire.CodeNotFound}
	for name, tt := range map[string]struct {
		change func(*Config)
		answer func(string, wire.SwarmAnnounce) (wire.SwarmAnswer, error)
		wait   time.Duration // patience
	}{
		"a server that wants no swarm": {answer: func(string, wire.SwarmAnnounce) (wire.SwarmAnswer, error) {
			return wire.SwarmAnswer{Off: true}, nil
		}},
		"a server that knows of none": {answer: func(string, wire.SwarmAnnounce) (wire.SwarmAnswer, error) { return wire.SwarmAnswer{}, final }},
		"a server that does not answer": {answer: func(string, wire.SwarmAnnounce) (wire.SwarmAnswer, error) {
			return wire.SwarmAnswer{}, errors.New("connection refused")
		}, wait: time.Minute},
		"a server that grants nothing": {answer: func(string, wire.SwarmAnnounce) (wire.SwarmAnswer, error) {
			return wire.SwarmAnswer{AgainMillis: 1000, AskMillis: 1000}, nil
		}, wait: time.Millisecond},
		"a server that grants nonsense": {answer: func(string, wire.SwarmAnnounce) (wire.SwarmAnswer, error) {
			return wire.SwarmAnswer{AgainMillis: 100, Fetch: []int{-1, 1 << 40}}, nil
		}, wait: time.Millisecond},
		"peers that are not there": {answer: func(string, wire.SwarmAnnounce) (wire.SwarmAnswer, error) {
			return wire.SwarmAnswer{AgainMillis: 100, PeersVersion: 1, Peers: []wire.SwarmPeer{{Machine: "x", Address: "127.0.0.1:1"}, {Machine: "y", Address: "nonsense"}}}, nil
		}, wait: time.Millisecond},
		"no port to listen on": {change: func(c *Config) {
			c.Listen = func(context.Context) (net.Listener, error) { return nil, errors.New("no port") }
		}},
		"no certificate": {change: func(c *Config) { c.Certificate = func() *tls.Certificate { return nil } }},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRoom(t, 6)
			r.answer = tt.answer
			c := r.config("m")
			if tt.change != nil {
				tt.change(&c)
			}
			x, err := Join(t.Context(), c, r.index, r.origin, &memory{b: make([]byte, r.index.BlobSize)})
			if err != nil {
				t.Fatal(err)
			}
			if tt.wait > 0 {
				x.patience = tt.wait
			}
			t.Cleanup(x.Leave)
			if err := r.read(x); err != nil {
				t.Fatal(err)
			}
		})
	}
}

func TestTheOriginsLastWordEndsIt(t *testing.T) {
	t.Parallel()
	r := newRoom(t, 3)
	r.origin.err = errors.New("the server does not have image debian")
	x, _ := r.join("m", nil)
	if err := r.read(x); !errors.Is(err, r.origin.err) {
		t.Errorf("%v", err)
	}
}

// liar serves other bytes than it should.
func (r *room) liar(name string) wire.SwarmPeer {
	r.t.Helper()
	cert := r.ca.Issue(machine(name))
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		r.t.Fatal(err)
	}
	server := &http.Server{TLSConfig: &tls.Config{Certificates: []tls.Certificate{*cert}, ClientAuth: tls.RequireAnyClientCert}, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelError),
		Handler: http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
			what := q.URL.Path[strings.LastIndex(q.URL.Path, "/")+1:]
			if what == wire.SwarmHave {
				s := swarm.NewSet(len(r.index.Chunks))
				for i := range r.index.Chunks {
					s.Add(i)
				}
				_, _ = w.Write(s.Bytes())
				return
			}
			var i int
			_, _ = fmt.Sscan(what, &i)
			_, _ = w.Write(make([]byte, r.index.Chunks[i].BlobLength))
		})}
	go func() { _ = server.ServeTLS(l, "", "") }()
	r.t.Cleanup(func() { _ = server.Close() })
	return wire.SwarmPeer{Machine: name, Address: l.Addr().String(), Key: fingerprint(cert.Leaf)}
}

func TestALiarIsFoundOutAndReported(t *testing.T) {
	t.Parallel()
	r := newRoom(t, 20)
	r.origin.slow = 20 * time.Millisecond
	liar := r.liar("liar")
	r.answer = func(_ string, in wire.SwarmAnnounce) (wire.SwarmAnswer, error) {
		a := wire.SwarmAnswer{AgainMillis: 100, AskMillis: 20, PeersVersion: 1, Peers: []wire.SwarmPeer{liar}}
		if len(in.Bad) > 0 || in.Have[0] > 0 {
			for i := range r.index.Chunks {
				a.Fetch = append(a.Fetch, i)
			}
		}
		return a, nil
	}
	x, store := r.join("m", nil)
	if err := r.read(x); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(store.b, r.origin.blob) {
		t.Error("something else than the image is stored")
	}
	reported := false
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, a := range r.said["m"] {
		reported = reported || len(a.Bad) > 0 && a.Bad[0] == "liar"
	}
	if s := x.Stats(); !reported || s.Bad == 0 || s.FromPeers > 0 {
		t.Errorf("reported: %v, %+v", reported, s)
	}
}

func TestWhoIsServed(t *testing.T) {
	t.Parallel()
	r := newRoom(t, 3)
	x, _ := r.join("m", nil)
	if err := r.read(x); err != nil {
		t.Fatal(err)
	}
	other := ca.New(t, "machines")
	key := fingerprint(x.Certificate().Leaf)
	for name, tt := range map[string]struct {
		cert *tls.Certificate
		key  string
		ok   bool
	}{
		"a machine":                                    {r.ca.Issue(machine("b")), key, true},
		"a machine that expected another one":          {r.ca.Issue(machine("b")), "sha256:00", false},
		"a machine of another CA":                      {other.Issue(machine("b")), key, false},
		"a certificate of the CA that is no machine's": {r.ca.Issue(ca.Client("machine:b", "people")), key, false},
		"somebody without a certificate":               {nil, key, false},
	} {
		t.Run(name, func(t *testing.T) {
			c := r.config("b")
			c.Certificate = func() *tls.Certificate { return tt.cert }
			asking := &Exchange{Config: c, ctx: t.Context()}
			asking.Dial = (&net.Dialer{}).DialContext
			p := asking.newPeer(wire.SwarmPeer{Machine: "m", Address: fmt.Sprint("127.0.0.1:", x.port), Key: tt.key})
			defer p.http.CloseIdleConnections()
			b := make([]byte, r.index.Chunks[1].BlobLength)
			err := p.chunk(t.Context(), path(r.index.Blob, "1"), 0, b)
			if (err == nil) != tt.ok {
				t.Errorf("%v", err)
			}
			if tt.ok && r.index.Chunks[1].Verify(b) != nil {
				t.Error("something else than the chunk")
			}
			if !tt.ok {
				return
			}
			for _, what := range []string{"3", "-1", "x", "../have"} {
				if err := p.chunk(t.Context(), path(r.index.Blob, what), 0, b); err == nil {
					t.Errorf("chunk %q is served", what)
				}
			}
			if err := p.chunk(t.Context(), path("sha256:00", "1"), 0, b); err == nil {
				t.Error("another blob is served")
			}
		})
	}
}

func TestAfterTheSealOnlyWhatIsStillRightIsGiven(t *testing.T) {
	t.Parallel()
	r := newRoom(t, 4)
	x, store := r.join("a", nil)
	if err := r.read(x); err != nil {
		t.Fatal(err)
	}
	x.Seal(store)
	c := r.index.Chunks[2]
	store.mu.Lock()
	store.b[c.BlobOffset]++ // the new file system has taken the place
	store.mu.Unlock()
	y, _ := r.join("b", nil)
	if err := r.read(y); err != nil {
		t.Fatal(err)
	}
	if s := y.Stats(); s.Bad > 0 {
		t.Errorf("the machine gave away what was overwritten: %+v", s)
	}
	if n, err := x.store.WriteAt([]byte{1}, 0); err == nil {
		t.Errorf("%d bytes were written after the seal", n)
	}
}

func TestTheRestOfTheSwarmGoesOnWhenAThirdDies(t *testing.T) {
	t.Parallel()
	r := newRoom(t, 120)
	r.origin.slow = 5 * time.Millisecond
	var living, dying []*Exchange
	for i := range 9 {
		x, _ := r.join(fmt.Sprint("m", i), nil)
		if i%3 == 0 {
			dying = append(dying, x)
		} else {
			living = append(living, x)
		}
	}
	var group errgroup.Group
	for _, x := range living {
		group.Go(func() error { return r.read(x) })
	}
	_, _ = dying[0].ReadChunk(t.Context(), r.index.Chunks[40])
	for _, x := range dying {
		x.cancel() // it says nothing any more
		_ = x.server.Close()
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
}
