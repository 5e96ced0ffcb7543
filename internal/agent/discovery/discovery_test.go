package discovery

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"coldrack.dev/internal/agent/client"
	"coldrack.dev/internal/agent/console"
	"coldrack.dev/internal/agent/install"
	"coldrack.dev/internal/contract/wire"
)

// story is a server that speaks wire over plain HTTP inside the test; package client has the tests of TLS.
type story struct {
	t       *testing.T
	mu      sync.Mutex
	calls   []string
	refuse  map[string]wire.Error // by path
	down    bool                  // every connection breaks
	current wire.Assignment
	changed chan struct{}
	done    chan wire.Complete
	address string
}

func newStory(t *testing.T) *story {
	s := &story{t: t, refuse: map[string]wire.Error{}, changed: make(chan struct{}), done: make(chan wire.Complete, 10)}
	server := httptest.NewServer(s)
	t.Cleanup(server.Close)
	s.address = server.Listener.Addr().String()
	return s
}

// outage breaks all connections, those of polls that wait included, or ends that.
func (s *story) outage(down bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.down = down
	close(s.changed)
	s.changed = make(chan struct{})
}

// assign changes what the machine shall do.
func (s *story) assign(a wire.Assignment) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.current = a
	close(s.changed)
	s.changed = make(chan struct{})
}

func (s *story) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	if s.down {
		s.mu.Unlock()
		panic(http.ErrAbortHandler)
	}
	if n := len(s.calls); n == 0 || s.calls[n-1] != r.URL.Path {
		s.calls = append(s.calls, r.URL.Path)
	}
	no, refused := s.refuse[r.URL.Path]
	s.mu.Unlock()
	if refused {
		w.WriteHeader(http.StatusForbidden)
		_ = json.NewEncoder(w).Encode(no)
		return
	}
	var answer any = wire.Empty{}
	switch r.URL.Path {
	case wire.PathEnroll:
		answer = wire.EnrollResponse{Machine: "n1", Certificate: "session", ExpiresAt: time.Now().Add(time.Hour)}
	case wire.PathAssignment:
		answer = s.poll(r)
	case wire.PathComplete:
		var c wire.Complete
		_ = json.NewDecoder(r.Body).Decode(&c)
		s.done <- c
	}
	_ = json.NewEncoder(w).Encode(answer)
}

func (s *story) poll(r *http.Request) wire.Assignment {
	for {
		s.mu.Lock()
		current, changed, down := s.current, s.changed, s.down
		s.mu.Unlock()
		if down {
			panic(http.ErrAbortHandler)
		}
		if current.Version != r.URL.Query().Get("version") || r.URL.Query().Get("wait") == "0" {
			return current
		}
		select {
		case <-changed:
		case <-r.Context().Done():
			return current
		}
	}
}

// plain is the machine API without TLS.
type plain struct {
	base string
}

func post[T any](ctx context.Context, p plain, path string, in any) (T, error) {
	var out T
	b, err := json.Marshal(in)
	if err != nil {
		return out, err
	}
	method, body := http.MethodPost, io.Reader(bytes.NewReader(b))
	if in == nil {
		method, body = http.MethodGet, nil
	}
	req, err := http.NewRequestWithContext(ctx, method, p.base+path, body)
	if err != nil {
		return out, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return out, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		var e wire.Error
		_ = json.NewDecoder(resp.Body).Decode(&e)
		return out, &client.Error{Path: path, Status: resp.StatusCode, Code: e.Code, Message: e.Message}
	}
	return out, json.NewDecoder(resp.Body).Decode(&out)
}

func (p plain) Progress(ctx context.Context, in wire.Progress) (wire.ProgressResponse, error) {
	return post[wire.ProgressResponse](ctx, p, wire.PathProgress, in)
}
func (p plain) Identity(ctx context.Context, in wire.IdentityRequest) (wire.IdentityResponse, error) {
	return post[wire.IdentityResponse](ctx, p, wire.PathIdentity, in)
}
func (p plain) Time(ctx context.Context) (wire.Time, error) {
	return post[wire.Time](ctx, p, wire.PathTime, nil)
}
func (p plain) Enroll(ctx context.Context, in wire.EnrollRequest) (wire.EnrollResponse, error) {
	return post[wire.EnrollResponse](ctx, p, wire.PathEnroll, in)
}
func (p plain) Inventory(ctx context.Context, in wire.Inventory) error {
	_, err := post[wire.Empty](ctx, p, wire.PathInventory, in)
	return err
}
func (p plain) Assignment(ctx context.Context, version string, wait time.Duration) (wire.Assignment, error) {
	return post[wire.Assignment](ctx, p, wire.PathAssignment+"?version="+version+"&wait="+strconv.Itoa(int(wait.Seconds())), nil)
}
func (p plain) Complete(ctx context.Context, in wire.Complete) error {
	_, err := post[wire.Empty](ctx, p, wire.PathComplete, in)
	return err
}
func (p plain) Renew(ctx context.Context, in wire.RenewRequest) (wire.IdentityResponse, error) {
	return post[wire.IdentityResponse](ctx, p, wire.PathRenew, in)
}

// acts notes what it is told to do.
type acts struct {
	mu      sync.Mutex
	intents []string
	result  func(intentID string) (wire.Complete, error)
}

func (a *acts) act(intentID string) (wire.Complete, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.intents = append(a.intents, intentID)
	return a.result(intentID)
}

func (a *acts) Install(_ context.Context, p wire.InstallPlan) (wire.Complete, error) {
	return a.act(p.IntentID)
}

func (a *acts) Release(_ context.Context, p wire.ReleasePlan) (wire.Complete, error) {
	return a.act(p.IntentID)
}

func (a *acts) seen() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return strings.Join(a.intents, " ")
}

func succeed(intentID string) (wire.Complete, error) {
	return wire.Complete{IntentID: intentID, State: wire.StateSucceeded}, nil
}

// begin starts a machine's discovery; its end comes out of the channel.
func (s *story) begin(a *acts) (*screen, <-chan error) {
	shown := &screen{}
	con := console.New(shown)
	s.t.Cleanup(con.Close)
	d := &Discovery{
		Log: slog.New(slog.DiscardHandler), Console: con, Server: plain{"http://" + s.address}, Acts: a,
		Use:    func(string, *ecdsa.PrivateKey) error { return nil },
		Look:   func() wire.Inventory { return wire.Inventory{} },
		Glance: func() wire.Inventory { return wire.Inventory{} },
		Nonce:  "n", Sleep: pause,
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		ended <- d.Run(ctx)
	}()
	s.t.Cleanup(func() { cancel(); <-stopped })
	return shown, ended
}

func install1(intentID string) wire.Assignment {
	return wire.Assignment{Version: "v-" + intentID, Action: wire.ActionInstall, Plan: &wire.InstallPlan{IntentID: intentID}}
}

func ending(t *testing.T, ended <-chan error) *Reboot {
	t.Helper()
	select {
	case err := <-ended:
		r := asReboot(err)
		if r == nil {
			t.Fatalf("ended with %v, want a reboot", err)
		}
		return r
	case <-time.After(2 * time.Minute):
		t.Fatal("does not end")
		return nil
	}
}

func TestFromWaitingToInstalled(t *testing.T) {
	s := newStory(t)
	a := &acts{result: succeed}
	s.assign(wire.Assignment{Version: "1", Action: wire.ActionWait, Message: "waiting for approval"})
	shown, ended := s.begin(a)
	shown.await(t, "waiting for approval")
	if a.seen() != "" {
		t.Error("an unapproved machine acted")
	}
	s.assign(install1("i1"))
	if r := ending(t, ended); !r.Wanted || r.After != 0 {
		t.Errorf("the reboot is %+v", r)
	}
	if c := <-s.done; c.IntentID != "i1" || c.State != wire.StateSucceeded {
		t.Errorf("acknowledged %+v", c)
	}
	want := strings.Join([]string{wire.PathEnroll, wire.PathInventory, wire.PathAssignment, wire.PathInventory, wire.PathComplete}, " ")
	if got := strings.Join(s.calls, " "); got != want {
		t.Errorf("asked %s, want %s", got, want)
	}
}

func TestAFailedIntentIsNotTriedAgainButANewOneIs(t *testing.T) {
	s := newStory(t)
	a := &acts{result: func(id string) (wire.Complete, error) {
		if id == "i1" {
			return wire.Complete{IntentID: id, State: wire.StateFailed, Message: "select-disk: no disk matches"}, nil
		}
		return succeed(id)
	}}
	s.assign(install1("i1"))
	shown, ended := s.begin(a)
	if c := <-s.done; c.State != wire.StateFailed || c.Message == "" {
		t.Errorf("acknowledged %+v", c)
	}
	shown.await(t, "FAILED: install : select-disk: no disk matches")
	again := install1("i1")
	again.Version, again.Message = "v2", "the same intent in another version"
	s.assign(again)
	shown.await(t, again.Message)
	s.assign(install1("i2"))
	if r := ending(t, ended); !r.Wanted {
		t.Errorf("the reboot is %+v", r)
	}
	if a.seen() != "i1 i2" {
		t.Errorf("acted on %s", a.seen())
	}
}

func TestAReleaseLeavesTheMachineInDiscovery(t *testing.T) {
	s := newStory(t)
	a := &acts{result: succeed}
	s.assign(wire.Assignment{Version: "1", Action: wire.ActionRelease, Release: &wire.ReleasePlan{IntentID: "r1"}})
	shown, ended := s.begin(a)
	<-s.done
	s.assign(wire.Assignment{Version: "2", Action: wire.ActionWait, Message: "released"})
	shown.await(t, "released")
	s.assign(wire.Assignment{Version: "3", Action: wire.ActionReboot})
	if r := ending(t, ended); !r.Wanted || a.seen() != "r1" {
		t.Errorf("%+v after %s", r, a.seen())
	}
}

func TestAnActThatWasCancelledIsNotAcknowledged(t *testing.T) {
	s := newStory(t)
	a := &acts{result: func(string) (wire.Complete, error) { return wire.Complete{}, install.ErrCancelled }}
	s.assign(install1("i1"))
	shown, _ := s.begin(a)
	shown.await(t, "stopped: the server no longer wants this")
	if len(s.done) > 0 {
		t.Error("it was acknowledged")
	}
}

func TestAServerThatRestartsIsWaitedFor(t *testing.T) {
	s := newStory(t)
	s.assign(wire.Assignment{Version: "1", Action: wire.ActionWait, Message: "waiting for approval"})
	shown, ended := s.begin(&acts{result: succeed})
	shown.await(t, "waiting for approval")
	s.outage(true)
	shown.await(t, "the server is unreachable")
	s.outage(false)
	shown.await(t, "server is reachable again") // though it has nothing new to say
	s.assign(install1("i1"))
	if r := ending(t, ended); !r.Wanted {
		t.Errorf("the reboot is %+v", r)
	}
	if strings.Count(strings.Join(s.calls, " "), wire.PathEnroll) != 1 {
		t.Errorf("enrolled again: %v", s.calls)
	}
}

func TestRefusalsEndInAReboot(t *testing.T) {
	for name, tt := range map[string]struct {
		path, code string
		after      time.Duration
	}{
		"a nonce that the server does not know":       {wire.PathEnroll, wire.CodeUnknownNonce, nonceDelay},
		"a machine that is installed already":         {wire.PathEnroll, wire.CodeIdentityExists, refusedDelay},
		"a session that ended":                        {wire.PathAssignment, wire.CodeForbidden, refusedDelay},
		"a machine that was deleted":                  {wire.PathInventory, wire.CodeNotFound, refusedDelay},
		"an acknowledgement that the server rejected": {wire.PathComplete, wire.CodeBadRequest, refusedDelay},
	} {
		t.Run(name, func(t *testing.T) {
			s := newStory(t)
			s.refuse[tt.path] = wire.Error{Code: tt.code, Message: "because"}
			s.assign(install1("i1"))
			_, ended := s.begin(&acts{result: succeed})
			r := ending(t, ended)
			if r.Wanted || r.After < tt.after || r.After > 2*tt.after || !strings.Contains(r.Reason, "because") {
				t.Errorf("the reboot is %+v", r)
			}
		})
	}
}

func TestAnIntentThatTheServerForgotIsNoReasonToReboot(t *testing.T) {
	s := newStory(t)
	s.refuse[wire.PathComplete] = wire.Error{Code: wire.CodeConflict, Message: "not running"}
	s.assign(install1("i1"))
	shown, ended := s.begin(&acts{result: succeed})
	shown.await(t, "no longer waits for this intent")
	s.assign(wire.Assignment{Version: "3", Action: wire.ActionReboot})
	if r := ending(t, ended); !r.Wanted {
		t.Errorf("the reboot is %+v", r)
	}
}

func TestTheEndOfTheContextEndsIt(t *testing.T) {
	s := newStory(t)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	d := &Discovery{Console: console.New(), Server: plain{"http://" + s.address}, Look: func() wire.Inventory { return wire.Inventory{} }, Sleep: pause}
	if err := d.Run(ctx); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}
