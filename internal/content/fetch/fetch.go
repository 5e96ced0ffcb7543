// Package fetch gets blobs by digest from the boot listener: plain HTTP, where nothing is trusted
// until its digest has been compared. It knows what to try again and what is lost for good.
package fetch

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	"coldrack.dev/internal/base/digest"
	"coldrack.dev/internal/base/retry"
	"coldrack.dev/internal/content/diskimage"
	"coldrack.dev/internal/contract/wire"
)

// Source is one listener that has blobs.
type Source struct {
	base string
	http *http.Client
	// tell is called before each retry; nil for none.
	tell func(what string, err error, wait time.Duration)
	// stall is how long a transfer may deliver nothing.
	stall time.Duration
}

// New returns a source at a base address such as http://10.0.0.1:8080.
func New(base, agent string, tell func(what string, err error, wait time.Duration)) *Source {
	if tell == nil {
		tell = func(string, error, time.Duration) {}
	}
	return &Source{
		base: strings.TrimSuffix(base, "/"), tell: tell, stall: 20 * time.Second,
		http: &http.Client{Transport: agentName{agent, &http.Transport{
			DialContext:           (&net.Dialer{Timeout: 10 * time.Second, KeepAlive: 15 * time.Second}).DialContext,
			ResponseHeaderTimeout: 20 * time.Second,
			MaxIdleConnsPerHost:   8,
			IdleConnTimeout:       30 * time.Second,
			DisableCompression:    true, // a digest is of the bytes as they are
		}}},
	}
}

type agentName struct {
	name string
	http.RoundTripper
}

func (a agentName) RoundTrip(r *http.Request) (*http.Response, error) {
	r.Header.Set("User-Agent", a.name)
	return a.RoundTripper.RoundTrip(r)
}

// MissingError says that the server does not have what a plan names.
type MissingError struct {
	What, Digest string
	Status       int
}

func (e *MissingError) Error() string {
	return fmt.Sprintf("the server does not have %s (%s; it answered %d): import the bundle that contains it, then install again", e.What, e.Digest, e.Status)
}

// DigestError says that what arrived is, twice, not what was asked for.
type DigestError struct{ What, Want, Got string }

func (e *DigestError) Error() string {
	return fmt.Sprintf("%s arrived damaged twice: digest is %s, want %s; the server's copy is damaged, or something between it and this machine alters data. To repair the copy: coldrack bundle import --again FILE", e.What, e.Got, e.Want)
}

// Get fetches a whole blob of at most limit bytes. Trouble of the network is waited out.
func (s *Source) Get(ctx context.Context, what string, c wire.Content, limit int64) ([]byte, error) {
	if c.Size <= 0 || c.Size > limit {
		return nil, fmt.Errorf("%s has %d bytes, want 1 to %d", what, c.Size, limit)
	}
	var got string
	for range 2 {
		b, err := s.fetch(ctx, what, c.Digest, 0, c.Size)
		if err != nil {
			return nil, err
		}
		if got = digest.Of(b).String(); got == c.Digest {
			return b, nil
		}
		s.tell(what, errors.New("it arrived damaged"), 0)
	}
	return nil, &DigestError{what, c.Digest, got}
}

// Blob is a file of stored chunks; it is a diskimage.Source.
func (s *Source) Blob(what, digest string) diskimage.Source { return blob{s, what, digest} }

type blob struct {
	*Source
	what, digest string
}

// ReadChunk verifies here already, so that damage on the way costs one more fetch and not the install.
func (b blob) ReadChunk(ctx context.Context, c diskimage.Chunk) ([]byte, error) {
	what := fmt.Sprintf("%s at byte %d", b.what, c.BlobOffset)
	var err error
	for range 2 {
		var got []byte
		if got, err = b.fetch(ctx, what, b.digest, c.BlobOffset, c.BlobLength); err != nil {
			return nil, err
		}
		if err = c.Verify(got); err == nil {
			return got, nil
		}
		b.tell(what, err, 0)
	}
	var wrong *diskimage.DigestError
	if errors.As(err, &wrong) {
		return nil, &DigestError{what, wrong.Want, wrong.Got}
	}
	return nil, err
}

// Range fetches a part of a blob, which nobody has compared with anything.
func (s *Source) Range(ctx context.Context, what, digest string, offset, n int64) ([]byte, error) {
	return s.fetch(ctx, what, digest, offset, n)
}

// fetch gets n bytes at offset and tries for ever, as long as trying makes sense.
func (s *Source) fetch(ctx context.Context, what, digest string, offset, n int64) ([]byte, error) {
	var out []byte
	err := retry.Do(ctx, func(err error, wait time.Duration) { s.tell(what, err, wait) }, func(ctx context.Context) error {
		var err error
		out, err = s.once(ctx, what, digest, offset, n)
		return err
	})
	return out, err
}

func (s *Source) once(ctx context.Context, what, digest string, offset, n int64) ([]byte, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	url := s.base + "/content/" + strings.Replace(digest, ":", "/", 1)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, fmt.Errorf("fetch %s: %w", what, err)
	}
	req.Header.Set("Range", fmt.Sprintf("bytes=%d-%d", offset, offset+n-1))
	resp, err := s.http.Do(req)
	if err != nil {
		return nil, fmt.Errorf("fetch %s: %w", what, err)
	}
	defer resp.Body.Close()
	switch {
	case resp.StatusCode == http.StatusPartialContent && strings.HasPrefix(resp.Header.Get("Content-Range"), fmt.Sprintf("bytes %d-%d/", offset, offset+n-1)):
	case resp.StatusCode == http.StatusOK && offset == 0: // a server without ranges, or the whole of a small blob
	case resp.StatusCode == http.StatusNotFound, resp.StatusCode == http.StatusGone, resp.StatusCode == http.StatusRequestedRangeNotSatisfiable:
		return nil, final{&MissingError{what, digest, resp.StatusCode}}
	default:
		return nil, fmt.Errorf("fetch %s: the server answered %s", what, resp.Status)
	}
	watchdog := time.AfterFunc(s.stall, func() { cancel(fmt.Errorf("nothing arrived for %s", s.stall)) })
	defer watchdog.Stop()
	buf := make([]byte, n)
	if _, err := io.ReadFull(&watched{resp.Body, watchdog, s.stall}, buf); err != nil {
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		return nil, fmt.Errorf("fetch %s: %w", what, err)
	}
	return buf, nil
}

// final makes an error one that retry.Do does not try again.
type final struct{ error }

func (f final) Unwrap() error { return f.error }

// Final is seen by retry.Transient.
func (final) Final() bool { return true }

type watched struct {
	r     io.Reader
	timer *time.Timer
	every time.Duration
}

func (w *watched) Read(p []byte) (int, error) {
	n, err := w.r.Read(p)
	if n > 0 {
		w.timer.Reset(w.every)
	}
	return n, err
}

// piece is how much Copy fetches at once, and so what a broken connection costs at most.
const piece = 4 << 20

// Copy fetches a blob of any size piece by piece and writes it to w. What w got is right only when Copy returns
// nil: the digest is known at the end. Trouble of the network is waited out.
func (s *Source) Copy(ctx context.Context, what string, c wire.Content, w io.Writer) error {
	h := sha256.New()
	for offset := int64(0); offset < c.Size; offset += piece {
		b, err := s.fetch(ctx, what, c.Digest, offset, min(piece, c.Size-offset))
		if err != nil {
			return err
		}
		h.Write(b)
		if _, err := w.Write(b); err != nil {
			return err
		}
	}
	if got := digest.Sum(h).String(); got != c.Digest {
		return fmt.Errorf("%s arrived damaged: digest is %s, want %s", what, got, c.Digest)
	}
	return nil
}
