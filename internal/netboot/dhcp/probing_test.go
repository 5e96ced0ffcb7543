package dhcp

import (
	"fmt"
	"testing"
	"time"

	"coldrack.dev/internal/netboot/lease"
)

func TestANetworkInWhichOneAnswersForAll(t *testing.T) {
	wide := rack()
	wide.Pool = Range{From: addr("192.0.2.100"), To: addr("192.0.2.140")}
	s := newStage(t, wide)
	told := 0
	s.engine.changed = func() { told++ }
	s.link.proxy = mac(99)
	s.expect("the first DISCOVER", "offer 192.0.2.103",
		"conflict 192.0.2.100, conflict 192.0.2.101, conflict 192.0.2.102, arp-proxy 192.0.2.103, offered 192.0.2.103", message(discover, 1))
	taken, proxy := s.engine.trouble(wide.CIDR)
	if proxy != mac(99).String() || len(taken) > 0 || told != 1 {
		t.Errorf("proxy %q, taken %v, told %d times", proxy, taken, told)
	}
	if p := s.engine.pools[wide.CIDR]; p.Count(lease.Quarantined) != 0 {
		t.Errorf("%d addresses are in quarantine for an answer that means nothing", p.Count(lease.Quarantined))
	}
	s.expect("the first REQUEST", "ack 192.0.2.103", "acknowledged 192.0.2.103", message(request, 1, asking("192.0.2.103"), ofServer("192.0.2.1")))
	s.lease(2, "192.0.2.104")
	s.link.holders[addr("192.0.2.105")] = mac(98)
	s.expect("somebody is really there", "offer 192.0.2.106", "conflict 192.0.2.105, offered 192.0.2.106", message(discover, 3))
	s.backend.machines[mac(4).String()] = Reservation{Address: addr("192.0.2.10")}
	s.lease(4, "192.0.2.10")

	s.link.proxy = nil
	s.now = s.now.Add(proxyTime)
	if _, proxy := s.engine.trouble(wide.CIDR); proxy != "" {
		t.Errorf("%s is still called a proxy", proxy)
	}
	s.link.holders[addr("192.0.2.107")] = mac(99)
	s.expect("who was a proxy has an address", "offer 192.0.2.108", "conflict 192.0.2.107, offered 192.0.2.108", message(discover, 5, asking("192.0.2.107")))
}

func TestAFewAddressesMakeNoProxy(t *testing.T) {
	s := newStage(t)
	for i := range proxyHolds - 1 {
		s.link.holders[addr(fmt.Sprintf("192.0.2.%d", 100+i))] = mac(99)
	}
	s.expect("three addresses", "offer 192.0.2.103", "conflict 192.0.2.100, conflict 192.0.2.101, conflict 192.0.2.102, offered 192.0.2.103", message(discover, 1))
	if _, proxy := s.engine.trouble(rack().CIDR); proxy != "" {
		t.Errorf("%s is called a proxy", proxy)
	}
}

func TestQuarantineIsReclaimedWhenNothingElseIsLeft(t *testing.T) {
	s := newStage(t)
	s.link.holders[addr("192.0.2.100")] = mac(98)
	s.link.holders[addr("192.0.2.101")] = mac(97)
	s.expect("discover", "offer 192.0.2.102", "conflict 192.0.2.100, conflict 192.0.2.101, offered 192.0.2.102", message(discover, 1))
	s.lease(1, "192.0.2.102")
	s.lease(2, "192.0.2.103")
	s.expect("none is left, and those that rest have just begun", "silence", "pool-exhausted", message(discover, 3))
	s.now = s.now.Add(leastQuarantine)
	s.expect("they answer still", "silence", "conflict 192.0.2.100, conflict 192.0.2.101, pool-exhausted", message(discover, 3))
	delete(s.link.holders, addr("192.0.2.101"))
	s.now = s.now.Add(leastQuarantine)
	s.expect("one of them has gone", "offer 192.0.2.101", "conflict 192.0.2.100, offered 192.0.2.101", message(discover, 3))
}

func TestAReservedAddressThatSomebodyUsesIsNotGivenOut(t *testing.T) {
	s := newStage(t)
	told := 0
	s.engine.changed = func() { told++ }
	s.backend.machines[mac(1).String()] = Reservation{Address: addr("192.0.2.10"), Hostname: "node-1", Hardware: []string{mac(11).String()}}
	s.link.holders[addr("192.0.2.10")] = mac(99)
	s.expect("it gets one of the pool", "offer 192.0.2.100", "conflict 192.0.2.10, offered 192.0.2.100", message(discover, 1))
	s.expect("and keeps it", "ack 192.0.2.100", "acknowledged 192.0.2.100", message(request, 1, asking("192.0.2.100"), ofServer("192.0.2.1")))
	s.expect("it insists on its own", "nak: 192.0.2.10 is in use by "+mac(99).String(), "refused 192.0.2.10", message(request, 1, asking("192.0.2.10")))
	s.expect("it has it already and runs", "ack 192.0.2.10", "acknowledged 192.0.2.10", message(request, 1, having("192.0.2.10")), "192.0.2.1")
	taken, _ := s.engine.trouble(rack().CIDR)
	if len(taken) != 1 || taken[0].Holder != mac(99).String() || taken[0].Client != mac(1).String() || told != 1 {
		t.Errorf("taken %+v, told %d times", taken, told)
	}

	s.link.holders[addr("192.0.2.10")] = mac(11)
	s.lease(1, "192.0.2.10") // it was the machine's own other interface
	if taken, _ := s.engine.trouble(rack().CIDR); len(taken) != 0 || told != 2 {
		t.Errorf("taken %+v, told %d times", taken, told)
	}
	s.link.probes = nil
	s.lease(1, "192.0.2.10")
	if len(s.link.probes) != 0 {
		t.Errorf("probed again at once: %v", s.link.probes)
	}
	s.now = s.now.Add(probeValid)
	s.lease(1, "192.0.2.10")
	if fmt.Sprint(s.link.probes) != "[192.0.2.10]" {
		t.Errorf("probed %v", s.link.probes)
	}
	s.link.probes = nil
	s.backend.machines[mac(2).String()] = Reservation{Address: addr("198.51.100.200")}
	s.expect("behind a relay nothing is probed", "offer 198.51.100.200", "offered 198.51.100.200", message(discover, 2, via("198.51.100.1")), "192.0.2.1")
	if len(s.link.probes) != 0 {
		t.Errorf("probed %v", s.link.probes)
	}
}

func TestAConflictIsForgottenInTime(t *testing.T) {
	s := newStage(t)
	s.backend.machines[mac(1).String()] = Reservation{Address: addr("192.0.2.10")}
	s.link.holders[addr("192.0.2.10")] = mac(99)
	s.expect("discover", "offer 192.0.2.100", "conflict 192.0.2.10, offered 192.0.2.100", message(discover, 1))
	s.now = s.now.Add(quarantineTime + time.Second)
	if taken, _ := s.engine.trouble(rack().CIDR); len(taken) != 0 {
		t.Errorf("taken %+v", taken)
	}
	s.expect("it may have it again", "ack 192.0.2.10", "acknowledged 192.0.2.10", message(request, 1, asking("192.0.2.10")))
}
