package daemon

import (
	"errors"
	"fmt"
	"net"
	"strconv"
	"testing"
	"time"

	"coldrack.dev/internal/netboot/sntp"
	"coldrack.dev/internal/server/machineapi"
	"coldrack.dev/test/netns"
)

// Where interfaces to serve are chosen, nothing answers on the others; one that comes later is served, and served again after
// it was away.
func TestOnlyChosenInterfacesAreServed(t *testing.T) {
	ns, rack, later, office := netns.New(t), netns.New(t), netns.New(t), netns.New(t)
	netns.Veth(ns, "rack0", rack, "eth0")
	ns.Address("rack0", "10.20.0.2/24")
	rack.Address("eth0", "10.20.0.9/24")
	netns.Veth(ns, "office0", office, "eth0")
	ns.Address("office0", "192.0.2.2/24")
	office.Address("eth0", "192.0.2.9/24")

	cfg := testConfig(t)
	cfg.NoBoot, cfg.BootNetns, cfg.Interfaces = false, ns.Path(), []string{"rack0", "rack1"}
	s := newBootServer(t, cfg, discard(), "")
	s.fleet.MarkSynced()
	s.startBoot(t, machineapi.NewNonces(nil))

	// answers says whether a port answers: TCP connects; UDP, to whom one byte is sent, does not say that nobody is there.
	answers := func(from *netns.NS, network, at string, port int) error {
		var conn net.Conn
		err := from.Do(func() (err error) {
			conn, err = net.DialTimeout(network, net.JoinHostPort(at, strconv.Itoa(port)), within)
			return err
		})
		if err != nil || network == "tcp" {
			if err == nil {
				conn.Close()
			}
			return err
		}
		defer conn.Close()
		request := []byte("\x00\x01snponly.efi\x00octet\x00")
		if port == sntp.Port {
			request = append([]byte{0x23}, make([]byte, 47)...)
		}
		if _, err := conn.Write(request); err != nil {
			return err
		}
		check(t, conn.SetReadDeadline(time.Now().Add(within)))
		_, err = conn.Read(make([]byte, 600))
		return err
	}
	type service struct {
		network string
		port    int
	}
	services := []service{{"tcp", cfg.BootPort}, {"tcp", cfg.MachinePort}, {"udp", sntp.Port}}
	served := func(from *netns.NS, at string) error {
		for _, s := range services {
			if err := answers(from, s.network, at, s.port); err != nil {
				return fmt.Errorf("%s port %d at %s: %w", s.network, s.port, at, err)
			}
		}
		return nil
	}
	eventually(t, func() error { return served(rack, "10.20.0.2") })
	for _, s := range append(services, service{"udp", cfg.TFTPPort}) {
		if err := answers(office, s.network, "192.0.2.2", s.port); err == nil {
			t.Errorf("%s port %d answers on an interface that was not chosen", s.network, s.port)
		} else if timeout := net.Error(nil); errors.As(err, &timeout) && timeout.Timeout() {
			t.Errorf("%s port %d: %v, want a refusal", s.network, s.port, err)
		}
		// Nor does the other interface's address, by this interface.
		office.Try(t.Context(), "ip", "route", "replace", "10.20.0.0/24", "via", "192.0.2.2")
		if err := answers(office, s.network, "10.20.0.2", s.port); err == nil {
			t.Errorf("%s port %d of the rack's address answers by an interface that was not chosen", s.network, s.port)
		}
	}

	for range 2 {
		netns.Veth(ns, "rack1", later, "eth0")
		ns.Address("rack1", "10.30.0.2/24")
		later.Address("eth0", "10.30.0.9/24")
		eventually(t, func() error { return served(later, "10.30.0.2") })
		ns.Run("ip", "link", "del", "rack1")
	}
	check(t, served(rack, "10.20.0.2"))
}
