package v1alpha1

import (
	"strings"
	"testing"
)

func TestWhoWantsAReboot(t *testing.T) {
	for _, test := range []struct {
		name, annotation string
		reboot           *RebootStatus
		required         string
		want             string
		asked            bool
	}{
		{"nobody", "", nil, "", "", false},
		{"the operating system", "", nil, "libc6", "required by libc6", false},
		{"a person", "for the firmware", &RebootStatus{"for the firmware", "boot-1"}, "libc6", "asked for for the firmware", true},
		{"a person, whose word was not noted yet", "again", &RebootStatus{"for the firmware", "boot-1"}, "", "", false},
		{"a person who thought better of it", "", &RebootStatus{"for the firmware", "boot-1"}, "", "", false},
		{"a person, before the last boot", "for the firmware", &RebootStatus{"for the firmware", "boot-0"}, "", "", false},
	} {
		t.Run(test.name, func(t *testing.T) {
			m := &Machine{}
			m.Annotations = map[string]string{AnnotationReboot: test.annotation}
			m.Status.Installed, m.Status.Reboot = &InstalledStatus{}, test.reboot
			m.Status.Node = &NodeStatus{BootID: "boot-1", RebootRequired: test.required}
			if why, asked := m.WantsReboot(); why != test.want || asked != test.asked {
				t.Errorf("got %q, %t", why, asked)
			}
		})
	}
	m := &Machine{}
	m.Annotations = map[string]string{AnnotationReboot: strings.Repeat("ü", 300)}
	if got := m.RebootRequest(); got != strings.Repeat("ü", 100) {
		t.Errorf("a long request is cut to %d bytes", len(got))
	}
}
