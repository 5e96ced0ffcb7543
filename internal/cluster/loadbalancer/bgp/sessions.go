package bgp

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/osrg/gobgp/v4/pkg/apiutil"
	"github.com/osrg/gobgp/v4/pkg/packet/bgp"
)

// Session is how it stands with a router.
type Session struct {
	Peer Peer
	Up   bool
	// Message for people: what is so, and what to look at.
	Message string
}

// sessions knows how it stands with each router, and tells of each change once.
//
// gobgp has events for sessions that got as far as both sides' OPEN. An attempt that fails earlier (nobody answers, the router
// refuses, its ASN is another) shows in its log alone, so that is read, too.
type sessions struct {
	log  *slog.Logger
	tell func(Session)
	poke chan struct{} // of capacity one
	done chan struct{}

	mu     sync.Mutex
	all    map[netip.Addr]*session
	closed bool
}

type session struct {
	Session
	told *Session // what was told last
	// known is when the reason was last more than that it refuses this node.
	known time.Time
}

func newSessions(log *slog.Logger, tell func(Session)) *sessions {
	s := &sessions{log: log, tell: tell, poke: make(chan struct{}, 1), done: make(chan struct{}), all: map[netip.Addr]*session{}}
	go s.run()
	return s
}

// run tells, outside of gobgp's goroutines.
func (s *sessions) run() {
	defer close(s.done)
	for range s.poke {
		s.mu.Lock()
		var news []Session
		for _, one := range s.all {
			if is := one.Session; is.Message != "" && (one.told == nil || *one.told != is) {
				one.told = &is
				news = append(news, is)
			}
		}
		s.mu.Unlock()
		for _, n := range news {
			level := slog.LevelWarn
			if n.Up {
				level = slog.LevelInfo
			}
			s.log.Log(context.Background(), level, n.Message, "router", n.Peer.Name, "address", n.Peer.Address.Addr(), "asn", n.Peer.ASN)
			s.tell(n)
		}
	}
}

func (s *sessions) close() {
	s.mu.Lock()
	if !s.closed {
		s.closed = true
		close(s.poke)
	}
	s.mu.Unlock()
	<-s.done
}

// follow a router from now on. A problem says why there will be no session.
func (s *sessions) follow(p Peer, problem string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if one := s.all[p.Address.Addr()]; one == nil || one.Peer != p || problem == "" {
		s.all[p.Address.Addr()] = &session{Session: Session{Peer: p}}
	}
	if problem != "" {
		s.note(p.Address.Addr(), false, "no session with router "+describe(p)+": "+problem)
	}
}

func (s *sessions) forget(address netip.Addr) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.all, address)
}

// note is called under mu.
func (s *sessions) note(address netip.Addr, up bool, message string) {
	one := s.all[address]
	if one == nil || s.closed {
		return
	}
	one.Up, one.Message = up, message
	select {
	case s.poke <- struct{}{}:
	default:
	}
}

func describe(p Peer) string { return fmt.Sprintf("%s (%s, AS %d)", p.Name, p.Address.Addr(), p.ASN) }

// changed is gobgp's news of a session.
func (s *sessions) changed(e *apiutil.WatchEventMessage_PeerEvent, _ time.Time) {
	if e.Type != apiutil.PEER_EVENT_STATE {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	address := e.Peer.State.NeighborAddress
	one := s.all[address]
	if one == nil {
		return
	}
	switch {
	case e.Peer.State.SessionState == bgp.BGP_FSM_ESTABLISHED:
		s.note(address, true, "session with router "+describe(one.Peer)+" is up")
	case one.Up:
		// The reason, where there is one, is in the log or follows here.
		reason := e.Peer.State.DisconnectMessage
		switch {
		case strings.HasPrefix(reason, "hold-timer-expired"):
			reason = "it was silent for the hold time"
		case strings.HasPrefix(reason, "read-failed"), strings.HasPrefix(reason, "write-failed"):
			reason = "the connection ended"
		case strings.HasPrefix(reason, "notification-received"):
			return // the log has said so, and in more words
		}
		s.note(address, false, "session with router "+describe(one.Peer)+" ended: "+reason)
	}
}

// heard is a line of gobgp's log about a router.
func (s *sessions) heard(address netip.Addr, message string, attrs map[string]slog.Value) {
	s.mu.Lock()
	defer s.mu.Unlock()
	one := s.all[address]
	if one == nil {
		return
	}
	number := func(key string) uint8 {
		if v, ok := attrs[key]; ok && v.Kind() == slog.KindInt64 {
			return uint8(v.Int64())
		}
		return 0
	}
	text := ""
	switch message {
	case "failed to connect":
		text = connectTrouble(attrs["Error"].String())
	case "outgoing connection IO error":
		text = refused
	case "sent notification":
		text = sentTrouble(one.Peer, number("Code"), number("Subcode"))
	case "received notification":
		text = receivedTrouble(number("Code"), number("Subcode"), attrs["Communicated-Reason"])
	}
	switch {
	case text == "":
		return
	case text != refused:
		one.known = time.Now()
	case time.Since(one.known) < knownFor:
		return // the router sees the same mistake from its side
	}
	s.note(address, false, "no session with router "+describe(one.Peer)+": "+text)
}

// connectTrouble says what a failed connection means.
func connectTrouble(err string) string {
	switch {
	case strings.Contains(err, "connection refused"):
		return "it refuses the connection; does it run BGP, and is this node one of its neighbours?"
	case strings.Contains(err, "i/o timeout"):
		return "it does not answer; it is away, a filter is between, or the password is another one (routers do not answer to a wrong one)"
	}
	return "cannot connect: " + err
}

// refused: the router ended the connection where its OPEN was due, with or without a NOTIFICATION.
const refused = "it refuses this node; is it one of its neighbours, with the Cluster's localASN, and does it accept the peer's holdTime?"

// sentTrouble says why we ended a session.
func sentTrouble(p Peer, code, subcode uint8) string {
	switch {
	case code == bgp.BGP_ERROR_OPEN_MESSAGE_ERROR && subcode == bgp.BGP_ERROR_SUB_BAD_PEER_AS:
		return fmt.Sprintf("its ASN is not %d; compare the router's with the peer's asn in the Cluster", p.ASN)
	case code == bgp.BGP_ERROR_OPEN_MESSAGE_ERROR && subcode == bgp.BGP_ERROR_SUB_BAD_BGP_IDENTIFIER:
		return "its router ID is this node's, too"
	case code == bgp.BGP_ERROR_FSM_ERROR && subcode == bgp.BGP_ERROR_SUB_RECEIVE_UNEXPECTED_MESSAGE_IN_OPENSENT_STATE:
		// gobgp does not say which NOTIFICATION it got.
		return refused
	case code == bgp.BGP_ERROR_HOLD_TIMER_EXPIRED:
		return "it was silent for the hold time"
	case code == bgp.BGP_ERROR_CEASE:
		return "" // we end it on purpose
	}
	return "this node ends it: " + notification(code, subcode)
}

// receivedTrouble says why the router ended a session.
func receivedTrouble(code, subcode uint8, said slog.Value) string {
	switch {
	case code == bgp.BGP_ERROR_OPEN_MESSAGE_ERROR && subcode == bgp.BGP_ERROR_SUB_BAD_PEER_AS:
		return "it expects another ASN of this node; compare the router's neighbour with localASN in the Cluster"
	case code == bgp.BGP_ERROR_OPEN_MESSAGE_ERROR && subcode == bgp.BGP_ERROR_SUB_UNACCEPTABLE_HOLD_TIME:
		return "it refuses the hold time; give the peer a longer holdTime in the Cluster"
	case code == bgp.BGP_ERROR_HOLD_TIMER_EXPIRED:
		return "it has not heard this node for the hold time"
	case code == bgp.BGP_ERROR_CEASE && subcode == bgp.BGP_ERROR_SUB_ADMINISTRATIVE_SHUTDOWN:
		if said.Kind() == slog.KindString && said.String() != "" {
			return fmt.Sprintf("an administrator shut it down there, and says %q", said.String())
		}
		return "an administrator shut it down there"
	case code == bgp.BGP_ERROR_CEASE && subcode == bgp.BGP_ERROR_SUB_PEER_DECONFIGURED:
		return "the router has this node as neighbour no more"
	case code == bgp.BGP_ERROR_CEASE && subcode == bgp.BGP_ERROR_SUB_CONNECTION_REJECTED:
		return "it rejects the connection; is this node one of its neighbours?"
	}
	return "the router ends it: " + notification(code, subcode)
}

func notification(code, subcode uint8) string {
	return bgp.NewNotificationErrorCode(code, subcode).String()
}

// knownFor is how long a reason stands before "refused" alone replaces it.
const knownFor = 30 * time.Second

// listener reads gobgp's log: lines about a router carry its address as "Key".
func (s *sessions) listener() slog.Handler { return listener{sessions: s} }

type listener struct {
	sessions *sessions
	router   netip.Addr
}

func (l listener) Enabled(context.Context, slog.Level) bool { return true }

func (l listener) WithGroup(string) slog.Handler { return l }

func (l listener) WithAttrs(attrs []slog.Attr) slog.Handler {
	for _, a := range attrs {
		l.router = routerOf(a, l.router)
	}
	return l
}

func routerOf(a slog.Attr, otherwise netip.Addr) netip.Addr {
	if a.Key == "Key" && a.Value.Kind() == slog.KindString {
		if address, err := netip.ParseAddr(a.Value.String()); err == nil {
			return address
		}
	}
	return otherwise
}

func (l listener) Handle(_ context.Context, r slog.Record) error {
	router := l.router
	attrs := map[string]slog.Value{}
	r.Attrs(func(a slog.Attr) bool {
		router = routerOf(a, router)
		attrs[a.Key] = a.Value
		return true
	})
	if router.IsValid() {
		l.sessions.heard(router, r.Message, attrs)
	}
	if r.Level >= slog.LevelError {
		var rest []any
		for key, value := range attrs {
			rest = append(rest, key, value)
		}
		l.sessions.log.With("router", router).Error("BGP: "+r.Message, rest...)
	}
	return nil
}
