package registry

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"coldrack.dev/internal/base/digest"
	"coldrack.dev/internal/content/imagestore"
)

// Writer says who may write, by a request; the error is for the client.
type Writer func(*http.Request) (name string, err error)

// Access is how images may be written.
type Access struct {
	By Writer
	// Challenge asks clients for a name and password (HTTP Basic) at the base of the protocol, where those in the field look for
	// that. Who has none can still read.
	Challenge bool
	// Record notes a change before it is made, by whom and of what: "put" or "delete", a full name with tag or digest. An error
	// prevents the change. nil: nothing is noted.
	Record func(who, verb, image string) error
}

// Writable answers as the Registry does, and also all of the specification's push and content management, into Options.Local.
func (r *Registry) Writable(access Access) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, request *http.Request) { r.serve(w, request, &access) })
}

// isWrite says whether a request is one of those that need a Writer.
func isWrite(request *http.Request, t target) bool {
	return t.kind == kindUpload || request.Method != http.MethodGet && request.Method != http.MethodHead
}

// unauthorized asks the client who it is.
func unauthorized(w http.ResponseWriter, format string, args ...any) error {
	w.Header().Set("WWW-Authenticate", `Basic realm="Coldrack"`)
	return refuse(http.StatusUnauthorized, codeUnauthorized, format, args...)
}

// write answers what changes something.
func (r *Registry) write(w *recorder, request *http.Request, s *Access, ns string, t target) error {
	if s == nil || r.local == nil {
		w.Header().Set("Allow", "GET, HEAD")
		return refuse(http.StatusMethodNotAllowed, codeUnsupported, "this registry can only be read; images come into it with coldrack bundle import or coldrack image load")
	}
	who, err := s.By(request)
	if err != nil {
		if s.Challenge {
			return unauthorized(w, "%v", err)
		}
		return refuse(http.StatusForbidden, codeDenied, "%v", err)
	}
	repo, err := fullName(ns, t.name)
	if err != nil {
		return err
	}
	// An upload takes as long as its link needs.
	control := http.NewResponseController(w)
	_ = control.SetReadDeadline(time.Time{})
	_ = control.SetWriteDeadline(time.Time{})
	p := push{Registry: r, w: w, request: request, repo: repo, target: t, who: who, access: s}
	switch method := request.Method; {
	case t.kind == kindUpload && t.reference == "" && method == http.MethodPost:
		err = p.begin()
	case t.kind == kindUpload && t.reference != "":
		err = p.upload()
	case t.kind == kindManifest && method == http.MethodPut:
		err = p.manifest()
	case t.kind == kindManifest && method == http.MethodDelete:
		err = p.deleteManifest()
	case t.kind == kindBlob && method == http.MethodDelete:
		err = p.deleteBlob()
	default:
		return refuse(http.StatusMethodNotAllowed, codeUnsupported, "%s is nothing that can be done with %s", method, clip(request.URL.Path))
	}
	return p.refusal(err)
}

// fullName is a repository's name with its registry. What is written must say it.
func fullName(ns, name string) (string, error) {
	host, path, ok := strings.Cut(name, "/")
	switch {
	case ns != "":
		return ns + "/" + name, nil
	case ok && isHost(host):
		return canonicalHost(host) + "/" + path, nil
	}
	return "", refuse(http.StatusBadRequest, codeNameInvalid, "%s does not say of which registry it is; put that in front, as in SERVER/docker.io/library/%s", clip(name), clip(name))
}

// push is one request that changes something.
type push struct {
	*Registry
	w       *recorder
	request *http.Request
	repo    string // with its registry
	target  target
	who     string
	access  *Access
}

// record notes a change of an image, which reference names.
func (p *push) record(verb, reference string) error {
	if p.access.Record == nil {
		return nil
	}
	separator := ":"
	if digest.Valid(reference) {
		separator = "@"
	}
	if err := p.access.Record(p.who, verb, p.repo+separator+reference); err != nil {
		return refuse(http.StatusServiceUnavailable, codeUnavailable, "a change that cannot be recorded is not made: %v", err)
	}
	return nil
}

// refusal tells the client what its store says.
func (p *push) refusal(err error) error {
	var no *refusal
	if err == nil || errors.As(err, &no) {
		return err
	}
	for _, known := range []struct {
		err    error
		status int
		code   string
	}{
		{imagestore.ErrDigest, http.StatusBadRequest, codeDigestInvalid},
		{imagestore.ErrInvalid, http.StatusBadRequest, codeManifestInvalid},
		{imagestore.ErrLacking, http.StatusNotFound, codeManifestBlobUnknown},
		{imagestore.ErrFull, http.StatusInsufficientStorage, codeDenied},
		{imagestore.ErrTooMany, http.StatusTooManyRequests, codeTooMany},
		{imagestore.ErrInUse, http.StatusConflict, codeDenied},
		{imagestore.ErrOffset, http.StatusRequestedRangeNotSatisfiable, codeUploadInvalid},
	} {
		if errors.Is(err, known.err) {
			text := err.Error()
			if known.err == imagestore.ErrFull {
				text += "; make room with coldrack image prune, or raise --registry-images-gib"
			}
			p.log.Warn("an image that is sent was refused", "repository", p.repo, "by", p.who, "err", err)
			return refuse(known.status, known.code, "%s", text)
		}
	}
	if errors.Is(err, imagestore.ErrNotFound) {
		code := codeUploadUnknown
		switch p.target.kind {
		case kindManifest:
			code = codeManifestUnknown
		case kindBlob:
			code = codeBlobUnknown
		}
		return refuse(http.StatusNotFound, code, "%v", err)
	}
	return err
}

// place is the path of something in the repository, as the client names it.
func (p *push) place(elem ...string) string {
	place := "/v2/" + p.target.name + "/" + strings.Join(elem, "/")
	if p.request.URL.Query().Has("ns") {
		place += "?" + url.Values{"ns": {p.request.URL.Query().Get("ns")}}.Encode()
	}
	return place
}

// begin starts an upload, takes a whole blob at once, or takes it from another repository.
func (p *push) begin() error {
	query := p.request.URL.Query()
	if blob := query.Get("mount"); blob != "" && digest.Valid(blob) {
		from := query.Get("from")
		if from != "" {
			full, err := fullName("", from)
			if err != nil {
				full = "" // no repository of this store
			}
			from = full
		}
		if (from != "" || !query.Has("from")) && p.local.Mount(p.repo, from, blob) {
			return p.created(p.place("blobs", blob), blob)
		}
	}
	want := query.Get("digest")
	if want != "" && !digest.Valid(want) {
		return badDigest(want)
	}
	u, err := p.local.Begin(p.repo)
	if err != nil {
		return err
	}
	if want == "" {
		p.progress(u)
		p.w.WriteHeader(http.StatusAccepted)
		return nil
	}
	if err := u.Append(p.request.Body, -1); err != nil {
		u.Cancel()
		return err
	}
	if err := u.Commit(want); err != nil {
		return err
	}
	return p.created(p.place("blobs", want), want)
}

func badDigest(text string) error {
	return refuse(http.StatusBadRequest, codeDigestInvalid, "%q is no digest of the form sha256:<64 hexadecimal digits>", clip(text))
}

func (p *push) created(place, digest string) error {
	p.w.Header().Set("Location", place)
	p.w.Header().Set("Docker-Content-Digest", digest)
	p.w.Header().Set("Content-Length", "0")
	p.w.WriteHeader(http.StatusCreated)
	return nil
}

// progress says how much of an upload has come.
func (p *push) progress(u *imagestore.Upload) {
	header := p.w.Header()
	header.Set("Location", p.place("blobs", "uploads", u.ID))
	header.Set("Docker-Upload-UUID", u.ID)
	header.Set("Range", fmt.Sprintf("0-%d", max(0, u.Size()-1)))
	header.Set("Content-Length", "0")
}

// upload goes on with one that was begun.
func (p *push) upload() error {
	u, err := p.local.Upload(p.repo, p.target.reference)
	if err != nil {
		return err
	}
	switch p.request.Method {
	case http.MethodGet, http.MethodHead:
		p.progress(u)
		p.w.WriteHeader(http.StatusNoContent)
		return nil
	case http.MethodDelete:
		u.Cancel()
		p.w.WriteHeader(http.StatusNoContent)
		return nil
	case http.MethodPatch, http.MethodPut:
	default:
		return refuse(http.StatusMethodNotAllowed, codeUnsupported, "%s is nothing that can be done with an upload", p.request.Method)
	}
	want := p.request.URL.Query().Get("digest")
	if p.request.Method == http.MethodPut && !digest.Valid(want) {
		u.Cancel()
		return badDigest(want)
	}
	at, length, err := contentRange(p.request)
	if err != nil {
		return err
	}
	body := io.Reader(p.request.Body)
	if length >= 0 {
		body = io.LimitReader(body, length)
	}
	if err := u.Append(body, at); err != nil {
		if errors.Is(err, imagestore.ErrOffset) {
			p.progress(u) // where it is to go on
		}
		return err
	}
	if p.request.Method == http.MethodPatch {
		p.progress(u)
		p.w.WriteHeader(http.StatusAccepted)
		return nil
	}
	if err := u.Commit(want); err != nil {
		return err
	}
	return p.created(p.place("blobs", want), want)
}

// contentRange is where a part begins and how long it is; -1 where the client does not say it. The form is the
// specification's, "FIRST-LAST", or that of HTTP.
func contentRange(request *http.Request) (at, length int64, err error) {
	text := request.Header.Get("Content-Range")
	if text == "" {
		return -1, -1, nil
	}
	bare, _, _ := strings.Cut(strings.TrimPrefix(text, "bytes "), "/")
	first, last, ok := strings.Cut(bare, "-")
	at, err1 := strconv.ParseInt(first, 10, 64)
	end, err2 := strconv.ParseInt(last, 10, 64)
	if !ok || err1 != nil || err2 != nil || at < 0 || end < at-1 {
		return 0, 0, refuse(http.StatusBadRequest, codeUploadInvalid, "Content-Range is %q, want the first and last byte, such as 0-1023", clip(text))
	}
	return at, end - at + 1, nil
}

func (p *push) manifest() error {
	raw, err := io.ReadAll(io.LimitReader(p.request.Body, maxManifest+1))
	if err != nil {
		return refuse(http.StatusBadRequest, codeManifestInvalid, "receive a manifest: %v", err)
	}
	if len(raw) > maxManifest {
		return refuse(http.StatusRequestEntityTooLarge, codeManifestInvalid, "a manifest has at most %d bytes", maxManifest)
	}
	name, tag := digest.Of(raw).String(), p.target.reference
	switch {
	case digest.Valid(tag):
		if tag != name {
			return refuse(http.StatusBadRequest, codeDigestInvalid, "the manifest that came is %s, want %s", name, tag)
		}
		tag = ""
	case strings.Contains(tag, ":"):
		return badDigest(tag)
	case !isTag(tag):
		return refuse(http.StatusBadRequest, codeManifestInvalid, "%q is no tag", clip(tag))
	}
	if tag != "" {
		if of := p.images.bundled(p.repo, tag); of != "" && of != name {
			return refuse(http.StatusConflict, codeDenied, "%s:%s is in an imported bundle, as %s; an image that is loaded does not take its place. Give it another tag", p.repo, tag, of)
		}
	}
	if err := p.record("put", p.target.reference); err != nil {
		return err
	}
	mediaType, _, _ := strings.Cut(p.request.Header.Get("Content-Type"), ";")
	m, err := p.local.PutManifest(p.repo, tag, strings.TrimSpace(mediaType), raw, p.who)
	if err != nil {
		return err
	}
	if tag != "" {
		p.changed()
	}
	p.log.Info("image loaded", "repository", p.repo, "tag", tag, "digest", name, "by", p.who)
	if m.Subject != "" {
		p.w.Header().Set("OCI-Subject", m.Subject)
	}
	return p.created(p.place("manifests", name), name)
}

func (p *push) deleteManifest() error {
	if err := p.record("delete", p.target.reference); err != nil {
		return err
	}
	var err error
	if digest.Valid(p.target.reference) {
		err = p.local.DeleteManifest(p.repo, p.target.reference)
	} else {
		err = p.local.DeleteTag(p.repo, p.target.reference)
	}
	if err != nil {
		return err
	}
	p.changed()
	p.log.Info("loaded image deleted", "repository", p.repo, "reference", p.target.reference, "by", p.who)
	p.w.WriteHeader(http.StatusAccepted)
	return nil
}

func (p *push) deleteBlob() error {
	if !digest.Valid(p.target.reference) {
		return badDigest(p.target.reference)
	}
	if err := p.local.DeleteBlob(p.repo, p.target.reference); err != nil {
		return err
	}
	p.w.WriteHeader(http.StatusAccepted)
	return nil
}
