package daemon

import (
	"log/slog"
	"net/netip"
	"strings"
	"testing"
	"time"

	"coldrack.dev/internal/machine/fleet"
	"coldrack.dev/internal/netboot/boot"
	"coldrack.dev/internal/netboot/dhcp"
)

// chainStage is what decides on boot files, with a clock of the test's.
type chainStage struct {
	dhcpBackend
	now time.Time
}

func newChainStage() *chainStage {
	s := &chainStage{now: time.Unix(1_800_000_000, 0)}
	clock, machines := func() time.Time { return s.now }, fleet.New(fleet.Options{Log: discard()})
	s.dhcpBackend = dhcpBackend{
		booter: &booter{fleet: machines, cfg: DefaultConfig(), metrics: newMetrics(machines)}, log: discard(),
		ipxes: &recentClients{now: clock}, replaced: &replacedIPXEs{now: clock}, bootGate: newBootGate(10, func() bool { return true }),
	}
	return s
}

// boots takes a client through DHCP, and returns the file it is told in the OFFER, which must be the one in the ACK.
func (s *chainStage) boots(t *testing.T, client dhcp.Query) string {
	t.Helper()
	client.Server = netip.MustParseAddr("10.20.0.2")
	subnet := netip.MustParsePrefix("10.20.0.0/24")
	offered, _ := s.BootFile(subnet, client)
	s.Observe(dhcp.Observation{Event: dhcp.Offered, Client: client, Subnet: subnet})
	acknowledged, _ := s.BootFile(subnet, client)
	s.Observe(dhcp.Observation{Event: dhcp.Acknowledged, Client: client, Subnet: subnet, Address: netip.MustParseAddr("10.20.0.100")})
	if offered != acknowledged {
		t.Errorf("offered %+v, acknowledged %+v", offered, acknowledged)
	}
	return offered.File
}

func TestAFirmwaresLimitedIPXEIsReplacedWithoutALoop(t *testing.T) {
	const script, ours = "http://10.20.0.2:7080/boot.ipxe", "undionly.kpxe"
	firmware := dhcp.Query{MAC: "52:54:00:00:00:01", PXE: true, IPXE: true, Arch: boot.ArchBIOS, Told: dhcp.IPXE{Features: true, Version: "1.0.0"}}
	full, limited := firmware, firmware
	full.Told = dhcp.IPXE{Features: true, HTTP: true, BzImage: true, Version: "1.21.1"}
	limited.Told = dhcp.IPXE{Features: true, HTTP: true, Version: "1.21.1"}
	other := firmware
	other.MAC = "52:54:00:00:00:02"

	s := newChainStage()
	want := func(what string, client dhcp.Query, file string) {
		t.Helper()
		if got := s.boots(t, client); got != file {
			t.Errorf("%s: told %q, want %q", what, got, file)
		}
	}
	want("the firmware's", firmware, ours)
	want("ours", full, script)
	want("the firmware's after a reset", firmware, ours)
	want("ours, if it could not start a kernel either", limited, script)

	want("another machine's firmware", other, ours)
	want("which loads just the same", other, ours)
	want("and again", other, ours)
	want("and will do so for ever", other, script)
	s.now = s.now.Add(chainTime + time.Second)
	want("the next day", other, ours)

	gpxe := firmware
	gpxe.MAC, gpxe.UserClass, gpxe.Told = "52:54:00:00:00:03", "gPXE", full.Told
	want("gPXE", gpxe, ours)
	if got := s.boots(t, dhcp.Query{MAC: "52:54:00:00:00:04", IPXE: true}); !strings.HasSuffix(got, "boot.ipxe") {
		t.Errorf("an iPXE that tells no features is told %q", got)
	}
}

// TestObservationsWithoutAnAddress: an observation that is about no address says nothing of one in the log.
func TestObservationsWithoutAnAddress(t *testing.T) {
	for _, event := range []dhcp.Event{dhcp.ForeignServer, dhcp.Conflict, dhcp.ARPProxy, dhcp.Declined, dhcp.PoolExhausted, dhcp.NoSubnet} {
		for address, want := range map[netip.Addr]string{{}: "", netip.MustParseAddr("10.20.0.66"): "=10.20.0.66 "} {
			s, text := newChainStage(), &logText{}
			s.log = slog.New(slog.NewTextHandler(text, nil))
			s.Observe(dhcp.Observation{Event: event, Address: address, Detail: "some detail"})
			line := text.String()
			if !strings.Contains(line, `detail="some detail"`) || !strings.Contains(line, want) {
				t.Errorf("%s at %v: %s", event, address, line)
			}
			if want == "" && (strings.Contains(line, "invalid IP") || strings.Contains(line, " address=") || strings.Contains(line, " server=")) {
				t.Errorf("%s without an address: %s", event, line)
			}
			if noted := len(s.metrics.foreign.all()) == 1; noted != (event == dhcp.ForeignServer && want != "") {
				t.Errorf("%s at %v: another DHCP server is noted: %t", event, address, noted)
			}
		}
	}
}
