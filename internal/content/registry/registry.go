// Package registry serves container images by the OCI distribution specification v1.1. Nothing can be written through it,
// but by those that Writable lets in.
//
// It stands in for every registry that images are named after: containerd sends the registry that it would
// have asked in the query parameter ns, and so unmodified manifests work. A client that sends none gives the
// registry as the first part of the repository's name, or leaves it out where only one registry has such a
// repository.
//
// With Upstreams, images that are not in the content are fetched from the registries that are named there, verified,
// and kept in a bounded cache (see upstream.go).
package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"coldrack.dev/internal/base/digest"
	"coldrack.dev/internal/content/imagestore"
)

// Image is a container image of the content: its manifest, and the full name with tag that it is pulled by,
// for example registry.k8s.io/pause:3.10.2.
type Image struct {
	Name   string
	Digest string // of the manifest
}

// Content is where images come from. Its blobs may hold more than images; only what the manifests of
// images refer to is served.
type Content interface {
	// Images lists all images. Of several with one name the first is what the tag stands for; the others are
	// found by their digest.
	Images() []Image
	// Open returns a blob and its size.
	Open(digest string) (*os.File, int64, error)
}

// Options are what a Registry needs. Content and Log must be set.
type Options struct {
	Content Content
	Log     *slog.Logger
	// Local holds images that were loaded or pushed; nil: there are none.
	Local *imagestore.Store
	// Changed is called when a tag has come to stand for another image in Local, or for none; may be nil.
	Changed func()
	// Upstreams are the registries that what is missing may be fetched from: host names as in images' names,
	// for example docker.io or registry.example.org:5000. Plain HTTP is spoken only with those that are
	// given as http://HOST. None: nothing is fetched.
	Upstreams []string
	// Credentials is a file with names and passwords of upstreams (see ReadCredentials); empty: all are asked as anybody.
	Credentials string
	// CacheDir holds what was fetched, CacheBytes at most. Both are needed with Upstreams.
	CacheDir   string
	CacheBytes int64
	// Pinned are the full names of images that the cache keeps; nil: none is.
	Pinned func() []string
	// Transport reaches upstreams; nil means http.DefaultTransport.
	Transport http.RoundTripper
	// Now is the clock; nil means time.Now.
	Now func() time.Time
}

// Stats counts since the start.
type Stats struct {
	Requests   uint64
	BadRequest uint64 // answered with 4xx
	Failed     uint64 // answered with 5xx, or cut off because what was sent turned out wrong
	Bytes      uint64 // of manifests and blobs that were sent
	// Of upstreams: what was fetched whole, what failed, and the bytes that came, good or bad.
	UpstreamFetches  uint64
	UpstreamFailures uint64
	UpstreamBytes    uint64
	// Cached bytes now.
	Cached uint64
}

type counters struct {
	requests, badRequest, failed, bytes                 atomic.Uint64
	upstreamFetches, upstreamFailures, upstreamReceived atomic.Uint64
}

// Registry answers requests below /v2/. It is an http.Handler.
type Registry struct {
	images   *images
	local    *imagestore.Store // nil: nothing can be written
	changed  func()
	upstream *upstream // nil: nothing is fetched
	log      *slog.Logger
	counters counters
}

// New returns a Registry. With Upstreams, Run must run.
func New(opts Options) (*Registry, error) {
	r := &Registry{images: newImages(opts.Content, opts.Local), local: opts.Local, changed: opts.Changed, log: opts.Log}
	if r.changed == nil {
		r.changed = func() {}
	}
	if len(opts.Upstreams) == 0 {
		return r, nil
	}
	var err error
	r.upstream, err = newUpstream(opts, &r.counters)
	return r, err
}

// Run waits for the end of ctx and then for fetches from upstreams, which it ends.
func (r *Registry) Run(ctx context.Context) error {
	<-ctx.Done()
	if r.upstream != nil {
		r.upstream.stop()
	}
	return nil
}

// Stats returns present counts.
func (r *Registry) Stats() Stats {
	s := Stats{
		Requests: r.counters.requests.Load(), BadRequest: r.counters.badRequest.Load(), Failed: r.counters.failed.Load(),
		Bytes: r.counters.bytes.Load(), UpstreamFetches: r.counters.upstreamFetches.Load(),
		UpstreamFailures: r.counters.upstreamFailures.Load(), UpstreamBytes: r.counters.upstreamReceived.Load(),
	}
	if r.upstream != nil {
		s.Cached = uint64(r.upstream.cache.size())
	}
	return s
}

func (r *Registry) ServeHTTP(w http.ResponseWriter, request *http.Request) { r.serve(w, request, nil) }

// serve answers a request; without an Access, only those that read.
func (r *Registry) serve(w http.ResponseWriter, request *http.Request, s *Access) {
	began := time.Now()
	r.counters.requests.Add(1)
	counted := &recorder{ResponseWriter: w, status: http.StatusOK}
	// Some clients look at it before anything else.
	counted.Header().Set("Docker-Distribution-API-Version", "registry/2.0")
	err := r.answer(counted, request, s)
	var refused *refusal
	if err != nil && !errors.As(err, &refused) {
		refused = &refusal{http.StatusInternalServerError, codeUnknown, "the server failed to answer; its log says why"}
		if request.Context().Err() == nil {
			r.log.Error("cannot serve a container image", "remote", request.RemoteAddr, "path", clip(request.URL.Path), "ns", clip(request.URL.Query().Get("ns")), "err", err)
		}
	}
	cutOff := err != nil && counted.begun
	if refused != nil && !cutOff {
		refused.write(counted, request)
	}
	r.counters.bytes.Add(uint64(counted.content))
	switch {
	case counted.status >= 500 || cutOff:
		r.counters.failed.Add(1)
	case counted.status >= 400:
		r.counters.badRequest.Add(1)
	}
	attrs := []any{"remote", request.RemoteAddr, "method", request.Method, "path", clip(request.URL.Path), "status", counted.status,
		"bytes", counted.content, "duration", time.Since(began)}
	if refused != nil {
		attrs = append(attrs, "reason", refused.message)
	}
	r.log.Debug("container image request", attrs...)
	if cutOff {
		// The headers have promised more. Only a connection that breaks tells the client that it is not whole.
		panic(http.ErrAbortHandler)
	}
}

func (r *Registry) answer(w *recorder, request *http.Request, s *Access) error {
	query := request.URL.Query()
	ns := ""
	if query.Has("ns") {
		var err error
		if ns, err = parseHost(query.Get("ns")); err != nil {
			return refuse(http.StatusBadRequest, codeNameInvalid, "ns: %v", err)
		}
	}
	target, err := parsePath(request.URL.Path)
	if err != nil {
		return err
	}
	if isWrite(request, target) {
		return r.write(w, request, s, ns, target)
	}
	switch target.kind {
	case kindBase:
		if s != nil && s.Challenge {
			if _, err := s.By(request); err != nil {
				return unauthorized(w, "%v", err)
			}
		}
		return writeJSON(w, request, "application/json", struct{}{})
	case kindManifest:
		return r.manifest(w, request, ns, target)
	case kindBlob:
		return r.blob(w, request, ns, target)
	case kindTags:
		return r.tags(w, request, ns, target, query)
	case kindReferrers:
		return r.referrers(w, request, ns, target, query.Get("artifactType"))
	}
	return fmt.Errorf("no answer for kind %d of request", target.kind)
}

func (r *Registry) manifest(w *recorder, request *http.Request, ns string, target target) error {
	repository, missing := r.images.repository(ns, target.name)
	if missing == nil {
		if digest, ok := repository.find(target.reference); ok {
			manifest, err := r.images.manifest(digest)
			if err != nil {
				return fmt.Errorf("image %s: %w", repository.name, err)
			}
			file, _, err := r.images.open(digest)
			if err != nil {
				return fmt.Errorf("image %s: manifest: %w", repository.name, err)
			}
			return send(w, request, file, manifest.MediaType, digest)
		}
		missing = refuse(http.StatusNotFound, codeManifestUnknown, "%s has no %s; it has %s", repository.name, clip(target.reference), strings.Join(repository.tagList(), ", "))
	}
	if r.upstream != nil && isReference(target.reference) {
		if source, ok := r.upstream.source(ns, target.name); ok {
			file, manifest, err := r.upstream.manifest(request.Context(), source, target.reference)
			if err != nil {
				return err
			}
			return send(w, request, file, manifest.MediaType, manifest.Digest)
		}
	}
	return missing
}

// referrers lists manifests that say something about another one, such as signatures. Images of bundles have none: what the
// content accepts has no subject. The specification forbids 404 here, for repositories that nobody knows, too.
func (r *Registry) referrers(w *recorder, request *http.Request, ns string, target target, artifactType string) error {
	found := []imagestore.Descriptor{}
	if repository, err := r.images.repository(ns, target.name); err == nil && r.local != nil {
		found = r.local.Referrers(repository.name, target.reference)
	}
	if artifactType != "" {
		found = slices.DeleteFunc(found, func(d imagestore.Descriptor) bool { return d.ArtifactType != artifactType })
		w.Header().Set("OCI-Filters-Applied", "artifactType")
	}
	return writeJSON(w, request, mediaTypeIndex, struct {
		SchemaVersion int                     `json:"schemaVersion"`
		MediaType     string                  `json:"mediaType"`
		Manifests     []imagestore.Descriptor `json:"manifests"`
	}{2, mediaTypeIndex, found})
}

func (r *Registry) blob(w *recorder, request *http.Request, ns string, target target) error {
	if !digest.Valid(target.reference) {
		return refuse(http.StatusBadRequest, codeDigestInvalid, "%q is no digest of the form sha256:<64 hexadecimal digits>", clip(target.reference))
	}
	repository, missing := r.images.repository(ns, target.name)
	if missing == nil {
		has, err := r.images.hasBlob(repository, target.reference)
		if err != nil {
			return err
		}
		if has {
			file, _, err := r.images.open(target.reference)
			if err != nil {
				return fmt.Errorf("image %s: %w", repository.name, err)
			}
			return send(w, request, file, mediaTypeBlob, target.reference)
		}
		missing = refuse(http.StatusNotFound, codeBlobUnknown, "no image of %s has a layer or config %s", repository.name, target.reference)
	}
	if repo, err := fullName(ns, target.name); err == nil && r.local != nil && r.local.Linked(repo, target.reference) {
		file, _, err := r.local.Open(target.reference)
		if err != nil {
			return fmt.Errorf("image %s: %w", repo, err)
		}
		return send(w, request, file, mediaTypeBlob, target.reference)
	}
	if r.upstream != nil {
		if source, ok := r.upstream.source(ns, target.name); ok {
			return r.upstream.blob(w, request, source, target.reference)
		}
	}
	return missing
}

func (r *Registry) tags(w *recorder, request *http.Request, ns string, target target, query url.Values) error {
	repository, err := r.images.repository(ns, target.name)
	if err != nil {
		return err
	}
	tags := repository.tagList()
	if last := query.Get("last"); last != "" {
		at, found := slices.BinarySearch(tags, last)
		if found {
			at++
		}
		tags = tags[at:]
	}
	if text := query.Get("n"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil || n < 0 {
			return refuse(http.StatusBadRequest, codePagination, "n is %q, want a number of tags", clip(text))
		}
		if n < len(tags) {
			tags = tags[:n]
			if n > 0 {
				next := url.Values{"n": {text}, "last": {tags[n-1]}}
				if query.Has("ns") {
					next.Set("ns", query.Get("ns"))
				}
				w.Header().Set("Link", fmt.Sprintf(`<%s?%s>; rel="next"`, request.URL.EscapedPath(), next.Encode()))
			}
		}
	}
	return writeJSON(w, request, "application/json", struct {
		Name string   `json:"name"`
		Tags []string `json:"tags"`
	}{target.name, tags})
}

// send answers with a manifest or blob, or the range of it that was asked for, and closes it. What a digest names
// never changes.
func send(w *recorder, request *http.Request, file *os.File, mediaType, digest string) error {
	defer file.Close()
	contentHeaders(w.Header(), mediaType, digest)
	w.isContent = true
	http.ServeContent(w, request, "", time.Time{}, file)
	// The error of a client that went away concerns nobody; ServeContent has no other, except for rot.
	return nil
}

func contentHeaders(header http.Header, mediaType, digest string) {
	header.Set("Content-Type", mediaType)
	header.Set("Docker-Content-Digest", digest)
	header.Set("ETag", `"`+digest+`"`)
	header.Set("X-Content-Type-Options", "nosniff")
}

// recorder notes what an answer came to. Its ReadFrom leads to the connection's, so that sendfile(2) is used where
// the connection is not encrypted.
type recorder struct {
	http.ResponseWriter
	status    int
	begun     bool
	isContent bool
	content   int64
}

func (r *recorder) WriteHeader(status int) {
	if status >= 200 {
		r.status, r.begun = status, true
	}
	r.ResponseWriter.WriteHeader(status)
}

func (r *recorder) Write(b []byte) (int, error) {
	r.begun = true
	n, err := r.ResponseWriter.Write(b)
	r.count(int64(n))
	return n, err
}

func (r *recorder) ReadFrom(source io.Reader) (int64, error) {
	r.begun = true
	n, err := io.Copy(r.ResponseWriter, source)
	r.count(n)
	return n, err
}

func (r *recorder) count(n int64) {
	if r.isContent {
		r.content += n
	}
}

// Unwrap lets http.ResponseController reach the connection.
func (r *recorder) Unwrap() http.ResponseWriter { return r.ResponseWriter }
