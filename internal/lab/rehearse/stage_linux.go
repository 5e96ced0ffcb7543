package rehearse

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"coldrack.dev/internal/base/netns"
)

// Interfaces of a rehearsal, each in its own namespace.
const (
	ServerLink = "boot0"
	RackLink   = "rack0"
)

// Stage is the rehearsal's network: one namespace with the server's sockets, one with the machines, and a cable
// between the two. The namespaces have no names; they are open files of this process and vanish with it, even
// when it is killed.
type Stage struct {
	server, rack *os.File
	link         netlink.Link // the server's end
}

func path(file *os.File) string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), file.Fd()) }

// ServerPath and RackPath name the namespaces, as package netns takes them.
func (s *Stage) ServerPath() string { return path(s.server) }

// RackPath see ServerPath.
func (s *Stage) RackPath() string { return path(s.rack) }

// OpenStage gives the server an address of the subnet, and the machines a way to it.
func OpenStage(server netip.Prefix, lossy bool) (s *Stage, err error) {
	s = &Stage{}
	defer func() {
		if err != nil {
			s.Close()
		}
		if errors.Is(err, os.ErrPermission) && os.Geteuid() != 0 {
			err = fmt.Errorf("%w (a rehearsal makes network namespaces, which needs root: use sudo)", err)
		}
	}()
	if s.server, err = newNamespace(); err != nil {
		return nil, fmt.Errorf("network namespace of the server: %w", err)
	}
	if s.rack, err = newNamespace(); err != nil {
		return nil, fmt.Errorf("network namespace of the rack: %w", err)
	}
	err = netns.Do(s.ServerPath(), func() error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.TxQLen = ServerLink, 10000
		pair := &netlink.Veth{LinkAttrs: attrs, PeerName: RackLink, PeerNamespace: netlink.NsFd(int(s.rack.Fd()))}
		if err := netlink.LinkAdd(pair); err != nil {
			return fmt.Errorf("create the cable: %w", err)
		}
		link, err := up(ServerLink, lossy)
		if err != nil {
			return err
		}
		s.link = link
		if _, err := up("lo", false); err != nil {
			return err
		}
		return netlink.AddrAdd(link, &netlink.Addr{IPNet: &net.IPNet{IP: server.Addr().AsSlice(), Mask: net.CIDRMask(server.Bits(), 32)}})
	})
	if err != nil {
		return nil, err
	}
	err = netns.Do(s.RackPath(), func() error {
		if _, err := up("lo", false); err != nil {
			return err
		}
		link, err := up(RackLink, lossy)
		if err != nil {
			return err
		}
		// No address: machines take theirs one by one.
		masked := server.Masked()
		return netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Scope: unix.RT_SCOPE_LINK,
			Dst: &net.IPNet{IP: masked.Addr().AsSlice(), Mask: net.CIDRMask(masked.Bits(), 32)}})
	})
	return s, err
}

func up(name string, lossy bool) (netlink.Link, error) {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return nil, fmt.Errorf("interface %s: %w", name, err)
	}
	if lossy {
		// Otherwise up to 64 KiB of a stream travel, and are lost, as one.
		if err := netlink.LinkSetGSOMaxSegs(link, 1); err != nil {
			return nil, fmt.Errorf("interface %s: send single segments: %w", name, err)
		}
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return nil, fmt.Errorf("set interface %s up: %w", name, err)
	}
	return link, nil
}

// sent is how many bytes the server has put on the cable.
func (s *Stage) sent() (bytes uint64) {
	_ = netns.Do(s.ServerPath(), func() error {
		link, err := netlink.LinkByName(ServerLink)
		if err != nil || link.Attrs().Statistics == nil {
			return err
		}
		bytes = link.Attrs().Statistics.TxBytes
		return nil
	})
	return bytes
}

// Close lets the namespaces go; they vanish with their last process.
func (s *Stage) Close() {
	for _, file := range []*os.File{s.server, s.rack} {
		if file != nil {
			file.Close()
		}
	}
}

func newNamespace() (file *os.File, err error) {
	made := make(chan error, 1)
	go func() {
		// A thread that cannot come home stays locked and dies with this goroutine.
		runtime.LockOSThread()
		home, err := os.Open("/proc/thread-self/ns/net")
		if err != nil {
			runtime.UnlockOSThread()
			made <- err
			return
		}
		defer home.Close()
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			runtime.UnlockOSThread()
			made <- fmt.Errorf("create: %w", err)
			return
		}
		file, err = os.Open("/proc/thread-self/ns/net")
		if unix.Setns(int(home.Fd()), unix.CLONE_NEWNET) == nil {
			runtime.UnlockOSThread()
		}
		made <- err
	}()
	err = <-made
	return file, err
}
