package dhcp

import (
	"fmt"
	"net/netip"
	"testing"
	"time"
)

// check proves that a pool's indexes agree.
func (p *pool) check(t testing.TB) {
	t.Helper()
	seen := 0
	for state := range p.queues {
		q := &p.queues[state]
		size := 0
		var before *slot
		for s := q.first; s != nil; s = s.next {
			if int(s.state) != state || s.prev != before || p.slots[s.address] != s || !p.within.Contains(s.address) {
				t.Fatalf("slot %+v in queue %d", s, state)
			}
			if s.client != "" && p.clients[s.client] != s {
				t.Fatalf("slot %+v is not its client's", s)
			}
			if before != nil && s.state != free && before.until.After(s.until) {
				t.Fatalf("queue %d is out of order", state)
			}
			before = s
			size++
		}
		if q.last != before || q.size != size {
			t.Fatalf("queue %d: size %d, counted %d", state, q.size, size)
		}
		seen += size
	}
	if seen != len(p.slots) {
		t.Fatalf("%d slots in queues, %d in all", seen, len(p.slots))
	}
	for client, s := range p.clients {
		if s.client != client {
			t.Fatalf("client %s has slot %+v", client, s)
		}
	}
}

func all(netip.Addr) bool { return true }

func TestABigPoolGivesEveryAddressOnceAndQuickly(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	p := newPool(Range{addr("10.0.0.1"), addr("10.0.255.254")})
	const size = 65534
	seen := map[netip.Addr]bool{}
	began := time.Now()
	for i := range size {
		client := fmt.Sprint("client ", i)
		s := p.choose(client, netip.Addr{}, all)
		if s == nil || seen[s.address] {
			t.Fatalf("client %d got %+v", i, s)
		}
		seen[s.address] = true
		p.move(s, bound, client, now.Add(time.Hour))
	}
	t.Logf("%d leases in %s", size, time.Since(began))
	if s := p.choose("one more", netip.Addr{}, all); s != nil {
		t.Fatalf("got %+v", s)
	}
	p.check(t)
	p.expire(now.Add(time.Hour))
	if s := p.choose("client 40000", netip.Addr{}, all); s == nil || s.address != addr("10.0.156.65") {
		t.Errorf("a client that comes back got %+v", s)
	}
	if s := p.choose("one more", netip.Addr{}, all); s == nil || s.address != addr("10.0.0.1") {
		t.Errorf("a new client got %+v, not the address that has been free for longest", s)
	}
	p.check(t)
}

func TestReservedAddressesArePassedOver(t *testing.T) {
	p := newPool(Range{addr("192.0.2.1"), addr("192.0.2.3")})
	reserved := map[netip.Addr]bool{addr("192.0.2.1"): true, addr("192.0.2.2"): true}
	usable := func(a netip.Addr) bool { return !reserved[a] }
	s := p.choose("a", addr("192.0.2.1"), usable)
	if s == nil || s.address != addr("192.0.2.3") {
		t.Fatalf("got %+v", s)
	}
	p.move(s, bound, "a", time.Now().Add(time.Hour))
	if s := p.choose("b", netip.Addr{}, usable); s != nil {
		t.Fatalf("got %+v", s)
	}
	delete(reserved, addr("192.0.2.2"))
	if s := p.choose("b", netip.Addr{}, usable); s == nil || s.address != addr("192.0.2.2") {
		t.Fatalf("got %+v", s)
	}
	p.check(t)
}

func TestAPoolAtTheEndOfTheAddressSpace(t *testing.T) {
	p := newPool(Range{addr("255.255.255.254"), addr("255.255.255.255")})
	for i := range 2 {
		s := p.choose(fmt.Sprint(i), netip.Addr{}, all)
		if s == nil {
			t.Fatal("nothing")
		}
		p.move(s, bound, fmt.Sprint(i), time.Now().Add(time.Hour))
	}
	if s := p.choose("2", netip.Addr{}, all); s != nil {
		t.Errorf("got %+v", s)
	}
}
