// Package httpboot serves network-booting machines over plain HTTP: iPXE scripts, kernels, images by
// digest, first-stage boot loaders and the time of day.
//
// Everything here can be read, and asked for, by anyone on the segment. It only reads, knows no
// secret, and bounds what one request and one client may take.
package httpboot

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"mime"
	"net"
	"net/http"
	"net/netip"
	"path"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"coldrack.dev/internal/base/termtext"
	"coldrack.dev/internal/netboot/connlimit"
	"coldrack.dev/internal/netboot/filename"
)

// File is an open file; *os.File is one, and is sent by the kernel without passing through us.
type File = interface {
	io.ReaderAt
	io.Closer
	Stat() (fs.FileInfo, error)
}

// FS gives boot files by name; see filename.Clean for what names there are.
type FS interface {
	Open(ctx context.Context, name string, remote netip.AddrPort) (File, error)
}

// Content gives blobs by digest.
type Content interface {
	// OpenBlob opens the blob with the given SHA-256, 64 lower-case hexadecimal digits.
	// The error is fs.ErrNotExist when there is none.
	OpenBlob(ctx context.Context, sha256 string) (File, error)
}

// Scripts answers what a machine boots.
type Scripts interface {
	// BootScript returns an iPXE script. The error is ErrCredentials when the query must come with a name and a password. Any other
	// means that the server cannot tell now; the machine asks again.
	BootScript(ctx context.Context, query Query) (string, error)
}

// ErrCredentials asks for a name and a password (RFC 7617). iPXE sends those of the URL only when it is asked.
var ErrCredentials = errors.New("a name and a password are needed")

// Options configure a Server. A nil Files, Content or Scripts has nothing to give.
type Options struct {
	Files   FS
	Content Content
	Scripts Scripts
	Log     *slog.Logger
	// OnTransfer is called at the end of every answer that carried a file, from the request's goroutine.
	OnTransfer func(Transfer)
	// Ready tells why the server is not ready, nil when it is; /healthz shows it.
	Ready func() error
	// Now is the server's clock, time.Now by default.
	Now func() time.Time
	// MaxConns bounds open connections, 4096 by default. More wait in the kernel's queue.
	MaxConns int
	// MaxConnsPerClient bounds those of one address, 64 by default. More are closed.
	MaxConnsPerClient int
	// Pace bounds what one connection gets, bytes a second; 0: as fast as it goes.
	Pace int64
	// Beside answers what is below BesidePrefix, such as /pki/, also what is no GET. nil: there is nothing.
	Beside       http.Handler
	BesidePrefix string
	// Taking is told of every client that takes a large answer, at least every few seconds of it. nil: nobody is.
	Taking func(client netip.Addr)
	// StallTimeout ends an answer of which the client takes nothing for so long; 60 s by default.
	StallTimeout time.Duration
	// Drain is how long answers may go on after Serve was told to stop; 5 s by default.
	Drain time.Duration
}

// Transfer tells how the sending of one file ended.
type Transfer struct {
	Remote   netip.AddrPort
	Path     string
	Status   int
	Size     int64 // of the whole file, bytes
	Bytes    int64 // sent in this answer
	Duration time.Duration
	Err      error // nil when all of the answer was taken
}

// Stats are totals since the server was made, but for Conns.
type Stats struct {
	Requests   uint64
	BadRequest uint64 // answered by a status from 400 to 499
	Failed     uint64 // answered by a status from 500
	Bytes      uint64 // of files
	TooMany    uint64 // connections closed because their client had too many
	Conns      int
}

// Server is the boot HTTP server.
type Server struct {
	options  Options
	handler  http.Handler
	counters struct {
		requests, badRequest, failed, bytes atomic.Uint64
	}
	mu        sync.Mutex
	listeners []*connlimit.Listener // of running calls of Serve
	past      connlimit.Stats       // of those that ended
}

// New makes a server.
func New(options Options) *Server {
	if options.Log == nil {
		options.Log = slog.New(slog.DiscardHandler)
	}
	if options.Now == nil {
		options.Now = time.Now
	}
	setDefault(&options.MaxConns, 4096)
	setDefault(&options.MaxConnsPerClient, 64)
	setDefault(&options.StallTimeout, time.Minute)
	setDefault(&options.Drain, 5*time.Second)
	s := &Server{options: options}
	s.handler = s.guard(http.HandlerFunc(s.route))
	return s
}

func setDefault[T int | time.Duration](value *T, otherwise T) {
	if *value <= 0 {
		*value = otherwise
	}
}

// Stats gives the present totals.
func (s *Server) Stats() Stats {
	c := &s.counters
	now := Stats{
		Requests:   c.requests.Load(),
		BadRequest: c.badRequest.Load(),
		Failed:     c.failed.Load(),
		Bytes:      c.bytes.Load(),
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	conns := s.past
	for _, l := range s.listeners {
		conns = conns.Plus(l.Stats())
	}
	now.TooMany, now.Conns = conns.Refused, conns.Open
	return now
}

// ServeHTTP answers one request. Serve adds the limits on connections.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) { s.handler.ServeHTTP(w, r) }

// Serve answers requests until ctx ends, then lets running answers finish for the drain time.
// It closes the listener.
func (s *Server) Serve(ctx context.Context, listener net.Listener) error {
	server := &http.Server{
		Handler:           s,
		ReadHeaderTimeout: 10 * time.Second,
		ReadTimeout:       15 * time.Second,
		IdleTimeout:       30 * time.Second,
		MaxHeaderBytes:    16 << 10,
		BaseContext:       func(net.Listener) context.Context { return context.WithoutCancel(ctx) },
		ErrorLog:          slog.NewLogLogger(s.options.Log.Handler(), slog.LevelDebug),
	}
	limited := s.limit(listener)
	defer s.unlist(limited)
	served := make(chan error, 1)
	go func() { served <- server.Serve(limited) }()
	select {
	case err := <-served:
		return fmt.Errorf("serve boot HTTP on %s: %w", listener.Addr(), err)
	case <-ctx.Done():
	}
	overtime, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.options.Drain)
	defer cancel()
	if err := server.Shutdown(overtime); err != nil {
		server.Close()
	}
	<-served
	return nil
}

// route chooses by the cleaned path. http.ServeMux would answer a path such as //snponly.efi by a
// redirect, which firmware does not follow.
func (s *Server) route(w http.ResponseWriter, r *http.Request) {
	cleaned := path.Clean("/" + strings.ReplaceAll(r.URL.Path, `\`, "/"))
	switch cleaned {
	case "/boot.ipxe":
		s.chain(w)
	case "/boot/ipxe":
		s.script(w, r)
	case "/time":
		s.time(w)
	case "/healthz":
		s.health(w)
	default:
		if digest, ok := strings.CutPrefix(cleaned, "/content/sha256/"); ok {
			s.blob(w, r, digest)
			return
		}
		s.file(w, r, cleaned)
	}
}

// guard keeps out what no boot loader sends, and counts.
func (s *Server) guard(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.counters.requests.Add(1)
		h := w.Header()
		h.Set("X-Content-Type-Options", "nosniff")
		switch {
		case s.options.Beside != nil && strings.HasPrefix(r.URL.Path, s.options.BesidePrefix):
			s.options.Beside.ServeHTTP(w, r)
		case r.Method != http.MethodGet && r.Method != http.MethodHead:
			h.Set("Allow", "GET, HEAD")
			s.refuse(w, http.StatusMethodNotAllowed, "this server only reads: GET or HEAD")
		case r.ContentLength != 0:
			h.Set("Connection", "close")
			http.NewResponseController(w).SetReadDeadline(time.Now()) // do not wait for the body either
			s.refuse(w, http.StatusBadRequest, "a request here has no body")
		case len(r.RequestURI) > maxQuery+1024:
			s.refuse(w, http.StatusRequestURITooLong, "the URL is too long")
		default:
			next.ServeHTTP(w, r)
		}
	})
}

func (s *Server) refuse(w http.ResponseWriter, status int, text string) {
	if status < 500 {
		s.counters.badRequest.Add(1)
	} else {
		s.counters.failed.Add(1)
	}
	h := w.Header()
	h.Del("Etag")
	h.Del("Cache-Control")
	http.Error(w, text, status)
}

func (s *Server) text(w http.ResponseWriter, body string) {
	h := w.Header()
	h.Set("Content-Type", "text/plain; charset=utf-8")
	h.Set("Cache-Control", "no-store")
	// iPXE shows its progress and detects a cut by the length.
	h.Set("Content-Length", fmt.Sprint(len(body)))
	io.WriteString(w, body)
}

func (s *Server) chain(w http.ResponseWriter) { s.text(w, ChainScript()) }

func (s *Server) script(w http.ResponseWriter, r *http.Request) {
	remote := remoteOf(r)
	query, err := ParseQuery(r.URL.RawQuery)
	if err != nil {
		s.options.Log.Warn("invalid boot request", "remote", remote, "err", err)
		s.refuse(w, http.StatusBadRequest, err.Error())
		return
	}
	query.Remote = remote
	query.Local = localOf(r)
	query.User, query.Password, query.Credentials = r.BasicAuth()
	if len(query.User)+len(query.Password) > maxText {
		s.refuse(w, http.StatusBadRequest, "name and password are too long")
		return
	}
	query.User = termtext.Mark(query.User, 64)
	if s.options.Scripts == nil {
		s.refuse(w, http.StatusServiceUnavailable, "this server has no boot scripts")
		return
	}
	script, err := s.options.Scripts.BootScript(r.Context(), query)
	if errors.Is(err, ErrCredentials) {
		w.Header().Set("WWW-Authenticate", `Basic realm="boot menu"`)
		s.refuse(w, http.StatusUnauthorized, "the PIN of the boot menu is needed")
		return
	}
	if err != nil {
		// The reason may tell of the inside; the segment only learns to come again.
		s.options.Log.Error("cannot make a boot script for a machine", "remote", remote, "macs", query.MACs, "err", err)
		w.Header().Set("Retry-After", "5")
		s.refuse(w, http.StatusServiceUnavailable, "the server cannot tell now, ask again")
		return
	}
	s.text(w, script)
}

// time tells the server's clock: a new machine's may be years off, and TLS fails on that.
func (s *Server) time(w http.ResponseWriter) {
	s.text(w, s.options.Now().UTC().Format(time.RFC3339Nano)+"\n")
}

func (s *Server) health(w http.ResponseWriter) {
	if s.options.Ready != nil {
		if err := s.options.Ready(); err != nil {
			s.refuse(w, http.StatusServiceUnavailable, "not ready: "+err.Error())
			return
		}
	}
	s.text(w, "ok\n")
}

func (s *Server) blob(w http.ResponseWriter, r *http.Request, digest string) {
	if raw, err := hex.DecodeString(digest); err != nil || len(raw) != 32 || digest != strings.ToLower(digest) {
		s.refuse(w, http.StatusBadRequest, "a digest is 64 lower-case hexadecimal digits")
		return
	}
	if s.options.Content == nil {
		s.refuse(w, http.StatusNotFound, "no such content")
		return
	}
	file, err := s.options.Content.OpenBlob(r.Context(), digest)
	if err != nil {
		s.openFailed(w, r, err)
		return
	}
	h := w.Header()
	h.Set("Content-Type", "application/octet-stream")
	h.Set("Etag", `"sha256:`+digest+`"`)
	h.Set("Cache-Control", "public, max-age=31536000, immutable")
	s.send(w, r, file, time.Time{})
}

func (s *Server) file(w http.ResponseWriter, r *http.Request, name string) {
	name, ok := filename.Clean(name)
	if !ok || s.options.Files == nil {
		s.refuse(w, http.StatusNotFound, "no such file")
		return
	}
	file, err := s.options.Files.Open(r.Context(), name, remoteOf(r))
	if err != nil {
		s.openFailed(w, r, err)
		return
	}
	h := w.Header()
	h.Set("Content-Type", contentType(name))
	h.Set("Cache-Control", "no-cache")
	var modified time.Time
	if info, err := file.Stat(); err == nil {
		modified = info.ModTime()
	}
	s.send(w, r, file, modified)
}

// contentType chooses by the name's extension. UEFI HTTP boot goes by it: an image that is not
// application/efi may be taken for a disk.
func contentType(name string) string {
	switch extension := path.Ext(name); extension {
	case ".efi":
		return "application/efi"
	case ".ipxe", ".cfg":
		return "text/plain; charset=utf-8"
	case ".json", ".txt", ".html":
		return mime.TypeByExtension(extension)
	}
	return "application/octet-stream"
}

func (s *Server) openFailed(w http.ResponseWriter, r *http.Request, err error) {
	if errors.Is(err, fs.ErrNotExist) && filename.Optional(strings.TrimLeft(path.Clean("/"+r.URL.Path), "/")) {
		// A boot loader looks whether it is there. That is no error, and it must not wait.
		http.Error(w, "no such file", http.StatusNotFound)
		return
	}
	if errors.Is(err, fs.ErrNotExist) {
		s.options.Log.Info("boot file not found", "remote", r.RemoteAddr, "path", clip(r.URL.Path))
		s.refuse(w, http.StatusNotFound, "no such file")
		return
	}
	if errors.Is(err, fs.ErrPermission) {
		s.refuse(w, http.StatusForbidden, "access denied")
		return
	}
	s.options.Log.Error("cannot open a boot file", "remote", r.RemoteAddr, "path", clip(r.URL.Path), "err", err)
	s.refuse(w, http.StatusInternalServerError, "the server cannot read it")
}

// localOf is the address that the request came to.
func localOf(r *http.Request) netip.AddrPort {
	address, ok := r.Context().Value(http.LocalAddrContextKey).(*net.TCPAddr)
	if !ok {
		return netip.AddrPort{}
	}
	local := address.AddrPort()
	return netip.AddrPortFrom(local.Addr().Unmap(), local.Port())
}

func remoteOf(r *http.Request) netip.AddrPort {
	remote, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return netip.AddrPort{}
	}
	return netip.AddrPortFrom(remote.Addr().Unmap(), remote.Port())
}
