package lldp

import (
	"context"
	"errors"
	"net"
	"testing"
	"time"

	"github.com/mdlayher/packet"

	"coldrack.dev/internal/contract/wire"
	"coldrack.dev/test/netns"
)

func TestANeighbourIsHeardOnARealLink(t *testing.T) {
	machine, sw := netns.New(t), netns.New(t)
	netns.Veth(machine, "eth0", sw, "swp12")
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	heard := make(chan wire.LLDP, 100)
	ended := make(chan error, 1)
	go func() {
		ended <- machine.Do(func() error {
			return Listen(ctx, "eth0", func(n wire.LLDP) { heard <- n })
		})
	}()
	var conn *packet.Conn
	err := sw.Do(func() (err error) {
		ifi, err := net.InterfaceByName("swp12")
		if err == nil {
			conn, err = packet.Listen(ifi, packet.Datagram, etherType, nil)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	unit := join(tlv(1, chars(7, "tor-07")...), tlv(2, chars(5, "swp12")...), tlv(3, 0, 120), tlv(0))
	to := &packet.Addr{HardwareAddr: net.HardwareAddr(groups[0][:])}
	for tries := 0; ; tries++ {
		// A damaged one first: it must not end the listening.
		for _, b := range [][]byte{{2, 255}, unit} {
			if _, err := conn.WriteTo(b, to); err != nil {
				t.Fatal(err)
			}
		}
		select {
		case n := <-heard:
			if n.ChassisID != "tor-07" || n.PortID != "swp12" {
				t.Errorf("heard %+v", n)
			}
			stop()
			if err := <-ended; !errors.Is(err, context.Canceled) {
				t.Errorf("ended with %v", err)
			}
			return
		case err := <-ended:
			t.Fatalf("ended with %v", err)
		case <-time.After(50 * time.Millisecond): // not listening yet
			if tries == 200 {
				t.Fatal("nothing was heard")
			}
		}
	}
}

func TestListeningOnNoInterface(t *testing.T) {
	if err := Listen(context.Background(), "nothere0", nil); err == nil {
		t.Error("no error")
	}
}
