package controlplane

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Door is the socket of people's API, which is there before the store is, and stays when it is lost. Connections go to the API from
// the moment at which it serves, and to the stand-in (see ServeStandIn) at all other times.
type Door struct {
	socket  net.Listener
	standIn *turn
	done    chan struct{} // closed when no more connections are taken

	mu  sync.Mutex
	api *turn // nil while the API does not serve
}

// OpenDoor listens, host:port. Port 0 takes any free one. The error of a port that is taken says what to do.
func OpenDoor(ctx context.Context, address string) (*Door, error) {
	socket, err := listen(ctx, address)
	if err != nil {
		return nil, err
	}
	d := &Door{socket: socket, done: make(chan struct{})}
	d.standIn = newTurn(d)
	go d.run() // ends with Close
	return d, nil
}

// Address at which it listens, host:port.
func (d *Door) Address() string { return d.socket.Addr().String() }

// Close the socket, and wait until nothing is taken any more.
func (d *Door) Close() error {
	err := d.socket.Close()
	<-d.done
	return errors.Join(err, d.standIn.Close())
}

// API is the listener of one life of the API: it gets the connections from its first Accept until it is closed.
func (d *Door) API() net.Listener { return newTurn(d) }

func (d *Door) run() {
	defer close(d.done)
	const shortest, longest = 5 * time.Millisecond, time.Second
	for wait := shortest; ; {
		conn, err := d.socket.Accept()
		switch {
		case errors.Is(err, net.ErrClosed):
			return
		case err != nil: // no descriptors are left, or the client was gone before
			time.Sleep(wait)
			wait = min(2*wait, longest)
			continue
		}
		wait = shortest
		d.mu.Lock()
		to := d.api
		d.mu.Unlock()
		if to == nil || !to.take(conn) {
			if !d.standIn.take(conn) {
				_ = conn.Close()
			}
		}
	}
}

// turn is the time in which one server has the door. It implements net.Listener.
type turn struct {
	door   *Door
	conns  chan net.Conn
	once   sync.Once
	closed chan struct{}
}

func newTurn(d *Door) *turn {
	return &turn{door: d, conns: make(chan net.Conn), closed: make(chan struct{})}
}

func (t *turn) take(conn net.Conn) bool {
	select {
	case t.conns <- conn:
		return true
	case <-t.closed:
	case <-t.door.done:
	}
	return false
}

// Accept implements net.Listener.
func (t *turn) Accept() (net.Conn, error) {
	if t != t.door.standIn {
		t.door.mu.Lock()
		t.door.api = t
		t.door.mu.Unlock()
	}
	select {
	case conn := <-t.conns:
		return conn, nil
	case <-t.closed:
	case <-t.door.done:
	}
	return nil, net.ErrClosed
}

// Close implements net.Listener. The socket stays open.
func (t *turn) Close() error {
	t.once.Do(func() {
		close(t.closed)
		t.door.mu.Lock()
		defer t.door.mu.Unlock()
		if t.door.api == t {
			t.door.api = nil
		}
	})
	return nil
}

// Addr implements net.Listener.
func (t *turn) Addr() net.Addr { return t.door.socket.Addr() }

// StandIn is what answers people while their API is not there.
type StandIn struct {
	// Certificate that clients of the API accept.
	Certificate func() (*tls.Certificate, error)
	// ClientCAs and Tokens are by whom people are known.
	ClientCAs *x509.CertPool
	Tokens    *Tokens
	// Why the API is not there, for those who have a role: it may name files of this host.
	Why func() string
	// Metrics, at MetricsPath, are for everybody who has a role.
	MetricsPath string
	Metrics     http.Handler
	Log         *slog.Logger
}

// ServeStandIn answers until ctx ends or the door is closed: /livez, that this server lives; /readyz, why it is not ready; metrics; and
// whatever else is asked, that the API is not there, as a Status that kubectl and client-go show.
func (d *Door) ServeStandIn(ctx context.Context, s StandIn) error {
	const patience = 30 * time.Second
	server := &http.Server{
		Handler:           s,
		ReadHeaderTimeout: patience / 3, ReadTimeout: patience, WriteTimeout: patience, IdleTimeout: patience, MaxHeaderBytes: 64 << 10,
		ErrorLog: slog.NewLogLogger(s.Log.Handler(), slog.LevelDebug),
		TLSConfig: &tls.Config{
			MinVersion: tls.VersionTLS12, ClientAuth: tls.VerifyClientCertIfGiven, ClientCAs: s.ClientCAs,
			GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return s.Certificate() },
		},
	}
	defer context.AfterFunc(ctx, func() { _ = server.Close() })()
	err := server.ServeTLS(d.standIn, "", "")
	if errors.Is(err, http.ErrServerClosed) || errors.Is(err, net.ErrClosed) {
		return nil
	}
	return fmt.Errorf("people's API, while its store is not there: %w", err)
}

// ServeHTTP implements http.Handler.
func (s StandIn) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	// The next request is for the API, if it is there by then.
	w.Header().Set("Connection", "close")
	switch path := r.URL.Path; {
	case path == "/livez" || path == "/healthz":
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		fmt.Fprint(w, "ok")
	case path == "/readyz":
		http.Error(w, fmt.Sprintf("[-]store failed: %s\nreadyz check failed", s.why(r)), http.StatusServiceUnavailable)
	case path == s.MetricsPath && r.Method == http.MethodGet:
		if has, err := s.hasRole(r); err != nil {
			s.refuse(w, http.StatusUnauthorized, metav1.StatusReasonUnauthorized, err.Error())
		} else if !has {
			s.refuse(w, http.StatusForbidden, metav1.StatusReasonForbidden, "metrics are for those who have a role; see coldrack token create --help")
		} else {
			s.Metrics.ServeHTTP(w, r)
		}
	default:
		s.refuse(w, http.StatusServiceUnavailable, metav1.StatusReasonServiceUnavailable, fmt.Sprintf("the store of this server is not there: %s. "+
			"Installed machines are answered meanwhile; on the server, \"coldrack doctor\" and the log say more", s.why(r)))
	}
}

// why the API is not there, as far as it is for whoever asks.
func (s StandIn) why(r *http.Request) string {
	if has, err := s.hasRole(r); err != nil || !has {
		return "reason withheld"
	}
	return s.Why()
}

// hasRole says whether whoever asks has one. The error is of credentials that are wrong.
func (s StandIn) hasRole(r *http.Request) (bool, error) {
	groups, err := s.groups(r)
	return slices.ContainsFunc(groups, func(g string) bool { return slices.Contains(roleGroups(), g) }), err
}

// groups of whoever asks; none without credentials.
func (s StandIn) groups(r *http.Request) ([]string, error) {
	if token, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer "); ok {
		answer, known, err := s.Tokens.AuthenticateToken(r.Context(), token)
		switch {
		case err != nil:
			return nil, err
		case !known:
			return nil, errors.New("unknown or revoked token")
		}
		return answer.User.GetGroups(), nil
	}
	if r.TLS != nil && len(r.TLS.VerifiedChains) > 0 {
		return r.TLS.VerifiedChains[0][0].Subject.Organization, nil
	}
	return nil, nil
}

func (s StandIn) refuse(w http.ResponseWriter, code int, reason metav1.StatusReason, message string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(metav1.Status{
		TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"},
		Status:   metav1.StatusFailure, Reason: reason, Code: int32(code), Message: message,
	})
}
