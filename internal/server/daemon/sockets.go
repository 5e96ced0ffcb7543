package daemon

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"time"

	"coldrack.dev/internal/base/netns"
	"coldrack.dev/internal/base/pki"
	"coldrack.dev/internal/netboot/netif"
	"coldrack.dev/internal/netboot/sntp"
)

// bootSockets are what machines talk to, DHCP apart, all in the boot network namespace: on one interface, or on all.
type bootSockets struct {
	device  string // "" for all interfaces
	index   int    // of the device
	http    net.Listener
	machine net.Listener
	// updates is nil where none are served, discovery where members of etcd are not.
	updates   net.Listener
	discovery net.Listener
	tftp      *net.UDPConn
	// time is nil where it cannot be told, mostly because another program of this host does; timeErr says why.
	time    *net.UDPConn
	timeErr error
}

// openSockets opens the boot sockets: one set for all interfaces, or one for each of those to serve that there is.
func openSockets(ctx context.Context, cfg Config) (sets []bootSockets, err error) {
	devices := []netif.Interface{{}}
	if len(cfg.Interfaces) > 0 {
		devices = nil
	}
	err = netns.Do(cfg.BootNetns, func() error {
		present, err := netif.List()
		for _, i := range present {
			if slices.Contains(cfg.Interfaces, i.Name) {
				devices = append(devices, i)
			}
		}
		return err
	})
	if err != nil {
		if cfg.BootNetns != "" {
			err = fmt.Errorf("%w; make the network first: coldrack lab up", err)
		}
		return nil, err
	}
	for _, device := range devices {
		set, err := openBootSockets(ctx, cfg, device)
		if err != nil {
			closeSockets(sets)
			return nil, err
		}
		sets = append(sets, set)
	}
	return sets, nil
}

func closeSockets(sets []bootSockets) {
	for _, set := range sets {
		set.close()
	}
}

// openBootSockets opens all sockets of a set or none. The zero Interface stands for all interfaces.
func openBootSockets(ctx context.Context, cfg Config, on netif.Interface) (s bootSockets, err error) {
	defer func() {
		if err != nil {
			s.close()
			s = bootSockets{}
		}
	}()
	device := on.Name
	s.device, s.index = on.Name, on.Index
	if s.http, err = listenTCP(ctx, cfg.BootNetns, device, cfg.BootPort, "boot HTTP", "--boot-port"); err != nil {
		return s, err
	}
	if s.machine, err = listenTCP(ctx, cfg.BootNetns, device, cfg.MachinePort, "machine API", "--machine-port"); err != nil {
		return s, err
	}
	if cfg.UpdatePort != 0 {
		if s.updates, err = listenTCP(ctx, cfg.BootNetns, device, cfg.UpdatePort, "the update server", "--update-port"); err != nil {
			return s, err
		}
	}
	if cfg.EtcdDiscoveryPort != 0 {
		if s.discovery, err = listenTCP(ctx, cfg.BootNetns, device, cfg.EtcdDiscoveryPort, "etcd discovery", "--etcd-discovery-port"); err != nil {
			return s, err
		}
	}
	conn, err := netns.ListenPacketOn(ctx, cfg.BootNetns, device, "udp", net.JoinHostPort("", strconv.Itoa(cfg.TFTPPort)))
	if err != nil {
		return s, explainListen(err, "TFTP", "udp", cfg.TFTPPort, "choose another port with --tftp-port")
	}
	s.tftp = conn.(*net.UDPConn)
	// A host with a time server of its own needs no other.
	if !cfg.NTP {
		s.timeErr = errors.New("--ntp=false")
	} else if conn, err := netns.ListenPacketOn(ctx, cfg.BootNetns, device, "udp", net.JoinHostPort("", strconv.Itoa(sntp.Port))); err == nil {
		s.time = conn.(*net.UDPConn)
	} else {
		s.timeErr = err
	}
	return s, nil
}

func listenTCP(ctx context.Context, namespace, device string, port int, what, flag string) (net.Listener, error) {
	listener, err := netns.ListenOn(ctx, namespace, device, "tcp", net.JoinHostPort("", strconv.Itoa(port)))
	if err != nil {
		return nil, explainListen(err, what, "tcp", port, "choose another port with "+flag)
	}
	return listener, nil
}

// explainListen says what to do; instead is what helps where another program must keep the port.
func explainListen(err error, what, network string, port int, instead string) error {
	advice := "see `coldrack doctor`"
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		advice = fmt.Sprintf("another program has the port: find it with `ss -lpn sport = :%d` and stop it, or %s", port, instead)
	case errors.Is(err, syscall.EACCES), errors.Is(err, syscall.EPERM):
		advice = "ports below 1024 need root or CAP_NET_BIND_SERVICE: run as root or use the systemd unit"
	}
	return fmt.Errorf("%s cannot listen on port %d/%s: %w; %s", what, port, network, err, advice)
}

func (s bootSockets) close() {
	if s.http != nil {
		s.http.Close()
	}
	if s.machine != nil {
		s.machine.Close()
	}
	if s.updates != nil {
		s.updates.Close()
	}
	if s.discovery != nil {
		s.discovery.Close()
	}
	if s.tftp != nil {
		s.tftp.Close()
	}
	if s.time != nil {
		s.time.Close()
	}
}

// machineCertificates gives the machine API a certificate for whichever of the server's addresses a
// machine came to, made at the first connection to it: the server need not know its addresses beforehand,
// and an address that is added later works at once.
type machineCertificates struct {
	authority *pki.Authority
	now       func() time.Time

	mu   sync.Mutex
	byIP map[netip.Addr]*tls.Certificate
}

const machineServerTTL = 90 * 24 * time.Hour

func (m *machineCertificates) get(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	address, err := netip.ParseAddrPort(hello.Conn.LocalAddr().String())
	if err != nil {
		return nil, fmt.Errorf("local address of a connection: %w", err)
	}
	ip := address.Addr().Unmap().WithZone("")
	m.mu.Lock()
	defer m.mu.Unlock()
	if cert := m.byIP[ip]; cert != nil && m.now().Before(cert.Leaf.NotAfter.Add(-machineServerTTL/3)) {
		return cert, nil
	}
	cert, err := m.authority.NewServerKeyPair("coldrack machine API", nil, []net.IP{ip.AsSlice()}, machineServerTTL)
	if err != nil {
		return nil, err
	}
	if m.byIP == nil {
		m.byIP = map[netip.Addr]*tls.Certificate{}
	}
	m.byIP[ip] = &cert
	return &cert, nil
}
