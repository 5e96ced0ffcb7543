package members

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"coldrack.dev/api/v1alpha1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// noon is when installations and releases of these tests ended.
var noon = time.Date(2026, 1, 2, 12, 0, 0, 0, time.UTC)

// installedAt is a machine whose present system is of noon, and reports its boot, where it has one.
func installedAt(boot string, changes ...func(*v1alpha1.Machine)) *v1alpha1.Machine {
	at := metav1.NewTime(noon)
	m := &v1alpha1.Machine{}
	m.Status.Installed = &v1alpha1.InstalledStatus{Image: "debian-13", At: at}
	m.Status.Intent = &v1alpha1.IntentStatus{ID: "1", Action: v1alpha1.ActionInstall, State: v1alpha1.IntentSucceeded, FinishedAt: &at}
	if boot != "" {
		m.Status.Node = &v1alpha1.NodeStatus{BootID: boot}
	}
	for _, change := range changes {
		change(m)
	}
	return m
}

func TestOwnerOf(t *testing.T) {
	last := func(action v1alpha1.IntentAction, state v1alpha1.IntentState) func(*v1alpha1.Machine) {
		return func(m *v1alpha1.Machine) { m.Status.Intent.Action, m.Status.Intent.State = action, state }
	}
	wants := func(action v1alpha1.IntentAction) func(*v1alpha1.Machine) {
		return func(m *v1alpha1.Machine) { m.Spec.Intent = &v1alpha1.Intent{ID: "2", Action: action} }
	}
	adopted := func(m *v1alpha1.Machine) { m.Status.Installed.Image = v1alpha1.AdoptedImage }
	empty := func(m *v1alpha1.Machine) { m.Status.Installed, m.Status.Node = nil, nil }
	noRecord := func(m *v1alpha1.Machine) { m.Status.Intent = nil }
	noTime := func(m *v1alpha1.Machine) { m.Status.Intent.FinishedAt = nil }
	reinstalled, released := last(v1alpha1.ActionReinstall, v1alpha1.IntentSucceeded), last(v1alpha1.ActionRelease, v1alpha1.IntentSucceeded)

	before, after := noon.Add(-time.Minute), noon.Add(time.Minute)
	silent, ready := Registered{Created: before, BootID: "old"}, Registered{Created: before, BootID: "old", Ready: true}
	since := Registered{Created: after, BootID: "other"}
	const former, present, unclear = OwnerFormer, OwnerPresent, OwnerUnclear
	for _, test := range []struct {
		name    string
		machine *v1alpha1.Machine
		node    Registered
		foreign bool
		want    Owner
	}{
		{"a machine that is to be released has nothing to keep", installedAt("old", wants(v1alpha1.ActionRelease)), ready, false, former},
		{"one that is to be installed anew neither", installedAt("old", wants(v1alpha1.ActionReinstall)), ready, false, former},
		{"unless its node joined by other means", installedAt("old", wants(v1alpha1.ActionRelease)), ready, true, unclear},
		{"a machine that is to be installed for the first time may run something", installedAt("", empty, noRecord, wants(v1alpha1.ActionInstall)), silent, false, unclear},
		{"but not when it was released, and its node is older", installedAt("", empty, released, wants(v1alpha1.ActionInstall)), ready, false, former},

		{"installed anew: the silent node is of the system before", installedAt("new", reinstalled), silent, false, former},
		{"whether the new one has reported or not", installedAt("", reinstalled), silent, false, former},
		{"also where it passed for foreign", installedAt("new", reinstalled), silent, true, former},
		{"it counts as ready for a while", installedAt("new", reinstalled), ready, false, unclear},
		{"a node of the boot that the machine reports works", installedAt("old", reinstalled), silent, false, present},
		{"one that registered since is of the new system", installedAt("new", reinstalled), since, false, present},
		{"in the very second, too", installedAt("new", reinstalled), Registered{Created: noon}, false, present},
		{"a new installation that failed may have left the system as it was", installedAt("new", last(v1alpha1.ActionReinstall, v1alpha1.IntentFailed)), since, false, present},
		{"one that was withdrawn in the middle, too", installedAt("new", last(v1alpha1.ActionReinstall, v1alpha1.IntentRunning)), since, false, present},
		{"what is older than that system is gone all the same", installedAt("new", last(v1alpha1.ActionReinstall, v1alpha1.IntentFailed)), silent, false, former},

		{"released: nothing of it is left", installedAt("", empty, released), ready, false, former},
		{"also where it passed for foreign", installedAt("", empty, released), silent, true, former},
		{"a node that registered since is of something else", installedAt("", empty, released), since, false, unclear},
		{"a foreign one, too", installedAt("", empty, released), since, true, unclear},
		{"an old record has no time of the release", installedAt("", empty, released, noTime), ready, false, former},
		{"then a foreign one may be younger", installedAt("", empty, released, noTime), ready, true, unclear},
		{"a release that failed wiped nothing for certain", installedAt("", empty, last(v1alpha1.ActionRelease, v1alpha1.IntentFailed)), silent, false, unclear},

		{"a Machine that was made anew and installed: a silent older node of another boot is gone", installedAt("new"), silent, false, former},
		{"the same without a record of the install", installedAt("new", noRecord), silent, false, former},
		{"a kubelet that never reported", installedAt("new"), Registered{Created: before}, false, former},
		{"while it counts as ready, another machine may have the name", installedAt("new"), ready, false, unclear},
		{"before the new system has reported, it may be that one's", installedAt(""), silent, false, unclear},
		{"a foreign node may have had the name before", installedAt("new"), silent, true, unclear},

		{"a restored server: the node joined after the backup", installedAt("old"), Registered{Created: after, BootID: "old", Ready: true}, false, present},
		{"it is down now", installedAt(""), since, false, present},
		{"the machine was installed after the backup", installedAt("", empty, noRecord), Registered{Created: after}, false, unclear},
		{"a new store: its installation was adopted, and works", installedAt("old", adopted), ready, false, present},
		{"an adopted one that has not reported", installedAt("", adopted), silent, false, unclear},
		{"an adopted one whose kubelet has not reported since a reboot", installedAt("new", adopted), silent, false, unclear},
		{"what was carried out before a restore says nothing of an adopted one", installedAt("new", adopted, reinstalled), silent, false, unclear},
		{"a machine of which nothing is known", &v1alpha1.Machine{}, silent, false, unclear},
	} {
		t.Run(test.name, func(t *testing.T) {
			owner, why := OwnerOf(test.machine, test.node, test.foreign)
			if owner != test.want || (owner == OwnerUnclear) != (why != "") {
				t.Errorf("owner is %d, want %d: %q", owner, test.want, why)
			}
		})
	}
}

// A machine that the cluster does not record joins only when no Node of its name is in the way.
func TestWhoMayJoin(t *testing.T) {
	networks := func(texts ...string) (out []netip.Prefix) {
		for _, text := range texts {
			out = append(out, netip.MustParsePrefix(text))
		}
		return out
	}
	const joins, stays = "a-001=10.244.0.0/24 a-002=10.244.1.0/24 a-003=10.244.2.0/24 ", "a-001=10.244.0.0/24 a-002=10.244.1.0/24 "
	old, ours := Registered{Created: noon.Add(-time.Hour), BootID: "old"}, Registered{Created: noon.Add(time.Hour), BootID: "new", Ready: true}
	for _, test := range []struct {
		name    string
		change  func(s *Situation, m *v1alpha1.Machine)
		nodes   string
		waiting string
	}{
		{"there is none", func(s *Situation, _ *v1alpha1.Machine) { s.Registered = map[string]Registered{"a-001": old} }, joins, ""},
		{"nobody has read them, and that does not matter", func(*Situation, *v1alpha1.Machine) {}, joins, ""},
		{"nobody has read them", func(s *Situation, _ *v1alpha1.Machine) { s.Unread = true }, stays, "machine a-003 joins when the cluster's API has said which Nodes it has"},
		{"nobody has read them, and the API needs the machine", func(s *Situation, _ *v1alpha1.Machine) {
			s.Unread, s.Groups[1].Spec.Roles = true, []v1alpha1.Role{v1alpha1.RoleWorker, v1alpha1.RoleControlPlane}
		}, joins, ""},
		{"one is of the former installation", func(s *Situation, _ *v1alpha1.Machine) { s.Registered = map[string]Registered{"a-003": old} }, stays,
			"machine a-003 joins when Node a-003 of its former installation is deleted, which is being done"},
		{"its name is that of the host", func(s *Situation, m *v1alpha1.Machine) {
			m.Spec.Hostname, s.Registered = "h", map[string]Registered{"a-003": ours, "h": old}
		}, stays, "when Node h of its former"},
		{"one may work", func(s *Situation, _ *v1alpha1.Machine) {
			n := old
			n.Ready = true
			s.Registered = map[string]Registered{"a-003": n}
		}, stays, "machine a-003 does not join: the cluster has a Node a-003 already, and it is older than the machine's installation and counts as ready; if nothing of it runs any more: kubectl delete node a-003"},
		{"the present system's brings its networks", func(s *Situation, _ *v1alpha1.Machine) {
			n := ours
			n.PodCIDRs = networks("10.244.7.0/24")
			s.Registered = map[string]Registered{"a-003": n}
		}, stays + "a-003=10.244.7.0/24 ", ""},
		{"its networks were recorded as a foreign node's", func(s *Situation, _ *v1alpha1.Machine) {
			n := ours
			n.PodCIDRs = networks("10.244.7.0/24")
			s.Registered = map[string]Registered{"a-003": n}
			s.Cluster.Status.ForeignNodes = []v1alpha1.ForeignNode{{Name: "a-003", PodCIDRs: []string{"10.244.7.0/24"}}}
		}, stays + "a-003=10.244.7.0/24 ", ""},
		{"the present system's has none yet", func(s *Situation, _ *v1alpha1.Machine) { s.Registered = map[string]Registered{"a-003": ours} }, joins, ""},
		{"its networks are another node's", func(s *Situation, _ *v1alpha1.Machine) {
			n := ours
			n.PodCIDRs = networks("10.244.1.128/25")
			s.Registered = map[string]Registered{"a-003": n}
		}, stays, "machine a-003 does not join: its Node a-003 has pod networks 10.244.1.128/25, and 10.244.1.0/24 belongs to node a-002: drain the node"},
		{"its networks are a foreign node's", func(s *Situation, _ *v1alpha1.Machine) {
			n := ours
			n.PodCIDRs = networks("10.244.7.0/24")
			s.Registered = map[string]Registered{"a-003": n}
			s.Cluster.Status.ForeignNodes = []v1alpha1.ForeignNode{{Name: "guest", PodCIDRs: []string{"10.244.7.0/24"}}}
		}, stays, "10.244.7.0/24 belongs to node guest"},
		{"its networks are none of the cluster's", func(s *Situation, _ *v1alpha1.Machine) {
			n := ours
			n.PodCIDRs = networks("10.99.0.0/24")
			s.Registered = map[string]Registered{"a-003": n}
		}, stays, "which are not within 10.244.0.0/16"},
		{"it has networks of two families, and the cluster one", func(s *Situation, _ *v1alpha1.Machine) {
			n := ours
			n.PodCIDRs = networks("10.244.7.0/24", "fd00:7::/64")
			s.Registered = map[string]Registered{"a-003": n}
		}, stays, "not one of each that the cluster has"},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := rack(t, "a", v1alpha1.TopologyDevelopment, 1)
			recordInto(t, &s)
			m := machine("a-003", "10.0.0.13")
			back := installedAt("new")
			m.Status.Installed, m.Status.Intent, m.Status.Node = back.Status.Installed, back.Status.Intent, back.Status.Node
			s.Groups[1].Spec.Replicas = new(int32(2))
			test.change(&s, &m)
			s.Machines = append(s.Machines, m)
			d, err := Decide(s)
			check(t, err)
			nodes := ""
			for _, n := range d.Nodes {
				nodes += fmt.Sprintf("%s=%s ", n.Machine, strings.Join(n.PodCIDRs, ","))
			}
			if nodes != test.nodes {
				t.Errorf("nodes are %s, want %s", nodes, test.nodes)
			}
			if got := strings.Join(d.Waiting, "\n"); !strings.Contains(got, test.waiting) || (test.waiting == "") != (got == "") {
				t.Errorf("waits for %q, want %q", got, test.waiting)
			}
		})
	}
}
