package main

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"

	"golang.org/x/sync/errgroup"

	"coldrack.dev/internal/netboot/dhcp"
	"coldrack.dev/internal/netboot/httpboot"
	"coldrack.dev/internal/netboot/tftp"
)

// serve runs Coldrack's protocol servers alone, as `coldrack serve` does: serve tftp|http FOLDER, serve dhcp FOLDER.
func serve(ctx context.Context, args []string) error {
	if len(args) != 2 {
		return fmt.Errorf("serve: want what and a folder")
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	switch args[0] {
	case "tftp", "http":
		root, err := os.OpenRoot(args[1])
		if err != nil {
			return err
		}
		defer root.Close()
		if args[0] == "tftp" {
			conn, err := net.ListenUDP("udp4", &net.UDPAddr{Port: tftp.Port})
			if err != nil {
				return err
			}
			return tftp.New(tftp.Options{FS: tftp.Dir(root), Log: log, MaxPerAddress: 1000}).Serve(ctx, conn)
		}
		listener, err := net.Listen("tcp4", ":80")
		if err != nil {
			return err
		}
		return httpboot.New(httpboot.Options{Files: tftp.Dir(root), Log: log, MaxConnsPerClient: 1000}).Serve(ctx, listener)
	case "dhcp":
		config := dhcp.Config{Interfaces: []string{"s0"}, Subnets: []dhcp.Subnet{{Name: "bench", Mode: dhcp.ModeServer,
			CIDR: netip.MustParsePrefix("10.98.0.0/15"), Pool: dhcp.Range{From: netip.MustParseAddr("10.98.1.0"), To: netip.MustParseAddr("10.99.255.250")}}}}
		server, err := dhcp.New(dhcp.Options{Backend: strangers{}, Dir: args[1], Log: log, Inside: func(open func() error) error { return open() }}, config)
		if err != nil {
			return err
		}
		group, ctx := errgroup.WithContext(ctx)
		group.Go(func() error { return server.Serve(ctx) })
		return group.Wait()
	}
	return fmt.Errorf("serve: there is no %q", args[0])
}

// strangers are clients that nobody knows: each takes an address of the pool, durably.
type strangers struct{}

func (strangers) Reservation(netip.Prefix, dhcp.Query) (dhcp.Reservation, bool) {
	return dhcp.Reservation{}, false
}
func (strangers) Options(dhcp.Query) []dhcp.Option { return nil }
func (strangers) Reserved(netip.Addr) bool         { return false }
func (strangers) BootFile(_ netip.Prefix, q dhcp.Query) (dhcp.BootFile, bool) {
	return dhcp.BootFile{}, false
}
func (strangers) Observe(dhcp.Observation) {}
