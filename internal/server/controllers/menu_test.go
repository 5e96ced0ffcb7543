package controllers

import (
	"fmt"
	"maps"
	"strings"
	"sync"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"coldrack.dev/api/v1alpha1"
)

// menuSink is the side of the boot services.
type menuSink struct {
	mu      sync.Mutex
	menus   []Menu
	chosen  map[string]v1alpha1.MenuChoice
	arrived chan struct{}
}

func (s *menuSink) SetMenus(menus []Menu) { s.mu.Lock(); defer s.mu.Unlock(); s.menus = menus }

func (s *menuSink) Choices() (map[string]v1alpha1.MenuChoice, <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(s.chosen), s.arrived
}

func (s *menuSink) Recorded(machine string, choice v1alpha1.MenuChoice) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.chosen[machine] == choice {
		delete(s.chosen, machine)
	}
}

func (s *menuSink) choose(machine string, choice v1alpha1.MenuChoice) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.chosen == nil {
		s.chosen = map[string]v1alpha1.MenuChoice{}
	}
	s.chosen[machine] = choice
	close(s.arrived)
	s.arrived = make(chan struct{})
}

// shown are the menus, as text.
func (s *menuSink) shown() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var text []string
	for _, m := range s.menus {
		text = append(text, fmt.Sprintf("%s %s %s %q %s", m.Subnet, m.CIDR, m.Menu.Mode, m.PIN, m.NoPIN))
	}
	return strings.Join(text, "\n")
}

func (s *menuSink) waiting() int { s.mu.Lock(); defer s.mu.Unlock(); return len(s.chosen) }

func choiceAtTheConsole(t *testing.T, w *liveWorld) {
	subnet := rack(func(s *v1alpha1.SubnetSpec) {
		s.BootMenu = &v1alpha1.BootMenu{Mode: v1alpha1.BootMenuPIN, PINSecret: "menu", Entries: []v1alpha1.BootMenuEntry{
			{Name: "worker", Role: v1alpha1.RoleProductionWorker, Profile: "default"}, {Name: "db", Group: "databases"},
		}}
	})
	shown := func(part string) {
		t.Helper()
		w.until(func() bool { return strings.Contains(w.menus.shown(), part) }, func() string { return fmt.Sprintf("no %q in menus %q", part, w.menus.shown()) })
	}
	condition := func(want metav1.ConditionStatus, part string) {
		t.Helper()
		got := &v1alpha1.Subnet{}
		w.until(func() bool {
			check(t, w.client.Get(t.Context(), client.ObjectKey{Name: subnet.Name}, got))
			for _, c := range got.Status.Conditions {
				if c.Type == v1alpha1.ConditionMenuWithoutPIN {
					return c.Status == want && strings.Contains(c.Message, part)
				}
			}
			return false
		}, func() string { return fmt.Sprintf("conditions %+v", got.Status.Conditions) })
	}
	w.create(&v1alpha1.Profile{ObjectMeta: metav1.ObjectMeta{Name: "default"}, Spec: v1alpha1.ProfileSpec{Image: "debian-12"}})
	w.create(&subnet)
	shown("the PIN was never set")
	condition(metav1.ConditionTrue, "coldrack subnet set-pin "+subnet.Name)
	w.create(&v1alpha1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "menu"}, Type: v1alpha1.SecretTypeMenuPIN, Data: map[string][]byte{v1alpha1.MenuPINKey: []byte("271828")}})
	// Secrets are read now and then; a change of the Subnet has them read at once.
	before := subnet.DeepCopy()
	subnet.Spec.Domain = "lab"
	check(t, w.client.Patch(t.Context(), &subnet, client.MergeFrom(before)))
	shown(`PIN "271828"`)
	condition(metav1.ConditionFalse, "")

	choice := func(entry string, pin bool) v1alpha1.MenuChoice {
		return v1alpha1.MenuChoice{Subnet: subnet.Name, Entry: entry, PIN: pin, By: "kim", From: "10.0.0.150", At: time.Now().UTC().Truncate(time.Second)}
	}
	// The choice arrives with the first boot, before the machine is recorded.
	w.menus.choose("m-"+strings.ReplaceAll(mac(1), ":", ""), choice("worker", true))
	name := boot(w, 1)
	w.wait(name, "recorded with its choice", func(m *v1alpha1.Machine) bool { c, ok := m.Menu(); return ok && c.Entry == "worker" && c.By == "kim" })
	w.report(name, "SN-1", mac(1))
	m := w.wait(name, "enrolled", func(m *v1alpha1.Machine) bool { return m.Spec.Intent != nil })
	if by := m.Annotations[v1alpha1.AnnotationEnrolledBy]; by != "menu/"+subnet.Name+"/worker" || !m.Spec.Approved || m.Spec.Profile != "default" ||
		m.Labels[v1alpha1.LabelMenuRole] != "production-worker" || m.Spec.Intent.Action != v1alpha1.ActionInstall {
		t.Errorf("enrolled by %q as %+v, labels %v", by, m.Spec, m.Labels)
	}
	settled := func() {
		t.Helper()
		w.until(func() bool { return w.menus.waiting() == 0 }, func() string { return "the choice is neither recorded nor dropped" })
	}
	settled()

	// It was decided about: another choice changes nothing.
	w.menus.choose(name, choice("db", true))
	settled()
	if after, err := w.store.Get(t.Context(), name); err != nil || after.Labels["kind"] != "" || after.Spec.Intent.ID != m.Spec.Intent.ID {
		t.Errorf("a second choice made it %+v, %v", after.Spec, err)
	} else if c, _ := after.Menu(); c.Entry != "worker" {
		t.Errorf("recorded over the first: %+v", c)
	}

	// One without the PIN is recorded for people, and gives nothing.
	other := boot(w, 2)
	w.menus.choose(other, choice("worker", false))
	settled()
	w.report(other, "SN-2", mac(2))
	m = w.phase(other, v1alpha1.PhaseWaiting)
	if c, ok := m.Menu(); !ok || c.PIN || m.Spec.Approved || m.Labels[v1alpha1.LabelMenuRole] != "" {
		t.Errorf("without the PIN: %+v, labels %v", m.Spec, m.Labels)
	}
	// An entry of a group that does not exist says so.
	third := boot(w, 3)
	w.menus.choose(third, choice("db", true))
	settled()
	w.report(third, "SN-3", mac(3))
	w.wait(third, "held", func(m *v1alpha1.Machine) bool {
		return strings.Contains(m.Status.Message, "there is no MachineGroup databases")
	})
	// Until somebody makes it.
	w.create(&v1alpha1.MachineGroup{ObjectMeta: metav1.ObjectMeta{Name: "databases"}, Spec: v1alpha1.MachineGroupSpec{
		Cluster: "c", Profile: "default", Roles: []v1alpha1.Role{v1alpha1.RoleWorker}, Selector: metav1.LabelSelector{MatchLabels: map[string]string{"kind": "db"}},
	}})
	w.wait(third, "enrolled", func(m *v1alpha1.Machine) bool { return m.Labels["kind"] == "db" && m.Spec.Approved })
}
