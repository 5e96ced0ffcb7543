package daemon

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/machine/fleet"
	"coldrack.dev/internal/netboot/dhcp"
	"coldrack.dev/internal/server/controllers"
)

func TestAMachineWhoseFirmwareIgnoresAProxyIsMarked(t *testing.T) {
	const mac = "52:54:00:00:00:01"
	known := fleet.New(fleet.Options{})
	known.Put(&v1alpha1.Machine{ObjectMeta: metav1.ObjectMeta{Name: "n1", UID: "1"}, Spec: v1alpha1.MachineSpec{
		Identifiers: v1alpha1.Identifiers{MACs: []string{mac}}, DHCPOptions: []v1alpha1.DHCPOption{{Code: 26, Value: "9000"}, {Code: 3, Value: "refused by the API"}}}})
	backend := dhcpBackend{booter: &booter{fleet: known}, log: discard(), ipxes: &recentClients{now: time.Now}, replaced: &replacedIPXEs{now: time.Now},
		bootGate: newBootGate(1, func() bool { return true })}
	seen := func(event dhcp.Event, detail string) {
		backend.Observe(dhcp.Observation{Event: event, Client: dhcp.Query{MAC: mac, PXE: true, Proxied: true}, Address: netip.MustParseAddr("10.5.0.150"),
			Subnet: netip.MustParsePrefix("10.5.0.0/24"), Detail: detail})
	}
	seen(dhcp.Addressed, "")
	if lease := known.Live("n1").Lease; lease == nil || lease.Address != "10.5.0.150" || lease.Subnet != "10.5.0.0/24" {
		t.Errorf("the address that the site's server gave: %+v", lease)
	}
	seen(dhcp.Ignored, "asked 3 times")
	if got := known.Live("n1").ProxyIgnored; got != "asked 3 times" {
		t.Errorf("ignored: %q", got)
	}
	seen(dhcp.Heeded, "")
	if got := known.Live("n1").ProxyIgnored; got != "" {
		t.Errorf("heeded: %q", got)
	}
	seen(dhcp.Ignored, "asked 3 times")
	known.Booted(v1alpha1.Identifiers{MACs: []string{mac}}, v1alpha1.BootRecord{})
	if got := known.Live("n1").ProxyIgnored; got != "" {
		t.Errorf("booted: %q", got)
	}
	if got := fmt.Sprint(backend.Options(dhcp.Query{MAC: mac})); got != "[{26 [35 40]}]" {
		t.Errorf("its options are %s", got)
	}
	if got := backend.Options(dhcp.Query{MAC: "52:54:00:00:00:02"}); got != nil {
		t.Errorf("a stranger's options are %v", got)
	}
}

func TestNobodyWaitsForATurnBesideTheSitesServer(t *testing.T) {
	bootable := true
	g := newBootGate(1, func() bool { return bootable })
	for n := range 3 {
		if !g.admit(dhcp.Query{MAC: fmt.Sprint(n), PXE: true, Proxied: true}) {
			t.Errorf("machine %d has to wait", n)
		}
	}
	bootable = false
	if g.admit(dhcp.Query{MAC: "9", PXE: true, Proxied: true}) {
		t.Error("a machine is told of a file that is not there")
	}
}

func TestWhatIsFoundOnASegment(t *testing.T) {
	server := reportService(controllers.SubnetReport{Served: true}, dhcp.SubnetService{Mode: dhcp.ModeServer, Servers: []netip.Addr{netip.MustParseAddr("10.5.0.66")}})
	if !strings.Contains(server.OtherServers, "10.5.0.66") || server.ProxyIgnored != "" {
		t.Errorf("%+v", server)
	}
	proxy := reportService(controllers.SubnetReport{Served: true}, dhcp.SubnetService{Mode: dhcp.ModeProxy, Servers: []netip.Addr{netip.MustParseAddr("10.5.0.66")},
		Unheeded: []dhcp.Unheeded{{Client: "52:54:00:00:00:01", Asked: 3}}})
	if proxy.OtherServers != "" || !strings.Contains(proxy.ProxyIgnored, "52:54:00:00:00:01 asked 3 times") || !strings.Contains(proxy.ProxyIgnored, "--foreign-dhcp") {
		t.Errorf("%+v", proxy)
	}
}
