// Package peer fetches the chunks of an image from other machines that install or have installed it, and
// gives them to others, while the server's boot listener, the origin, fills in whatever nobody has.
//
// An Exchange is a diskimage.Source. What to fetch from whom is decided by package swarm; here are the
// connections, the digests and the place where chunks are kept. Every chunk is compared with its digest before it
// is kept, whoever sent it. Machines know each other by the certificates of the machine CA.
//
// It never makes an install depend on others: without the server's word on peers, and for every chunk that does
// not come, it goes to the origin alone.
package peer

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"coldrack.dev/internal/content/diskimage"
	"coldrack.dev/internal/content/swarm"
	"coldrack.dev/internal/contract/wire"
)

// Server brings machines together.
type Server interface {
	Swarm(context.Context, wire.SwarmAnnounce) (wire.SwarmAnswer, error)
}

// Store keeps the stored bytes of a blob at their offsets.
type Store interface {
	io.ReaderAt
	io.WriterAt
}

// Config is what the exchanges of one machine have in common.
type Config struct {
	Log    *slog.Logger
	Server Server
	// Certificate is the one that the server gave this machine, nil when there is none yet; CAs vouch for those
	// of the others. Both are asked for at each connection.
	Certificate func() *tls.Certificate
	CAs         func() *x509.CertPool
	// Listen opens the port for other machines; nil takes any free one.
	Listen func(context.Context) (net.Listener, error)
	// Dial reaches other machines; nil is net.Dialer.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// Limits of what is fetched at once; zero means the usual ones.
	Limits swarm.Limits
	// Have are chunks that the store has already, nil for none. They are compared with their digests before
	// anybody gets them.
	Have *swarm.Set
}

// Patience with what nobody sends. Tests shorten it.
const (
	usualPatience = 10 * time.Second
	// stall is how long a transfer between machines may deliver nothing.
	stall = 5 * time.Second
	// aloneInFlight is how many chunks come from the origin at once when this machine is alone with it.
	aloneInFlight = 3
)

// Stats of an exchange, in stored bytes.
type Stats struct {
	FromPeers, FromOrigin, Given, Wasted int64
	Refused                              int64 // requests answered "busy" to this machine
	Bad                                  int64 // chunks with a wrong digest
}

// Exchange is this machine's part in the distribution of one blob.
type Exchange struct {
	Config
	index  diskimage.Index
	origin diskimage.Source
	number map[int64]int // of a chunk, by its offset in the blob
	port   int
	server *http.Server

	ctx    context.Context
	cancel context.CancelFunc
	group  errgroup.Group
	kick   chan struct{} // the announcer should look whether it is time

	patience time.Duration
	buffers  sync.Pool

	// storing is held shared while something is written to the store, and alone when that ends for good.
	storing sync.RWMutex
	store   Store
	sealed  bool // chunks may have been overwritten since they were kept

	mu         sync.Mutex
	picker     *swarm.Picker
	peers      map[string]*peer
	fetches    map[swarm.Pick]context.CancelFunc
	changed    chan struct{} // closed when a chunk has come
	closed     bool
	done       bool      // fetching: the store takes nothing any more
	lastAt     time.Time // when a chunk came last
	alone      bool      // with the origin, because the server does not bring machines together
	off        bool      // the server wants to hear no more
	fromOrigin int       // in flight
	failures   int       // of announcements, in a row
	known      uint32
	announceAt time.Time
	askAt      time.Time
	returned   []int
	bad        []string
	uploads    int
	bucket     swarm.Bucket
	stats      Stats
	failed     error // the origin's last word
}

// Join begins to fetch the blob of an image into the store. The caller reads chunks by ReadChunk, and ends it by
// Leave, until when this machine serves what it has.
func Join(ctx context.Context, c Config, index diskimage.Index, origin diskimage.Source, store Store) (*Exchange, error) {
	if err := index.Validate(); err != nil {
		return nil, err
	}
	if len(index.Chunks) == 0 || len(index.Chunks) > swarm.MaxChunks {
		return nil, fmt.Errorf("an image of %d chunks cannot be exchanged", len(index.Chunks))
	}
	if c.Limits == (swarm.Limits{}) {
		c.Limits = swarm.UsualLimits()
	}
	if c.Dial == nil {
		c.Dial = (&net.Dialer{Timeout: 3 * time.Second, KeepAlive: 15 * time.Second}).DialContext
	}
	if c.Listen == nil {
		c.Listen = func(ctx context.Context) (net.Listener, error) {
			return (&net.ListenConfig{}).Listen(ctx, "tcp", ":0")
		}
	}
	have := c.Have
	if have == nil {
		have = swarm.NewSet(len(index.Chunks))
	}
	x := &Exchange{
		Config: c, index: index, origin: origin, store: store, number: map[int64]int{}, sealed: c.Have != nil,
		kick: make(chan struct{}, 1), peers: map[string]*peer{}, fetches: map[swarm.Pick]context.CancelFunc{},
		changed: make(chan struct{}), patience: usualPatience, lastAt: time.Now(),
		picker: swarm.NewPicker(have, c.Limits, rand.New(rand.NewPCG(rand.Uint64(), rand.Uint64()))),
	}
	var longest int64
	for i, chunk := range index.Chunks {
		x.number[chunk.BlobOffset] = i
		longest = max(longest, chunk.BlobLength)
	}
	x.buffers.New = func() any {
		b := make([]byte, longest)
		return &b
	}
	x.ctx, x.cancel = context.WithCancel(ctx)
	if err := x.listen(); err != nil {
		// It can still take.
		x.Log.Warn("cannot serve chunks to peers", "err", err)
	}
	x.group.Go(func() error { x.announce(); return nil })
	return x, nil
}

// ReadChunk implements diskimage.Source: it waits until the chunk is here.
func (x *Exchange) ReadChunk(ctx context.Context, c diskimage.Chunk) ([]byte, error) {
	for {
		if err := x.Wait(ctx, c); err != nil {
			return nil, err
		}
		i := x.number[c.BlobOffset]
		b, sealed, err := x.kept(i)
		if err != nil || !sealed || c.Verify(b) == nil {
			return b, err
		}
		x.Log.Warn("local chunk is damaged; fetching it again", "chunk", i)
		x.mu.Lock()
		x.picker.Forget(i)
		x.pump()
		x.mu.Unlock()
	}
}

// Wait until a chunk is here.
func (x *Exchange) Wait(ctx context.Context, c diskimage.Chunk) error {
	i, ok := x.number[c.BlobOffset]
	if !ok || x.index.Chunks[i] != c {
		return fmt.Errorf("chunk at byte %d of the blob is none of this image", c.BlobOffset)
	}
	patience := x.patience + rand.N(x.patience)
	timer := time.NewTimer(patience)
	defer timer.Stop()
	for {
		x.mu.Lock()
		has, changed, failed := x.picker.Have().Has(i), x.changed, x.failed
		x.mu.Unlock()
		switch {
		case has:
			return nil
		case failed != nil:
			return failed
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-x.ctx.Done():
			return errors.New("the exchange has ended")
		case <-changed:
		case <-timer.C:
			timer.Reset(x.insist(i, patience))
		}
	}
}

// insist fetches a chunk from the origin without being told to, when nothing at all has come for as long as the
// patience lasts; what is on its way gets more time. It returns when to look again.
func (x *Exchange) insist(i int, patience time.Duration) time.Duration {
	x.mu.Lock()
	defer x.mu.Unlock()
	quiet := time.Since(x.lastAt)
	if x.picker.Flying(i) {
		patience *= 3
	}
	if quiet < patience {
		return patience - quiet
	}
	if x.fetchOrigin(i) {
		x.Log.Info("no chunk from peers for a while; using the server", "chunk", i, "quiet", quiet.Round(time.Second))
	}
	return patience
}

// kept reads a chunk that is in the store.
func (x *Exchange) kept(i int) (b []byte, sealed bool, err error) {
	c := x.index.Chunks[i]
	b = make([]byte, c.BlobLength)
	x.storing.RLock()
	defer x.storing.RUnlock()
	if n, err := x.store.ReadAt(b, c.BlobOffset); n < len(b) {
		return nil, false, fmt.Errorf("read back a stored chunk: %w", err)
	}
	return b, x.sealed, nil
}

// keep verifies a chunk and stores it.
func (x *Exchange) keep(i int, b []byte) error {
	if err := x.index.Chunks[i].Verify(b); err != nil {
		return err
	}
	x.storing.RLock()
	defer x.storing.RUnlock()
	if _, over := x.store.(readOnly); over {
		return nil // a second copy of what has come already
	}
	if _, err := x.store.WriteAt(b, x.index.Chunks[i].BlobOffset); err != nil {
		return &storeError{err}
	}
	return nil
}

// storeError is this machine's own fault, not that of whoever sent the chunk.
type storeError struct{ error }

func (e *storeError) Unwrap() error { return e.error }

// Seal ends all writing to the store and goes on serving from another view of it, from which chunks may vanish:
// each is compared with its digest again whenever it is given away. It must not be called before everything is here.
func (x *Exchange) Seal(store io.ReaderAt) {
	x.mu.Lock()
	x.done = true
	x.mu.Unlock()
	x.storing.Lock()
	defer x.storing.Unlock()
	x.store, x.sealed = readOnly{store}, true
}

type readOnly struct{ io.ReaderAt }

func (readOnly) WriteAt([]byte, int64) (int, error) {
	return 0, errors.New("the exchange is sealed")
}

// arrived records a chunk that keep has stored, from a peer or, with the empty name, from the origin.
func (x *Exchange) arrived(i int, from string, bytes int64) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.picker.Have().Has(i) {
		x.stats.Wasted += bytes
	}
	x.lastAt = time.Now()
	for _, other := range x.picker.Arrived(x.lastAt, i, from) {
		if cancel := x.fetches[other]; cancel != nil {
			cancel()
		}
	}
	if from == "" {
		x.stats.FromOrigin += bytes
		if !x.alone {
			x.announceAt = time.Time{} // another may have the origin's time now
		}
	} else {
		x.stats.FromPeers += bytes
	}
	close(x.changed)
	x.changed = make(chan struct{})
	x.pump()
}

// pump begins whatever may be begun; needs x.mu.
func (x *Exchange) pump() {
	for !x.closed && !x.done {
		pick, ok := x.picker.Next(time.Now())
		if !ok {
			break
		}
		x.fetch(pick)
	}
	if x.alone && !x.done {
		have := x.picker.Have()
		for i := 0; i < have.Size() && x.fromOrigin < aloneInFlight; i++ {
			if !have.Has(i) && !x.picker.Flying(i) {
				x.fetchOrigin(i)
			}
		}
	}
	select {
	case x.kick <- struct{}{}:
	default:
	}
}

// fetchOrigin begins to fetch a chunk from the origin; needs x.mu.
func (x *Exchange) fetchOrigin(i int) bool {
	if x.closed || x.done || !x.picker.Reserve(time.Now(), i) {
		return false
	}
	ctx, cancel := context.WithCancel(x.ctx)
	pick := swarm.Pick{Chunk: i}
	x.fetches[pick] = cancel
	x.fromOrigin++
	x.group.Go(func() error {
		b, err := x.origin.ReadChunk(ctx, x.index.Chunks[i])
		if err == nil {
			err = x.keep(i, b)
		}
		cancelled := ctx.Err() != nil
		cancel()
		x.mu.Lock()
		delete(x.fetches, pick)
		x.fromOrigin--
		if err != nil {
			x.picker.Release(i)
			if !x.alone {
				x.returned = append(x.returned, i)
			}
			if !cancelled {
				x.fail(err)
			}
		}
		x.mu.Unlock()
		if err == nil {
			x.arrived(i, "", int64(len(b)))
		}
		return nil
	})
	return true
}

// fail ends the exchange for its reader, because the origin says so or the disk does; needs x.mu. The origin itself
// waits out what may pass.
func (x *Exchange) fail(err error) {
	if x.failed == nil {
		x.failed = err
		close(x.changed)
		x.changed = make(chan struct{})
	}
}

// Stats so far.
func (x *Exchange) Stats() Stats {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.stats
}

// Complete says whether everything is here.
func (x *Exchange) Complete() bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.picker.Have().Full()
}

// Leave tells the server, stops serving and waits until nothing uses the store any more.
func (x *Exchange) Leave() {
	x.mu.Lock()
	announced := x.announcement()
	x.closed = true
	off := x.off
	x.mu.Unlock()
	if x.ctx.Err() == nil && !off {
		announced.Leaving = true
		ctx, cancel := context.WithTimeout(x.ctx, 2*time.Second)
		_, _ = x.Server.Swarm(ctx, announced) // else it finds out by itself
		cancel()
	}
	x.cancel()
	if x.server != nil {
		_ = x.server.Close()
	}
	_ = x.group.Wait()
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, p := range x.peers {
		p.http.CloseIdleConnections()
	}
}
