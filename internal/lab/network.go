package lab

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"coldrack.dev/internal/base/netns"
)

// bridgeName is the only way between machines and server. It exists inside the lab's namespace.
const bridgeName = "lab0"

// network is a lab's namespace and what is in it.
type network struct {
	namespace string
	subnet    netip.Prefix
	bridgeMAC net.HardwareAddr
	// owner marks the bridge, so that two labs of one name do not take each other's down.
	owner string
}

// ownerMark is what a lab writes on its bridge; an interface alias has 255 bytes.
func ownerMark(dir string) string {
	const room = 200
	return "coldrack lab " + dir[max(0, len(dir)-room):]
}

// errForeign is a namespace of the right name that is not ours.
var errForeign = errors.New("belongs to somebody else")

// ensure makes what is missing: namespace, loopback, bridge, address.
func (n network) ensure() error {
	if err := n.ensureNamespace(); err != nil {
		return permission(fmt.Errorf("network namespace %s: %w", n.namespace, err))
	}
	return n.do("set up", func() error {
		if err := setUp("lo"); err != nil {
			return err
		}
		bridge, err := n.bridge()
		if err != nil {
			return err
		}
		if bridge == nil {
			attrs := netlink.NewLinkAttrs()
			attrs.Name, attrs.HardwareAddr = bridgeName, n.bridgeMAC
			if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil {
				return fmt.Errorf("create bridge: %w", err)
			}
			if bridge, err = netlink.LinkByName(bridgeName); err != nil {
				return err
			}
			if err := netlink.LinkSetAlias(bridge, n.owner); err != nil {
				return fmt.Errorf("mark bridge: %w", err)
			}
		}
		server := serverAddress(n.subnet)
		address := &netlink.Addr{IPNet: &net.IPNet{IP: server.Addr().AsSlice(), Mask: net.CIDRMask(server.Bits(), 32)}}
		if err := netlink.AddrReplace(bridge, address); err != nil {
			return fmt.Errorf("give the bridge the address %s: %w", server, err)
		}
		return setUp(bridgeName)
	})
}

// bridge returns the lab's bridge, nil when there is none yet. It runs inside the namespace.
func (n network) bridge() (netlink.Link, error) {
	link, err := netlink.LinkByName(bridgeName)
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		links, err := netlink.LinkList()
		if err != nil {
			return nil, err
		}
		// An interrupted start leaves an empty namespace. Anything more is not a lab of ours.
		for _, l := range links {
			if isDeviceOfSomebody(l) {
				return nil, fmt.Errorf("%w: it has the interface %s and no bridge %s", errForeign, l.Attrs().Name, bridgeName)
			}
		}
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	// A bridge without a mark is ours, from a start that was interrupted between two calls.
	if alias := link.Attrs().Alias; alias != "" && alias != n.owner {
		return nil, fmt.Errorf("%w: its bridge is marked %q, this lab's would be %q", errForeign, alias, n.owner)
	}
	return link, nil
}

// isDeviceOfSomebody is false for the loopback and for the tunnel devices without address that some
// kernels put into every namespace.
func isDeviceOfSomebody(l netlink.Link) bool {
	flags := l.Attrs().Flags
	return flags&net.FlagLoopback == 0 && flags&net.FlagUp != 0
}

// ensureNamespace makes the namespace a file below netns.Dir, as `ip netns add` does.
func (n network) ensureNamespace() error {
	path := netns.Path(n.namespace)
	if isNamespace(path) {
		return nil
	}
	if err := os.MkdirAll(netns.Dir, 0o755); err != nil {
		return err
	}
	// A plain file is what remains of a start that was interrupted, or of a machine that was restarted.
	file, err := os.OpenFile(path, os.O_CREATE|os.O_RDONLY|unix.O_CLOEXEC, 0o444)
	if err != nil {
		return err
	}
	file.Close()

	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		home, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			runtime.UnlockOSThread()
			result <- err
			return
		}
		defer unix.Close(home)
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			runtime.UnlockOSThread()
			result <- fmt.Errorf("create: %w", err)
			return
		}
		err = unix.Mount(fmt.Sprintf("/proc/%d/task/%d/ns/net", os.Getpid(), unix.Gettid()), path, "", unix.MS_BIND, "")
		if err != nil {
			err = fmt.Errorf("bind to %s: %w", path, err)
		}
		// A thread that cannot come home stays locked and dies with this goroutine.
		if unix.Setns(home, unix.CLONE_NEWNET) == nil {
			runtime.UnlockOSThread()
		}
		result <- err
	}()
	if err := <-result; err != nil {
		return errors.Join(err, os.Remove(path))
	}
	return nil
}

func isNamespace(path string) bool {
	var stat unix.Statfs_t
	return unix.Statfs(path, &stat) == nil && stat.Type == unix.NSFS_MAGIC
}

// ensureTap makes a machine's port on the bridge. A port that is not up is a cable that is not plugged in.
func (n network) ensureTap(name string, up bool) error {
	return n.do("port "+name, func() error {
		if _, err := netlink.LinkByName(name); errors.As(err, new(netlink.LinkNotFoundError)) {
			attrs := netlink.NewLinkAttrs()
			attrs.Name = name
			tap := &netlink.Tuntap{LinkAttrs: attrs, Mode: netlink.TUNTAP_MODE_TAP,
				Flags: netlink.TUNTAP_NO_PI | netlink.TUNTAP_VNET_HDR | netlink.TUNTAP_ONE_QUEUE}
			if err := netlink.LinkAdd(tap); err != nil {
				return fmt.Errorf("create: %w", err)
			}
		} else if err != nil {
			return err
		}
		// The port itself says nothing: IPv6 would make it announce itself to the machines.
		if err := os.WriteFile("/proc/sys/net/ipv6/conf/"+name+"/disable_ipv6", []byte("1"), 0); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		link, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		bridge, err := netlink.LinkByName(bridgeName)
		if err != nil {
			return err
		}
		if err := netlink.LinkSetMaster(link, bridge); err != nil {
			return fmt.Errorf("attach to the bridge: %w", err)
		}
		if !up {
			return netlink.LinkSetDown(link)
		}
		return netlink.LinkSetUp(link)
	})
}

// remove takes the namespace away with all that is in it. What is not there is no error.
func (n network) remove() error {
	path := netns.Path(n.namespace)
	if !fileExists(path) {
		return nil
	}
	if isNamespace(path) {
		err := n.do("take down", func() error {
			bridge, err := n.bridge()
			if err != nil || bridge == nil {
				return err
			}
			// A socket of a server keeps a namespace alive, though nobody can reach it. It shall at least be empty.
			links, err := netlink.LinkList()
			if err != nil {
				return err
			}
			for _, link := range links {
				if link.Attrs().MasterIndex == bridge.Attrs().Index {
					err = errors.Join(err, netlink.LinkDel(link))
				}
			}
			return errors.Join(err, netlink.LinkDel(bridge))
		})
		if err != nil {
			return err
		}
		if err := unix.Unmount(path, unix.MNT_DETACH); err != nil {
			return permission(fmt.Errorf("remove network namespace %s: %w", n.namespace, err))
		}
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove network namespace %s: %w", n.namespace, err)
	}
	return nil
}

func (n network) do(what string, fn func() error) error {
	if err := netns.Do(n.namespace, fn); err != nil {
		return permission(fmt.Errorf("network namespace %s: %s: %w", n.namespace, what, err))
	}
	return nil
}

// served tells whether somebody listens for DHCP inside the namespace.
func (n network) served() (bool, error) {
	found := false
	err := n.do("look for a boot server", func() error {
		for _, name := range []string{"udp", "udp6"} {
			table, err := os.ReadFile("/proc/thread-self/net/" + name)
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			if err != nil {
				return err
			}
			found = found || listensOn(string(table), 67)
		}
		return nil
	})
	return found, err
}

// listensOn reads /proc/net/udp: the second column is the local address, its port in hexadecimal.
func listensOn(table string, port uint16) bool {
	for line := range strings.Lines(table) {
		fields := strings.Fields(line)
		if len(fields) > 1 && strings.HasSuffix(fields[1], fmt.Sprintf(":%04X", port)) {
			return true
		}
	}
	return false
}

func setUp(name string) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("interface %s: %w", name, err)
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("set interface %s up: %w", name, err)
	}
	return nil
}

// permission says what to do about a refusal.
func permission(err error) error {
	if errors.Is(err, fs.ErrPermission) && os.Geteuid() != 0 {
		return fmt.Errorf("%w (a lab makes a network namespace, which needs root: use sudo)", err)
	}
	return err
}
