package lab_test

import (
	"context"
	"io"
	"net"
	"net/netip"
	"path/filepath"
	"testing"

	"coldrack.dev/internal/base/netns"
	"coldrack.dev/internal/lab"
	"coldrack.dev/test/require"
)

func TestAPortOfTheLabIsReachedFromTheHost(t *testing.T) {
	require.Need(t, "netns")
	o := lab.Options{Dir: filepath.Join(t.TempDir(), "lab"), Name: labName("fwd")}
	l := create(t, o)

	inside, err := netns.Listen(t.Context(), l.Namespace(), "tcp4", "10.77.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer inside.Close()
	go func() {
		for {
			conn, err := inside.Accept()
			if err != nil {
				return
			}
			// It answers after the question's end: both directions end on their own.
			text, _ := io.ReadAll(conn)
			_, _ = conn.Write(append([]byte("heard "), text...))
			conn.Close()
		}
	}()
	outside, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	nobody := netip.MustParseAddrPort("10.77.0.1:1")
	go func() {
		ended <- l.Forward(ctx, outside, []netip.AddrPort{nobody, netip.MustParseAddrPort(inside.Addr().String())})
	}()

	conn, err := net.Dial("tcp4", outside.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if text, err := io.ReadAll(conn); string(text) != "heard hello" {
		t.Errorf("read %q, %v", text, err)
	}
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if err := l.Forward(t.Context(), outside, []netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:6443")}); err == nil {
		t.Error("forwards out of the lab")
	}
}
