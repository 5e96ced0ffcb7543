package enroll

import (
	"cmp"
	"fmt"
	"maps"
	"slices"

	"coldrack.dev/api/v1alpha1"
)

// chosen is the entry of a boot menu that a person chose at the machine's console, if it still counts: the Subnet's menu has it, and asks no
// more of a person than it did.
func chosen(m *v1alpha1.Machine, w World) (choice v1alpha1.MenuChoice, entry *v1alpha1.BootMenuEntry) {
	choice, ok := m.Menu()
	at := slices.IndexFunc(w.Subnets, func(s v1alpha1.Subnet) bool { return s.Name == choice.Subnet })
	if !ok || at < 0 || w.Subnets[at].Spec.BootMenu == nil {
		return choice, nil
	}
	menu := w.Subnets[at].Spec.BootMenu
	if menu.Mode == v1alpha1.BootMenuFree || menu.Mode == v1alpha1.BootMenuPIN && choice.PIN {
		return choice, menu.Entry(choice.Entry)
	}
	return choice, nil
}

// enrolledByMenu is AnnotationEnrolledBy of a machine whose console chose an entry. No policy has such a name.
func enrolledByMenu(c v1alpha1.MenuChoice) string { return "menu/" + c.Subnet + "/" + c.Entry }

// applyChoice gives the machine what the entry has for it, and approves it. What a person wrote stays.
func applyChoice(m *v1alpha1.Machine, c v1alpha1.MenuChoice, e *v1alpha1.BootMenuEntry, w World) (held string) {
	labels := map[string]string{}
	profile := e.Profile
	if e.Group != "" {
		at := slices.IndexFunc(w.Groups, func(g v1alpha1.MachineGroup) bool { return g.Name == e.Group })
		if at < 0 {
			return fmt.Sprintf("there is no MachineGroup %s", e.Group)
		}
		group := &w.Groups[at]
		if len(group.Spec.Selector.MatchLabels) == 0 {
			return fmt.Sprintf("MachineGroup %s has no spec.selector.matchLabels, so that no labels bring a machine into it", e.Group)
		}
		maps.Copy(labels, group.Spec.Selector.MatchLabels)
		profile = cmp.Or(profile, group.Spec.Profile)
	}
	if e.Role != "" {
		labels[v1alpha1.LabelMenuRole] = string(e.Role)
	}
	maps.Copy(labels, e.Labels)

	m.Spec.Profile = cmp.Or(m.Spec.Profile, profile)
	if m.Spec.Network == nil {
		m.Spec.Network = &v1alpha1.MachineNetwork{}
	}
	m.Spec.Network.Subnet = cmp.Or(m.Spec.Network.Subnet, c.Subnet)
	if held := assignAddress(m, w); held != "" {
		return held
	}
	m.Labels = maps.Clone(m.Labels)
	if m.Labels == nil {
		m.Labels = map[string]string{}
	}
	maps.Copy(m.Labels, labels)
	m.Spec.Approved = true
	m.Annotations[v1alpha1.AnnotationEnrolledBy] = enrolledByMenu(c)
	return ""
}
