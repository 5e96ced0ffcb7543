package dhcp

import (
	"testing"

	"coldrack.dev/internal/netboot/lease"
)

// A client that passes is answered like any, and leaves nothing behind.
func TestAClientThatPasses(t *testing.T) {
	passing := func(q Query) bool { return q.MAC == mac(1).String() }
	s := newStage(t, beside())
	s.engine.passing = passing
	for range unheededAfter + 1 {
		s.expect("it asks again and again", "offer", "directed", ovmf(discover, 1))
	}
	if got := Tell(s.engine.ignoring(beside().CIDR)); got != "" {
		t.Errorf("it is taken for a firmware that does not heed us: %s", got)
	}
	s.expect("two UUIDs", "offer", "directed", ovmf(discover, 1, option(97, append([]byte{0}, make([]byte, 16)...)...)))
	for range unheededAfter - 1 {
		s.expect("another", "offer", "directed", ovmf(discover, 2))
	}
	s.expect("another", "offer", "directed, ignored", ovmf(discover, 2))
}

func TestAnOfferIsGivenBack(t *testing.T) {
	s := newStage(t)
	pool := s.engine.pools[rack().CIDR]
	offer, address := s.expect("discover", "offer 192.0.2.100", "offered 192.0.2.100", message(discover, 1)), "192.0.2.100"
	if offer == nil || pool.Count(lease.Held) != 1 {
		t.Fatalf("%d offers are held", pool.Count(lease.Held))
	}
	s.expect("another's", "silence", "", message(release, 2, having(address), ofServer("192.0.2.1")))
	s.expect("of another server", "silence", "", message(release, 1, having(address), ofServer("192.0.2.2")))
	s.expect("of another address", "silence", "", message(release, 1, having("192.0.2.101"), ofServer("192.0.2.1")))
	if pool.Count(lease.Held) != 1 {
		t.Fatalf("%d offers are held", pool.Count(lease.Held))
	}
	s.expect("given back", "silence", "", message(release, 1, having(address), ofServer("192.0.2.1")))
	if pool.Count(lease.Held)+pool.Count(lease.Bound) != 0 || len(s.stored) != 0 {
		t.Errorf("%d held, %d leased, %d stored", pool.Count(lease.Held), pool.Count(lease.Bound), len(s.stored))
	}
	if err := pool.Check(); err != nil {
		t.Error(err)
	}
	s.lease(1, address)
}
