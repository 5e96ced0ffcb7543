package peer

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"hash"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"coldrack.dev/internal/base/digest"
	"coldrack.dev/internal/content/swarm"
	"coldrack.dev/internal/contract/wire"
)

// longestHave is how long the answer to what is there may be held back.
const longestHave = 5 * time.Second

// listen opens this machine's port and serves other machines on it.
func (x *Exchange) listen() error {
	l, err := x.Listen(x.ctx)
	if err != nil {
		return err
	}
	at, ok := l.Addr().(*net.TCPAddr)
	if !ok {
		return errors.Join(errors.New("not a TCP port"), l.Close())
	}
	x.port = at.Port
	x.server = &http.Server{
		Handler: http.HandlerFunc(x.serve),
		TLSConfig: &tls.Config{
			MinVersion: tls.VersionTLS13, NextProtos: []string{"http/1.1"},
			GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
				if c := x.Certificate(); c != nil {
					return c, nil
				}
				return nil, errors.New("this machine has no certificate yet")
			},
			ClientAuth: tls.RequireAnyClientCert,
			VerifyConnection: func(cs tls.ConnectionState) error {
				_, err := x.verify(cs)
				return err
			},
		},
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			if err := shallow(c); err != nil {
				x.Log.Debug("cannot limit a connection's send queue", "err", err)
			}
			return ctx
		},
		ReadHeaderTimeout: 10 * time.Second, ReadTimeout: 30 * time.Second, IdleTimeout: time.Minute, MaxHeaderBytes: 8 << 10,
		ErrorLog: slog.NewLogLogger(x.Log.Handler(), slog.LevelDebug),
	}
	x.group.Go(func() error {
		_ = x.server.ServeTLS(l, "", "") // ends with Leave
		return nil
	})
	return nil
}

// unsent bytes of a connection that the kernel takes in advance. Without a limit it takes whole chunks: a machine
// would look idle with seconds of data queued, and everybody would go on asking it.
const unsent = 32 << 10

func shallow(c net.Conn) error {
	if t, ok := c.(*tls.Conn); ok {
		c = t.NetConn()
	}
	t, ok := c.(*net.TCPConn)
	if !ok {
		return nil
	}
	raw, err := t.SyscallConn()
	if err != nil {
		return err
	}
	var set error
	err = raw.Control(func(fd uintptr) {
		set = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, unsent)
	})
	return errors.Join(err, set)
}

func (x *Exchange) serve(w http.ResponseWriter, r *http.Request) {
	what, ok := strings.CutPrefix(r.URL.Path, path(x.index.Blob, ""))
	if !ok || r.Method != http.MethodGet {
		http.NotFound(w, r)
		return
	}
	if what == wire.SwarmHave {
		x.serveHave(w, r)
		return
	}
	i, err := strconv.Atoi(what)
	if err != nil || i < 0 || i >= len(x.index.Chunks) {
		http.NotFound(w, r)
		return
	}
	theirs, _ := strconv.Atoi(r.Header.Get(wire.HeaderSwarmCount))
	x.mu.Lock()
	have := x.picker.Have()
	has := have.Has(i)
	admitted := has && !x.closed && swarm.Admit(x.uploads, swarm.UsualSlots, have.Count(), theirs)
	if admitted {
		x.uploads++
	}
	x.mu.Unlock()
	switch {
	case !has:
		http.NotFound(w, r)
		return
	case !admitted:
		http.Error(w, "busy", http.StatusServiceUnavailable)
		return
	}
	defer func() {
		x.mu.Lock()
		x.uploads--
		x.mu.Unlock()
	}()
	if !x.give(w, r, i) {
		// An answer that is too short is an accident; one with another digest would be held against this machine.
		panic(http.ErrAbortHandler)
	}
}

func (x *Exchange) serveHave(w http.ResponseWriter, r *http.Request) {
	q, err := url.ParseQuery(r.URL.RawQuery)
	count, errCount := strconv.Atoi(q.Get("count"))
	wait, errWait := strconv.Atoi(q.Get("wait"))
	if err != nil || errCount != nil || errWait != nil {
		http.Error(w, "count and wait are numbers", http.StatusBadRequest)
		return
	}
	timer := time.NewTimer(min(time.Duration(max(wait, 0))*time.Millisecond, longestHave))
	defer timer.Stop()
	for over := wait <= 0; ; {
		x.mu.Lock()
		have, changed, load := x.picker.Have(), x.changed, x.uploads
		var b []byte
		if over || have.Count() > count {
			b = have.Bytes()
		}
		x.mu.Unlock()
		if b != nil {
			w.Header().Set("Content-Type", "application/octet-stream")
			w.Header().Set(wire.HeaderSwarmLoad, strconv.Itoa(load))
			_, _ = w.Write(b)
			return
		}
		select {
		case <-changed:
		case <-timer.C:
			over = true
		case <-x.ctx.Done():
			return
		case <-r.Context().Done():
			return
		}
	}
}

// piece is how much of a chunk is read, charged and written at once: all that an upload has in memory.
const piece = 128 << 10

// give sends a chunk. Where the store may have been overwritten the last piece is held back until the digest is
// known to be right; elsewhere the taker's comparison is enough.
func (x *Exchange) give(w http.ResponseWriter, r *http.Request, i int) bool {
	c := x.index.Chunks[i]
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Content-Length", strconv.FormatInt(c.BlobLength, 10))
	control := http.NewResponseController(w)
	var h hash.Hash
	x.storing.RLock()
	if x.sealed {
		h = sha256.New()
	}
	x.storing.RUnlock()
	buf := make([]byte, min(piece, c.BlobLength))
	for at := int64(0); at < c.BlobLength; at += int64(len(buf)) {
		buf = buf[:min(int64(len(buf)), c.BlobLength-at)]
		x.storing.RLock()
		n, err := x.store.ReadAt(buf, c.BlobOffset+at)
		sealed := x.sealed
		x.storing.RUnlock()
		if n < len(buf) {
			x.Log.Warn("cannot read a chunk for a peer", "chunk", i, "err", err)
			return false
		}
		switch {
		case h != nil:
			_, _ = h.Write(buf)
			if last := at+int64(len(buf)) == c.BlobLength; last && digest.Sum(h).String() != c.Digest {
				x.mu.Lock()
				x.picker.Forget(i)
				x.mu.Unlock()
				return false
			}
		case sealed:
			return false // meanwhile: whoever asks again gets it, or learns that it is gone
		}
		x.mu.Lock()
		wait := x.bucket.Take(time.Now(), len(buf))
		x.mu.Unlock()
		if wait > 0 {
			sleep(r.Context(), wait)
		}
		_ = control.SetWriteDeadline(time.Now().Add(2 * stall))
		if _, err := w.Write(buf); err != nil {
			return false
		}
	}
	x.mu.Lock()
	x.stats.Given += c.BlobLength
	x.mu.Unlock()
	return true
}
