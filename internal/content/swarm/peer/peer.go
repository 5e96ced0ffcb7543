package peer

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"coldrack.dev/internal/base/digest"
	"coldrack.dev/internal/content/swarm"
	"coldrack.dev/internal/contract/wire"
)

// peer is another machine as this one sees it.
type peer struct {
	wire.SwarmPeer
	http      *http.Client
	ctx       context.Context
	forget    context.CancelFunc
	listening bool
}

func (x *Exchange) newPeer(w wire.SwarmPeer) *peer {
	p := &peer{SwarmPeer: w}
	p.ctx, p.forget = context.WithCancel(x.ctx)
	p.http = &http.Client{
		Transport: &http.Transport{
			DialContext: x.Dial, TLSHandshakeTimeout: stall, ResponseHeaderTimeout: stall, IdleConnTimeout: 30 * time.Second,
			MaxIdleConnsPerHost: 2, DisableCompression: true,
			TLSClientConfig: &tls.Config{
				MinVersion: tls.VersionTLS13, NextProtos: []string{"http/1.1"},
				// A machine's certificate has no name of a host: it is known by its key.
				InsecureSkipVerify: true,
				VerifyConnection: func(cs tls.ConnectionState) error {
					leaf, err := x.verify(cs)
					if err != nil {
						return err
					}
					if got := fingerprint(leaf); got != w.Key {
						return fmt.Errorf("whoever answers at %s is not machine %s: its key is %s, want %s", w.Address, w.Machine, got, w.Key)
					}
					return nil
				},
				GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
					if c := x.Certificate(); c != nil {
						return c, nil
					}
					return &tls.Certificate{}, nil
				},
			},
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	return p
}

// organizations are those of certificates of machines. The texts are part of the contract with nodes in the field.
func organizations() []string { return []string{"coldrack:session", "coldrack:node"} }

// verify accepts a machine's certificate of the machine CA, on either side of a connection.
func (x *Exchange) verify(cs tls.ConnectionState) (*x509.Certificate, error) {
	if len(cs.PeerCertificates) == 0 {
		return nil, errors.New("the other machine shows no certificate")
	}
	leaf := cs.PeerCertificates[0]
	if _, err := leaf.Verify(x509.VerifyOptions{Roots: x.CAs(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil {
		return nil, fmt.Errorf("certificate of the other machine (%s): %w", leaf.Subject, err)
	}
	if len(leaf.Subject.Organization) != 1 || !slices.Contains(organizations(), leaf.Subject.Organization[0]) {
		return nil, fmt.Errorf("a certificate of %v is none of a machine", leaf.Subject.Organization)
	}
	return leaf, nil
}

func fingerprint(c *x509.Certificate) string {
	return digest.Of(c.RawSubjectPublicKeyInfo).String()
}

// path of something of a blob.
func path(digest, what string) string {
	return wire.SwarmChunks + strings.Replace(digest, ":", "/", 1) + "/" + what
}

func (p *peer) get(ctx context.Context, path string, count int) (*http.Response, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+p.Address+path, nil)
	if err != nil {
		return nil, err
	}
	if count >= 0 {
		r.Header.Set(wire.HeaderSwarmCount, strconv.Itoa(count))
	}
	return p.http.Do(r)
}

// have asks what the peer has: more than count chunks, or whatever it is after wait.
func (p *peer) have(ctx context.Context, digest string, chunks, count int, wait time.Duration) (*swarm.Set, int, error) {
	ctx, cancel := context.WithTimeout(ctx, wait+stall)
	defer cancel()
	resp, err := p.get(ctx, path(digest, wire.SwarmHave)+fmt.Sprintf("?count=%d&wait=%d", count, wait.Milliseconds()), -1)
	if err != nil {
		return nil, 0, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, 0, fmt.Errorf("it answers %s", resp.Status)
	}
	b, err := io.ReadAll(io.LimitReader(resp.Body, swarm.MaxChunks/8+1))
	if err != nil {
		return nil, 0, err
	}
	has, err := swarm.ParseSet(b, chunks)
	return has, load(resp), err
}

func load(resp *http.Response) int {
	n, err := strconv.Atoi(resp.Header.Get(wire.HeaderSwarmLoad))
	if err != nil || n < 0 || n > 1000 {
		return 0
	}
	return n
}

// fetch begins to fetch a chunk from a peer; needs x.mu.
func (x *Exchange) fetch(pick swarm.Pick) {
	p := x.peers[pick.Peer]
	if p == nil { // cannot be: both lists are set together
		x.picker.Failed(time.Now(), pick, swarm.Broken)
		return
	}
	ctx, cancel := context.WithCancel(p.ctx)
	x.fetches[pick] = cancel
	mine := x.picker.Have().Count()
	x.group.Go(func() error {
		buf := x.buffers.Get().(*[]byte)
		defer x.buffers.Put(buf)
		b := (*buf)[:x.index.Chunks[pick.Chunk].BlobLength]
		err := p.chunk(ctx, path(x.index.Blob, strconv.Itoa(pick.Chunk)), mine, b)
		if err == nil {
			err = x.keep(pick.Chunk, b)
			if own := (*storeError)(nil); err != nil && !errors.As(err, &own) {
				err = &peerError{swarm.Bad, err}
			}
		}
		cancelled := ctx.Err() != nil
		cancel()
		x.mu.Lock()
		delete(x.fetches, pick)
		if err != nil {
			x.ended(pick, err, cancelled)
		}
		x.mu.Unlock()
		if err == nil {
			x.arrived(pick.Chunk, pick.Peer, int64(len(b)))
		}
		return nil
	})
}

// ended takes in why a chunk did not come; needs x.mu.
func (x *Exchange) ended(pick swarm.Pick, err error, cancelled bool) {
	why := swarm.Broken
	if e := (*peerError)(nil); errors.As(err, &e) {
		why = e.why
	}
	own := (*storeError)(nil)
	switch {
	case errors.As(err, &own):
		x.fail(fmt.Errorf("keep chunk %d for other machines: %w", pick.Chunk, err))
	case cancelled:
	case why == swarm.Bad:
		x.Log.Error("peer sent a damaged chunk; ignoring this peer", "peer", pick.Peer, "chunk", pick.Chunk, "err", err)
		x.bad = append(x.bad, pick.Peer)
		x.stats.Bad++
		x.announceAt = time.Time{}
	case why == swarm.Busy:
		x.stats.Refused++
	default:
		x.Log.Debug("cannot fetch a chunk from a peer", "peer", pick.Peer, "chunk", pick.Chunk, "err", err)
	}
	x.picker.Failed(time.Now(), pick, why)
	if x.closed {
		return
	}
	x.pump()
	if why == swarm.Busy && x.picker.Starving() {
		// Nothing else may happen that would make it try again.
		x.group.Go(func() error {
			sleep(x.ctx, 20*time.Millisecond)
			x.mu.Lock()
			defer x.mu.Unlock()
			x.pump()
			return nil
		})
	}
}

type peerError struct {
	why swarm.Failure
	error
}

func (e *peerError) Unwrap() error { return e.error }

// chunk reads one chunk into b.
func (p *peer) chunk(ctx context.Context, path string, mine int, b []byte) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	watchdog := time.AfterFunc(2*stall, func() { cancel(fmt.Errorf("nothing arrived for %s", stall)) })
	defer watchdog.Stop()
	resp, err := p.get(ctx, path, mine)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	switch resp.StatusCode {
	case http.StatusOK:
	case http.StatusServiceUnavailable:
		_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, 4096)) // so that the connection can be used again
		return &peerError{swarm.Busy, errors.New("it is busy")}
	case http.StatusNotFound:
		_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, 4096))
		return &peerError{swarm.Missing, errors.New("it does not have the chunk")}
	default:
		return fmt.Errorf("it answers %s", resp.Status)
	}
	for n := 0; n < len(b); {
		watchdog.Reset(stall)
		k, err := resp.Body.Read(b[n:])
		if n += k; n < len(b) && err != nil {
			return fmt.Errorf("after %d of %d bytes: %w", n, len(b), err)
		}
	}
	if k, _ := resp.Body.Read(make([]byte, 1)); k > 0 {
		return &peerError{swarm.Bad, errors.New("it sends more than the chunk")}
	}
	return nil
}
