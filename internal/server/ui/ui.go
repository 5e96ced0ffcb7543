// Package ui serves the web pages of people's API: static files, and sessions for browsers that show no certificate. The pages have no
// API of their own; they read and write what kubectl and the command line do, with the same rights.
package ui

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"coldrack.dev/internal/server/controlplane"
	"coldrack.dev/internal/server/peopleapi/peoplewire"
)

const (
	// root is the path of the pages. Each path below it that names no file is the same page.
	root = "/ui/"
	// cookieName has the prefix by which browsers take it only over TLS, from this host, for all paths.
	cookieName = "__Host-coldrack"
	// HeaderPage is on every request that the pages make. Without it a session does not count, so that no link, form or image elsewhere
	// does anything in a person's name.
	HeaderPage = "Coldrack-Page"
	// HeaderLink carries the secret of a one-time link to PathUISession.
	HeaderLink = "Coldrack-Link"
)

// UI is the web pages and their sessions.
type UI struct {
	log      *slog.Logger
	now      func() time.Time
	files    files
	sessions *sessions
	links    *links
	failures *failures
	origin   *http.CrossOriginProtection
}

// New returns the UI that keeps its sessions in a file, which need not exist. One that cannot be read costs people a log-in, nothing else.
func New(sessionFile string, log *slog.Logger) (*UI, error) { return newAt(sessionFile, log, time.Now) }

func newAt(sessionFile string, log *slog.Logger, now func() time.Time) (*UI, error) {
	files, err := loadFiles()
	if err != nil {
		return nil, err
	}
	known, err := openSessions(sessionFile, now)
	if err != nil {
		log.Error("the sessions of the web pages cannot be read; people have to log in again", "file", sessionFile, "err", err)
	}
	return &UI{
		log: log, now: now, files: files, sessions: known,
		links: newLinks(now), failures: newFailures(now), origin: http.NewCrossOriginProtection(),
	}, nil
}

// Handlers by path, which need an authenticated person.
func (u *UI) Handlers() map[string]http.Handler {
	return map[string]http.Handler{
		peoplewire.PathUISession: http.HandlerFunc(u.session),
		peoplewire.PathUILogout:  http.HandlerFunc(u.logout),
		peoplewire.PathUILinks:   http.HandlerFunc(u.link),
	}
}

// Front answers what needs no authentication, and tells api who has a session. It also refuses what pages of other origins send, which
// browsers with a certificate would lend their rights to.
func (u *UI) Front(api http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		harden(w.Header())
		if u.foreign(r) {
			http.Error(w, "refused: a page of another site sent this request", http.StatusForbidden)
			return
		}
		reads := r.Method == http.MethodGet || r.Method == http.MethodHead
		switch {
		case reads && r.URL.Path == "/" && strings.Contains(r.Header.Get("Accept"), "text/html"), r.URL.Path == strings.TrimSuffix(root, "/"):
			http.Redirect(w, r, root, http.StatusSeeOther)
		case strings.HasPrefix(r.URL.Path, root):
			u.files.ServeHTTP(w, r)
		case r.URL.Path == peoplewire.PathUISession && r.Method == http.MethodPost:
			u.login(w, r, api)
		default:
			api.ServeHTTP(w, u.known(r))
		}
	})
}

// foreign says that a page of another site sent a request that changes something, or whose answer that page could read: browsers keep
// the answers to other requests from it, but not what comes through a WebSocket, which the API offers for its watches.
func (u *UI) foreign(r *http.Request) bool {
	if r.Header.Get("Upgrade") != "" {
		r = r.Clone(r.Context())
		r.Method = http.MethodPost // which the check looks at
	}
	return u.origin.Check(r) != nil
}

// harden says what browsers must not do with anything that this listener gives.
func harden(h http.Header) {
	h.Set("Content-Security-Policy", "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; manifest-src 'self'; "+
		"base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("X-Frame-Options", "DENY")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Cross-Origin-Opener-Policy", "same-origin")
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
	h.Set("Permissions-Policy", "camera=(), geolocation=(), microphone=(), payment=(), usb=()")
	h.Set("Cache-Control", "no-store")
}

// known is the request with the person whose session it shows, if any.
func (u *UI) known(r *http.Request) *http.Request {
	cookie, err := r.Cookie(cookieName)
	if err != nil || r.Header.Get(HeaderPage) == "" || r.Header.Get("Authorization") != "" {
		return r
	}
	if person, ok := u.sessions.find(cookie.Value); ok {
		return controlplane.WithPerson(r, person)
	}
	return r
}

// login lets a request through that opens a session: with a token, a certificate, or the secret of a link. A session opens none, or it would
// never end.
func (u *UI) login(w http.ResponseWriter, r *http.Request, api http.Handler) {
	from := source(r)
	if wait := u.failures.wait(from); wait > 0 {
		w.Header().Set("Retry-After", fmt.Sprint(int(wait.Seconds())+1))
		http.Error(w, fmt.Sprintf("too many failed log-ins; try again in %s", wait.Round(time.Second)), http.StatusTooManyRequests)
		return
	}
	if secret := r.Header.Get(HeaderLink); secret != "" {
		person, ok := u.links.take(secret)
		if !ok {
			u.failed(from, "link")
			http.Error(w, "this link was used already or has ended: each opens one session, within "+linkLife.String()+"; `coldrack ui` makes another one", http.StatusUnauthorized)
			return
		}
		r = controlplane.WithPerson(r, person)
	}
	answer := &statusOf{ResponseWriter: w}
	api.ServeHTTP(answer, r)
	if answer.status == http.StatusUnauthorized && r.Header.Get("Authorization") != "" {
		u.failed(from, "token")
	}
}

func (u *UI) failed(from, by string) {
	u.failures.add(from)
	u.log.Warn("log-in to the web pages failed", "from", from, "by", by)
}

// statusOf remembers the status of an answer.
type statusOf struct {
	http.ResponseWriter
	status int
}

func (s *statusOf) WriteHeader(status int) {
	s.status = status
	s.ResponseWriter.WriteHeader(status)
}

// Unwrap is for http.ResponseController.
func (s *statusOf) Unwrap() http.ResponseWriter { return s.ResponseWriter }

// session tells who asks, or opens a session for them.
func (u *UI) session(w http.ResponseWriter, r *http.Request) {
	person := controlplane.PersonOf(r)
	switch r.Method {
	case http.MethodGet:
		answer(w, describe(person, u.sessionOf(r)))
	case http.MethodPost:
		cookie, _ := r.Cookie(cookieName)
		if person.Role == "" {
			http.Error(w, person.Name+" has no role here; an administrator makes tokens with one: coldrack token create", http.StatusForbidden)
			return
		}
		secret, session, err := u.sessions.open(person)
		if err != nil {
			http.Error(w, fmt.Sprintf("the session cannot be kept: %v", err), http.StatusInternalServerError)
			return
		}
		if cookie != nil {
			_ = u.sessions.end(cookie.Value) // this browser forgets it now
		}
		http.SetCookie(w, newCookie(secret, int(session.Until.Sub(u.now()).Seconds())))
		answer(w, describe(person, &session))
	default:
		w.Header().Set("Allow", "GET, POST")
		http.Error(w, "only GET and POST", http.StatusMethodNotAllowed)
	}
}

func (u *UI) sessionOf(r *http.Request) *session {
	cookie, err := r.Cookie(cookieName)
	if err != nil || !controlplane.PersonOf(r).Vouched {
		return nil
	}
	return u.sessions.get(cookie.Value)
}

func describe(p controlplane.Person, s *session) peoplewire.UISession {
	view := peoplewire.UISession{User: p.Name, Role: strings.TrimPrefix(p.Role, "coldrack:"), Until: p.Until}
	if s != nil {
		view.Session, view.Until = true, s.Until
	}
	return view
}

// logout ends the session, also one that no longer counts.
func (u *UI) logout(w http.ResponseWriter, r *http.Request) {
	if !onlyPost(w, r) {
		return
	}
	if cookie, err := r.Cookie(cookieName); err == nil {
		if err := u.sessions.end(cookie.Value); err != nil {
			http.Error(w, fmt.Sprintf("the session cannot be ended: %v", err), http.StatusInternalServerError)
			return
		}
	}
	http.SetCookie(w, newCookie("", -1))
	answer(w, struct{}{})
}

// link makes a one-time link for who asks.
func (u *UI) link(w http.ResponseWriter, r *http.Request) {
	if !onlyPost(w, r) {
		return
	}
	person := controlplane.PersonOf(r)
	if person.Vouched {
		http.Error(w, "a session cannot make links; coldrack ui does, with a certificate or a token", http.StatusForbidden)
		return
	}
	secret, until, err := u.links.make(person)
	if err != nil {
		http.Error(w, err.Error(), http.StatusTooManyRequests)
		return
	}
	answer(w, peoplewire.UILink{Path: root + "#link=" + secret, Until: until})
}

func onlyPost(w http.ResponseWriter, r *http.Request) bool {
	if r.Method == http.MethodPost {
		return true
	}
	w.Header().Set("Allow", http.MethodPost)
	http.Error(w, "only POST", http.StatusMethodNotAllowed)
	return false
}

func answer(w http.ResponseWriter, value any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(value)
}

func newCookie(value string, maxAge int) *http.Cookie {
	return &http.Cookie{Name: cookieName, Value: value, Path: "/", MaxAge: maxAge, Secure: true, HttpOnly: true, SameSite: http.SameSiteStrictMode}
}
