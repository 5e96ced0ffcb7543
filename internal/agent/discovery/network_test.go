package discovery

import (
	"bytes"
	"context"
	"log/slog"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"coldrack.dev/internal/agent/console"
	"coldrack.dev/test/netns"
	"coldrack.dev/test/require"
)

// screen is a console's device that can be read while it is written.
type screen struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *screen) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *screen) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// await waits until the screen shows a text.
func (s *screen) await(t *testing.T, text string) {
	t.Helper()
	for range 2000 {
		if strings.Contains(s.String(), text) {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Errorf("the console never shows %q:\n%s", text, s.String())
}

// rack is a machine with two NICs and a server with dnsmasq, a real DHCP server, behind the second.
type rack struct {
	server, machine *netns.NS
	network         *Network
	screen          *screen
}

func newRack(t *testing.T) *rack {
	t.Helper()
	require.Need(t, "netns", "dnsmasq")
	r := &rack{server: netns.New(t), machine: netns.New(t), screen: &screen{}}
	netns.Veth(r.server, "sw0", r.machine, "eth0")
	netns.Veth(r.server, "sw1", r.machine, "eth1")
	r.server.Address("sw1", "192.0.2.1/24")
	con := console.New(r.screen)
	t.Cleanup(con.Close)
	r.network = &Network{
		Log: slog.New(slog.DiscardHandler), Console: con,
		Patience: Patience{NIC: 2 * time.Second, Carrier: 2 * time.Second, Answer: 100 * time.Millisecond, Again: 100 * time.Millisecond},
		Interfaces: func() (links []netlink.Link) {
			for _, name := range []string{"eth0", "eth1"} {
				if l, err := netlink.LinkByName(name); err == nil {
					links = append(links, l)
				}
			}
			return links
		},
	}
	return r
}

func (r *rack) serveDHCP(t *testing.T) {
	t.Helper()
	cmd := exec.Command("dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--port=0", "--bind-interfaces", "--interface=sw1", "--leasefile-ro",
		"--pid-file=", "--log-facility=-", "--dhcp-authoritative", "--no-ping", "--dhcp-range=192.0.2.50,192.0.2.60,255.255.255.0,2m", "--dhcp-option=option:router,192.0.2.1", "--dhcp-option=option:mtu,1400", "--user=root")
	if err := r.server.Start(cmd); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
}

func TestAddressFromARealDHCPServer(t *testing.T) {
	r := newRack(t)
	r.serveDHCP(t)
	r.network.BootMAC = r.machine.Interface("eth1").HardwareAddr.String()
	err := r.machine.Do(func() error {
		if err := r.network.Up(context.Background()); err != nil {
			return err
		}
		return r.network.renew(context.Background())
	})
	if err != nil {
		t.Fatal(err)
	}
	address := r.network.Address()
	shown := r.machine.Run("ip", "addr", "show", "eth1") + r.machine.Run("ip", "route")
	for _, want := range []string{"inet " + address + "/24", "mtu 1400", "default via 192.0.2.1 dev eth1"} {
		if !strings.Contains(shown, want) {
			t.Errorf("%q is missing in:\n%s", want, shown)
		}
	}
	if strings.Contains(r.screen.String(), "eth0") {
		t.Errorf("an interface other than the one that booted was tried:\n%s", r.screen)
	}
}

func TestAnotherNICServesWhenTheBootNICHasNoAnswer(t *testing.T) {
	r := newRack(t)
	r.serveDHCP(t)
	mac := r.machine.Interface("eth0").HardwareAddr.String()
	r.network.BootMAC = mac
	if err := r.machine.Do(func() error { return r.network.Up(context.Background()) }); err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(r.network.Address(), "192.0.2.") {
		t.Errorf("address is %q", r.network.Address())
	}
	r.screen.await(t, "FAILED: no address by DHCP on eth0 ("+mac+")")
}

func TestACableThatIsPluggedInLater(t *testing.T) {
	r := newRack(t)
	for _, end := range []string{"sw0", "sw1"} {
		r.server.Run("ip", "link", "set", end, "down")
	}
	done := make(chan error, 1)
	go func() {
		done <- r.machine.Do(func() error { return r.network.Up(context.Background()) })
	}()
	r.screen.await(t, "FAILED: no link on any interface: eth0 ("+r.machine.Interface("eth0").HardwareAddr.String()+"), eth1")
	r.server.Run("ip", "link", "set", "sw1", "up")
	r.serveDHCP(t)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}
