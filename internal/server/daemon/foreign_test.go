package daemon

import (
	"net/netip"
	"testing"
	"time"
)

// TestForeignServers remembers the other DHCP servers that were seen last, however many there are.
func TestForeignServers(t *testing.T) {
	var f foreignServers
	now := time.Date(2026, 11, 30, 8, 0, 0, 0, time.UTC)
	f.note(netip.Addr{}, "eth0", now)
	if len(f.all()) != 0 {
		t.Error("a server without an address is remembered")
	}
	first := netip.MustParseAddr("10.0.0.0")
	address := first
	for i := range 3 * mostForeign {
		f.note(address, "eth0", now.Add(time.Duration(i)*time.Second))
		f.note(first, "eth1", now.Add(time.Duration(i)*time.Second)) // it goes on
		address = address.Next()
	}
	all := f.all()
	if len(all) != mostForeign {
		t.Errorf("%d are remembered", len(all))
	}
	if at := all[foreignServer{first, "eth1"}]; !at.Equal(now.Add((3*mostForeign - 1) * time.Second)) {
		t.Errorf("the one that goes on was seen at %s", at)
	}
	if _, old := all[foreignServer{first, "eth0"}]; old {
		t.Error("the oldest is still there")
	}
	if _, last := all[foreignServer{address.Prev(), "eth0"}]; !last {
		t.Error("the last one is not there")
	}
}
