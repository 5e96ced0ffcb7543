package routes

import (
	"context"
	"log/slog"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"coldrack.dev/internal/contract/wire"
	"coldrack.dev/test/require"
)

// host is a network namespace with an interface into 10.9.0.0/24 and fd09::/64.
type host struct {
	t   *testing.T
	run chan func()
	*Keeper
}

// newHost keeps one thread inside a namespace of its own for the whole test; it ends with that thread.
func newHost(t *testing.T) *host {
	t.Helper()
	require.Need(t, "netns", "ip")
	h := &host{t: t, run: make(chan func())}
	failed := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread, and with it the namespace, ends here
		err := unix.Unshare(unix.CLONE_NEWNET)
		failed <- err
		for f := range h.run {
			f()
		}
	}()
	if err := <-failed; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { close(h.run) })
	h.ip("link add eth0 type veth peer name far")
	h.ip("addr add 10.9.0.1/24 dev eth0")
	h.ip("addr add fd09::1/64 dev eth0 nodad")
	h.ip("link set eth0 up")
	h.ip("link set far up")
	var err error
	h.do(func() { h.Keeper, err = New(slog.New(slog.DiscardHandler)) })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(h.Close)
	return h
}

func (h *host) do(f func()) {
	done := make(chan struct{})
	h.run <- func() { f(); close(done) }
	<-done
}

func (h *host) ip(args string) string {
	h.t.Helper()
	var out []byte
	var err error
	h.do(func() { out, err = exec.Command("ip", strings.Fields(args)...).CombinedOutput() })
	if err != nil {
		h.t.Fatalf("ip %s: %v: %s", args, err, out)
	}
	return string(out)
}

// ours is what iproute2 shows of our routes, one "PREFIX via GATEWAY" each.
func (h *host) ours() string {
	h.t.Helper()
	var list []string
	for _, family := range []string{"-4", "-6"} {
		for line := range strings.Lines(h.ip(family + " route show proto 67")) {
			if f := strings.Fields(line); len(f) > 2 {
				list = append(list, strings.Join(f[:3], " "))
			}
		}
	}
	return strings.Join(list, ", ")
}

func (h *host) want(want string) {
	h.t.Helper()
	if got := h.ours(); got != want {
		h.t.Fatalf("routes are %q, want %q", got, want)
	}
}

func (h *host) eventually(want string) {
	h.t.Helper()
	for deadline := time.Now().Add(2 * time.Minute); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		if h.ours() == want {
			return
		}
	}
	h.want(want)
}

func to(prefix, via string) wire.NodeRoute { return wire.NodeRoute{To: prefix, Via: via} }

func (h *host) set(routes ...wire.NodeRoute) {
	h.t.Helper()
	if err := h.Set(routes, nil); err != nil {
		h.t.Fatal(err)
	}
}

func TestRoutesAreAddedReplacedAndPurged(t *testing.T) {
	h := newHost(t)
	h.ip("route add 192.0.2.0/24 via 10.9.0.77") // somebody else's
	h.set(to("10.244.1.0/24", "10.9.0.2"), to("10.244.2.0/24", "10.9.0.3"), to("fd44:1::/64", "fd09::2"))
	h.want("10.244.1.0/24 via 10.9.0.2, 10.244.2.0/24 via 10.9.0.3, fd44:1::/64 via fd09::2")
	h.set(to("10.244.1.0/24", "10.9.0.9"), to("fd44:1::/64", "fd09::9"), to("fd44:2::/64", "fd09::3"))
	h.want("10.244.1.0/24 via 10.9.0.9, fd44:1::/64 via fd09::9, fd44:2::/64 via fd09::3")
	h.set()
	h.want("")
	if got := h.ip("route show 192.0.2.0/24"); !strings.Contains(got, "10.9.0.77") {
		t.Errorf("a route that is not ours is gone: %q", got)
	}
}

func TestTheSameAgainChangesNothing(t *testing.T) {
	h := newHost(t)
	routes := []wire.NodeRoute{to("10.244.1.0/24", "10.9.0.2"), to("fd44:1::/64", "fd09::2")}
	h.set(routes...)
	seen := &count{}
	h.log = slog.New(seen)
	h.set(routes...)
	if seen.n != 0 {
		t.Errorf("%d changes were logged", seen.n)
	}
}

type count struct{ n int }

func (*count) Enabled(context.Context, slog.Level) bool    { return true }
func (c *count) Handle(context.Context, slog.Record) error { c.n++; return nil }
func (c *count) WithAttrs([]slog.Attr) slog.Handler        { return c }
func (c *count) WithGroup(string) slog.Handler             { return c }

func TestRoutesOfARunBeforeArePurged(t *testing.T) {
	h := newHost(t)
	h.ip("route add 10.244.7.0/24 via 10.9.0.7 proto 67")
	h.set(to("10.244.1.0/24", "10.9.0.2"))
	h.want("10.244.1.0/24 via 10.9.0.2")
}

func TestWhatTakesARouteAwayIsMended(t *testing.T) {
	for name, harm := range map[string][]string{
		"somebody deletes it":             {"route del 10.244.1.0/24"},
		"somebody leads it elsewhere":     {"route replace 10.244.1.0/24 via 10.9.0.66 proto 67"},
		"the link goes down and comes up": {"link set eth0 down", "link set eth0 up"},
		"the address goes and comes back": {"addr del 10.9.0.1/24 dev eth0", "addr add 10.9.0.1/24 dev eth0"},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t)
			h.set(to("10.244.1.0/24", "10.9.0.2"))
			ctx, cancel := context.WithCancel(context.Background())
			ended := make(chan error, 1)
			go func() { ended <- h.Run(ctx) }()
			for _, args := range harm {
				h.ip(args)
			}
			h.eventually("10.244.1.0/24 via 10.9.0.2")
			cancel()
			if err := <-ended; err != nil {
				t.Error(err)
			}
			h.want("10.244.1.0/24 via 10.9.0.2") // they outlive the keeper
		})
	}
}

func TestOneRouteThatCannotBeSetDoesNotStopOthers(t *testing.T) {
	h := newHost(t)
	err := h.Set([]wire.NodeRoute{to("10.244.1.0/24", "172.16.0.1"), to("10.244.2.0/24", "10.9.0.3")}, nil)
	if err == nil || !strings.Contains(err.Error(), "10.244.1.0/24 via 172.16.0.1") || !strings.Contains(err.Error(), "flannel") {
		t.Errorf("the error does not help: %v", err)
	}
	h.want("10.244.2.0/24 via 10.9.0.3")
	// The network comes later, as it does at boot.
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- h.Run(ctx) }()
	h.ip("addr add 172.16.0.2/24 dev eth0")
	h.eventually("10.244.1.0/24 via 172.16.0.1, 10.244.2.0/24 via 10.9.0.3")
	cancel()
	<-ended
}

func TestWhatIsNoRouteIsRefused(t *testing.T) {
	h := newHost(t)
	for name, r := range map[string]wire.NodeRoute{
		"a prefix that is none":   to("10.244.1.0", "10.9.0.2"),
		"a gateway that is none":  to("10.244.1.0/24", "node-2"),
		"families that are mixed": to("10.244.1.0/24", "fd09::2"),
	} {
		if err := h.Set([]wire.NodeRoute{r}, nil); err == nil {
			t.Errorf("%s was accepted", name)
		}
	}
	h.want("")
}
