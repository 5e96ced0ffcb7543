package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"time"

	"golang.org/x/sync/errgroup"

	"coldrack.dev/internal/base/netns"
)

// dialTimeout is for one target. A machine that is on answers at once; one that is off, not at all.
const dialTimeout = 3 * time.Second

// Forward hands the connections that listener accepts on to machines of the lab, until ctx ends. The host has
// no route into the lab, so this is how a program on it reaches a port of a machine. Each connection goes to
// the first target that accepts it.
func (l *Lab) Forward(ctx context.Context, listener net.Listener, targets []netip.AddrPort) error {
	for _, target := range targets {
		if !l.state.Subnet.Contains(target.Addr()) {
			return fmt.Errorf("lab %s: %s is not in its network %s", l.state.Name, target, l.state.Subnet)
		}
	}
	group, ctx := errgroup.WithContext(ctx)
	stop := context.AfterFunc(ctx, func() { listener.Close() })
	defer stop()
	f := forwarder{namespace: l.network.namespace, targets: targets, failed: func(err error) { l.log.Warn("cannot forward a connection", "err", err) }}
	group.Go(func() error {
		for {
			conn, err := listener.Accept()
			if ctx.Err() != nil {
				return nil
			}
			if err != nil {
				return fmt.Errorf("lab %s: accept at %s: %w", l.state.Name, listener.Addr(), err)
			}
			group.Go(func() error { f.serve(ctx, conn); return nil })
		}
	})
	return group.Wait()
}

type forwarder struct {
	namespace string
	targets   []netip.AddrPort
	failed    func(error)
}

func (f *forwarder) serve(ctx context.Context, from net.Conn) {
	defer from.Close()
	to, err := f.dial(ctx)
	if err != nil {
		if ctx.Err() == nil {
			f.failed(err)
		}
		return
	}
	defer to.Close()
	stop := context.AfterFunc(ctx, func() { from.Close(); to.Close() })
	defer stop()
	done := make(chan struct{})
	go func() { pipe(to, from); close(done) }()
	pipe(from, to)
	<-done
}

// pipe copies one direction to its end and passes that end on; the other direction may go on.
func pipe(to, from net.Conn) {
	_, err := io.Copy(to, from)
	if half, ok := to.(interface{ CloseWrite() error }); ok && err == nil {
		_ = half.CloseWrite()
		return
	}
	to.Close()
	from.Close()
}

func (f *forwarder) dial(ctx context.Context) (net.Conn, error) {
	var errs []error
	for _, target := range f.targets {
		ctx, cancel := context.WithTimeout(ctx, dialTimeout)
		conn, err := netns.Dial(ctx, f.namespace, "tcp", target.String())
		cancel()
		if err == nil {
			return conn, nil
		}
		errs = append(errs, err)
	}
	return nil, errors.Join(errs...)
}
