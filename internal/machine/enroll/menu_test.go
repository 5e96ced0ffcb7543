package enroll

import (
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"coldrack.dev/api/v1alpha1"
)

func chose(entry string, pin bool) func(*v1alpha1.Machine) {
	return func(m *v1alpha1.Machine) {
		m.SetMenu(v1alpha1.MenuChoice{Subnet: "rack", Entry: entry, PIN: pin, By: "kim", At: time.Unix(1_800_000_000, 0).UTC()})
	}
}

func TestAChoiceAtTheConsole(t *testing.T) {
	const off, pin, free = v1alpha1.BootMenuOff, v1alpha1.BootMenuPIN, v1alpha1.BootMenuFree
	menu := func(mode v1alpha1.BootMenuMode) v1alpha1.Subnet {
		return rack(func(s *v1alpha1.SubnetSpec) {
			s.BootMenu = &v1alpha1.BootMenu{Mode: mode, Entries: []v1alpha1.BootMenuEntry{
				{Name: "worker", Role: v1alpha1.RoleProductionWorker, Profile: "debian", Labels: map[string]string{"site": "b"}},
				{Name: "db", Group: "databases"}, {Name: "nowhere", Group: "gone"}, {Name: "all", Group: "everything"},
			}}
		})
	}
	groups := []v1alpha1.MachineGroup{
		{ObjectMeta: metav1.ObjectMeta{Name: "databases"}, Spec: v1alpha1.MachineGroupSpec{Profile: "big", Selector: metav1.LabelSelector{MatchLabels: map[string]string{"kind": "db"}}}},
		{ObjectMeta: metav1.ObjectMeta{Name: "everything"}},
	}
	type want struct {
		by, profile, labels, held string
	}
	nothing := want{}
	worker := want{by: "menu/rack/worker", profile: "debian", labels: "coldrack.dev/role=production-worker,site=b"}
	for name, test := range map[string]struct {
		machine *v1alpha1.Machine
		mode    v1alpha1.BootMenuMode
		policy  bool
		want    want
	}{
		"a role, with the PIN":           {waiting("m", chose("worker", true)), pin, false, worker},
		"a role, for free":               {waiting("m", chose("worker", false)), free, false, worker},
		"it comes before policies":       {waiting("m", chose("worker", true)), pin, true, worker},
		"a group":                        {waiting("m", chose("db", true)), pin, false, want{by: "menu/rack/db", profile: "big", labels: "kind=db"}},
		"a group that does not exist":    {waiting("m", chose("nowhere", true)), pin, false, want{held: "there is no MachineGroup gone"}},
		"a group that selects no labels": {waiting("m", chose("all", true)), pin, false, want{held: "no spec.selector.matchLabels"}},
		"the menu is off meanwhile":      {waiting("m", chose("worker", true)), off, false, nothing},
		"the menu wants a PIN meanwhile": {waiting("m", chose("worker", false)), pin, false, nothing},
		"then a policy decides":          {waiting("m", chose("worker", false)), pin, true, want{by: "first", profile: "default", labels: "rack=r1"}},
		"the entry is gone":              {waiting("m", chose("router", true)), pin, false, nothing},
		"what cannot be read":            {waiting("m", func(m *v1alpha1.Machine) { m.Annotations = map[string]string{v1alpha1.AnnotationMenuChoice: "{"} }), free, false, nothing},
		"a disk with an installation that is not known": {waiting("m", chose("worker", true), func(m *v1alpha1.Machine) {
			m.Status.Inventory.Disks = []v1alpha1.Disk{{Name: "sda", Marker: "2b1f7a6e-0000-5000-8000-0000000000c1"}}
		}), pin, false, want{held: "bears an installation by Coldrack"}},
		"a machine that was released":                      {waiting("m", chose("worker", true), wants("1", release), ended("1", release, succeeded)), pin, false, nothing},
		"a machine that is installed":                      {waiting("m", chose("worker", true), func(m *v1alpha1.Machine) { m.Status.Installed = &v1alpha1.InstalledStatus{} }), pin, false, nothing},
		"a profile that a person wrote stays":              {waiting("m", chose("worker", true), func(m *v1alpha1.Machine) { m.Spec.Profile = "mine" }), pin, false, want{by: "menu/rack/worker", profile: "mine", labels: worker.labels}},
		"an approved machine keeps its labels and profile": {waiting("m", approved, chose("worker", true)), pin, false, want{}},
	} {
		t.Run(name, func(t *testing.T) {
			w := World{Machines: []*v1alpha1.Machine{test.machine}, Subnets: []v1alpha1.Subnet{menu(test.mode)}, Groups: groups, NewID: func() string { return "id-1" }, Now: time.Unix(1_800_000_100, 0)}
			if test.policy {
				w.Policies = []v1alpha1.EnrollmentPolicy{policy("first")}
			}
			next, held := Decide(test.machine, w)
			if test.want.held != "" {
				if next != nil || !strings.Contains(held, test.want.held) || !strings.Contains(held, "boot menu of Subnet rack") {
					t.Errorf("got %v, held %q", next, held)
				}
				return
			}
			if next == nil {
				next = test.machine
			}
			var labels []string
			for _, key := range []string{"coldrack.dev/role", "kind", "rack", "site"} {
				if value, ok := next.Labels[key]; ok {
					labels = append(labels, key+"="+value)
				}
			}
			got := want{by: next.Annotations[v1alpha1.AnnotationEnrolledBy], profile: next.Spec.Profile, labels: strings.Join(labels, ",")}
			if got != test.want {
				t.Errorf("got %+v, want %+v", got, test.want)
			}
			if strings.HasPrefix(got.by, "menu/") && (!next.Spec.Approved || next.Spec.Network.Address != "10.0.0.10" || next.Spec.Intent == nil || next.Spec.Intent.Action != install || next.Spec.Intent.RequestedBy != got.by) {
				t.Errorf("got %+v", next.Spec)
			}
		})
	}
}
