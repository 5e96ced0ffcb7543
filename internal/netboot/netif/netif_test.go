package netif_test

import (
	"context"
	"fmt"
	"reflect"
	"slices"
	"testing"

	"coldrack.dev/internal/netboot/netif"
	netnstest "coldrack.dev/test/netns"
)

// follower shows what Follow has told last.
type follower struct {
	t       *testing.T
	updates chan []netif.Interface
	end     func() error
}

func follow(t *testing.T, ns *netnstest.NS) *follower {
	ctx, cancel := context.WithCancel(t.Context())
	f := &follower{t: t, updates: make(chan []netif.Interface, 1000)}
	ended := make(chan error, 1)
	go func() {
		ended <- netif.Follow(ctx, ns.Do, func(all []netif.Interface) { f.updates <- all })
	}()
	f.end = func() error {
		cancel()
		return <-ended
	}
	return f
}

// until waits for an update in which an interface is as it should be; want gets nil while there is none of the name.
func (f *follower) until(what, name string, want func(*netif.Interface) bool) {
	f.t.Helper()
	ctx, cancel := netnstest.Patience(f.t)
	defer cancel()
	last := "nothing"
	for {
		select {
		case all := <-f.updates:
			var found *netif.Interface
			if i := slices.IndexFunc(all, func(i netif.Interface) bool { return i.Name == name }); i >= 0 {
				found = &all[i]
			}
			if want(found) {
				return
			}
			last = fmt.Sprintf("%+v", all)
		case <-ctx.Done():
			f.t.Fatalf("%s: was not told; last %s", what, last)
		}
	}
}

func TestInterfacesAreFollowed(t *testing.T) {
	ns, peer := netnstest.New(t), netnstest.New(t)
	f := follow(t, ns)
	has := func(addresses ...string) func(*netif.Interface) bool {
		return func(i *netif.Interface) bool {
			if i == nil {
				return false
			}
			var got []string
			for _, a := range i.IPv4() {
				got = append(got, a.String())
			}
			return reflect.DeepEqual(got, addresses)
		}
	}
	f.until("what is there at the start", "lo", func(i *netif.Interface) bool { return i != nil && i.Loopback && !i.Ethernet && i.Up })

	ns.Run("ip", "link", "add", "rack0", "type", "veth", "peer", "name", "eth0", "netns", peer.Path())
	f.until("an interface comes", "rack0", func(i *netif.Interface) bool { return i != nil && i.Ethernet && !i.Up && !i.Link })
	ns.Run("ip", "link", "set", "rack0", "up")
	f.until("it is switched on", "rack0", func(i *netif.Interface) bool { return i != nil && i.Up && !i.Link })
	peer.Run("ip", "link", "set", "eth0", "up")
	f.until("it gets a link", "rack0", func(i *netif.Interface) bool { return i != nil && i.Up && i.Link })
	ns.Address("rack0", "192.0.2.1/24")
	f.until("it gets an address", "rack0", has("192.0.2.1"))
	ns.Address("rack0", "198.51.100.1/24")
	f.until("it gets another", "rack0", has("192.0.2.1", "198.51.100.1"))
	ns.Run("ip", "addr", "del", "192.0.2.1/24", "dev", "rack0")
	f.until("it loses one", "rack0", has("198.51.100.1"))
	ns.Run("ip", "link", "del", "rack0")
	f.until("it goes", "rack0", func(i *netif.Interface) bool { return i == nil })
	if err := f.end(); err != nil {
		t.Error(err)
	}
}

func TestMoreNotificationsThanFit(t *testing.T) {
	ns := netnstest.New(t)
	updates := make(chan []netif.Interface)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		ended <- netif.Follow(ctx, ns.Do, func(all []netif.Interface) {
			select {
			case updates <- all:
			case <-ctx.Done():
			}
		})
	}()
	<-updates
	// Nobody listens meanwhile; then all of it must be there.
	script := "ip link add rack0 type bridge; i=0; while [ $i -lt 250 ]; do echo addr add 10.1.$i.1/24 dev rack0; i=$((i+1)); done | ip -batch -; i=0; " +
		"while [ $i -lt 250 ]; do echo addr del 10.1.$i.1/24 dev rack0; echo addr add 10.2.$i.1/24 dev rack0; i=$((i+1)); done | ip -batch -"
	ns.Run("sh", "-c", script)
	patience, stop := netnstest.Patience(t)
	defer stop()
	for last := 0; last != 250; {
		select {
		case all := <-updates:
			last = 0
			for _, i := range all {
				for _, a := range i.IPv4() {
					if a.As4()[1] == 2 {
						last++
					}
				}
			}
		case <-patience.Done():
			t.Fatalf("the last that was told is %d addresses", last)
		}
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func TestANamespaceThatIsNotThere(t *testing.T) {
	gone := fmt.Errorf("no such namespace")
	err := netif.Follow(t.Context(), func(func() error) error { return gone }, func([]netif.Interface) { t.Error("told something") })
	if err == nil {
		t.Error("no error")
	}
}
