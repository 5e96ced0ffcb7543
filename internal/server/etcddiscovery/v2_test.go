package etcddiscovery

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"
)

type rig struct {
	t        testing.TB
	registry *Registry
	clock    *clock
	server   *Server
	address  string
}

func newRig(t testing.TB, open bool) *rig {
	t.Helper()
	c := newClock()
	r := &rig{t: t, registry: newRegistry(t, c), clock: c}
	r.server = New(Options{Registry: r.registry, Open: open, Log: slog.New(slog.DiscardHandler)})
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	r.address = listener.Addr().String()
	serve(t, r.server, listener)
	return r
}

// serve serves until the test ends.
func serve(t testing.TB, s *Server, listener net.Listener) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, listener) }()
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		s.Close()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	t.Cleanup(stop)
	return stop
}

func (r *rig) token(size int) Token {
	r.t.Helper()
	token, err := r.registry.New(size, 0, "person", false)
	check(r.t, err)
	return token
}

// ask sends a request and returns its status, its index and its body.
func (r *rig) ask(method, path string, form url.Values) string {
	r.t.Helper()
	request, err := http.NewRequest(method, "http://"+r.address+path, strings.NewReader(form.Encode()))
	check(r.t, err)
	if form != nil {
		request.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	response, err := http.DefaultClient.Do(request)
	check(r.t, err)
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	check(r.t, err)
	return fmt.Sprintf("%d %s %s", response.StatusCode, response.Header.Get("X-Etcd-Index"), strings.TrimSpace(string(body)))
}

func value(peers string) url.Values { return url.Values{"value": {peers}} }

// TestTheOldProtocol is the talk of two members with the server, word by word.
func TestTheOldProtocol(t *testing.T) {
	r := newRig(t, false)
	k := r.token(2).ID
	for _, step := range []struct{ method, path, value, want string }{
		{"GET", "/_config/size", "", `200 2 {"action":"get","node":{"key":"/K/_config/size","value":"2","modifiedIndex":2,"createdIndex":2}}`},
		{"GET", "", "", `200 2 {"action":"get","node":{"key":"/K","dir":true,"modifiedIndex":2,"createdIndex":2}}`},
		{"GET", "/a", "", `404 2 {"errorCode":100,"message":"Key not found","cause":"/K/a: no such token: it has no member \"a\"","index":2}`},
		{"PUT", "/a?prevExist=false", peers("a"), `201 3 {"action":"create","node":{"key":"/K/a","value":"a=http://a:2380","modifiedIndex":3,"createdIndex":3}}`},
		{"GET", "/a?wait=true&waitIndex=3", "", `200 3 {"action":"create","node":{"key":"/K/a","value":"a=http://a:2380","modifiedIndex":3,"createdIndex":3}}`},
		{"PUT", "/a?prevExist=false", peers("a"), `201 3 {"action":"create","node":{"key":"/K/a","value":"a=http://a:2380","modifiedIndex":3,"createdIndex":3}}`},
		{"GET", "?recursive=true", "", `200 3 {"action":"get","node":{"key":"/K","dir":true,"nodes":[{"key":"/K/a","value":"a=http://a:2380","modifiedIndex":3,"createdIndex":3}],"modifiedIndex":2,"createdIndex":2}}`},
		{"PUT", "/b?prevExist=false", peers("a"), `400 3 {"errorCode":209,"message":"Invalid field","cause":"/K/b: not accepted: 127.0.0.1 has registered a member with the name \"a\"; give each member a name of its own (--name)","index":3}`},
		{"PUT", "/b?prevExist=false", peers("b"), `201 4 {"action":"create","node":{"key":"/K/b","value":"b=http://b:2380","modifiedIndex":4,"createdIndex":4}}`},
		{"GET", "?wait=true&recursive=true&waitIndex=4", "", `200 4 {"action":"create","node":{"key":"/K/b","value":"b=http://b:2380","modifiedIndex":4,"createdIndex":4}}`},
		{"PUT", "/c?prevExist=false", peers("c"), `412 4 {"errorCode":101,"message":"Compare failed","cause":"/K/c: the cluster is full: its 2 members have registered","index":4}`},
		{"PUT", "/_config/size", "9", `405  members are registered by PUT and read by GET; everything else is up to ` + "`coldrack discovery`"},
		{"DELETE", "/a", "", `405  members are registered by PUT and read by GET; everything else is up to ` + "`coldrack discovery`"},
	} {
		var form url.Values
		if step.value != "" {
			form = value(step.value)
		}
		if got := strings.ReplaceAll(r.ask(step.method, "/"+k+step.path, form), k, "K"); got != step.want {
			t.Errorf("%s %s:\n got %s\nwant %s", step.method, step.path, got, step.want)
		}
	}
	// Both members came from one address, which knows the cluster since the second of them was told.
	r.clock.now = r.clock.now.Add(sinceTold)
	if got := r.ask("PUT", "/"+k+"/a?prevExist=false", value(peers("a"))); !strings.HasPrefix(got, `412 4 {"errorCode":105,`) {
		t.Errorf("a member that knows the cluster came again: %s", got)
	}
	if got := r.ask("GET", "/0123456789abcdef0123456789abcdef/_config/size", nil); !strings.HasPrefix(got, `404 2 {"errorCode":100,"message":"Key not found","cause":"no such token: this server did not make it`) {
		t.Errorf("a token that there is not: %s", got)
	}
	r.clock.now = r.clock.now.Add(DefaultTTL)
	if got := r.ask("GET", "/"+k+"/_config/size", nil); !strings.HasPrefix(got, `404 2 {"errorCode":100,"message":"Key not found","cause":"no such token: it has ended on `) {
		t.Errorf("a token that has ended: %s", got)
	}
}

// A wait is answered at once with its headers, and with the member when it comes.
func TestAWait(t *testing.T) {
	r := newRig(t, false)
	k := r.token(2).ID
	response, err := http.Get("http://" + r.address + "/" + k + "?wait=true&recursive=true&waitIndex=3")
	check(t, err)
	defer response.Body.Close()
	_, _, err = r.registry.Register(k, "a", peers("a"), hostA)
	check(t, err)
	line, err := bufio.NewReader(response.Body).ReadString('\n')
	check(t, err)
	if want := `{"action":"create","node":{"key":"/` + k + `/a","value":"a=http://a:2380","modifiedIndex":3,"createdIndex":3}}` + "\n"; line != want {
		t.Errorf("got %s want %s", line, want)
	}
	// One that waits for a token which is deleted is answered with nothing, and asks again.
	response, err = http.Get("http://" + r.address + "/" + k + "?wait=true&recursive=true&waitIndex=4")
	check(t, err)
	defer response.Body.Close()
	check(t, r.registry.Delete(k))
	if body, err := io.ReadAll(response.Body); err != nil || len(body) != 0 {
		t.Errorf("after the token was deleted: %q, %v", body, err)
	}
}

func TestMachinesMakeTokens(t *testing.T) {
	closed := newRig(t, false)
	if got := closed.ask("GET", "/new?size=3", nil); !strings.HasPrefix(got, "403 ") {
		t.Errorf("not allowed: %s", got)
	}
	if n := len(closed.registry.List()); n != 0 {
		t.Errorf("and %d tokens were made", n)
	}
	r := newRig(t, true)
	for _, method := range []string{"GET", "PUT", "POST"} {
		got := r.ask(method, "/new?size=5", nil)
		made := r.registry.List()[0]
		if want := "200  http://" + r.address + "/" + made.ID; got != want || made.Size != 5 || !made.Open {
			t.Errorf("%s: got %s want %s, of size %d", method, got, want, made.Size)
		}
		check(t, r.registry.Delete(made.ID))
	}
	r.ask("GET", "/new", nil)
	if made := r.registry.List()[0]; made.Size != DefaultSize {
		t.Errorf("without a size: %d", made.Size)
	}
	for _, size := range []string{"0", "-1", "three", "99999999999999999999", "1e9", "33"} {
		if got := r.ask("GET", "/new?size="+size, nil); !strings.HasPrefix(got, "400 ") {
			t.Errorf("size %s: %s", size, got)
		}
	}
	request := httptest.NewRequest("GET", "/new", nil)
	for host, want := range map[string]string{"discovery.example:80": "discovery.example:80", "evil/path": "127.0.0.1:7", "a@b": "127.0.0.1:7", "": "127.0.0.1:7"} {
		request.Host = host
		local := &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 7}
		if got := hostOf(request.WithContext(context.WithValue(request.Context(), http.LocalAddrContextKey, net.Addr(local)))); got != want {
			t.Errorf("host %q: %q", host, got)
		}
	}
}

func TestWhoTriesOutTokensWaits(t *testing.T) {
	r := newRig(t, false)
	k := r.token(2).ID
	last := ""
	for i := range missesPerMinute + 10 {
		last = r.ask("GET", fmt.Sprintf("/%032x/_config/size", i), nil)
	}
	if !strings.HasPrefix(last, "503 ") {
		t.Errorf("after %d tokens that there are not: %s", missesPerMinute+10, last)
	}
	if got := r.ask("GET", "/"+k+"/_config/size", nil); !strings.HasPrefix(got, "200 ") {
		t.Errorf("and one that there is: %s", got)
	}
}

func TestALargeRequest(t *testing.T) {
	r := newRig(t, false)
	k := r.token(2).ID
	if got := r.ask("PUT", "/"+k+"/a", value(strings.Repeat("x", 1<<20))); !strings.HasPrefix(got, "400 ") {
		t.Errorf("a body of 1 MiB: %.200s", got)
	}
}

func FuzzRequests(f *testing.F) {
	c := newClock()
	registry := newRegistry(f, c)
	token, err := registry.New(2, time.Hour, "person", false)
	check(f, err)
	s := New(Options{Registry: registry, Log: slog.New(slog.DiscardHandler)})
	f.Add("GET", "/_config/size", "")
	f.Add("PUT", "/a?prevExist=false", "value=a%3Dhttp%3A%2F%2Fa%3A1")
	f.Add("GET", "/a?wait=true&waitIndex=3", "")
	f.Fuzz(func(t *testing.T, method, path, body string) {
		target, err := url.Parse("/" + token.ID + path)
		if err != nil || strings.ContainsAny(method, " \r\n") {
			t.Skip()
		}
		request := httptest.NewRequest("GET", "/", strings.NewReader(body))
		ctx, cancel := context.WithCancel(context.Background())
		cancel() // nobody waits
		request.Method, request.URL = method, target
		request.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		answer := httptest.NewRecorder()
		s.serveV2(answer, request.WithContext(ctx))
		if answer.Code >= 500 && answer.Code != http.StatusServiceUnavailable {
			t.Errorf("%s %s: %d %s", method, path, answer.Code, answer.Body)
		}
		if _, _, err := s.registry.Get(token.ID); err != nil {
			t.Error(err)
		}
	})
}
