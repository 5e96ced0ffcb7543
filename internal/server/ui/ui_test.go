package ui

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"coldrack.dev/internal/server/controlplane"
	"coldrack.dev/internal/server/peopleapi/peoplewire"
	"coldrack.dev/test/ca"
)

func TestMain(m *testing.M) {
	controlplane.SendKlogTo(discard())
	m.Run()
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func discard() *slog.Logger { return slog.New(slog.DiscardHandler) }

// api is people's API with the pages in front, and who may look at it.
type api struct {
	t         testing.TB // of the part of the test that runs
	whole     testing.TB
	url, dir  string
	authority *ca.CA
	ui        *UI
	plane     *controlplane.ControlPlane
}

func startAPI(t testing.TB) *api {
	t.Helper()
	a := &api{t: t, whole: t, authority: ca.New(t, "people"), dir: t.TempDir()}
	a.start()
	return a
}

func (a *api) start() {
	a.t.Helper()
	pages, err := New(filepath.Join(a.dir, "ui-sessions.json"), discard())
	check(a.t, err)
	cert, key := a.authority.IssuePEM(ca.Server("127.0.0.1"))
	ctx, stop := context.WithTimeout(context.Background(), time.Minute)
	defer stop()
	a.ui = pages
	a.plane, err = controlplane.Start(ctx, controlplane.Config{
		Logger: discard(), DataDir: a.dir, Address: "127.0.0.1:0", ServingCert: cert, ServingKey: key, ClientCAs: a.authority.PEM(),
		EncryptionKey: bytes.Repeat([]byte{7}, 32), Handlers: maps.Clone(pages.Handlers()), Front: pages.Front,
	})
	check(a.t, err)
	a.whole.Cleanup(a.plane.Stop)
	a.url = "https://" + a.plane.Address()
}

// browser is an HTTP client with a cookie and perhaps a certificate. It follows no redirects.
type browser struct {
	*api
	http   *http.Client
	cookie *http.Cookie
}

func (a *api) browser(certificate *tls.Certificate) *browser {
	config := &tls.Config{RootCAs: a.authority.Pool()}
	if certificate != nil {
		config.Certificates = []tls.Certificate{*certificate}
	}
	transport := &http.Transport{TLSClientConfig: config, ForceAttemptHTTP2: true}
	a.whole.Cleanup(transport.CloseIdleConnections)
	return &browser{api: a, http: &http.Client{Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}}
}

// does sends a request as a page does, with further headers "Name: value"; "-Name" leaves one out. It returns status, headers and body.
func (b *browser) does(method, path, body string, headers ...string) (int, http.Header, string) {
	b.t.Helper()
	request, err := http.NewRequest(method, b.url+path, strings.NewReader(body))
	check(b.t, err)
	request.Header.Set(HeaderPage, "1")
	if b.cookie != nil {
		request.AddCookie(b.cookie)
	}
	if body != "" {
		request.Header.Set("Content-Type", "application/json")
	}
	for _, header := range headers {
		name, value, _ := strings.Cut(header, ": ")
		if without, ok := strings.CutPrefix(name, "-"); ok {
			request.Header.Del(without)
			continue
		}
		request.Header.Set(name, value)
	}
	response, err := b.http.Do(request)
	check(b.t, err)
	defer response.Body.Close()
	content, err := io.ReadAll(response.Body)
	check(b.t, err)
	for _, c := range response.Cookies() {
		if c.Name == cookieName {
			b.cookie = c
			if c.MaxAge < 0 {
				b.cookie = nil
			}
		}
	}
	return response.StatusCode, response.Header, string(content)
}

func (b *browser) wants(want int, method, path, body string, headers ...string) string {
	b.t.Helper()
	status, _, content := b.does(method, path, body, headers...)
	if status != want {
		b.t.Fatalf("%s %s: got %d, want %d: %s", method, path, status, want, content)
	}
	return content
}

const (
	machines = "/apis/coldrack.dev/v1alpha1/machines"
	machine  = `{"apiVersion":"coldrack.dev/v1alpha1","kind":"Machine","metadata":{"name":"%s"},"spec":{}}`
)

// link asks for a one-time link as a person with a certificate, and returns its secret.
func (a *api) link(name string, groups ...string) string {
	a.t.Helper()
	var link peoplewire.UILink
	check(a.t, json.Unmarshal([]byte(a.browser(a.authority.Issue(ca.Client(name, groups...))).wants(200, "POST", peoplewire.PathUILinks, "")), &link))
	return strings.TrimPrefix(link.Path, "/ui/#link=")
}

func TestSessions(t *testing.T) {
	a := startAPI(t)
	tokens := controlplane.OpenTokens(controlplane.TokensPath(a.dir))
	secret, err := tokens.Create("anna", []string{controlplane.GroupOperator}, 0)
	check(t, err)

	part := func(name string, f func(t testing.TB)) {
		t.Run(name, func(t *testing.T) {
			a.t = t
			f(t)
		})
	}
	part("a stranger gets the page and nothing else", func(t testing.TB) {
		b := a.browser(nil)
		b.wants(200, "GET", "/ui/", "")
		b.wants(401, "GET", machines, "")
		b.wants(401, "GET", peoplewire.PathUISession, "")
		b.wants(401, "POST", peoplewire.PathUISession, "")
		b.wants(401, "POST", peoplewire.PathUILinks, "")
	})
	part("a token opens a session, which ends with the log-out", func(t testing.TB) {
		b := a.browser(nil)
		if got := b.wants(200, "POST", peoplewire.PathUISession, "", "Authorization: Bearer "+secret); !strings.Contains(got, `"user":"anna","role":"operator"`) {
			t.Errorf("got %s", got)
		}
		c := b.cookie
		if c == nil || !c.HttpOnly || !c.Secure || c.SameSite != http.SameSiteStrictMode || c.Path != "/" || c.Domain != "" {
			t.Fatalf("cookie %+v", c)
		}
		b.wants(200, "GET", machines, "")
		b.wants(201, "POST", machines, fmt.Sprintf(machine, "m1"))
		b.wants(403, "GET", "/apis/coldrack.dev/v1alpha1/secrets", "")
		kept, err := os.ReadFile(filepath.Join(a.dir, "ui-sessions.json"))
		check(t, err)
		if strings.Contains(string(kept), c.Value) {
			t.Error("the file of sessions holds the secret")
		}
		b.wants(200, "POST", peoplewire.PathUILogout, "")
		if b.cookie != nil {
			t.Error("the browser keeps its cookie")
		}
		b.cookie = c
		b.wants(401, "GET", machines, "")
	})
	part("a session counts only for requests of the pages", func(t testing.TB) {
		b := a.browser(nil)
		b.wants(200, "POST", peoplewire.PathUISession, "", "Authorization: Bearer "+secret)
		b.wants(401, "GET", machines, "", "-"+HeaderPage)
		b.wants(401, "POST", machines, fmt.Sprintf(machine, "forged"), "-"+HeaderPage)
	})
	part("a page of another site changes nothing", func(t testing.TB) {
		b := a.browser(nil)
		b.wants(200, "POST", peoplewire.PathUISession, "", "Authorization: Bearer "+secret)
		b.wants(403, "POST", machines, fmt.Sprintf(machine, "forged"), "Sec-Fetch-Site: cross-site")
		b.wants(403, "POST", machines, fmt.Sprintf(machine, "forged"), "Origin: https://evil.example")
		certified := a.browser(a.authority.Issue(ca.Client("boss", controlplane.GroupAdmin)))
		certified.wants(403, "POST", machines, fmt.Sprintf(machine, "forged"), "Sec-Fetch-Site: same-site")
		certified.wants(201, "POST", machines, fmt.Sprintf(machine, "m2"), "Sec-Fetch-Site: same-origin")
		b.wants(404, "GET", machines+"/forged", "")
		if pages := a.ui; !pages.foreign(upgrade("https://evil.example")) || pages.foreign(upgrade("https://127.0.0.1")) {
			t.Error("a WebSocket of another site is open, or one of ours is not")
		}
	})
	part("a session ends with its token", func(t testing.TB) {
		gone, err := tokens.Create("bert", []string{controlplane.GroupViewer}, time.Hour)
		check(t, err)
		b := a.browser(nil)
		got := b.wants(200, "POST", peoplewire.PathUISession, "", "Authorization: Bearer "+gone)
		var session peoplewire.UISession
		check(t, json.Unmarshal([]byte(got), &session))
		if left := time.Until(session.Until); left > time.Hour || left < 50*time.Minute {
			t.Errorf("the session of a token that ends in an hour ends in %s", left)
		}
		b.wants(200, "GET", machines, "")
		b.wants(403, "POST", machines, fmt.Sprintf(machine, "m3"))
		check(t, tokens.Revoke("bert"))
		b.wants(401, "GET", machines, "")
		again, err := tokens.Create("bert", []string{controlplane.GroupAdmin}, 0)
		check(t, err)
		b.wants(401, "GET", machines, "") // another token of the same name does not revive it
		check(t, tokens.Revoke("bert"))
		b.wants(401, "POST", peoplewire.PathUISession, "", "Authorization: Bearer "+again)
	})
	part("a link opens one session with the role of who asked for it", func(t testing.TB) {
		link := a.link("carl", controlplane.GroupViewer)
		b := a.browser(nil)
		if got := b.wants(200, "POST", peoplewire.PathUISession, "", HeaderLink+": "+link); !strings.Contains(got, `"user":"carl","role":"viewer"`) {
			t.Errorf("got %s", got)
		}
		b.wants(200, "GET", machines, "")
		b.wants(403, "POST", machines, fmt.Sprintf(machine, "m4"))
		if got := a.browser(nil).wants(401, "POST", peoplewire.PathUISession, "", HeaderLink+": "+link); !strings.Contains(got, "was used already") {
			t.Errorf("got %s", got)
		}
	})
	part("a session makes no further credentials", func(t testing.TB) {
		b := a.browser(nil)
		b.wants(200, "POST", peoplewire.PathUISession, "", "Authorization: Bearer "+secret)
		b.wants(401, "POST", peoplewire.PathUISession, "")
		b.wants(403, "POST", peoplewire.PathUILinks, "")
	})
	part("a browser with a certificate needs no session", func(t testing.TB) {
		b := a.browser(a.authority.Issue(ca.Client("dora", controlplane.GroupAdmin)))
		if got := b.wants(200, "GET", peoplewire.PathUISession, ""); !strings.Contains(got, `"user":"dora","role":"admin"`) || !strings.Contains(got, `"session":false`) {
			t.Errorf("got %s", got)
		}
		b.wants(200, "GET", machines, "")
	})
	part("who has no role gets no session", func(t testing.TB) {
		a.browser(a.authority.Issue(ca.Client("emil", "another-group"))).wants(403, "POST", peoplewire.PathUISession, "")
	})
	part("the audit log says who logged in, by what, and no secret", func(t testing.TB) {
		log, err := os.ReadFile(filepath.Join(a.dir, "audit", "audit.log"))
		check(t, err)
		for _, want := range []string{`"requestURI":"/coldrack/v1/ui/session"`, `"username":"carl"`, "TOKENSHA256=", "X509SHA256="} {
			if !strings.Contains(string(log), want) {
				t.Errorf("no %s", want)
			}
		}
		if strings.Contains(string(log), secret) {
			t.Error("the token is in the log")
		}
	})
	part("sessions go on when the server is started again, links do not", func(t testing.TB) {
		b := a.browser(nil)
		b.wants(200, "POST", peoplewire.PathUISession, "", "Authorization: Bearer "+secret)
		link := a.link("carl", controlplane.GroupViewer)
		a.plane.Stop()
		a.start()
		b.wants(200, "GET", machines, "")
		a.browser(nil).wants(401, "POST", peoplewire.PathUISession, "", HeaderLink+": "+link)
	})
	part("whoever fails often has to wait", func(t testing.TB) {
		b := a.browser(nil)
		for range failuresOfOne {
			status, _, _ := b.does("POST", peoplewire.PathUISession, "", "Authorization: Bearer coldrack-guess")
			if status != 401 && status != 429 {
				t.Fatalf("got %d", status)
			}
		}
		if got := b.wants(429, "POST", peoplewire.PathUISession, "", "Authorization: Bearer "+secret); !strings.Contains(got, "too many failed log-ins") {
			t.Errorf("got %s", got)
		}
	})
}

// upgrade is what a browser sends when a page of an origin opens a WebSocket.
func upgrade(origin string) *http.Request {
	r := httptest.NewRequest("GET", "https://127.0.0.1"+machines+"?watch=1", nil)
	r.Header.Set("Upgrade", "websocket")
	r.Header.Set("Origin", origin)
	return r
}

func TestHeaders(t *testing.T) {
	pages, err := New(filepath.Join(t.TempDir(), "sessions"), discard())
	check(t, err)
	front := pages.Front(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "the API") }))
	get := func(path string, headers ...string) *httptest.ResponseRecorder {
		request := httptest.NewRequest("GET", path, nil)
		for i := 0; i < len(headers); i += 2 {
			request.Header.Set(headers[i], headers[i+1])
		}
		w := httptest.NewRecorder()
		front.ServeHTTP(w, request)
		return w
	}
	for _, path := range []string{"/ui/", "/ui/machines/node.js", machines, "/ui/js/none.js"} {
		h := get(path).Header()
		for _, want := range []string{"default-src 'none'", "script-src 'self'", "frame-ancestors 'none'", "form-action 'none'", "base-uri 'none'"} {
			if !strings.Contains(h.Get("Content-Security-Policy"), want) {
				t.Errorf("%s: policy lacks %s", path, want)
			}
		}
		if strings.Contains(h.Get("Content-Security-Policy"), "unsafe") || h.Get("X-Content-Type-Options") != "nosniff" || h.Get("X-Frame-Options") != "DENY" || h.Get("Referrer-Policy") != "no-referrer" {
			t.Errorf("%s: headers %v", path, h)
		}
	}
	if got := get(machines); got.Header().Get("Cache-Control") != "no-store" || got.Body.String() != "the API" {
		t.Errorf("data: %v %s", got.Header(), got.Body)
	}
	if got := get("/ui/machines/node.js"); !strings.HasPrefix(got.Header().Get("Content-Type"), "text/html") || got.Code != 200 {
		t.Errorf("a place in the pages: %d %v", got.Code, got.Header())
	}
	if got := get("/ui/js/none.js"); got.Code != 404 {
		t.Errorf("a file that is not there: %d", got.Code)
	}
	if got := get("/", "Accept", "text/html"); got.Code != http.StatusSeeOther || got.Header().Get("Location") != "/ui/" {
		t.Errorf("the root for a browser: %d", got.Code)
	}
	if got := get("/"); got.Body.String() != "the API" {
		t.Errorf("the root for a program: %d %s", got.Code, got.Body)
	}
	first := get("/ui/app.css", "Accept-Encoding", "gzip")
	if first.Header().Get("Content-Encoding") != "gzip" || first.Header().Get("ETag") == "" {
		t.Errorf("a file: %v", first.Header())
	}
	if again := get("/ui/app.css", "If-None-Match", first.Header().Get("ETag")); again.Code != http.StatusNotModified || again.Body.Len() != 0 {
		t.Errorf("the same file again: %d", again.Code)
	}
}

// TestFirstPageIsSmall bounds what an old laptop has to load before it shows something.
func TestFirstPageIsSmall(t *testing.T) {
	all, err := loadFiles()
	check(t, err)
	const most = 150 << 10
	total := 0
	for name, f := range all {
		total += len(f.packed)
		for _, foreign := range []string{"http://", "https://", "//cdn"} {
			text := strings.ReplaceAll(string(f.plain), "http://www.w3.org/2000/svg", "")
			if i := strings.Index(text, foreign); i >= 0 {
				t.Errorf("%s speaks of another place: %.60q", name, text[i:])
			}
		}
	}
	if total > most {
		t.Errorf("all files have %d bytes compressed; at most %d", total, most)
	}
	t.Logf("%d files, %d bytes compressed", len(all), total)
}

func TestEnds(t *testing.T) {
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	clock := func() time.Time { return now }
	file := filepath.Join(t.TempDir(), "sessions.json")
	sessions, err := openSessions(file, clock)
	check(t, err)
	person := controlplane.Person{Name: "anna", Groups: []string{controlplane.GroupAdmin, "system:authenticated"}, Until: now.Add(20 * time.Hour)}

	t.Run("a link", func(t *testing.T) {
		links := newLinks(clock)
		secret, until, err := links.make(person)
		check(t, err)
		now = until
		if _, ok := links.take(secret); ok {
			t.Error("it works at its end")
		}
		for range maxLinksOfOne {
			_, _, err := links.make(person)
			check(t, err)
		}
		if _, _, err := links.make(person); err == nil {
			t.Error("a person has links without end")
		}
		now = now.Add(linkLife)
		if _, _, err := links.make(person); err != nil {
			t.Errorf("after the others have ended: %v", err)
		}
	})
	t.Run("a session", func(t *testing.T) {
		secret, _, err := sessions.open(person)
		check(t, err)
		now = now.Add(sessionLife - time.Second)
		if p, ok := sessions.find(secret); !ok || p.Name != "anna" || len(p.Groups) != 1 {
			t.Errorf("got %+v, %v", p, ok)
		}
		now = now.Add(time.Second)
		if _, ok := sessions.find(secret); ok {
			t.Error("it goes on after its end")
		}
	})
	t.Run("one session more than a person may have ends the oldest", func(t *testing.T) {
		oldest, _, err := sessions.open(person)
		check(t, err)
		newest := ""
		for range maxOfOne {
			newest, _, err = sessions.open(person)
			check(t, err)
		}
		if _, ok := sessions.find(oldest); ok {
			t.Error("the oldest goes on")
		}
		if _, ok := sessions.find(newest); !ok {
			t.Error("the newest has ended")
		}
	})
	t.Run("a file that cannot be read costs a log-in", func(t *testing.T) {
		check(t, os.WriteFile(file, []byte("{"), 0o600))
		again, err := openSessions(file, clock)
		if err == nil || again == nil {
			t.Fatalf("got %v, %v", again, err)
		}
		if _, _, err := again.open(person); err != nil {
			t.Error(err)
		}
	})
	t.Run("a file that makes somebody the system", func(t *testing.T) {
		forged, _ := json.Marshal([]session{{SHA256: hash("x"), Name: "system:apiserver", Until: now.Add(time.Hour)}, {SHA256: hash("y"), Name: "z", Groups: []string{"system:masters"}, Until: now.Add(time.Hour)}})
		check(t, os.WriteFile(file, forged, 0o600))
		again, err := openSessions(file, clock)
		check(t, err)
		for _, secret := range []string{"x", "y"} {
			if p, ok := again.find(secret); ok {
				t.Errorf("%+v", p)
			}
		}
	})
	t.Run("the wait after failures", func(t *testing.T) {
		f := newFailures(clock)
		for range failuresOfOne {
			f.add("10.0.0.1")
		}
		if f.wait("10.0.0.1") == 0 || f.wait("10.0.0.2") != 0 {
			t.Errorf("waits %s and %s", f.wait("10.0.0.1"), f.wait("10.0.0.2"))
		}
		now = now.Add(time.Minute)
		if wait := f.wait("10.0.0.1"); wait != 0 {
			t.Errorf("a minute later it waits %s", wait)
		}
	})
}
