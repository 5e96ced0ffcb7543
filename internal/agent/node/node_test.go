package node

import (
	"context"
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"coldrack.dev/internal/agent/client"
	"coldrack.dev/internal/agent/identity"
	"coldrack.dev/internal/agent/journal"
	"coldrack.dev/internal/contract/wire"
	"coldrack.dev/test/ca"
)

// server answers as the test says, and certifies whatever key it is shown.
type server struct {
	t     *testing.T
	ca    *ca.CA
	until time.Time // of certificates that it issues

	mu      sync.Mutex
	beats   []wire.Heartbeat
	answer  func(n int) (wire.HeartbeatResponse, error)
	renewed int
	// hardware is what became of each report.
	hardware func(n int) error
	told     []wire.Hardware
}

func (s *server) Hardware(_ context.Context, h wire.Hardware) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.told = append(s.told, h)
	return s.hardware(len(s.told))
}

func (s *server) Heartbeat(_ context.Context, h wire.Heartbeat) (wire.HeartbeatResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.beats = append(s.beats, h)
	return s.answer(len(s.beats))
}

func (s *server) Renew(_ context.Context, r wire.RenewRequest) (wire.IdentityResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.renewed++; s.renewed == 1 {
		return wire.IdentityResponse{}, errors.New("no route to host")
	}
	block, _ := pem.Decode([]byte(r.CSR))
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return wire.IdentityResponse{}, err
	}
	return wire.IdentityResponse{Certificate: s.certify(csr.PublicKey)}, nil
}

func (s *server) certify(public any) string {
	cert, err := s.ca.Sign(&x509.Certificate{NotBefore: s.until.Add(-3 * time.Hour), NotAfter: s.until}, public)
	if err != nil {
		s.t.Fatal(err)
	}
	return string(ca.EncodeCert(cert))
}

// issue makes an identity whose certificate lives three hours, until then.
func (s *server) issue(until time.Time) ([]byte, identity.Node) {
	s.t.Helper()
	s.until = until
	key, _, err := client.NewKey("n1")
	if err != nil {
		s.t.Fatal(err)
	}
	b, err := identity.Encode(key, s.certify(key.Public()))
	if err != nil {
		s.t.Fatal(err)
	}
	n, err := identity.Decode(b)
	if err != nil {
		s.t.Fatal(err)
	}
	return b, n
}

func newServer(t *testing.T) *server {
	t.Helper()
	return &server{t: t, ca: ca.New(t, "machines"), answer: func(int) (wire.HeartbeatResponse, error) { return wire.HeartbeatResponse{IntervalSeconds: 30}, nil }}
}

// agent runs on a clock of its own: every wait is over at once, and noted.
type agent struct {
	*Agent
	mu     sync.Mutex
	waits  []time.Duration
	used   []identity.Node
	reboot []string
}

func (s *server) agent(id identity.Node, enough func(*agent) bool) (*agent, context.Context) {
	ctx, cancel := context.WithCancel(context.Background())
	a := &agent{}
	a.Agent = &Agent{
		Log: slog.New(slog.DiscardHandler), Lines: journal.New(10), Server: s, Identity: id, Machine: "n1", Root: s.t.TempDir(), Now: time.Now,
		Use: func(n identity.Node) {
			a.mu.Lock()
			defer a.mu.Unlock()
			a.used = append(a.used, n)
		},
		Look: func(context.Context) wire.Heartbeat { return wire.Heartbeat{OS: "Debian"} },
		Reboot: func(_ context.Context, reason string) error {
			a.mu.Lock()
			defer a.mu.Unlock()
			a.reboot = append(a.reboot, reason)
			return nil
		},
		Sleep: func(ctx context.Context, d time.Duration) {
			a.mu.Lock()
			a.waits = append(a.waits, d)
			a.mu.Unlock()
			if enough(a) {
				cancel()
			}
			if d > time.Minute { // the certificate is good for long
				<-ctx.Done()
			}
		},
	}
	return a, ctx
}

func TestHeartbeatsGoOnWhateverTheServerDoes(t *testing.T) {
	s := newServer(t)
	s.answer = func(n int) (wire.HeartbeatResponse, error) {
		switch n {
		case 1, 2, 3:
			return wire.HeartbeatResponse{}, errors.New("connection refused")
		case 4:
			return wire.HeartbeatResponse{}, &client.Error{Status: 403, Message: "not this machine's identity any more"}
		}
		return wire.HeartbeatResponse{IntervalSeconds: 7}, nil
	}
	_, id := s.issue(time.Now().Add(3 * time.Hour))
	a, ctx := s.agent(id, func(*agent) bool { s.mu.Lock(); defer s.mu.Unlock(); return len(s.beats) >= 6 })
	a.Lines.Add("booted")
	if err := a.Run(ctx); err != nil {
		t.Fatal(err)
	}
	var waits []time.Duration
	for _, w := range a.waits {
		if w < time.Minute {
			waits = append(waits, w)
		}
	}
	want := []time.Duration{time.Second, 2 * time.Second, 4 * time.Second, 30 * time.Second, 7 * time.Second, 7 * time.Second}
	for i, w := range want {
		if i >= len(waits) || waits[i] < w || waits[i] > w*12/10 {
			t.Fatalf("waited %v, want about %v", waits, want)
		}
	}
	for i, lines := range []int{1, 1, 1, 1, 1, 0} {
		if len(s.beats[i].Log) != lines {
			t.Errorf("heartbeat %d has the log %q; lines stay until the server has them", i+1, s.beats[i].Log)
		}
	}
}

// TestHardwareIsReportedAgain: soon while the server is away, in ten minutes while it refuses the key, and else twice a day; also to a server
// that knows no such report.
func TestHardwareIsReportedAgain(t *testing.T) {
	s := newServer(t)
	s.hardware = func(n int) error {
		switch n {
		case 1:
			return errors.New("connection refused")
		case 2:
			return &client.Error{Status: 403, Code: wire.CodeForbidden}
		case 3:
			return &client.Error{Status: 404, Message: "404 page not found"}
		}
		return nil
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var waits []time.Duration
	a := &Agent{
		Log: slog.New(slog.DiscardHandler), Server: s,
		Hardware: func() wire.Hardware { return wire.Hardware{Firmware: wire.Firmware{BIOSVersion: "1.2"}} },
		Sleep: func(_ context.Context, d time.Duration) {
			if waits = append(waits, d); len(waits) == 4 {
				cancel()
			}
		},
	}
	if err := a.tellHardware(ctx); err != nil {
		t.Fatal(err)
	}
	for i, want := range []time.Duration{lastRetry, renewRetry, hardwareInterval, hardwareInterval} {
		if waits[i] < want || waits[i] > want+want/10 {
			t.Errorf("waited %v after report %d, want %v", waits[i], i+1, want)
		}
	}
	if len(s.told) != 4 || s.told[3].Firmware.BIOSVersion != "1.2" {
		t.Errorf("told %+v", s.told)
	}
}

func TestAnIntentMakesTheNodeReboot(t *testing.T) {
	s := newServer(t)
	s.answer = func(int) (wire.HeartbeatResponse, error) {
		return wire.HeartbeatResponse{IntervalSeconds: 1, Reboot: true, RebootReason: "reinstall was asked for"}, nil
	}
	_, id := s.issue(time.Now().Add(3 * time.Hour))
	a, ctx := s.agent(id, func(a *agent) bool { a.mu.Lock(); defer a.mu.Unlock(); return len(a.reboot) > 0 })
	if err := a.Run(ctx); err != nil || a.reboot[0] != "reinstall was asked for" {
		t.Errorf("%v, %q", err, a.reboot)
	}
}

// renewal starts an agent whose certificate is due.
func (s *server) renewal(t *testing.T, enough func(*agent) bool) (*agent, context.Context) {
	t.Helper()
	old, id := s.issue(time.Now().Add(30 * time.Minute)) // five sixths of its life are over
	s.until = time.Now().Add(3 * time.Hour)
	a, ctx := s.agent(id, enough)
	sleep := a.Sleep
	a.Sleep = func(ctx context.Context, d time.Duration) {
		if d == renewRetry {
			d = time.Second // the wait after a failure
		}
		sleep(ctx, d)
		time.Sleep(time.Millisecond)
	}
	dir := filepath.Join(a.Root, identity.Dir)
	if err := errors.Join(os.MkdirAll(dir, 0o700), os.WriteFile(filepath.Join(dir, identity.NodeFile), old, 0o600)); err != nil {
		t.Fatal(err)
	}
	return a, ctx
}

func TestTheCertificateIsRenewedForANewKey(t *testing.T) {
	s := newServer(t)
	a, ctx := s.renewal(t, func(a *agent) bool {
		saved, err := identity.Load(a.Root, identity.NodeFile)
		return err == nil && time.Until(saved.NotAfter) > time.Hour
	})
	old := a.Identity
	if err := a.Run(ctx); err != nil {
		t.Fatal(err)
	}
	saved, err := identity.Load(a.Root, identity.NodeFile)
	if err != nil {
		t.Fatal(err)
	}
	if len(a.used) != 2 || !saved.NotAfter.Equal(a.used[1].NotAfter) || !saved.NotAfter.After(old.NotAfter) {
		t.Errorf("saved until %s, used %d identities", saved.NotAfter, len(a.used))
	}
	if a.used[0].Certificate.PrivateKey.(*ecdsa.PrivateKey).Equal(a.used[1].Certificate.PrivateKey) {
		t.Error("the key is still the old one")
	}
}

func TestARenewedCertificateThatTheServerForgotIsDropped(t *testing.T) {
	s := newServer(t)
	var a *agent
	s.answer = func(int) (wire.HeartbeatResponse, error) {
		a.mu.Lock()
		defer a.mu.Unlock()
		if len(a.used) == 2 { // the new one
			return wire.HeartbeatResponse{}, &client.Error{Status: 403, Code: wire.CodeForbidden}
		}
		return wire.HeartbeatResponse{IntervalSeconds: 1}, nil
	}
	a, ctx := s.renewal(t, func(a *agent) bool { a.mu.Lock(); defer a.mu.Unlock(); return len(a.used) >= 3 })
	old := a.Identity
	if err := a.Run(ctx); err != nil {
		t.Fatal(err)
	}
	if !a.used[2].NotAfter.Equal(old.NotAfter) {
		t.Errorf("after the refusal the identity until %s was used, want the old one's %s", a.used[2].NotAfter, old.NotAfter)
	}
	saved, err := identity.Load(a.Root, identity.NodeFile)
	if err != nil || !saved.NotAfter.Equal(old.NotAfter) {
		t.Errorf("the old identity is gone from the disk: %v", err)
	}
}

func TestAPowerCutDuringARenewal(t *testing.T) {
	s := newServer(t)
	a, ctx := s.renewal(t, func(a *agent) bool { a.mu.Lock(); defer a.mu.Unlock(); return len(a.waits) > 2 })
	b, next := s.issue(time.Now().Add(3 * time.Hour))
	if err := identity.SaveNext(a.Root, b); err != nil {
		t.Fatal(err)
	}
	a.Next = &next
	if err := a.Run(ctx); err != nil {
		t.Fatal(err)
	}
	saved, err := identity.Load(a.Root, identity.NodeFile)
	if err != nil || !saved.NotAfter.Equal(next.NotAfter) {
		t.Errorf("the next identity was not promoted: %v", err)
	}
}

func TestLookSeesThisSystem(t *testing.T) {
	h := (&Looker{Root: "/", Version: "v1"}).Look(context.Background())
	if h.Kernel == "" || h.BootID == "" || h.OS == "" || h.BootedAt.IsZero() || h.AgentVersion != "v1" {
		t.Errorf("%+v", h)
	}
}

func TestParseFailed(t *testing.T) {
	out := "● nginx.service   loaded failed failed A server\n  foo@1.service loaded failed failed Foo\n\n"
	if got := strings.Join(parseFailed([]byte(out)), " "); got != "nginx.service foo@1.service" {
		t.Errorf("got %q", got)
	}
}

func TestNotify(t *testing.T) {
	path := filepath.Join(t.TempDir(), "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	t.Setenv("NOTIFY_SOCKET", path)
	if err := Notify("READY=1"); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 100)
	if n, err := conn.Read(b); err != nil || string(b[:n]) != "READY=1" {
		t.Errorf("%v, %q", err, b[:n])
	}
	t.Setenv("NOTIFY_SOCKET", "")
	if err := Notify("READY=1"); err != nil {
		t.Error(err)
	}
}
