package machineapi

import (
	"net/http"
	"strings"
	"testing"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/content/swarm"
	"coldrack.dev/internal/contract/wire"
)

var someBlob = "sha256:" + strings.Repeat("ab", 32)

func TestMachinesFindEachOther(t *testing.T) {
	s := newServer(t)
	agents := map[string]*agent{}
	for _, mac := range []string{"02:00:00:00:00:01", "02:00:00:00:00:02", "02:00:00:00:00:03"} {
		a := s.agent()
		check(t, a.enroll(s.boot(mac), wire.Identifiers{MACs: []string{mac}}))
		agents[mac[16:]] = a
	}
	say := func(who string, in wire.SwarmAnnounce) wire.SwarmAnswer {
		t.Helper()
		in.Blob, in.Chunks = someBlob, 3
		if in.Have == nil {
			in.Have = []byte{0}
		}
		answer, err := send[wire.SwarmAnswer](agents[who], http.MethodPost, wire.PathSwarm, in)
		if err != nil {
			t.Fatal(err)
		}
		return answer
	}
	if answer := say("1", wire.SwarmAnnounce{Port: 1}); !answer.Off {
		t.Fatalf("a server without a swarm answers %+v", answer)
	}
	s.api.Swarm = swarm.NewTracker(swarm.TrackerOptions{})
	s.spec(agents["1"].name, func(m *v1alpha1.MachineSpec) { m.Location.Rack = "a" })
	s.spec(agents["2"].name, func(m *v1alpha1.MachineSpec) { m.Location.Rack = "a" })
	if answer := say("1", wire.SwarmAnnounce{Port: 4001, Wants: true}); len(answer.Fetch) != 3 || answer.Fetch[0] != 0 || len(answer.Peers) != 0 || answer.AgainMillis <= 0 {
		t.Errorf("the first machine is told %+v", answer)
	}
	say("3", wire.SwarmAnnounce{}) // serves nobody
	answer := say("2", wire.SwarmAnnounce{Port: 4002})
	if len(answer.Peers) != 1 || answer.UploadLimit != 0 {
		t.Fatalf("the second machine is told %+v", answer)
	}
	fingerprint := s.fleet.Live(agents["1"].name).Session
	if want := (wire.SwarmPeer{Machine: agents["1"].name, Address: "127.0.0.1:4001", Key: fingerprint, Near: true}); answer.Peers[0] != want {
		t.Errorf("peer is %+v, want %+v", answer.Peers[0], want)
	}
	for _, p := range say("3", wire.SwarmAnnounce{}).Peers {
		if p.Near {
			t.Errorf("%+v is near a machine that has no rack", p)
		}
	}
	say("2", wire.SwarmAnnounce{Port: 4002, Bad: []string{agents["1"].name}})
	if lines := s.fleet.LogLines(agents["2"].name); !strings.Contains(lines[len(lines)-1].Text, "damaged data from machine "+agents["1"].name) {
		t.Errorf("the log says %+v", lines)
	}
	say("3", wire.SwarmAnnounce{Bad: []string{agents["1"].name}})
	if lines := s.fleet.LogLines(agents["1"].name); !strings.Contains(lines[len(lines)-1].Text, "check its memory") {
		t.Errorf("the log says %+v", lines)
	}
}

// A node whose bring-up is done has a workload, which comes first.
func TestOnlyANodeThatIsUpGivesSlowly(t *testing.T) {
	s := newServer(t)
	s.api.Swarm = swarm.NewTracker(swarm.TrackerOptions{})
	_, node := s.installed(wire.Identifiers{MACs: []string{"52:54:00:00:00:01"}, UUID: "00000000-0000-4000-8000-000000000001"}, "i1")
	for _, done := range []bool{false, true} {
		m, err := s.store.UpdateStatus(t.Context(), node.name, func(m *v1alpha1.Machine) error {
			m.Status.Kubernetes = &v1alpha1.KubernetesStatus{Cluster: "rack", Done: done}
			return nil
		})
		check(t, err)
		s.fleet.Put(m)
		answer, err := send[wire.SwarmAnswer](node, http.MethodPost, wire.PathSwarm, wire.SwarmAnnounce{Blob: someBlob, Chunks: 3, Have: []byte{7}, Port: 4001})
		check(t, err)
		if limited := answer.UploadLimit == nodeUploadLimit; limited != done {
			t.Errorf("bring-up done %v: the node is told to give %d bytes a second", done, answer.UploadLimit)
		}
	}
}

func TestWhatIsNoAnnouncement(t *testing.T) {
	s := newServer(t)
	s.api.Swarm = swarm.NewTracker(swarm.TrackerOptions{})
	a := s.agent()
	check(t, a.enroll(s.boot("02:00:00:00:00:01"), wire.Identifiers{MACs: []string{"02:00:00:00:00:01"}}))
	for name, in := range map[string]wire.SwarmAnnounce{
		"a blob that is no digest":     {Blob: "sha256:x", Chunks: 1, Have: []byte{0}},
		"a set that does not fit":      {Blob: someBlob, Chunks: 9, Have: []byte{0}},
		"far too many chunks":          {Blob: someBlob, Chunks: 1 << 30, Have: []byte{0}},
		"more accused than are known":  {Blob: someBlob, Chunks: 1, Have: []byte{0}, Bad: make([]string, 100)},
		"a negative number of chunks":  {Blob: someBlob, Chunks: -1},
		"more returned than was given": {Blob: someBlob, Chunks: 1, Have: []byte{0}, Returned: make([]int, 100)},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := send[wire.SwarmAnswer](a, http.MethodPost, wire.PathSwarm, in); code(err) != wire.CodeBadRequest {
				t.Errorf("%v", err)
			}
		})
	}
	if _, err := send[wire.SwarmAnswer](s.agent(), http.MethodPost, wire.PathSwarm, wire.SwarmAnnounce{}); code(err) != wire.CodeForbidden {
		t.Errorf("a stranger: %v", err)
	}
}
