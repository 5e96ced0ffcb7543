package doctor

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"coldrack.dev/api/v1alpha1"
	product "coldrack.dev/internal/base/netns"
	"coldrack.dev/internal/lab"
	"coldrack.dev/test/netns"
	"coldrack.dev/test/require"
)

func TestPorts(t *testing.T) {
	taken, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	udp, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer udp.Close()
	me := fmt.Sprintf("(process %d)", os.Getpid())
	tests := []struct {
		name  string
		port  Port
		state State
		found string
	}{
		{"a free port", Port{Network: "tcp4", Address: "127.0.0.1:0"}, OK, "free"},
		{"a port in use names who has it", Port{Network: "tcp4", Address: taken.Addr().String()}, Fail, me},
		{"the same for UDP", Port{Network: "udp4", Address: udp.LocalAddr().String()}, Fail, me},
		{"one that the server does without", Port{Network: "udp4", Address: udp.LocalAddr().String(), Optional: true}, OK, me},
		{"an address of another machine", Port{Network: "tcp4", Address: "192.0.2.77:7443"}, Fail, "is no address of this machine"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			got := ports([]Port{test.port}, server{})[0]
			if got.State != test.state || !strings.Contains(got.Found, test.found) {
				t.Errorf("got %+v, want %s with %q", got, test.state, test.found)
			}
			if got.State == Fail && got.Do == "" {
				t.Error("a failure without advice")
			}
		})
	}
}

// With real sockets: what the running server has open is compared with what it should have, and on which interfaces.
func TestOpenPortsAreComparedWithTheTable(t *testing.T) {
	require.Need(t, "netns")
	me := server{pid: os.Getpid()}
	rack := []string{"rack0"}
	at := func(network, address string, change func(*Port)) Port {
		p := Port{Network: network, Address: address, For: "x"}
		if change != nil {
			change(&p)
		}
		return p
	}
	onRack := func(p *Port) { p.Interfaces = rack }
	type opened struct{ device, network, address string }
	foreign := opened{"foreign", "udp4", "0.0.0.0:123"} // by another program
	for name, tt := range map[string]struct {
		open  []opened
		table []Port
		want  []string // state and what was found, in order
	}{
		"as it should be": {
			[]opened{{"rack0", "tcp4", "0.0.0.0:7080"}, {"", "tcp4", "127.0.0.1:7443"}, {"rack0", "udp4", "0.0.0.0:67"}},
			[]Port{at("tcp4", ":7080", onRack), at("tcp4", "127.0.0.1:7443", nil), at("udp4", ":67", func(p *Port) { p.Each = true })},
			[]string{"ok port 7080/tcp: open on interface rack0 by the running server, for x", "ok port 7443/tcp: open on 127.0.0.1 by the running server, for x", "ok port 67/udp: open on interface rack0 by the running server, for x"},
		},
		"on an interface too many": {
			[]opened{{"rack0", "udp4", "0.0.0.0:69"}, {"office0", "udp4", "0.0.0.0:69"}}, []Port{at("udp4", ":69", onRack)},
			[]string{"fail port 69/udp: open on interface office0, and should not be there, for x"},
		},
		"on all instead of one": {
			[]opened{{"", "tcp6", "[::]:7444"}}, []Port{at("tcp4", ":7444", onRack)},
			[]string{"fail port 7444/tcp: open on all interfaces, and should not be there, for x"},
		},
		"people's API on every address": {
			[]opened{{"", "tcp4", "0.0.0.0:7443"}}, []Port{at("tcp4", "127.0.0.1:7443", nil)},
			[]string{"fail port 7443/tcp: open on all interfaces, and should not be there, for x"},
		},
		"not open": {
			[]opened{{"rack0", "tcp4", "0.0.0.0:7080"}}, []Port{at("tcp4", ":7080", onRack), at("udp4", ":69", onRack), at("udp4", ":67", func(p *Port) { p.Each = true })},
			[]string{"ok port 7080/tcp: open on interface rack0 by the running server, for x", "fail port 69/udp: not open on interface rack0, for x", "warn port 67/udp: not open on any interface, for x"},
		},
		"an interface that is not there": {
			[]opened{{"rack0", "tcp4", "0.0.0.0:7080"}}, []Port{at("tcp4", ":7080", func(p *Port) { p.Interfaces = []string{"rack0", "rack7"} })},
			[]string{"ok port 7080/tcp: open on interface rack0 by the running server, for x"},
		},
		"open, and in no table": {
			[]opened{{"", "tcp4", "0.0.0.0:2379"}}, nil,
			[]string{"fail port 2379/tcp: open on all interfaces by the running server, and in no table: it should not be"},
		},
		"held by another program": {
			[]opened{{"rack0", "tcp4", "0.0.0.0:7080"}, foreign}, []Port{at("udp4", ":123", func(p *Port) { p.Interfaces, p.Optional = rack, true }), at("udp4", ":123", onRack), at("tcp4", ":7080", onRack)},
			[]string{"ok port 123/udp: not open on interface rack0, for x; machines take it from elsewhere; dnsmasq (process PID) has it on all interfaces",
				"fail port 123/udp: not open on interface rack0, for x; dnsmasq (process PID) has it on all interfaces", "ok port 7080/tcp: open on interface rack0 by the running server, for x"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			ns, other := netns.New(t), netns.New(t)
			netns.Veth(ns, "rack0", other, "rack0")
			netns.Veth(ns, "office0", other, "office0")
			pid := ""
			for _, o := range tt.open {
				if o == foreign {
					pid = foreignServer(t, ns)
					continue
				}
				openIn(t, ns, o.device, o.network, o.address)
			}
			var results []Result
			if err := ns.Do(func() error { results = ports(tt.table, me); return nil }); err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, r := range results {
				got = append(got, strings.ReplaceAll(fmt.Sprintf("%s %s: %s", r.State, r.Check, r.Found), "process "+pid, "process PID"))
				if r.State != OK && r.Do == "" {
					t.Errorf("no advice: %+v", r)
				}
			}
			if !slices.Equal(got, tt.want) {
				t.Errorf("got  %q\nwant %q", got, tt.want)
			}
		})
	}
}

func openIn(t *testing.T, ns *netns.NS, device, network, address string) {
	t.Helper()
	var closer io.Closer
	var err error
	if strings.HasPrefix(network, "udp") {
		closer, err = product.ListenPacketOn(t.Context(), ns.Path(), device, network, address)
	} else {
		closer, err = product.ListenOn(t.Context(), ns.Path(), device, network, address)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closer.Close() })
}

// foreignServer is a program that has port 123/udp.
func foreignServer(t *testing.T, ns *netns.NS) (pid string) {
	t.Helper()
	require.Need(t, "dnsmasq")
	cmd := exec.Command("dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--port=123", "--no-resolv", "--no-hosts", "--listen-address=0.0.0.0", "--pid-file="+filepath.Join(t.TempDir(), "pid"))
	if err := ns.Start(cmd); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	for deadline := time.Now().Add(time.Minute); !strings.Contains(ns.Run("cat", "/proc/net/udp"), ":007B "); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("dnsmasq does not open its port")
		}
	}
	return strconv.Itoa(cmd.Process.Pid)
}

func TestRunningServerIsFoundByItsLock(t *testing.T) {
	dir := t.TempDir()
	if s := runningServer(dir); s.pid != 0 {
		t.Errorf("an empty folder has a server: %d", s.pid)
	}
	path := filepath.Join(dir, "lock")
	if err := os.WriteFile(path, []byte("4711\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if s := runningServer(dir); s.pid != 0 {
		t.Errorf("a lock that nobody holds is taken for a server: %d", s.pid)
	}
	file, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if err := unix.Flock(int(file.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	s := runningServer(dir)
	if s.pid != 4711 {
		t.Errorf("got process %d, want 4711", s.pid)
	}
	if r := s.store(); r.State != OK {
		t.Errorf("a store that nothing is known against: %+v", r)
	}
	if err := os.WriteFile(filepath.Join(dir, "store-lost"), []byte("no space left\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if r := s.store(); r.State != Fail || !strings.Contains(r.Found, "no space left") {
		t.Errorf("a store that is lost: %+v", r)
	}
}

func TestInterfaces(t *testing.T) {
	require.Need(t, "netns")
	ns := netns.New(t)
	other := netns.New(t)
	check := func(wanted ...string) (r Result) {
		t.Helper()
		if err := ns.Do(func() error { r = interfaces(wanted); return nil }); err != nil {
			t.Fatal(err)
		}
		return r
	}
	if r := check(); r.State != Fail || !strings.Contains(r.Found, "none that is up") {
		t.Errorf("a machine without a network: %+v", r)
	}
	netns.Veth(ns, "eth0", other, "eth0")
	if r := check("eth0", "eth7"); r.State != Fail || r.Found != "eth0 has no IPv4 address; eth7 does not exist" {
		t.Errorf("an interface without an address and one that is not there: %+v", r)
	}
	ns.Address("eth0", "10.20.0.1/24")
	if r := check(); r.State != OK || r.Found != "eth0 10.20.0.1/24" {
		t.Errorf("an interface with an address: %+v", r)
	}
}

func TestProbeFindsAnotherDHCPServer(t *testing.T) {
	t.Parallel()
	require.Need(t, "netns", "dnsmasq")
	server, rack := netns.New(t), netns.New(t)
	netns.Veth(server, "eth0", rack, "eth0")
	server.Address("eth0", "10.20.0.1/24")
	rack.Address("eth0", "10.20.0.2/24")
	const patience = 2 * time.Second
	subnet := ""
	probe := func() (results []Result) {
		t.Helper()
		// Sockets belong to the namespace in which they are opened, so the whole probe happens there.
		if err := server.Do(func() error {
			i, err := net.InterfaceByName("eth0")
			if err != nil {
				return err
			}
			results = []Result{probeOn(context.Background(), *i, subnet, patience)}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		return results
	}
	if r := probe()[0]; r.State != OK || r.Found != "nobody answers" {
		t.Errorf("an empty segment: %+v", r)
	}
	own := []v1alpha1.Subnet{{ObjectMeta: metav1.ObjectMeta{Name: "ours"}, Spec: v1alpha1.SubnetSpec{CIDR: "10.20.0.0/24", DHCP: v1alpha1.DHCPServer}}}
	proxied := []v1alpha1.Subnet{{ObjectMeta: metav1.ObjectMeta{Name: "rack"}, Spec: v1alpha1.SubnetSpec{CIDR: "10.20.0.0/24", DHCP: v1alpha1.DHCPProxy}}}
	if a, b, c := theirs(own, []string{"10.20.0.1/24"}), theirs(proxied, []string{"10.9.0.1/24", "10.20.0.1/24"}), theirs(proxied, []string{"10.9.0.1/24"}); a != "" || b != "rack" || c != "" {
		t.Errorf("where the site's own server answers: %q, %q, %q", a, b, c)
	}
	if subnet = "rack"; probe()[0].State != Warn {
		t.Error("the site's own server is silent, and nobody says so")
	}
	subnet = ""
	dir := t.TempDir()
	dnsmasq := exec.Command("dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--port=0", "--interface=eth0", "--bind-interfaces",
		"--dhcp-authoritative", "--no-ping", "--dhcp-range=10.20.0.50,10.20.0.60", "--log-facility=-", "--pid-file="+filepath.Join(dir, "pid"),
		"--dhcp-leasefile="+filepath.Join(dir, "leases"))
	var out strings.Builder
	dnsmasq.Stdout, dnsmasq.Stderr = &out, &out
	if err := rack.Start(dnsmasq); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = dnsmasq.Process.Kill(); _ = dnsmasq.Wait() })
	for !strings.Contains(rack.Run("cat", "/proc/net/udp"), ":0043 ") {
		time.Sleep(20 * time.Millisecond)
	}
	r := probe()[0]
	if r.State != Fail || !strings.Contains(r.Found, "10.20.0.2 offers 10.20.0.") {
		t.Errorf("got %+v\ndnsmasq said:\n%s", r, out.String())
	}
	if subnet = "rack"; probe()[0].State != OK {
		t.Error("the site's own server is taken for a stranger")
	}
	if leases, err := os.ReadFile(filepath.Join(dir, "leases")); err == nil && len(leases) > 0 {
		t.Errorf("the probe took a lease: %s", leases)
	}
}

func TestAnARPProxyIsNamed(t *testing.T) {
	require.Need(t, "netns")
	server, router := netns.New(t), netns.New(t)
	netns.Veth(server, "eth0", router, "eth0")
	server.Address("eth0", "10.20.0.1/24")
	router.Address("eth0", "10.20.0.2/24")
	probe := func() (r Result) {
		t.Helper()
		if err := server.Do(func() error {
			i, err := net.InterfaceByName("eth0")
			if err != nil {
				return err
			}
			r = probeARP(t.Context(), *i)
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		return r
	}
	if r := probe(); r.State != OK || r.Found != "nobody answers for the addresses of others" {
		t.Errorf("a segment without a proxy: %+v", r)
	}
	// From now on the router takes every address of the network for its own.
	router.Run("ip", "link", "set", "lo", "up")
	router.Run("ip", "route", "add", "local", "10.20.0.0/24", "dev", "lo")
	want := router.Interface("eth0").HardwareAddr.String() + " answers for 16 of 16 addresses that were asked for in 10.20.0.0/24: an ARP proxy"
	if r := probe(); r.State != Warn || r.Found != want || !strings.Contains(r.Do, "switch proxy ARP off") {
		t.Errorf("got %+v, want %q", r, want)
	}
}

func TestDiskChecks(t *testing.T) {
	for _, dir := range []string{t.TempDir(), filepath.Join(t.TempDir(), "not", "there", "yet")} {
		results := dataDir(dir)
		if len(results) != 2 || results[1].State == Fail {
			t.Errorf("%s: %+v", dir, results)
		}
		left, err := os.ReadDir(dir)
		if err == nil && len(left) > 0 {
			t.Errorf("the check left %v behind", left)
		}
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if r := dataDir(file); Worst(r) != Fail {
		t.Errorf("a file in place of the folder: %+v", r)
	}
}

func TestClock(t *testing.T) {
	if r := clock(time.Date(1970, 1, 1, 0, 0, 0, 0, time.UTC)); r.State != Fail {
		t.Errorf("a machine whose battery is empty: %+v", r)
	}
	if r := clock(time.Now()); r.State == Fail {
		t.Errorf("now: %+v", r)
	}
}

func TestKVM(t *testing.T) {
	answer := func(whyNot string, err error) func(context.Context) (string, error) {
		return func(context.Context) (string, error) { return whyNot, err }
	}
	for name, tt := range map[string]struct {
		probe func(context.Context) (string, error)
		state State
		found string
	}{
		"a machine ran":                     {answer("", nil), OK, "usable"},
		"/dev/kvm opens, but QEMU gives up": {answer("exit status 1: KVM: entry failed", nil), Warn, "not usable: exit status 1: KVM: entry failed"},
		"nothing to try it with":            {answer("", errors.New("no QEMU")), Warn, "not tried: no QEMU"},
	} {
		if got := kvm(t.Context(), tt.probe); got.State != tt.state || !strings.Contains(got.Found, tt.found) || (got.State == Warn) != (got.Do != "") {
			t.Errorf("%s: got %+v, want %s with %q", name, got, tt.state, tt.found)
		}
	}
}

// With the real QEMU: the doctor calls KVM usable where the lab uses it, and nowhere else.
func TestTheDoctorAndTheLabAgreeOnKVM(t *testing.T) {
	require.Need(t, "qemu")
	chosen, whyNot, err := lab.ProbeAccelerator(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	got := kvm(t.Context(), func(ctx context.Context) (string, error) {
		_, whyNot, err := lab.ProbeAccelerator(ctx)
		return whyNot, err
	})
	if (got.State == OK) != (chosen == lab.KVM) {
		t.Errorf("the lab uses %s (%s), the doctor says %s: %s", chosen, whyNot, got.State, got.Found)
	}
}

func TestWorst(t *testing.T) {
	for _, test := range []struct {
		states []State
		want   State
	}{{nil, OK}, {[]State{OK, OK}, OK}, {[]State{Warn, OK}, Warn}, {[]State{Fail, Warn}, Fail}, {[]State{Warn, Fail, OK}, Fail}} {
		var results []Result
		for _, s := range test.states {
			results = append(results, Result{State: s})
		}
		if got := Worst(results); got != test.want {
			t.Errorf("%v: got %s, want %s", test.states, got, test.want)
		}
	}
}
