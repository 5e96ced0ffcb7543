// Package netns opens sockets and runs code inside another network namespace.
//
// A socket belongs for ever to the namespace of the thread that created it, so a server that must
// listen elsewhere only needs to be elsewhere while it opens its sockets. This is how the lab serves
// a private network that the host cannot see, from one ordinary process.
package netns

import (
	"context"
	"fmt"
	"net"
	"path/filepath"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// Dir is where named network namespaces are bound, as iproute2 does it.
const Dir = "/run/netns"

// Path gives the file that stands for a namespace: an absolute path stays as it is, a plain name is
// looked for where `ip netns add` puts it. The empty name means the namespace one is in already.
func Path(name string) string {
	if name == "" || filepath.IsAbs(name) {
		return name
	}
	return filepath.Join(Dir, name)
}

// Do runs fn on a thread that is inside the namespace (a name or a path, see Path) and waits for it.
// With an empty namespace fn is simply called.
//
// Only fn's own goroutine is inside: goroutines it starts are not. Processes it starts are.
// fn must not end its goroutine by runtime.Goexit, as t.Fatal does.
func Do(namespace string, fn func() error) error {
	if namespace == "" {
		return fn()
	}
	path := Path(namespace)
	target, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open network namespace %s: %w", path, err)
	}
	defer unix.Close(target)

	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		home, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			runtime.UnlockOSThread()
			result <- fmt.Errorf("open the current network namespace: %w", err)
			return
		}
		defer unix.Close(home)
		if err := unix.Setns(target, unix.CLONE_NEWNET); err != nil {
			runtime.UnlockOSThread()
			result <- fmt.Errorf("enter network namespace %s: %w", path, err)
			return
		}
		err = fn()
		// A thread that cannot come home stays locked and so dies with this goroutine, instead of
		// serving unrelated goroutines from the wrong namespace.
		if unix.Setns(home, unix.CLONE_NEWNET) == nil {
			runtime.UnlockOSThread()
		}
		result <- err
	}()
	return <-result
}

// Listen is net.ListenConfig.Listen inside the namespace. The address must be numeric: resolving a
// name would happen on another thread.
func Listen(ctx context.Context, namespace, network, address string) (net.Listener, error) {
	return ListenOn(ctx, namespace, "", network, address)
}

// ListenOn is Listen for what arrives by one interface, as long as that exists; by any with an empty device.
func ListenOn(ctx context.Context, namespace, device, network, address string) (net.Listener, error) {
	var listener net.Listener
	err := Do(namespace, func() (err error) {
		config := net.ListenConfig{Control: bindTo(device)}
		listener, err = config.Listen(ctx, network, address)
		return err
	})
	return listener, err
}

// ListenPacket is net.ListenConfig.ListenPacket inside the namespace, with Listen's condition.
func ListenPacket(ctx context.Context, namespace, network, address string) (net.PacketConn, error) {
	return ListenPacketOn(ctx, namespace, "", network, address)
}

// ListenPacketOn is ListenPacket for what arrives by one interface; by any with an empty device.
func ListenPacketOn(ctx context.Context, namespace, device, network, address string) (net.PacketConn, error) {
	var conn net.PacketConn
	err := Do(namespace, func() (err error) {
		config := net.ListenConfig{Control: bindTo(device)}
		conn, err = config.ListenPacket(ctx, network, address)
		return err
	})
	return conn, err
}

// bindTo binds a socket to an interface (SO_BINDTODEVICE), which needs no privilege since Linux 5.7.
func bindTo(device string) func(network, address string, conn syscall.RawConn) error {
	if device == "" {
		return nil
	}
	return func(_, _ string, conn syscall.RawConn) error {
		var failed error
		if err := conn.Control(func(fd uintptr) { failed = unix.BindToDevice(int(fd), device) }); err != nil {
			return err
		}
		if failed != nil {
			return fmt.Errorf("bind to interface %s: %w", device, failed)
		}
		return nil
	}
}

// Dial is net.Dialer.DialContext inside the namespace, with Listen's condition.
func Dial(ctx context.Context, namespace, network, address string) (net.Conn, error) {
	var conn net.Conn
	err := Do(namespace, func() (err error) {
		var dialer net.Dialer
		conn, err = dialer.DialContext(ctx, network, address)
		return err
	})
	return conn, err
}
