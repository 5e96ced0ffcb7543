package members

import (
	"testing"

	"coldrack.dev/api/v1alpha1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestImagesThatMachinesAreToHave(t *testing.T) {
	named := func(name string) metav1.ObjectMeta { return metav1.ObjectMeta{Name: name} }
	profiles := []v1alpha1.Profile{{ObjectMeta: named("old"), Spec: v1alpha1.ProfileSpec{Image: "debian-13"}}, {ObjectMeta: named("new"), Spec: v1alpha1.ProfileSpec{Image: "debian-14"}},
		{ObjectMeta: named("wrong"), Spec: v1alpha1.ProfileSpec{Image: "debian-99"}}}
	images := []v1alpha1.Image{{ObjectMeta: named("debian-13")}, {ObjectMeta: named("debian-14")}}
	for _, test := range []struct {
		name, group, own, given, image, installed string
		anew                                      bool
		problems                                  int
	}{
		{name: "as it is", own: "old", installed: "debian-13"},
		{name: "its profile has another one", own: "new", installed: "debian-13", anew: true},
		{name: "its group has another profile than the one that it gave the machine", group: "new", own: "old", given: "old", installed: "debian-13", anew: true},
		{name: "its group has another one than the machine was given by a person", group: "new", own: "old", installed: "debian-13"},
		{name: "a person has given it another one since", group: "new", own: "old", given: "new", installed: "debian-13"},
		{name: "its own image comes before that of the profile", own: "new", image: "debian-13", installed: "debian-13"},
		{name: "one that there is not", own: "wrong", installed: "debian-13", problems: 1},
		{name: "the one that it has is in no bundle any more", own: "wrong", installed: "debian-99"},
		{name: "a profile that there is not", own: "gone", installed: "debian-13"},
		{name: "it is not installed", own: "new"},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := &v1alpha1.Cluster{Status: v1alpha1.ClusterStatus{Nodes: []v1alpha1.ClusterNode{{Machine: "m", Group: "g"}}}}
			m := v1alpha1.Machine{ObjectMeta: named("m"), Spec: v1alpha1.MachineSpec{Profile: test.own, Image: test.image}}
			m.Annotations = map[string]string{v1alpha1.AnnotationGroupProfile: test.given}
			if test.installed != "" {
				m.Status.Installed = &v1alpha1.InstalledStatus{Image: test.installed}
			}
			groups := []v1alpha1.MachineGroup{{ObjectMeta: named("g"), Spec: v1alpha1.MachineGroupSpec{Profile: test.group}}}
			wanted, problems := ImagesWanted(c, groups, []v1alpha1.Machine{m, {ObjectMeta: named("other")}}, profiles, images)
			if anew := otherImage(&m, wanted["m"]); anew != test.anew || len(problems) != test.problems {
				t.Errorf("installed anew: %t, problems %v; wanted %v", anew, problems, wanted)
			}
		})
	}
}

// A worker that comes while an upgrade goes on has the new version as soon as all control planes do; others have the old one.
func TestVersionOfAMachineThatComes(t *testing.T) {
	own := []v1alpha1.MachineGroup{
		{ObjectMeta: metav1.ObjectMeta{Name: "control"}, Spec: v1alpha1.MachineGroupSpec{Roles: []v1alpha1.Role{v1alpha1.RoleControlPlane}}},
		{ObjectMeta: metav1.ObjectMeta{Name: "worker"}, Spec: v1alpha1.MachineGroupSpec{Roles: []v1alpha1.Role{v1alpha1.RoleWorker}}},
	}
	node := func(group, version string, hand *v1alpha1.NodeHand) v1alpha1.ClusterNode {
		return v1alpha1.ClusterNode{Machine: group, Group: group, Version: version, Hand: hand}
	}
	const old, next = "v1.36.3", "v1.37.2"
	for _, test := range []struct {
		name  string
		group int
		nodes []v1alpha1.ClusterNode
		want  string
	}{
		{"before the control planes", 1, []v1alpha1.ClusterNode{node("control", next, nil), node("control", old, nil), node("worker", old, nil)}, old},
		{"while the last one changes", 1, []v1alpha1.ClusterNode{node("control", next, &v1alpha1.NodeHand{}), node("worker", old, nil)}, old},
		{"after them", 1, []v1alpha1.ClusterNode{node("control", next, nil), node("worker", old, nil)}, next},
		{"a control plane", 0, []v1alpha1.ClusterNode{node("control", next, nil), node("worker", old, nil)}, old},
	} {
		c := &v1alpha1.Cluster{Spec: v1alpha1.ClusterSpec{Version: next}, Status: v1alpha1.ClusterStatus{Nodes: test.nodes}}
		if got := versionFor(c, &own[test.group], own); got != test.want {
			t.Errorf("%s: %s, want %s", test.name, got, test.want)
		}
	}
}
