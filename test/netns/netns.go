// Package netns builds small real networks for tests: network namespaces, veth pairs, bridges and a
// wire that loses, doubles and reorders frames.
//
// The namespaces have no name in the file system; they exist as open files of the test process and
// vanish with it, even when it is killed.
package netns

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"coldrack.dev/internal/base/netns"
	"coldrack.dev/test/require"
)

// NS is one network namespace.
type NS struct {
	t    testing.TB
	mu   sync.Mutex // guards the end of file: what a test leaves running may still come here
	file *os.File
}

// New makes a network namespace with its loopback up. It lasts until the test ends.
func New(t testing.TB) *NS {
	t.Helper()
	require.Need(t, "netns", "ip")
	ns := &NS{t: t}
	made := make(chan error, 1)
	go func() {
		// The thread is not unlocked: it ends with the goroutine rather than coming back changed.
		runtime.LockOSThread()
		home, err := os.Open("/proc/thread-self/ns/net")
		if err != nil {
			made <- err
			return
		}
		defer home.Close()
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			made <- fmt.Errorf("unshare: %w", err)
			return
		}
		ns.file, err = os.Open("/proc/thread-self/ns/net")
		if back := unix.Setns(int(home.Fd()), unix.CLONE_NEWNET); back == nil {
			runtime.UnlockOSThread()
		}
		made <- err
	}()
	if err := <-made; err != nil {
		t.Fatalf("create a network namespace: %v", err)
	}
	t.Cleanup(ns.Close)
	ns.Run("ip", "link", "set", "lo", "up")
	return ns
}

// Close lets go of the namespace: it is gone when no process is in it any more. The end of the test does the same.
func (ns *NS) Close() {
	ns.mu.Lock()
	defer ns.mu.Unlock()
	ns.file.Close()
}

// Path names the namespace for coldrack.dev/internal/base/netns and for iproute2. It is good in any process
// as long as the test runs.
func (ns *NS) Path() string {
	ns.mu.Lock()
	defer ns.mu.Unlock()
	return pathOf(ns.file)
}

func pathOf(file *os.File) string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), file.Fd()) }

// Do runs fn inside the namespace; see coldrack.dev/internal/base/netns.Do for what fn may do. After Close it is an error.
func (ns *NS) Do(fn func() error) error {
	ns.mu.Lock()
	fd, err := unix.FcntlInt(ns.file.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	ns.mu.Unlock()
	if err != nil {
		return fmt.Errorf("the test's network namespace: %w", err)
	}
	// A copy, so that no other file can get its number meanwhile.
	file := os.NewFile(uintptr(fd), "netns")
	defer file.Close()
	return netns.Do(pathOf(file), fn)
}

// Run runs a program inside the namespace, fails the test when the program fails, and returns what
// it printed.
func (ns *NS) Run(args ...string) string {
	ns.t.Helper()
	out, err := ns.Try(context.Background(), args...)
	if err != nil {
		ns.t.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

// Try runs a program inside the namespace and returns its output, of both kinds, and its error.
func (ns *NS) Try(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := ns.Start(cmd); err != nil {
		return "", err
	}
	err := cmd.Wait()
	return out.String(), err
}

// Start starts a prepared command inside the namespace.
func (ns *NS) Start(cmd *exec.Cmd) error { return ns.Do(cmd.Start) }

// ListenUDP opens a UDP socket inside the namespace.
func (ns *NS) ListenUDP(address string) *net.UDPConn {
	ns.t.Helper()
	conn, err := netns.ListenPacket(context.Background(), ns.Path(), "udp4", address)
	if err != nil {
		ns.t.Fatalf("listen on %s: %v", address, err)
	}
	ns.t.Cleanup(func() { conn.Close() })
	return conn.(*net.UDPConn)
}

// Address adds an address such as "192.0.2.1/24" to an interface.
func (ns *NS) Address(link, cidr string) {
	ns.t.Helper()
	ns.Run("ip", "addr", "add", cidr, "dev", link)
}

// Interface describes one of the namespace's interfaces.
func (ns *NS) Interface(link string) *net.Interface {
	ns.t.Helper()
	var found *net.Interface
	err := ns.Do(func() (err error) {
		found, err = net.InterfaceByName(link)
		return err
	})
	if err != nil {
		ns.t.Fatalf("interface %s: %v", link, err)
	}
	return found
}

// Veth connects two namespaces by a cable, both ends up and without an address.
func Veth(a *NS, linkA string, b *NS, linkB string) {
	a.t.Helper()
	a.Run("ip", "link", "add", linkA, "type", "veth", "peer", "name", linkB, "netns", b.Path())
	a.Run("ip", "link", "set", linkA, "up")
	b.Run("ip", "link", "set", linkB, "up")
	a.await(linkA, " state UP ")
	b.await(linkB, " state UP ")
}

// Bridge makes a switch in the namespace; Plug connects others to it.
func (ns *NS) Bridge(name string) {
	ns.t.Helper()
	ns.Run("ip", "link", "add", name, "type", "bridge", "stp_state", "0", "forward_delay", "0")
	ns.Run("ip", "link", "set", name, "up")
}

// Plug connects another namespace to this one's bridge: port is the end at the bridge, link the
// end in the other namespace.
func (ns *NS) Plug(bridge, port string, other *NS, link string) {
	ns.t.Helper()
	Veth(ns, port, other, link)
	ns.Run("ip", "link", "set", port, "master", bridge)
	ns.await(port, "bridge_slave state forwarding")
	ns.await(bridge, " state UP ")
}

// await waits until ip shows a link as it should be. The kernel takes up to a second to notice that a
// carrier has come, and drops frames until then.
func (ns *NS) await(link, state string) {
	ns.t.Helper()
	var shown string
	for range 6000 {
		if shown = ns.Run("ip", "-d", "-o", "link", "show", "dev", link); strings.Contains(shown, state) {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	ns.t.Fatalf("link %s does not come to %q: %s", link, state, shown)
}

// Patience is a context that ends when a test has waited long enough for what a loaded machine does late. It is a bound for what never
// comes, not a measure.
func Patience(t testing.TB) (context.Context, context.CancelFunc) {
	return context.WithTimeout(t.Context(), time.Minute)
}
