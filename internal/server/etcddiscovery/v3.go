package etcddiscovery

import (
	"context"
	"errors"
	"net/netip"
	"strconv"
	"strings"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

// The keys that etcd's client of discovery uses: PREFIX TOKEN /_config/size and PREFIX TOKEN /members/ID.
const (
	keyPrefix  = "/_etcd/registry/"
	keySize    = "_config/size"
	keyMembers = "members"
)

// only is what a client hears that asks for more.
const only = "this is no etcd: it serves discovery alone, the keys " + keyPrefix + "TOKEN/" + keySize + " and " + keyPrefix + "TOKEN/" + keyMembers + "/ID"

// kv is etcd's KV service, as far as discovery needs it.
type kv struct {
	pb.UnimplementedKVServer
	server *Server
}

// place is what a key means.
type place struct {
	token string
	// size: its size; members: all of them; or the member with an id.
	size, members bool
	id            string
}

func parseKey(key []byte) (p place, ok bool) {
	rest, ok := strings.CutPrefix(string(key), keyPrefix)
	if !ok {
		return place{}, false
	}
	token, rest, _ := strings.Cut(rest, "/")
	p.token = token
	switch {
	case rest == keySize:
		p.size = true
	case rest == keyMembers || rest == keyMembers+"/":
		p.members = true
	case strings.HasPrefix(rest, keyMembers+"/"):
		p.id = strings.TrimPrefix(rest, keyMembers+"/")
	default:
		return place{}, false
	}
	return p, token != ""
}

// spans says whether a range end is that of the key as a prefix.
func spans(key, end []byte) bool {
	if len(key) == 0 || len(end) != len(key) {
		return false
	}
	last := len(key) - 1
	return string(end[:last]) == string(key[:last]) && end[last] == key[last]+1
}

func headerOf(t Token) *pb.ResponseHeader {
	return &pb.ResponseHeader{ClusterId: 1, MemberId: 1, Revision: int64(t.Index()), RaftTerm: 1}
}

func pair(key, value string, index uint64) *mvccpb.KeyValue {
	return &mvccpb.KeyValue{Key: []byte(key), Value: []byte(value), CreateRevision: int64(index), ModRevision: int64(index), Version: 1}
}

func memberPair(token string, m Member) *mvccpb.KeyValue {
	return pair(keyPrefix+token+"/"+keyMembers+"/"+m.ID, m.Peers, m.Index)
}

// Range answers for the size of a token and for its members. A token that there is not has neither, as in etcd.
func (k *kv) Range(ctx context.Context, r *pb.RangeRequest) (*pb.RangeResponse, error) {
	p, ok := parseKey(r.Key)
	if !ok || p.members != spans(r.Key, r.RangeEnd) || !p.members && len(r.RangeEnd) > 0 {
		return nil, status.Error(codes.PermissionDenied, only)
	}
	from := clientOf(ctx)
	t, _, err := k.server.get(p.token, from)
	switch {
	case errors.Is(err, ErrNoToken):
		return &pb.RangeResponse{Header: headerOf(t)}, nil
	case err != nil:
		return nil, grpcError(err)
	}
	answer := &pb.RangeResponse{Header: headerOf(t)}
	switch {
	case p.size:
		answer.Kvs = append(answer.Kvs, pair(string(r.Key), strconv.Itoa(t.Size), sizeIndex))
	case p.members:
		if err := k.server.tell(t, from); err != nil {
			return nil, grpcError(err)
		}
		for _, m := range t.Members {
			answer.Kvs = append(answer.Kvs, memberPair(t.ID, m))
		}
	default:
		if m, ok := t.member(p.id); ok {
			answer.Kvs = append(answer.Kvs, memberPair(t.ID, m))
		}
	}
	answer.Count = int64(len(answer.Kvs))
	return answer, nil
}

// Put registers a member. One that comes when all have is answered as if it had been written: its client looks next who the members
// are, finds that the cluster is full, and gives up. It would repeat for ever what is answered with an error.
func (k *kv) Put(ctx context.Context, r *pb.PutRequest) (*pb.PutResponse, error) {
	p, ok := parseKey(r.Key)
	if !ok || p.id == "" {
		return nil, status.Error(codes.PermissionDenied, "tokens are made with `coldrack discovery new`; "+only)
	}
	from := clientOf(ctx)
	if _, _, err := k.server.get(p.token, from); err != nil {
		return nil, grpcError(err)
	}
	t, _, err := k.server.register(p.token, p.id, string(r.Value), from)
	if err != nil && !errors.Is(err, ErrFull) {
		return nil, grpcError(err)
	}
	return &pb.PutResponse{Header: headerOf(t)}, nil
}

// watch is etcd's Watch service, as far as discovery needs it.
type watch struct {
	pb.UnimplementedWatchServer
	server *Server
}

// maxWatches of one stream.
const maxWatches = 4

// Watch tells of registrations, past ones from the wanted revision on included.
func (w *watch) Watch(stream pb.Watch_WatchServer) error {
	leave, err := w.server.enter()
	if err != nil {
		return grpcError(err)
	}
	defer leave()
	ctx, cancel := context.WithCancel(stream.Context())
	defer cancel()
	asked, failed := make(chan *pb.WatchRequest), make(chan error, 1)
	go func() { // until this function returns, with which the stream ends
		for {
			r, err := stream.Recv()
			if err != nil {
				failed <- err
				return
			}
			select {
			case asked <- r:
			case <-ctx.Done():
				return
			}
		}
	}()
	f := &follower{server: w.server, stream: stream, from: clientOf(ctx), watches: map[int64]*followed{}}
	for {
		if err := f.tell(); err != nil {
			return err
		}
		select {
		case r := <-asked:
			if err := f.take(r); err != nil {
				return err
			}
		case <-f.changed:
		case <-failed:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// follower is one stream. All of its watches are of one token.
type follower struct {
	server  *Server
	stream  pb.Watch_WatchServer
	from    netip.Addr
	token   string
	watches map[int64]*followed
	last    int64
	changed <-chan struct{} // closed when something may have to be told
}

type followed struct {
	id   string // of a member; empty: all
	next uint64 // index of the first member that was not told
}

func (f *follower) take(r *pb.WatchRequest) error {
	switch {
	case r.GetCreateRequest() != nil:
		return f.create(r.GetCreateRequest())
	case r.GetCancelRequest() != nil:
		id := r.GetCancelRequest().WatchId
		if f.watches[id] == nil {
			return nil
		}
		delete(f.watches, id)
		return f.stream.Send(&pb.WatchResponse{Header: headerOf(Token{}), WatchId: id, Canceled: true})
	}
	return f.stream.Send(&pb.WatchResponse{Header: headerOf(Token{}), WatchId: -1}) // a request for progress
}

func (f *follower) create(c *pb.WatchCreateRequest) error {
	refuse := func(why string) error {
		return f.stream.Send(&pb.WatchResponse{Header: headerOf(Token{}), WatchId: -1, Created: true, Canceled: true, CancelReason: why})
	}
	p, ok := parseKey(c.Key)
	if !ok || p.size || p.members != spans(c.Key, c.RangeEnd) || !p.members && len(c.RangeEnd) > 0 {
		return refuse(only)
	}
	if len(f.watches) >= maxWatches || len(f.watches) > 0 && f.token != p.token {
		return refuse("a stream has few watches here, all of one token")
	}
	t, _, err := f.server.get(p.token, f.from)
	if err != nil {
		return refuse(err.Error())
	}
	f.last++
	f.token = p.token
	w := &followed{id: p.id, next: uint64(max(c.StartRevision, 0))}
	if w.next == 0 {
		w.next = t.Index() + 1
	}
	f.watches[f.last] = w
	return f.stream.Send(&pb.WatchResponse{Header: headerOf(t), WatchId: f.last, Created: true})
}

// tell sends what the watches have not been told.
func (f *follower) tell() error {
	f.changed = nil
	if len(f.watches) == 0 {
		return nil
	}
	t, changed, err := f.server.registry.Get(f.token)
	f.changed = changed
	for id, w := range f.watches {
		if err != nil {
			delete(f.watches, id)
			if err := f.stream.Send(&pb.WatchResponse{Header: headerOf(t), WatchId: id, Canceled: true, CancelReason: err.Error()}); err != nil {
				return err
			}
			continue
		}
		var events []*mvccpb.Event
		for _, m := range t.since(w.next) {
			w.next = m.Index + 1
			if w.id == "" || w.id == m.ID {
				events = append(events, &mvccpb.Event{Type: mvccpb.Event_PUT, Kv: memberPair(t.ID, m)})
			}
		}
		if len(events) == 0 {
			continue
		}
		if err := f.server.tell(t, f.from); err != nil {
			return grpcError(err)
		}
		if err := f.stream.Send(&pb.WatchResponse{Header: headerOf(t), WatchId: id, Events: events}); err != nil {
			return err
		}
	}
	return nil
}

func grpcError(err error) error {
	code := codes.Unavailable
	switch {
	case errors.Is(err, errBusy):
		code = codes.ResourceExhausted
	case errors.Is(err, ErrNoToken):
		code = codes.NotFound
	case errors.Is(err, ErrExists):
		code = codes.FailedPrecondition
	case errors.Is(err, ErrBad):
		code = codes.InvalidArgument
	}
	return status.Error(code, err.Error())
}

func clientOf(ctx context.Context) netip.Addr {
	if p, ok := peer.FromContext(ctx); ok {
		return addressOf(p.Addr.String())
	}
	return netip.Addr{}
}
