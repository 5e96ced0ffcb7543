package registry

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"golang.org/x/sync/singleflight"

	"coldrack.dev/internal/base/digest"
	"coldrack.dev/internal/content/imagestore"
)

const (
	// tagAge is for how long a tag is not asked for again. A whole rack asks within it.
	tagAge = 5 * time.Minute
	// manifestTime bounds the fetch of a manifest, with authentication.
	manifestTime = time.Minute
	// maxDownloads run at once; maxWaiting more wait, and what comes beyond is told to come again.
	maxDownloads = 8
	maxWaiting   = 256
)

// retries bridge a hiccup. Nodes ask again by themselves after longer ones.
var retries = remote.Backoff{Duration: 100 * time.Millisecond, Factor: 3, Jitter: 0.1, Steps: 3}

// upstream fetches what the content does not have from other registries, with the credentials that a file has of them, or as anybody. Two
// requests for one thing fetch it once. A fetch goes on when its client goes away: the node will ask again.
type upstream struct {
	hosts     map[string]bool // whether plain HTTP is spoken
	cache     *cache
	transport http.RoundTripper
	// credentials is the file with those of upstreams; empty: there are none.
	credentials string
	log         *slog.Logger
	now         func() time.Time
	counters    *counters

	ctx       context.Context // ends with stop
	cancel    context.CancelFunc
	fetches   sync.WaitGroup
	manifests singleflight.Group
	slots     chan struct{}
	// Times of a transfer; tests make them shorter.
	headerTime, idleTime, wholeTime, firstResume time.Duration

	mu        sync.Mutex
	stopped   bool
	downloads map[string]*download // by source and digest
}

// source is a repository of an upstream.
type source struct{ host, name string }

func (s source) String() string { return s.host + "/" + s.name }

// CheckUpstream tells whether an entry of Options.Upstreams is one.
func CheckUpstream(text string) error {
	_, _, err := parseUpstream(text)
	return err
}

func parseUpstream(text string) (host string, plain bool, err error) {
	bare, plain := strings.CutPrefix(text, "http://")
	host, err = parseHost(bare)
	return host, plain, err
}

func newUpstream(opts Options, counters *counters) (*upstream, error) {
	u := &upstream{
		hosts: map[string]bool{}, credentials: opts.Credentials, log: opts.Log, now: opts.Now, counters: counters,
		slots: make(chan struct{}, maxDownloads), downloads: map[string]*download{},
		headerTime: headerTime, idleTime: idleTime, wholeTime: wholeTime, firstResume: firstResume,
	}
	for _, text := range opts.Upstreams {
		host, plain, err := parseUpstream(text)
		if err != nil {
			return nil, fmt.Errorf("registry upstream: %w", err)
		}
		u.hosts[host] = plain
	}
	if u.now == nil {
		u.now = time.Now
	}
	base := opts.Transport
	if base == nil {
		own := http.DefaultTransport.(*http.Transport).Clone()
		own.ResponseHeaderTimeout = headerTime
		proxy, err := proxyOf(os.Getenv)
		if err != nil {
			return nil, fmt.Errorf("registry upstream: %w", err)
		}
		own.Proxy = proxy
		base = own
	}
	u.transport = careful{base, u.hosts}
	var err error
	if u.cache, err = openCache(opts.CacheDir, opts.CacheBytes, u.now, opts.Pinned); err != nil {
		return nil, err
	}
	u.ctx, u.cancel = context.WithCancel(context.Background())
	return u, nil
}

// stop ends what is being fetched and waits for it.
func (u *upstream) stop() {
	u.mu.Lock()
	u.stopped = true
	u.mu.Unlock()
	u.cancel()
	u.fetches.Wait()
}

// begin registers a fetch, unless the server is stopping.
func (u *upstream) begin() error {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.stopped {
		return refuse(http.StatusServiceUnavailable, codeUnavailable, "the server is stopping")
	}
	u.fetches.Add(1)
	return nil
}

// source says where a repository would be fetched from; false when that is not allowed.
func (u *upstream) source(ns, repository string) (source, bool) {
	s := source{ns, repository}
	if ns == "" {
		host, path, ok := strings.Cut(repository, "/")
		if !ok || !isHost(host) {
			return source{}, false
		}
		s = source{canonicalHost(host), path}
	}
	_, allowed := u.hosts[s.host]
	return s, allowed
}

func (u *upstream) reference(s source, reference string) (name.Reference, error) {
	options := []name.Option{name.StrictValidation}
	if u.hosts[s.host] {
		options = append(options, name.Insecure)
	}
	separator := ":"
	if digest.Valid(reference) {
		separator = "@"
	}
	parsed, err := name.ParseReference(s.String()+separator+reference, options...)
	if err != nil {
		return nil, refuse(http.StatusBadRequest, codeNameInvalid, "%v", err)
	}
	return parsed, nil
}

// manifest returns a manifest from the cache or the upstream. The caller closes the file.
func (u *upstream) manifest(ctx context.Context, s source, reference string) (*os.File, manifest, error) {
	name, stale := reference, ""
	if !digest.Valid(reference) {
		name = ""
		if t, ok := u.cache.tag(s.String() + ":" + reference); ok {
			if stale = t.Digest; u.now().Sub(t.Asked).Abs() < tagAge {
				name = t.Digest
			}
		}
	}
	if file, m, ok := u.cachedManifest(name); ok {
		return file, m, nil
	}
	fetched := u.manifests.DoChan(s.String()+" "+reference, func() (any, error) { return u.fetchManifest(s, reference) })
	select {
	case <-ctx.Done():
		return nil, manifest{}, ctx.Err()
	case result := <-fetched:
		if result.Err == nil {
			name, _ = result.Val.(string)
			if file, m, ok := u.cachedManifest(name); ok {
				return file, m, nil
			}
			return nil, manifest{}, fmt.Errorf("manifest %s of %s is not in the cache although it was just fetched; is the cache too small?", name, s)
		}
		// What a tag stood for last is better than nothing while its registry cannot be reached.
		if file, m, ok := u.cachedManifest(stale); ok {
			u.log.Warn("upstream registry does not answer; serving the cached tag", "image", s.String()+":"+reference, "digest", stale, "err", result.Err)
			return file, m, nil
		}
		return nil, manifest{}, explain(s, codeManifestUnknown, result.Err)
	}
}

// cachedManifest does not take a cached layer for a manifest.
func (u *upstream) cachedManifest(digest string) (*os.File, manifest, bool) {
	file, size, ok := u.cache.open(digest)
	if !ok {
		return nil, manifest{}, false
	}
	m, err := readManifest(file, size, digest) // closes it
	if err != nil {
		return nil, manifest{}, false
	}
	file, _, ok = u.cache.open(digest)
	return file, m, ok
}

func (u *upstream) fetchManifest(s source, reference string) (name string, err error) {
	if err := u.begin(); err != nil {
		return "", err
	}
	defer u.fetches.Done()
	defer func() { u.done(s.String()+" "+reference, err) }()
	ctx, cancel := context.WithTimeout(u.ctx, manifestTime)
	defer cancel()
	parsed, err := u.reference(s, reference)
	if err != nil {
		return "", err
	}
	auth, err := u.authOf(s.host)
	if err != nil {
		return "", err
	}
	found, err := remote.Get(parsed, remote.WithAuth(auth), remote.WithContext(ctx), remote.WithTransport(u.transport), remote.WithRetryBackoff(retries))
	if err != nil {
		return "", err
	}
	u.counters.upstreamReceived.Add(uint64(len(found.Manifest)))
	// Computed here again: nothing comes into the cache under a name that somebody else vouches for.
	name = digest.Of(found.Manifest).String()
	if digest.Valid(reference) && name != reference {
		return "", fmt.Errorf("manifest %s: the upstream sent %s", reference, name)
	}
	if _, err := imagestore.ParseManifest(name, found.Manifest); err != nil {
		return "", err
	}
	d := newDownload(name)
	err = d.run(u.cache, func() (io.ReadCloser, int64, error) {
		return io.NopCloser(bytes.NewReader(found.Manifest)), int64(len(found.Manifest)), nil
	}, func(int) {})
	if err != nil {
		return "", err
	}
	if !digest.Valid(reference) {
		if err := u.cache.putTag(tag{Reference: s.String() + ":" + reference, Digest: name, Asked: u.now()}); err != nil {
			return "", fmt.Errorf("cache of container images: %w", err)
		}
	}
	return name, nil
}

// blob answers with a blob of an upstream, while it comes in if need be.
func (u *upstream) blob(w *recorder, request *http.Request, s source, digest string) error {
	ctx := request.Context()
	if file, _, ok := u.cache.open(digest); ok {
		return send(w, request, file, mediaTypeBlob, digest)
	}
	d, err := u.download(s, digest)
	if err != nil {
		return err
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-d.known:
	}
	if request.Header.Get("Range") != "" {
		// A part is cut out of the whole.
		if err := d.wait(ctx); err != nil {
			return explain(s, codeBlobUnknown, err)
		}
	}
	follower, err := d.follow(ctx)
	if err != nil {
		return explain(s, codeBlobUnknown, err)
	}
	if request.Header.Get("Range") != "" {
		return send(w, request, follower.file, mediaTypeBlob, digest)
	}
	defer follower.Close()
	contentHeaders(w.Header(), mediaTypeBlob, digest)
	w.Header().Set("Content-Length", strconv.FormatInt(d.size, 10))
	w.Header().Set("Accept-Ranges", "bytes")
	w.WriteHeader(http.StatusOK)
	if request.Method == http.MethodHead {
		return nil
	}
	w.isContent = true
	for buffer := make([]byte, 64<<10); ; {
		n, err := follower.Read(buffer)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("fetch from %s: %w", s, err)
		}
		if _, err := w.Write(buffer[:n]); err != nil {
			return nil // the client went away
		}
	}
}

// download returns the running download of a blob, or starts it.
func (u *upstream) download(s source, digest string) (*download, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	key := s.String() + " " + digest
	if d, ok := u.downloads[key]; ok {
		return d, nil
	}
	if u.stopped {
		return nil, refuse(http.StatusServiceUnavailable, codeUnavailable, "the server is stopping")
	}
	if len(u.downloads) >= maxDownloads+maxWaiting {
		return nil, refuse(http.StatusTooManyRequests, codeTooMany, "%d blobs are being fetched or wait for it; ask again", len(u.downloads))
	}
	d := newDownload(digest)
	u.downloads[key] = d
	u.fetches.Go(func() {
		err := d.run(u.cache, func() (io.ReadCloser, int64, error) { return u.openBlob(s, digest) },
			func(n int) { u.counters.upstreamReceived.Add(uint64(n)) })
		u.done(key, err)
		<-u.slots
		u.mu.Lock()
		defer u.mu.Unlock()
		delete(u.downloads, key)
	})
	return d, nil
}

// openBlob asks for a blob as soon as fewer than maxDownloads run. It always takes a slot.
func (u *upstream) openBlob(s source, digest string) (io.ReadCloser, int64, error) {
	u.slots <- struct{}{} // those who hold one end with u.ctx
	reference, err := u.reference(s, digest)
	if err != nil {
		return nil, 0, err
	}
	parsed, ok := reference.(name.Digest)
	if !ok {
		return nil, 0, fmt.Errorf("%s is no digest", digest)
	}
	content := &transfer{upstream: u, host: s.host, blob: parsed}
	content.ctx, content.cancel = context.WithCancelCause(u.ctx)
	if err := content.open(); err != nil {
		content.cancel(nil)
		return nil, 0, err
	}
	return content, content.size, nil
}

func (u *upstream) done(what string, err error) {
	if err != nil {
		u.counters.upstreamFailures.Add(1)
		u.log.Warn("cannot fetch from an upstream registry", "image", what, "err", err)
		return
	}
	u.counters.upstreamFetches.Add(1)
	u.log.Info("fetched content from an upstream registry", "image", what)
}

// explain turns an upstream's answer into one for the client. Registries tell strangers 401 or 403 of what does not
// exist.
func explain(s source, code string, err error) error {
	var refused *refusal
	if errors.As(err, &refused) {
		return err
	}
	var answer *transport.Error
	if errors.As(err, &answer) {
		switch {
		case slices.Contains([]int{http.StatusNotFound, http.StatusUnauthorized, http.StatusForbidden}, answer.StatusCode):
			return refuse(http.StatusNotFound, code, "no imported bundle has it, and %s answers with %d", s.host, answer.StatusCode)
		case answer.StatusCode == http.StatusTooManyRequests:
			return refuse(http.StatusTooManyRequests, codeTooMany, "%s allows no more requests for now", s.host)
		}
	}
	return refuse(http.StatusServiceUnavailable, codeUnavailable, "cannot fetch from %s: %s", s.host, clip(err.Error()))
}

// careful keeps a transport from what an upstream may lead it to: plain HTTP where nobody has asked for it, and manifests
// of any size.
type careful struct {
	base  http.RoundTripper
	hosts map[string]bool
}

func (c careful) RoundTrip(request *http.Request) (*http.Response, error) {
	if request.URL.Scheme != "https" && !c.hosts[canonicalHost(request.URL.Host)] {
		return nil, fmt.Errorf("%s is plain HTTP; to allow it, give the upstream as http://%s", clip(request.URL.Redacted()), clip(request.URL.Host))
	}
	response, err := c.base.RoundTrip(request)
	if err == nil && strings.Contains(request.URL.Path, "/manifests/") {
		response.Body = http.MaxBytesReader(nil, response.Body, maxManifest)
	}
	return response, err
}
