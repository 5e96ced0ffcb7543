package dns

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	mdns "github.com/miekg/dns"
	"golang.org/x/sync/singleflight"
)

// Bounds of what is forwarded.
const (
	// maxAsking questions wait for upstreams, perAsker of them of one client.
	maxAsking, perAsker = 1024, 128
	// tryFor is how long one upstream may take, askFor all of them: clients give up after five seconds.
	tryFor, askFor = 1500 * time.Millisecond, 4500 * time.Millisecond
	// shunFor is how long an upstream that did not answer comes after the others.
	shunFor = 30 * time.Second
)

// Forwarder asks other servers. It keeps no cache: the servers that it asks have one, and so have most clients; a cache here could only
// be poisoned and hold what has changed.
//
// Questions that are the same and are being asked are asked once. That also ends loops of any length: a question that comes back waits
// for itself, and fails when its time is over.
type Forwarder struct {
	// Dial connects to an upstream. Each question has a socket of its own, and so a port that the kernel chooses at random.
	Dial func(ctx context.Context, network string, to netip.AddrPort) (net.Conn, error)
	// Now is the clock; nil means time.Now.
	Now func() time.Time

	flights singleflight.Group
	mu      sync.Mutex
	asking  map[netip.Addr]int // places by client
	total   int
	silent  map[netip.AddrPort]time.Time // until when an upstream comes last
}

// Reserve takes a place for a question of a client, to be given back; false: there is none.
func (f *Forwarder) Reserve(client netip.Addr) (release func(), ok bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.total >= maxAsking || f.asking[client] >= perAsker {
		return nil, false
	}
	if f.asking == nil {
		f.asking = map[netip.Addr]int{}
	}
	f.total++
	f.asking[client]++
	return func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.total--
		if f.asking[client]--; f.asking[client] == 0 {
			delete(f.asking, client)
		}
	}, true
}

// Asking is how many questions have a place.
func (f *Forwarder) Asking() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.total
}

// Ask asks the upstreams one after the other, until one knows. Its answer must not be changed. Over TCP it is whole.
func (f *Forwarder) Ask(ctx context.Context, question *mdns.Msg, upstreams []netip.AddrPort, tcp bool) (*mdns.Msg, error) {
	ours := &mdns.Msg{MsgHdr: mdns.MsgHdr{RecursionDesired: true, CheckingDisabled: question.CheckingDisabled, AuthenticatedData: question.AuthenticatedData}, Question: slices.Clone(question.Question)}
	do := false
	if opt := question.IsEdns0(); opt != nil {
		do = opt.Do()
	}
	ours.SetEdns0(udpSize, do)
	q := ours.Question[0]
	key := fmt.Sprint(strings.ToLower(q.Name), q.Qtype, do, ours.CheckingDisabled, ours.AuthenticatedData, tcp, upstreams)
	// The first who asks does it for all: its end must not be theirs, but that of the server is.
	result := f.flights.DoChan(key, func() (any, error) {
		ctx, cancel := context.WithTimeout(ctx, askFor)
		defer cancel()
		return f.ask(ctx, ours, upstreams, tcp)
	})
	select {
	case r := <-result:
		if r.Err != nil {
			return nil, r.Err
		}
		return r.Val.(*mdns.Msg), nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (f *Forwarder) ask(ctx context.Context, question *mdns.Msg, upstreams []netip.AddrPort, tcp bool) (*mdns.Msg, error) {
	var errs []error
	var last *mdns.Msg
	for range 2 {
		for _, upstream := range f.order(upstreams) {
			if ctx.Err() != nil {
				break
			}
			got, err := f.try(ctx, question, upstream, tcp)
			f.heard(upstream, err == nil)
			switch {
			case err != nil:
				errs = append(errs, fmt.Errorf("%s: %w", upstream, err))
			case got.Rcode == mdns.RcodeServerFailure || got.Rcode == mdns.RcodeRefused || got.Rcode == mdns.RcodeNotImplemented:
				last = got
			default:
				return got, nil
			}
		}
		if last != nil {
			return last, nil // it has been said, by some of them
		}
	}
	return nil, errors.Join(errs...)
}

// order puts those last that did not answer of late.
func (f *Forwarder) order(upstreams []netip.AddrPort) []netip.AddrPort {
	now := f.now()
	f.mu.Lock()
	defer f.mu.Unlock()
	sorted := slices.Clone(upstreams)
	slices.SortStableFunc(sorted, func(a, b netip.AddrPort) int {
		return boolInt(f.silent[a].After(now)) - boolInt(f.silent[b].After(now))
	})
	return sorted
}

func (f *Forwarder) now() time.Time {
	if f.Now == nil {
		return time.Now()
	}
	return f.Now()
}

func boolInt(b bool) int {
	if b {
		return 1
	}
	return 0
}

func (f *Forwarder) heard(upstream netip.AddrPort, well bool) {
	now := f.now()
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.silent, upstream)
	if !well && len(f.silent) < maxAsking {
		if f.silent == nil {
			f.silent = map[netip.AddrPort]time.Time{}
		}
		f.silent[upstream] = now.Add(shunFor)
	}
}

// try asks one upstream. Whatever comes that is no answer to this question is passed over.
func (f *Forwarder) try(ctx context.Context, question *mdns.Msg, upstream netip.AddrPort, tcp bool) (*mdns.Msg, error) {
	ctx, cancel := context.WithTimeout(ctx, tryFor)
	defer cancel()
	network := "udp"
	if tcp {
		network = "tcp"
	}
	conn, err := f.Dial(ctx, network, upstream)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	asked := question.Copy()
	asked.Id = mdns.Id()
	packet, err := asked.Pack()
	if err != nil {
		return nil, err
	}
	if tcp {
		packet = append(binary.BigEndian.AppendUint16(nil, uint16(len(packet))), packet...)
	}
	if _, err := conn.Write(packet); err != nil {
		return nil, err
	}
	buf := make([]byte, 4096)
	for {
		raw, err := read(conn, buf, tcp)
		if err != nil {
			if ctx.Err() != nil {
				return nil, fmt.Errorf("no answer in time: %w", os.ErrDeadlineExceeded)
			}
			return nil, err
		}
		var got mdns.Msg
		if got.Unpack(raw) == nil && answers(&got, asked) {
			return &got, nil
		}
	}
}

func read(conn net.Conn, buf []byte, tcp bool) ([]byte, error) {
	if !tcp {
		n, err := conn.Read(buf)
		return buf[:n], err
	}
	var size [2]byte
	if _, err := io.ReadFull(conn, size[:]); err != nil {
		return nil, err
	}
	raw := make([]byte, binary.BigEndian.Uint16(size[:]))
	_, err := io.ReadFull(conn, raw)
	return raw, err
}

// answers says whether a message is the answer to a question of ours.
func answers(got, asked *mdns.Msg) bool {
	if !got.Response || got.Id != asked.Id || got.Opcode != asked.Opcode || len(got.Question) != 1 {
		return false
	}
	is, want := got.Question[0], asked.Question[0]
	return strings.EqualFold(is.Name, want.Name) && is.Qtype == want.Qtype && is.Qclass == want.Qclass
}
