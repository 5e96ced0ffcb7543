package machine

import (
	"strings"
	"testing"

	"coldrack.dev/api/v1alpha1"
)

func TestWhere(t *testing.T) {
	m := &v1alpha1.Machine{
		Spec:   v1alpha1.MachineSpec{Location: v1alpha1.Location{Site: "a", Rack: "R1", Unit: 12}},
		Status: v1alpha1.MachineStatus{Phase: v1alpha1.PhaseReady, Power: &v1alpha1.PowerStatus{State: "On"}},
	}
	for text, want := range map[string]bool{
		"": true, "rack=r1": true, "rack=r2|r1,unit=12": true, "unit=10-20": true, "unit=13-20": false, "rack=r1,room=x": false, "power=on,phase=ready": true, "power=off": false,
	} {
		w, err := ParseWhere(text)
		if err != nil || w.Matches(m) != want {
			t.Errorf("%q: %t, %v", text, w.Matches(m), err)
		}
	}
	for _, text := range []string{"rack", "rack=", "shelf=1", "unit=x", "unit=9-3", "rack=r1,"} {
		if _, err := ParseWhere(text); err == nil || !strings.Contains(err.Error(), "--where") {
			t.Errorf("%q: %v", text, err)
		}
	}
}
