package tftp

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"coldrack.dev/internal/base/netns"
	netnstest "coldrack.dev/test/netns"
	"coldrack.dev/test/require"
)

// dialIn opens the transfers' sockets inside the namespace.
func dialIn(ns *netnstest.NS) func(netip.Addr, netip.AddrPort) (*net.UDPConn, error) {
	return func(local netip.Addr, remote netip.AddrPort) (*net.UDPConn, error) {
		var conn *net.UDPConn
		err := netns.Do(ns.Path(), func() (err error) {
			conn, err = net.DialUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(local, 0)), net.UDPAddrFromAddrPort(remote))
			return err
		})
		return conn, err
	}
}

func TestRealClients(t *testing.T) {
	require.Need(t, "netns", "curl", "tftp")
	server, rack := netnstest.New(t), netnstest.New(t)
	netnstest.Veth(server, "eth0", rack, "eth0")
	// Two addresses: the answer must come from the one that was asked.
	server.Address("eth0", "192.0.2.1/24")
	server.Address("eth0", "192.0.2.2/24")
	rack.Address("eth0", "192.0.2.10/24")
	want := content(1_000_000)
	_, reports := serve(t, server.ListenUDP("0.0.0.0:69"), Options{
		FS: files(map[string][]byte{"sub/file": want}), Dial: dialIn(server)})

	commands := map[string]func(out string) []string{
		"tftp-hpa": func(out string) []string {
			return []string{"tftp", "-m", "binary", "192.0.2.1", "-c", "get", "sub/file", out}
		},
		"tftp-hpa at another address": func(out string) []string {
			return []string{"tftp", "-m", "binary", "192.0.2.2", "-c", "get", "/sub/file", out}
		},
	}
	for _, size := range []int{512, 1468, 8192, 65464} {
		commands[fmt.Sprintf("curl in blocks of %d", size)] = func(out string) []string {
			return []string{"curl", "-sS", "--max-time", "60", "--tftp-blksize", fmt.Sprint(size), "-o", out, "tftp://192.0.2.2/sub/file"}
		}
	}
	if _, err := os.Stat("/usr/bin/busybox"); err == nil {
		commands["busybox"] = func(out string) []string {
			return []string{"busybox", "tftp", "-g", "-b", "1024", "-r", "sub/file", "-l", out, "192.0.2.1"}
		}
	}
	for name, command := range commands {
		t.Run(name, func(t *testing.T) {
			out := filepath.Join(t.TempDir(), "out")
			if printed, err := rack.Try(context.Background(), command(out)...); err != nil {
				t.Fatalf("%v: %s", err, printed)
			}
			got, err := os.ReadFile(out)
			if err != nil || !bytes.Equal(got, want) {
				t.Errorf("%d bytes, %v", len(got), err)
			}
			if report := <-reports; report.Err != nil || report.Remote.Addr() != netip.MustParseAddr("192.0.2.10") {
				t.Errorf("report %+v", report)
			}
		})
	}
}

func TestBroadcastRequestsAreIgnored(t *testing.T) {
	server, rack := netnstest.New(t), netnstest.New(t)
	netnstest.Veth(server, "eth0", rack, "eth0")
	server.Run("ip", "addr", "add", "192.0.2.1/24", "broadcast", "192.0.2.255", "dev", "eth0")
	rack.Run("ip", "addr", "add", "192.0.2.10/24", "broadcast", "192.0.2.255", "dev", "eth0")
	running, _ := serve(t, server.ListenUDP("0.0.0.0:69"), Options{FS: files(nil), Dial: dialIn(server)})
	c := &client{conn: rack.ListenUDP("192.0.2.10:0"), server: &net.UDPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 69}}
	// The first answer proves that the server is listening, the second that it has passed over what came before.
	for range 2 {
		if _, err := c.get("f"); err != (serverError{codeNotFound, "file not found: f"}) {
			t.Fatal(err)
		}
		c.conn.WriteToUDP(encodeRequest(opRead, "f", "octet"), &net.UDPAddr{IP: net.IPv4(192, 0, 2, 255), Port: 69})
	}
	if _, err := c.get("f"); err != (serverError{codeNotFound, "file not found: f"}) {
		t.Fatal(err)
	}
	if stats := running.Stats(); stats.Requests != 3 || stats.Malformed != 2 {
		t.Errorf("stats %+v", stats)
	}
}

// A cable that loses, doubles and delays packets must only cost time.
func TestABadCable(t *testing.T) {
	require.Need(t, "netns", "curl")
	server, rack := netnstest.New(t), netnstest.New(t)
	netnstest.Wire(t, server, "eth0", rack, "eth0", netnstest.Faults{Seed: 7, Lose: 0.03, Duplicate: 0.1, Delay: 0.05})
	server.Address("eth0", "192.0.2.1/24")
	rack.Address("eth0", "192.0.2.10/24")
	want := content(150_000)
	_, reports := serve(t, server.ListenUDP("0.0.0.0:69"), Options{
		FS: files(map[string][]byte{"file": want}), Dial: dialIn(server)})

	check := func(t *testing.T, got []byte, err error) {
		t.Helper()
		if err != nil || !bytes.Equal(got, want) {
			t.Fatalf("%d bytes, %v", len(got), err)
		}
		select {
		case report := <-reports:
			t.Logf("%s, %d blocks sent again, err %v", report.Duration.Round(time.Millisecond), report.Retransmits, report.Err)
			if report.Retransmits == 0 {
				t.Error("the cable lost nothing")
			}
		case <-time.After(time.Minute):
			t.Error("the transfer does not end")
		}
	}
	for name, options := range map[string][]string{
		"blocks of 1468":            {"blksize", "1468"},
		"windows of 16":             {"blksize", "1468", "windowsize", "16"},
		"windows of 64 blocks 1024": {"blksize", "1024", "windowsize", "64"},
	} {
		t.Run(name, func(t *testing.T) {
			c := &client{conn: rack.ListenUDP("192.0.2.10:0"), server: &net.UDPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 69}, options: options}
			got, err := c.get("file")
			c.conn.Close()
			check(t, got, err)
		})
	}
	t.Run("curl", func(t *testing.T) {
		out := filepath.Join(t.TempDir(), "out")
		if printed, err := rack.Try(context.Background(), "curl", "-sS", "--max-time", "100", "--tftp-blksize", "1468",
			"-o", out, "tftp://192.0.2.1/file"); err != nil {
			t.Fatalf("%v: %s", err, printed)
		}
		got, err := os.ReadFile(out)
		check(t, got, err)
	})
}

// Windows that one system call cannot send at once (UDP_SEGMENT): blocks that the link has to split, and an
// interface that cannot compute checksums.
func TestWindowsArriveWhateverTheLinkCanDo(t *testing.T) {
	for name, prepare := range map[string]func(*netnstest.NS){
		"a plain link":           func(*netnstest.NS) {},
		"a link with a low MTU":  func(ns *netnstest.NS) { ns.Run("ip", "link", "set", "eth0", "mtu", "600") },
		"a link that splits all": func(ns *netnstest.NS) { ns.Run("ip", "link", "set", "eth0", "gso_max_segs", "1") },
	} {
		t.Run(name, func(t *testing.T) {
			server, rack := netnstest.New(t), netnstest.New(t)
			netnstest.Veth(server, "eth0", rack, "eth0")
			server.Address("eth0", "192.0.2.1/24")
			rack.Address("eth0", "192.0.2.10/24")
			prepare(server)
			want := content(300_001)
			serve(t, server.ListenUDP("0.0.0.0:69"), Options{FS: files(map[string][]byte{"file": want}), Dial: dialIn(server)})
			for _, options := range [][]string{
				{"blksize", "1468", "windowsize", "16"}, {"blksize", "8192", "windowsize", "8"}, {"blksize", "32", "windowsize", "64"}, {"blksize", "65464", "windowsize", "2"},
			} {
				c := &client{conn: rack.ListenUDP("192.0.2.10:0"), server: &net.UDPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 69}, options: options}
				got, err := c.get("file")
				c.conn.Close()
				if err != nil || !bytes.Equal(got, want) {
					t.Errorf("%v: %d bytes of %d: %v", options, len(got), len(want), err)
				}
			}
		})
	}
}

func BenchmarkTransfer(b *testing.B) {
	want := content(16 << 20)
	dir := b.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "f"), want, 0o644); err != nil {
		b.Fatal(err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		b.Fatal(err)
	}
	defer root.Close()
	for name, options := range map[string][]string{
		"512":           nil,
		"1468":          {"blksize", "1468"},
		"1468 by 16":    {"blksize", "1468", "windowsize", "16"},
		"8192 by 8":     {"blksize", "8192", "windowsize", "8"},
		"65464 by none": {"blksize", "65464"},
	} {
		b.Run(name, func(b *testing.B) {
			conn := loopback(b)
			serve(b, conn, Options{FS: Dir(root)})
			b.SetBytes(int64(len(want)))
			for b.Loop() {
				c := newClient(b, conn.LocalAddr())
				c.options = options
				if got, err := c.get("f"); err != nil || len(got) != len(want) {
					b.Fatal(len(got), err)
				}
			}
		})
	}
}
