package dhcp

import (
	"bytes"
	"testing"

	"github.com/insomniacslk/dhcp/dhcpv4"
)

// Clients whose firmware tells wrong of itself are answered as they need it, others as they say.
func TestShapes(t *testing.T) {
	subnet := rack()
	subnet.Options = []Option{{Code: 119, Value: bytes.Repeat([]byte{1}, 150)}, {Code: 224, Value: bytes.Repeat([]byte{2}, 150)}, {Code: 225, Value: bytes.Repeat([]byte{3}, 150)}}
	s := newStage(t, subnet, remote())
	s.engine.shapeOf = func(q Query) Shape {
		return map[string]Shape{mac(1).String(): {Small: true}, mac(2).String(): {Broadcast: true}}[q.MAC]
	}
	says := []change1{option(57, 0x05, 0xc0), unicast}
	for client, want := range map[int]struct{ large, broadcast bool }{1: {false, false}, 2: {true, true}, 3: {true, false}} {
		reply, out := s.say(message(discover, client, says...), "255.255.255.255")
		if reply == nil {
			t.Fatalf("client %d: silence", client)
		}
		if large := len(out.payload)+ipUDP > leastMessageSize; large != want.large {
			t.Errorf("client %d is sent %d bytes", client, len(out.payload)+ipUDP)
		}
		if out.to.Addr().String() == "255.255.255.255" != want.broadcast || reply.IsBroadcast() != want.broadcast || (out.hardware == nil) != want.broadcast {
			t.Errorf("client %d is answered at %s (%s), broadcast flag %v", client, out.to, out.hardware, reply.IsBroadcast())
		}
		relayed, out := s.say(message(discover, client, option(57, 0x05, 0xc0), unicast, via("203.0.113.9")), "192.0.2.1")
		if relayed == nil || out.to.String() != "203.0.113.9:67" || relayed.IsBroadcast() != want.broadcast {
			t.Errorf("client %d behind a relay is answered at %s: %v", client, out.to, relayed)
		}
	}
	s = newStage(t, beside())
	s.engine.shapeOf = func(Query) Shape { return Shape{Small: true} }
	if reply, out := s.say(ovmf(discover, 1), "255.255.255.255"); reply == nil || reply.MessageType() != dhcpv4.MessageTypeOffer || len(out.payload)+ipUDP > leastMessageSize {
		t.Errorf("a proxy's offer has %d bytes", len(out.payload)+ipUDP)
	}
}
