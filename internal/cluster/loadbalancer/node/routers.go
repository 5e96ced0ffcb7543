package node

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/scheme"
	coreclient "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/record"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/cluster/loadbalancer"
	"coldrack.dev/internal/cluster/loadbalancer/bgp"
)

// Reasons of events of this node.
const (
	reasonSessionUp   = "BGPSessionUp"
	reasonSessionDown = "BGPSessionDown"
)

// errNotYet: the Secret is being read.
var errNotYet = errors.New("passwords are not read yet")

// maxPassword is what TCP's MD5 signature takes.
const maxPassword = 80

// routers are those that this node tells of addresses. Nothing runs for them until the cluster has some.
type routers struct {
	*agent
	announcer   *bgp.Announcer
	broadcaster record.EventBroadcaster
	events      record.EventRecorder
	passwords   cache.SharedIndexInformer // nil until a router has one
	watching    sync.WaitGroup
	// told are problems of peers that were logged, by name.
	told map[string]string
}

func newRouters(a *agent, home []netip.Addr) *routers {
	r := &routers{agent: a, broadcaster: record.NewBroadcaster(), told: map[string]string{}}
	r.broadcaster.StartRecordingToSink(&coreclient.EventSinkImpl{Interface: a.core.Events("")})
	r.events = r.broadcaster.NewRecorder(scheme.Scheme, corev1.EventSource{Component: Name, Host: a.Node})
	r.announcer = bgp.New(bgp.Options{Log: a.Log, Node: a.Node, Home: home, Tell: func(s bgp.Session) { r.tell(s.Up, s.Message) }})
	return r
}

// close says goodbye to the routers, after the speaker has withdrawn what it told them.
func (r *routers) close() {
	r.announcer.Close()
	r.watching.Wait()
	r.broadcaster.Shutdown()
}

// tell people by an event of the node, which kubectl describe node shows.
func (r *routers) tell(up bool, message string) {
	reason, kind := reasonSessionDown, corev1.EventTypeWarning
	if up {
		reason, kind = reasonSessionUp, corev1.EventTypeNormal
	}
	// As the kubelet names its node in events: by its name, also as UID.
	r.events.Event(&corev1.ObjectReference{Kind: "Node", APIVersion: "v1", Name: r.Node, UID: types.UID(r.Node)}, kind, reason, message)
}

// follow keeps sessions with the routers that the cluster has. It is called by one goroutine, often.
func (r *routers) follow(ctx context.Context, spec *v1alpha1.LoadBalancerBGP, pools []loadbalancer.Pool) {
	config := bgp.Config{Communities: func(a netip.Addr) []string { p, _ := loadbalancer.PoolOf(pools, a); return p.Communities }}
	if spec != nil {
		config.ASN = uint32(spec.LocalASN)
		for _, p := range spec.Peers {
			peer, err := r.peer(ctx, p)
			if errors.Is(err, errNotYet) {
				continue
			}
			if err != nil {
				r.complain(p.Name, err.Error())
				continue
			}
			r.complain(p.Name, "")
			config.Peers = append(config.Peers, peer)
		}
	}
	text := ""
	if err := r.announcer.Configure(config); err != nil {
		text = err.Error()
	}
	r.complain("", text)
}

// complain once of a peer; "" is all of them.
func (r *routers) complain(peer, problem string) {
	if r.told[peer] == problem {
		return
	}
	r.told[peer] = problem
	switch {
	case problem == "":
	case peer == "":
		r.Log.Error("not all sessions with routers could be set up", "err", problem)
	default:
		message := fmt.Sprintf("no session with router %s: %s", peer, problem)
		r.Log.Warn(message)
		r.tell(false, message)
	}
}

func (r *routers) peer(ctx context.Context, p v1alpha1.BGPPeer) (bgp.Peer, error) {
	address, err := netip.ParseAddr(p.Address)
	if err != nil {
		return bgp.Peer{}, err
	}
	peer := bgp.Peer{Name: p.Name, Address: netip.AddrPortFrom(address, uint16(cmp.Or(p.Port, v1alpha1.DefaultBGPPort))), ASN: uint32(p.ASN),
		HoldTime: v1alpha1.DefaultBGPHoldTime, Hops: uint8(p.Hops)}
	if p.HoldTime != nil {
		peer.HoldTime = p.HoldTime.Duration.Truncate(time.Second)
	}
	if p.PasswordKey != "" {
		peer.Password, err = r.password(ctx, p.PasswordKey)
	}
	return peer, err
}

// password reads a router's from the Secret, which is followed from the first time on.
func (r *routers) password(ctx context.Context, key string) (string, error) {
	if r.passwords == nil {
		r.passwords = r.informer(r.core.RESTClient(), "secrets", r.Namespace, &corev1.Secret{}, nothingSlim, only("metadata.name", PasswordsName), r.changed)
		r.watching.Go(func() { r.passwords.RunWithContext(ctx) })
	}
	where := fmt.Sprintf("Secret %s/%s", r.Namespace, PasswordsName)
	if !r.passwords.HasSynced() {
		return "", errNotYet
	}
	found := listed[*corev1.Secret](r.passwords)
	if len(found) == 0 {
		return "", fmt.Errorf("there is no %s, which its passwordKey names; create it: kubectl --namespace %s create secret generic %s --from-literal=%s=PASSWORD",
			where, r.Namespace, PasswordsName, key)
	}
	password, ok := found[0].Data[key]
	switch {
	case !ok:
		return "", fmt.Errorf("%s has no key %s, which its passwordKey names", where, key)
	case len(password) == 0 || len(password) > maxPassword:
		return "", fmt.Errorf("key %s of %s has %d bytes; a password has 1 to %d", key, where, len(password), maxPassword)
	}
	return string(password), nil
}
