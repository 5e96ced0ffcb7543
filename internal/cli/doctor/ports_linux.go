package doctor

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// ports compares the ports that should be open with those that are. Without a server that runs, it tries whether one could open them.
func ports(wanted []Port, running server) []Result {
	open, err := openSockets()
	if err != nil {
		return []Result{warn("ports", err.Error(), "compare the output of `ss -lntup` with the table in docs/security.md")}
	}
	if running.pid == 0 {
		return canOpen(wanted, open)
	}
	present := map[string]bool{}
	if all, err := net.Interfaces(); err == nil {
		for _, i := range all {
			present[i.Name] = true
		}
	}
	return comparePorts(wanted, open, present, running.pid)
}

// canOpen tries to open each port and gives it back at once.
func canOpen(wanted []Port, open []socket) []Result {
	var results []Result
	for _, p := range wanted {
		check := "port " + p.Name()
		err := tryPort(p)
		switch {
		case err == nil || p.Own && errors.Is(err, unix.EADDRINUSE) && !slices.ContainsFunc(open, func(s socket) bool { return s.is(p) && !s.address.IsLoopback() }):
			results = append(results, ok(check, "free, for %s", p.For))
		case errors.Is(err, unix.EADDRINUSE):
			results = append(results, taken(check, p, open))
		case errors.Is(err, unix.EACCES):
			results = append(results, fail(check, "may not be opened by this user, for "+p.For,
				"run as root, or give the server CAP_NET_BIND_SERVICE as packaging/coldrack.service does"))
		case p.Optional && errors.Is(err, unix.EAFNOSUPPORT):
			results = append(results, ok(check, "this machine has no IPv6; without it there is no %s", p.For))
		case errors.Is(err, unix.EADDRNOTAVAIL):
			results = append(results, fail(check, fmt.Sprintf("%s is no address of this machine", p.Address), "set an address that `ip address` shows, or 0.0.0.0"))
		default:
			results = append(results, fail(check, err.Error(), "look at the address"))
		}
	}
	return results
}

func tryPort(p Port) error {
	if strings.HasPrefix(p.Network, "udp") {
		conn, err := net.ListenPacket(p.Network, p.Address)
		if err != nil {
			return err
		}
		return conn.Close()
	}
	listener, err := net.Listen(p.Network, p.Address)
	if err != nil {
		return err
	}
	return listener.Close()
}

// taken says who has a port that the server needs.
func taken(check string, p Port, open []socket) Result {
	pid, name := 0, ""
	for _, s := range open {
		if s.is(p) && s.pid != 0 {
			pid, name = s.pid, s.program
		}
	}
	switch {
	case p.Optional && pid == 0:
		return ok(check, "in use by another program, which %s is left to", p.For)
	case p.Optional:
		return ok(check, "in use by %s (process %d), which %s is left to", name, pid, p.For)
	case pid == 0:
		return fail(check, "in use by another program, needed for "+p.For, "run as root to see which one, and stop it, or choose another port")
	}
	return fail(check, fmt.Sprintf("in use by %s (process %d), needed for %s", name, pid, p.For),
		fmt.Sprintf("stop it (if it is a service: systemctl disable --now %s), or choose another port", name))
}

// comparePorts compares what the running server, process pid, has open with what it should have. It is pure.
func comparePorts(wanted []Port, open []socket, present map[string]bool, pid int) []Result {
	visible := slices.ContainsFunc(open, func(s socket) bool { return s.pid == pid })
	var results []Result
	for _, p := range wanted {
		check := "port " + p.Name()
		var mine, others []socket
		for _, s := range open {
			switch {
			case !s.is(p):
			case s.pid == pid:
				mine = append(mine, s)
			default:
				others = append(others, s)
			}
		}
		if !visible && len(others) > 0 {
			// Without root the owner of a socket cannot be seen.
			results = append(results, warn(check, "in use; the server that runs is likely the one, for "+p.For, "run as root to be sure"))
			continue
		}
		results = append(results, comparePort(check, p, mine, others, present))
	}
	for _, s := range open {
		if s.pid == pid && !slices.ContainsFunc(wanted, s.is) {
			results = append(results, fail(fmt.Sprintf("port %d/%s", s.port, s.network), fmt.Sprintf("open %s by the running server, and in no table: it should not be", s.place()),
				"run doctor with the flags and COLDRACK_ variables that the server was started with; restart the server if its settings have changed since; otherwise report this"))
		}
	}
	return results
}

func comparePort(check string, p Port, mine, others []socket, present map[string]bool) Result {
	var missing, wrong, right []string
	for _, name := range p.Interfaces {
		if present[name] && !slices.ContainsFunc(mine, func(s socket) bool { return s.device == name }) {
			missing = append(missing, "interface "+name)
		}
	}
	if len(p.Interfaces) == 0 && len(mine) == 0 {
		missing = append(missing, cmp.Or(hostOf(p), "any interface"))
	}
	for _, s := range mine {
		host, err := netip.ParseAddr(hostOf(p))
		switch {
		case len(p.Interfaces) > 0 && !slices.Contains(p.Interfaces, s.device),
			len(p.Interfaces) == 0 && !p.Each && s.device != "",
			p.Each && s.device == "",
			err == nil && !host.IsUnspecified() && host.Unmap() != s.address:
			wrong = append(wrong, s.place())
		default:
			right = append(right, s.place())
		}
	}
	holders := ""
	for _, s := range others {
		holder := fmt.Sprintf("; %s (process %d) has it %s", cmp.Or(s.program, "another program"), s.pid, s.place())
		if !strings.Contains(holders, holder) { // once for IPv4 and IPv6
			holders += holder
		}
	}
	switch {
	case len(wrong) > 0:
		return fail(check, fmt.Sprintf("open %s, and should not be there, for %s%s", strings.Join(wrong, ", "), p.For, holders),
			"run doctor with the flags and COLDRACK_ variables that the server was started with; restart the server if its settings have changed since; otherwise report this")
	case len(missing) > 0 && p.Optional:
		return ok(check, "not open on %s, for %s; machines take it from elsewhere%s", strings.Join(missing, ", "), p.For, holders)
	case len(missing) > 0 && p.Each:
		return warn(check, fmt.Sprintf("not open on %s, for %s%s", strings.Join(missing, ", "), p.For, holders),
			"give the interface an address in a Subnet whose dhcp is not off, and look at the Subnet's conditions: coldrack get subnet NAME -o yaml")
	case len(missing) > 0:
		return fail(check, fmt.Sprintf("not open on %s, for %s%s", strings.Join(missing, ", "), p.For, holders), "stop who has it, and look at the server's log")
	}
	return ok(check, "open %s by the running server, for %s", strings.Join(right, ", "), p.For)
}

func hostOf(p Port) string {
	host, _, _ := net.SplitHostPort(p.Address)
	return host
}

// socket is one that takes what comes from anywhere: a TCP listener, or a UDP socket without a peer.
type socket struct {
	network string // "tcp" or "udp"
	port    int
	address netip.Addr // unspecified for all
	device  string     // the only interface that it is bound to; empty for all
	pid     int        // 0 where it cannot be seen
	program string
}

func (s socket) is(p Port) bool { return p.Name() == fmt.Sprintf("%d/%s", s.port, s.network) }

// place says where a socket is open.
func (s socket) place() string {
	switch {
	case s.device != "":
		return "on interface " + s.device
	case s.address.IsUnspecified():
		return "on all interfaces"
	}
	return "on " + s.address.String()
}

// openSockets lists those of this network namespace (sock_diag(7)).
func openSockets() ([]socket, error) {
	owners := socketOwners()
	var open []socket
	for _, table := range []struct {
		network string
		read    func(family uint8) ([]*netlink.Socket, error)
	}{{"tcp", netlink.SocketDiagTCP}, {"udp", netlink.SocketDiagUDP}} {
		for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
			sockets, err := table.read(family)
			// An interrupted list may lack sockets that came or went meanwhile; those that stay are in it.
			if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
				return nil, fmt.Errorf("list of the open %s ports: %w", table.network, err)
			}
			for _, s := range sockets {
				if table.network == "tcp" && s.State != netlink.TCP_LISTEN || table.network == "udp" && s.ID.DestinationPort != 0 {
					continue
				}
				found := socket{network: table.network, port: int(s.ID.SourcePort), device: interfaceName(s.ID.Interface)}
				address, _ := netip.AddrFromSlice(s.ID.Source)
				found.address = address.Unmap()
				if owner, ok := owners[s.INode]; ok {
					found.pid, found.program = owner.pid, owner.program
				}
				open = append(open, found)
			}
		}
	}
	return open, nil
}

func interfaceName(index uint32) string {
	if index == 0 {
		return ""
	}
	if i, err := net.InterfaceByIndex(int(index)); err == nil {
		return i.Name
	}
	return fmt.Sprintf("number %d", index)
}

type process struct {
	pid     int
	program string
}

// socketOwners are the processes that have sockets, by inode, as far as this user may see them.
func socketOwners() map[uint32]process {
	owners := map[uint32]process{}
	links, _ := filepath.Glob("/proc/[0-9]*/fd/*")
	for _, link := range links {
		target, err := os.Readlink(link)
		if err != nil {
			continue
		}
		text, isSocket := strings.CutPrefix(target, "socket:[")
		inode, err := strconv.ParseUint(strings.TrimSuffix(text, "]"), 10, 32)
		if !isSocket || err != nil {
			continue
		}
		folder := strings.Split(link, "/")[2]
		pid, _ := strconv.Atoi(folder)
		comm, _ := os.ReadFile("/proc/" + folder + "/comm")
		owners[uint32(inode)] = process{pid, strings.TrimSpace(string(comm))}
	}
	return owners
}
