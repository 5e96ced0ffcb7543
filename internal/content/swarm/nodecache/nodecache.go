// Package nodecache fetches what the nodes of a cluster have in common, programs and the layers of container images, from
// those nodes and the server together, keeps it, and gives it to others as long as the node runs. To its own node it
// gives programs as a source of content, and images by the OCI distribution protocol on a port of the node itself.
//
// Nothing depends on it: what the kit does not have, and everything when there is none, comes from the server alone.
package nodecache

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"coldrack.dev/internal/base/digest"
	"coldrack.dev/internal/base/durable"
	"coldrack.dev/internal/base/retry"
	"coldrack.dev/internal/content/swarm"
	"coldrack.dev/internal/content/swarm/kit"
	"coldrack.dev/internal/content/swarm/peer"
	"coldrack.dev/internal/contract/wire"
)

// Dir is where a node keeps its kit.
const Dir = "/var/lib/coldrack/kit"

const (
	// spare stays free on the file system of the kit.
	spare = 2 << 30
	// patience of whoever wants a program before the kit is known: the server may have to make it first.
	usualPatience = time.Minute
	firstRetry    = time.Second
	lastRetry     = 30 * time.Second
	// again is when a server that has no kit is asked once more.
	again = 10 * time.Minute
)

// Server is the machine API as this package uses it.
type Server interface {
	peer.Server
	Kit(context.Context) (kit.Kit, error)
}

// Source is the server's boot listener.
type Source interface {
	// Copy writes a whole blob.
	Copy(ctx context.Context, what string, c wire.Content, w io.Writer) error
	// Range fetches a part of one.
	Range(ctx context.Context, what, digest string, offset, n int64) ([]byte, error)
}

// Options of a Sharer. All are needed, save Free.
type Options struct {
	Log    *slog.Logger
	Server Server
	// Dir on the node's disk.
	Dir string
	// Exchange is this machine's identity towards others.
	Exchange peer.Config
	// Source at a base address.
	Source func(base string) Source
	// Free says how many bytes a folder's file system has left; nil asks the kernel.
	Free func(dir string) int64
}

// Sharer is a node's part.
type Sharer struct {
	Options
	patience time.Duration

	mu      sync.Mutex
	wish    wish
	changed chan struct{} // closed when the wish changes
	have    *session
	settled chan struct{} // closed when it is known what there is for this wish
}

// wish is what the node's plan says.
type wish struct {
	listen  string // empty: no kit
	base    string // of the server's content
	version string // of Kubernetes, with which the kit changes
}

// session is one kit that is here, or on its way.
type session struct {
	kit    kit.Kit
	chunks []chunk
	*peer.Exchange
}

// New returns a Sharer.
func New(o Options) *Sharer {
	if o.Free == nil {
		o.Free = free
	}
	return &Sharer{Options: o, patience: usualPatience, changed: make(chan struct{}), settled: make(chan struct{})}
}

func free(dir string) int64 {
	var s unix.Statfs_t
	if unix.Statfs(dir, &s) != nil {
		return 0
	}
	return int64(s.Bavail) * s.Bsize
}

// Set says what the node's plan wants; nil ends it.
func (s *Sharer) Set(k *wire.NodeKit, base, version string) {
	next := wish{}
	if k != nil {
		next = wish{k.Listen, base, version}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if next == s.wish {
		return
	}
	s.wish, s.have = next, nil
	close(s.changed)
	s.release() // whoever waits for the old kit does without
	s.changed, s.settled = make(chan struct{}), make(chan struct{})
}

// Run fetches and gives until ctx ends.
func (s *Sharer) Run(ctx context.Context) error {
	for ctx.Err() == nil {
		s.mu.Lock()
		w, changed := s.wish, s.changed
		s.mu.Unlock()
		if w.listen == "" {
			select {
			case <-changed:
			case <-ctx.Done():
			}
			continue
		}
		// A new wish ends what serves the old one.
		inner, cancel := context.WithCancel(ctx)
		stop := make(chan struct{})
		go func() {
			defer close(stop)
			select {
			case <-changed:
			case <-inner.Done():
			}
			cancel()
		}()
		err := s.serve(inner, w)
		if inner.Err() == nil {
			s.Log.Warn("peer distribution unavailable; using the server only", "err", err)
			s.settle(w, nil)
			pause(inner, again)
		}
		cancel()
		<-stop
	}
	return nil
}

// settle says what there is for a wish; nil for nothing.
func (s *Sharer) settle(w wish, have *session) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.wish != w {
		return
	}
	s.have = have
	s.release()
}

// release lets those go on who wait for what there is; needs s.mu.
func (s *Sharer) release() {
	select {
	case <-s.settled:
	default:
		close(s.settled)
	}
}

// serve one wish until ctx ends, or it cannot be served.
func (s *Sharer) serve(ctx context.Context, w wish) error {
	k, err := s.ask(ctx)
	if err != nil {
		return err
	}
	f, whole, err := s.open(k)
	if err != nil {
		return err
	}
	defer f.Close()
	config, index := s.Exchange, k.Index()
	if whole {
		config.Have = swarm.NewSet(len(index.Chunks))
		for i := range index.Chunks {
			config.Have.Add(i)
		}
	}
	x, err := peer.Join(ctx, config, index, origin{k, s.Source(w.base)}, f)
	if err != nil {
		return err
	}
	defer x.Leave()
	have := &session{k, index.Chunks, x}
	s.Log.Info("peer distribution of programs and images started", "kit", k.Digest, "bytes", k.Size(), "here", whole)
	s.settle(w, have)
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", w.listen)
	if err != nil {
		// containerd asks the server then.
		s.Log.Warn("cannot serve images to this node's containerd; it pulls from the server", "listen", w.listen, "err", err)
	} else {
		server := &http.Server{Handler: &images{have, s.Log}, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: time.Minute}
		done := make(chan struct{})
		go func() {
			defer close(done)
			_ = server.Serve(l)
		}()
		defer func() {
			_ = server.Close()
			<-done
		}()
	}
	if !whole {
		if err := s.fetch(ctx, have, f); err != nil {
			if ctx.Err() == nil {
				_ = os.Remove(f.Name()) // the disk may be full of it
			}
			return err
		}
	}
	<-ctx.Done()
	return nil
}

// ask the server for the kit. Trouble that may pass is waited out.
func (s *Sharer) ask(ctx context.Context) (kit.Kit, error) {
	for wait := firstRetry; ; wait = min(2*wait, lastRetry) {
		k, err := s.Server.Kit(ctx)
		if err == nil {
			return k, k.Validate()
		}
		if ctx.Err() != nil || !retry.Transient(err) {
			return kit.Kit{}, err
		}
		pause(ctx, wait+rand.N(wait))
	}
}

// open the place of a kit, and say whether it is there as a whole. What is there of others goes.
func (s *Sharer) open(k kit.Kit) (f *os.File, whole bool, err error) {
	if err := os.MkdirAll(s.Dir, 0o700); err != nil {
		return nil, false, err
	}
	name := digest.Hex(k.Digest)
	entries, err := os.ReadDir(s.Dir)
	if err != nil {
		return nil, false, err
	}
	for _, e := range entries {
		if e.Name() != name {
			if err := os.RemoveAll(filepath.Join(s.Dir, e.Name())); err != nil {
				return nil, false, err
			}
		}
	}
	path := filepath.Join(s.Dir, name)
	if info, err := os.Lstat(path); err == nil && info.Mode().IsRegular() && info.Size() == k.Size() {
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		return f, true, err
	}
	if left := s.Free(s.Dir); left < k.Size()+spare {
		return nil, false, fmt.Errorf("%s: %d MiB are free, and what nodes give each other needs %d MiB, with %d MiB to spare", s.Dir, left>>20, k.Size()>>20, spare>>20)
	}
	f, err = os.OpenFile(path+partial, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	return f, false, err
}

// partial marks a kit of which something is missing.
const partial = ".part"

// fetch waits until everything is here, and makes it last.
func (s *Sharer) fetch(ctx context.Context, have *session, f *os.File) error {
	began := time.Now()
	for _, c := range have.chunks {
		if err := have.Wait(ctx, c); err != nil {
			return err
		}
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := durable.Rename(f.Name(), strings.TrimSuffix(f.Name(), partial)); err != nil {
		return err
	}
	st := have.Stats()
	s.Log.Info("all programs and images of this node are downloaded", "took", time.Since(began).Round(time.Second), "fromNodes", st.FromPeers, "fromServer", st.FromOrigin)
	return nil
}

// origin is the server as it has a kit: blob by blob.
type origin struct {
	kit    kit.Kit
	source Source
}

func (o origin) ReadChunk(ctx context.Context, c chunk) ([]byte, error) {
	var err error
	for range 2 { // damage on the way costs one more fetch
		b := make([]byte, 0, c.BlobLength)
		for _, p := range o.kit.Pieces(c.BlobOffset, c.BlobLength) {
			got, err := o.source.Range(ctx, "a part of "+p.Part.Digest, p.Part.Digest, p.Offset, p.Size)
			if err != nil {
				return nil, err
			}
			b = append(b, got...)
		}
		if err = c.Verify(b); err == nil {
			return b, nil
		}
	}
	return nil, err
}

// Through returns a source of programs that has them from the kit, and what that lacks from the server.
func (s *Sharer) Through(server Source) Through { return Through{s, server} }

// Through is a source of programs.
type Through struct {
	sharer *Sharer
	server Source
}

// Copy writes a blob to w.
func (t Through) Copy(ctx context.Context, what string, c wire.Content, w io.Writer) error {
	b := t.sharer.find(ctx, c.Digest)
	if b == nil || b.part.Size != c.Size {
		return t.server.Copy(ctx, what, c, w)
	}
	n, err := io.Copy(w, b)
	if err == nil || ctx.Err() != nil {
		return err
	}
	if errors.Is(err, errNotHere) {
		t.sharer.Log.Warn("cannot fetch a program from peers; using the server", "program", what, "err", err)
		return t.server.Copy(ctx, what, c, &skipper{w, n})
	}
	return err // of w
}

// find a blob of the kit, once it is known which there is.
func (s *Sharer) find(ctx context.Context, digest string) *blob {
	s.mu.Lock()
	settled, wanted := s.settled, s.wish.listen != ""
	s.mu.Unlock()
	if !wanted {
		return nil
	}
	timer := time.NewTimer(s.patience)
	defer timer.Stop()
	select {
	case <-settled:
	case <-timer.C:
	case <-ctx.Done():
	}
	s.mu.Lock()
	have := s.have
	s.mu.Unlock()
	if have == nil {
		return nil
	}
	return have.open(ctx, digest)
}

// skipper leaves out what was written already.
type skipper struct {
	w    io.Writer
	skip int64
}

func (s *skipper) Write(b []byte) (int, error) {
	n := min(s.skip, int64(len(b)))
	s.skip -= n
	if int(n) == len(b) {
		return len(b), nil
	}
	k, err := s.w.Write(b[n:])
	return int(n) + k, err
}

func pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}
