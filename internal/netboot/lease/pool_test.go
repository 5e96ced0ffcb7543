package lease

import (
	"fmt"
	"net/netip"
	"testing"
	"time"
)

func all(netip.Addr) bool { return true }

func TestABigPoolGivesEveryAddressOnceAndQuickly(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	p := NewPool(Range{addr("10.0.0.1"), addr("10.0.255.254")})
	const size = 65534
	seen := map[netip.Addr]bool{}
	began := time.Now()
	for i := range size {
		client := fmt.Sprint("client ", i)
		s := p.Choose(client, netip.Addr{}, all)
		if s == nil || seen[s.Address] {
			t.Fatalf("client %d got %+v", i, s)
		}
		seen[s.Address] = true
		p.Move(s, Bound, client, now.Add(time.Hour))
	}
	t.Logf("%d leases in %s", size, time.Since(began))
	if s := p.Choose("one more", netip.Addr{}, all); s != nil {
		t.Fatalf("got %+v", s)
	}
	if err := p.Check(); err != nil {
		t.Fatal(err)
	}
	p.Expire(now.Add(time.Hour))
	if s := p.Choose("client 40000", netip.Addr{}, all); s == nil || s.Address != addr("10.0.156.65") {
		t.Errorf("a client that comes back got %+v", s)
	}
	if s := p.Choose("one more", netip.Addr{}, all); s == nil || s.Address != addr("10.0.0.1") {
		t.Errorf("a new client got %+v, not the address that has been free for longest", s)
	}
	if err := p.Check(); err != nil {
		t.Fatal(err)
	}
}

func TestReservedAddressesArePassedOver(t *testing.T) {
	p := NewPool(Range{addr("192.0.2.1"), addr("192.0.2.3")})
	reserved := map[netip.Addr]bool{addr("192.0.2.1"): true, addr("192.0.2.2"): true}
	usable := func(a netip.Addr) bool { return !reserved[a] }
	s := p.Choose("a", addr("192.0.2.1"), usable)
	if s == nil || s.Address != addr("192.0.2.3") {
		t.Fatalf("got %+v", s)
	}
	p.Move(s, Bound, "a", time.Now().Add(time.Hour))
	if s := p.Choose("b", netip.Addr{}, usable); s != nil {
		t.Fatalf("got %+v", s)
	}
	delete(reserved, addr("192.0.2.2"))
	if s := p.Choose("b", netip.Addr{}, usable); s == nil || s.Address != addr("192.0.2.2") {
		t.Fatalf("got %+v", s)
	}
	if err := p.Check(); err != nil {
		t.Fatal(err)
	}
}

func TestAPoolAtTheEndOfTheAddressSpace(t *testing.T) {
	p := NewPool(Range{addr("255.255.255.254"), addr("255.255.255.255")})
	for i := range 2 {
		s := p.Choose(fmt.Sprint(i), netip.Addr{}, all)
		if s == nil {
			t.Fatal("nothing")
		}
		p.Move(s, Bound, fmt.Sprint(i), time.Now().Add(time.Hour))
	}
	if s := p.Choose("2", netip.Addr{}, all); s != nil {
		t.Errorf("got %+v", s)
	}
}
