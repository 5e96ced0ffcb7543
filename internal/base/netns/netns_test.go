package netns_test

import (
	"context"
	"errors"
	"net"
	"os"
	"strings"
	"testing"

	"coldrack.dev/internal/base/netns"
	netnstest "coldrack.dev/test/netns"
)

func TestASocketStaysInTheNamespaceItWasOpenedIn(t *testing.T) {
	ns := netnstest.New(t)
	ns.Address("lo", "192.0.2.1/32")

	listener, err := netns.Listen(context.Background(), ns.Path(), "tcp4", "192.0.2.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	go func() {
		if conn, err := listener.Accept(); err == nil {
			conn.Write([]byte("hello"))
			conn.Close()
		}
	}()

	var conn net.Conn
	err = ns.Do(func() (err error) {
		conn, err = net.Dial("tcp4", listener.Addr().String())
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	buffer := make([]byte, 5)
	if n, _ := conn.Read(buffer); string(buffer[:n]) != "hello" {
		t.Errorf("read %q", buffer[:n])
	}
}

func TestAConnectionIsMadeInsideTheNamespace(t *testing.T) {
	ns := netnstest.New(t)
	ns.Address("lo", "192.0.2.1/32")
	listener, err := netns.Listen(context.Background(), ns.Path(), "tcp4", "192.0.2.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	conn, err := netns.Dial(context.Background(), ns.Path(), "tcp4", listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := netns.Dial(ended, ns.Path(), "tcp4", listener.Addr().String()); !errors.Is(err, context.Canceled) {
		t.Errorf("a cancelled dial says %v", err)
	}
}

func TestDoComesHomeAndHandsErrorsOn(t *testing.T) {
	ns := netnstest.New(t)
	before, err := os.Readlink("/proc/thread-self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	reason := errors.New("reason")
	for range 20 {
		var inside string
		err := ns.Do(func() error {
			inside, _ = os.Readlink("/proc/thread-self/ns/net")
			return reason
		})
		if !errors.Is(err, reason) {
			t.Fatalf("got %v", err)
		}
		if inside == before || inside == "" {
			t.Fatalf("ran in %q, home is %q", inside, before)
		}
		if now, _ := os.Readlink("/proc/thread-self/ns/net"); now != before {
			t.Fatalf("left in %q, home is %q", now, before)
		}
	}
}

func TestAMissingNamespaceIsNamed(t *testing.T) {
	err := netns.Do("no-such-rack", func() error { return nil })
	if err == nil || !strings.Contains(err.Error(), "/run/netns/no-such-rack") {
		t.Errorf("got %v", err)
	}
}

func TestAnEmptyNamespaceMeansHere(t *testing.T) {
	conn, err := netns.ListenPacket(context.Background(), "", "udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
}
