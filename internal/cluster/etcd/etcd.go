// Package etcd asks the members of a cluster's etcd how they are, and changes who is a member. It decides nothing: what may
// be done is the planner's business.
package etcd

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
)

const (
	clientPort = 2379
	peerPort   = 2380
	// askTimeout is how long a member may take to answer.
	askTimeout = 3 * time.Second
	// changeTimeout is for changes of the membership, which need a majority.
	changeTimeout = 10 * time.Second
	// closeBehind is how many entries a learner may lack and still be in sync. The leader writes all the time.
	closeBehind = 500
)

// Target is the etcd of one cluster.
type Target struct {
	Cluster string
	// Nodes are the addresses of the machines that have a member, as far as is known.
	Nodes []netip.Addr
	// CA is the PEM certificate that members are verified with.
	CA []byte
	// Certificate of the client.
	Certificate *tls.Certificate
	// Dial connects to a node; nil is an ordinary net.Dialer.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
}

// Client speaks to all members, to each by a connection of its own: one that has lost its power answers nothing, and must not keep
// others from answering. It is safe for concurrent use.
type Client struct {
	target Target

	mu      sync.Mutex
	members map[netip.Addr]*clientv3.Client
}

// Connect prepares a client; nothing is sent yet.
func Connect(target Target) (*Client, error) {
	if len(target.Nodes) == 0 {
		return nil, fmt.Errorf("cluster %s has no member of etcd to connect to", target.Cluster)
	}
	c := &Client{target: target, members: map[netip.Addr]*clientv3.Client{}}
	for _, node := range target.Nodes {
		if _, err := c.at(node); err != nil {
			return nil, err
		}
	}
	return c, nil
}

// at is the client of the member on a node.
func (c *Client) at(node netip.Addr) (*clientv3.Client, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if client := c.members[node]; client != nil {
		return client, nil
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(c.target.CA) {
		return nil, fmt.Errorf("cluster %s: the certificate of etcd's authority is not PEM", c.target.Cluster)
	}
	dial := c.target.Dial
	if dial == nil {
		dial = (&net.Dialer{Timeout: askTimeout}).DialContext
	}
	config := clientv3.Config{Endpoints: []string{clientURL(node)}, Logger: zap.NewNop(), DialTimeout: askTimeout,
		DialKeepAliveTime: 10 * time.Second, DialKeepAliveTimeout: askTimeout,
		TLS: &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots},
		DialOptions: []grpc.DialOption{grpc.WithContextDialer(func(ctx context.Context, address string) (net.Conn, error) {
			return dial(ctx, "tcp", address)
		})},
	}
	if c.target.Certificate != nil {
		config.TLS.Certificates = []tls.Certificate{*c.target.Certificate}
	}
	client, err := clientv3.New(config)
	if err != nil {
		return nil, fmt.Errorf("connect to the member on %s of the etcd of cluster %s: %w", node, c.target.Cluster, err)
	}
	c.members[node] = client
	return client, nil
}

// Close ends all connections.
func (c *Client) Close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, client := range c.members {
		_ = client.Close()
	}
}

// list is what the first member says that answers, and the client of that member, which has a majority behind it.
func (c *Client) list(ctx context.Context) ([]*etcdserverpb.Member, *clientv3.Client, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	type answer struct {
		members []*etcdserverpb.Member
		from    *clientv3.Client
		err     error
	}
	answers := make(chan answer, len(c.target.Nodes))
	for _, node := range c.target.Nodes {
		go func() { // ends with ctx
			client, err := c.at(node)
			if err != nil {
				answers <- answer{err: err}
				return
			}
			list, err := client.MemberList(ctx)
			if err != nil {
				answers <- answer{err: fmt.Errorf("%s: %w", node, reason(err))}
				return
			}
			answers <- answer{members: list.Members, from: client}
		}()
	}
	var problems []error
	for range c.target.Nodes {
		a := <-answers
		// A learner's list is its own, and may be old.
		if a.err == nil && !learns(a.members, a.from) {
			return a.members, a.from, nil
		}
		problems = append(problems, a.err)
	}
	return nil, nil, fmt.Errorf("list the members of the etcd of cluster %s: %w", c.target.Cluster, errors.Join(problems...))
}

// learns says whether a client speaks to a learner.
func learns(members []*etcdserverpb.Member, client *clientv3.Client) bool {
	for _, m := range members {
		if m.IsLearner && slices.Contains(client.Endpoints(), clientURL(memberOf(m).Node)) {
			return true
		}
	}
	return false
}

func clientURL(node netip.Addr) string {
	return "https://" + netip.AddrPortFrom(node, clientPort).String()
}

// PeerURL is where the member on a node is reached by the others.
func PeerURL(node netip.Addr) string { return "https://" + netip.AddrPortFrom(node, peerPort).String() }

// Member is a member as etcd lists it, and how it answered.
type Member struct {
	ID uint64
	// Name is empty until the member has started for the first time.
	Name string
	// Node is the address of its machine.
	Node    netip.Addr
	PeerURL string
	Learner bool
	// Answers: it said how it is.
	Answers bool
	Leader  bool
	// Connected: it hears from the leader, by its own word. A learner that is down is promoted by etcd without a word.
	Connected bool
	// InSync: it has nearly all that the leader had when it was asked, just before.
	InSync bool
	// Version that it runs, for example 3.7.3.
	Version string
	// Size of its database in bytes, and Quota at which it takes no more writes; 0: not known.
	Size, Quota int64
	// Problems are what it says is wrong with it, and why it does not answer.
	Problems []string
}

// Members of the cluster, in order of their names, and how each of them is. An error means that the list could not be read:
// no member answered, or there is no majority.
func (c *Client) Members(ctx context.Context) ([]Member, error) {
	listed, _, err := c.list(ctx)
	if err != nil {
		return nil, err
	}
	members := make([]Member, len(listed))
	for i, m := range listed {
		members[i] = memberOf(m)
	}
	// The leader first: what others lack is counted from what it has.
	asks := make([]*clientv3.StatusResponse, len(members))
	var asking sync.WaitGroup
	for i := range members {
		asking.Go(func() { asks[i] = c.ask(ctx, &members[i]) })
	}
	asking.Wait()
	lead := slices.IndexFunc(members, func(m Member) bool { return m.Leader })
	for i := range members {
		m := &members[i]
		if asks[i] == nil {
			continue
		}
		m.Connected = asks[i].Leader != 0
		if lead >= 0 {
			m.Connected = m.Connected && asks[i].Leader == members[lead].ID
			m.InSync = m.Connected && asks[i].RaftAppliedIndex+closeBehind >= asks[lead].RaftIndex
		}
	}
	slices.SortFunc(members, func(a, b Member) int { return cmp.Or(strings.Compare(a.Name, b.Name), cmp.Compare(a.ID, b.ID)) })
	return members, nil
}

func memberOf(m *etcdserverpb.Member) Member {
	out := Member{ID: m.ID, Name: m.Name, Learner: m.IsLearner}
	if len(m.PeerURLs) > 0 {
		out.PeerURL = m.PeerURLs[0]
		if at, err := netip.ParseAddrPort(strings.TrimPrefix(out.PeerURL, "https://")); err == nil {
			out.Node = at.Addr()
		}
	}
	return out
}

// ask a member how it is; nil when it does not answer. A voter must answer a read that needs the majority, too.
func (c *Client) ask(ctx context.Context, m *Member) *clientv3.StatusResponse {
	if !m.Node.IsValid() {
		m.Problems = append(m.Problems, fmt.Sprintf("its peer URL %q is none of ours", m.PeerURL))
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	client, err := c.at(m.Node)
	if err != nil {
		m.Problems = append(m.Problems, err.Error())
		return nil
	}
	status, err := client.Status(ctx, clientURL(m.Node))
	if err != nil {
		m.Problems = append(m.Problems, reason(err).Error())
		return nil
	}
	m.Version, m.Leader = status.Version, status.Leader == m.ID && m.ID != 0
	m.Size, m.Quota = status.DbSize, status.DbSizeQuota
	m.Problems = append(m.Problems, status.Errors...)
	m.Answers = status.Leader != 0
	if !m.Answers && len(status.Errors) == 0 {
		m.Problems = append(m.Problems, "it knows of no leader")
	}
	return status
}

// AddLearner adds the member of a node, without a vote, and returns all members as "name=peerURL", as the new one must be
// started. One that is there already is left as it is.
func (c *Client) AddLearner(ctx context.Context, name string, node netip.Addr) (initialCluster []string, err error) {
	ctx, cancel := context.WithTimeout(ctx, changeTimeout)
	defer cancel()
	peer := PeerURL(node)
	members, client, err := c.list(ctx)
	if err != nil {
		return nil, err
	}
	if !slices.ContainsFunc(members, func(m *etcdserverpb.Member) bool { return slices.Contains(m.PeerURLs, peer) }) {
		added, err := client.MemberAddAsLearner(ctx, []string{peer})
		if err != nil {
			return nil, fmt.Errorf("add the member of %s to the etcd of cluster %s: %w", name, c.target.Cluster, reason(err))
		}
		members = added.Members
	}
	for _, m := range members {
		switch {
		case slices.Contains(m.PeerURLs, peer):
			initialCluster = append(initialCluster, name+"="+peer)
		case m.Name == "" || len(m.PeerURLs) == 0:
			return nil, fmt.Errorf("add the member of %s to the etcd of cluster %s: member %x has never started; remove it first", name, c.target.Cluster, m.ID)
		default:
			initialCluster = append(initialCluster, m.Name+"="+m.PeerURLs[0])
		}
	}
	slices.Sort(initialCluster)
	return initialCluster, nil
}

// Promote gives the learner of a node its vote. It looks first whether the learner hears from the leader at this moment and has what
// the leader has: etcd itself promotes one that is down. One that has its vote already is left as it is.
func (c *Client) Promote(ctx context.Context, node netip.Addr) error {
	m, err := c.member(ctx, node)
	switch {
	case err != nil:
		return err
	case m == nil:
		return fmt.Errorf("etcd of cluster %s has no member on %s", c.target.Cluster, node)
	case !m.Learner:
		return nil
	case !m.Connected:
		return fmt.Errorf("the member on %s does not hear from the leader: %s", node, cmp.Or(strings.Join(m.Problems, ", "), "no reason known"))
	case !m.InSync:
		return fmt.Errorf("the member on %s has not copied everything yet", node)
	}
	ctx, cancel := context.WithTimeout(ctx, changeTimeout)
	defer cancel()
	_, client, err := c.list(ctx)
	if err != nil {
		return err
	}
	if _, err := client.MemberPromote(ctx, m.ID); err != nil && !errors.Is(err, rpctypes.ErrMemberNotLearner) {
		return fmt.Errorf("give the member on %s its vote in the etcd of cluster %s: %w", node, c.target.Cluster, reason(err))
	}
	return nil
}

// Remove ends the membership of the member on a node. One that is none is left as it is.
func (c *Client) Remove(ctx context.Context, node netip.Addr) error {
	ctx, cancel := context.WithTimeout(ctx, changeTimeout)
	defer cancel()
	members, client, err := c.list(ctx)
	if err != nil {
		return err
	}
	for _, m := range members {
		if memberOf(m).Node != node {
			continue
		}
		if _, err := client.MemberRemove(ctx, m.ID); err != nil && !errors.Is(err, rpctypes.ErrMemberNotFound) {
			return fmt.Errorf("remove the member on %s from the etcd of cluster %s: %w", node, c.target.Cluster, reason(err))
		}
	}
	return nil
}

// MoveLeader makes the member on a node the leader. It does nothing when it is.
func (c *Client) MoveLeader(ctx context.Context, to netip.Addr) error {
	members, err := c.Members(ctx)
	if err != nil {
		return err
	}
	next := slices.IndexFunc(members, func(m Member) bool { return m.Node == to })
	lead := slices.IndexFunc(members, func(m Member) bool { return m.Leader })
	switch {
	case next < 0:
		return fmt.Errorf("etcd of cluster %s has no member on %s", c.target.Cluster, to)
	case lead < 0:
		return fmt.Errorf("etcd of cluster %s has no leader", c.target.Cluster)
	case next == lead:
		return nil
	}
	// Only the leader can give its place away.
	leader, err := c.at(members[lead].Node)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, changeTimeout)
	defer cancel()
	if _, err := leader.MoveLeader(ctx, members[next].ID); err != nil {
		return fmt.Errorf("move the leader of the etcd of cluster %s to %s: %w", c.target.Cluster, to, reason(err))
	}
	return nil
}

// member on a node, nil when there is none.
func (c *Client) member(ctx context.Context, node netip.Addr) (*Member, error) {
	members, err := c.Members(ctx)
	if err != nil {
		return nil, err
	}
	if i := slices.IndexFunc(members, func(m Member) bool { return m.Node == node }); i >= 0 {
		return &members[i], nil
	}
	return nil, nil
}

// reason is an error as a person reads it.
func reason(err error) error {
	if errors.Is(err, context.DeadlineExceeded) {
		return errors.New("no answer in time")
	}
	var known rpctypes.EtcdError
	if errors.As(err, &known) {
		return errors.New(known.Error())
	}
	return err
}
