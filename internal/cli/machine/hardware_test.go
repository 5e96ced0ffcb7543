package machine

import (
	"strings"
	"testing"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/machine/drift"
)

func TestAcceptHardware(t *testing.T) {
	disks := func(serials ...string) *v1alpha1.Hardware {
		h := &v1alpha1.Hardware{}
		for _, serial := range serials {
			h.Disks = append(h.Disks, v1alpha1.DiskState{Name: "sd", Model: "P5500", Serial: serial})
		}
		return h
	}
	accepted := &v1alpha1.AcceptedHardware{Parts: drift.Parts(disks("S1", "S2"))}
	cut := disks("S1")
	cut.Incomplete = "the report is too large; left out: its disks"
	for name, tt := range map[string]struct {
		status v1alpha1.MachineStatus
		want   string
		err    string
	}{
		"a disk is gone":   {v1alpha1.MachineStatus{Hardware: disks("S1"), AcceptedHardware: accepted}, "missing: disk S2 (P5500, 0B)", ""},
		"nothing is gone":  {v1alpha1.MachineStatus{Hardware: disks("S1", "S2", "S3"), AcceptedHardware: accepted}, "", "is what was accepted"},
		"nothing reported": {v1alpha1.MachineStatus{AcceptedHardware: accepted}, "", "has not reported its hardware"},
		"half a report":    {v1alpha1.MachineStatus{Hardware: cut, AcceptedHardware: accepted}, "", "is not compared: the report is too large"},
		"not approved yet": {v1alpha1.MachineStatus{Hardware: disks("S1")}, "", "nothing is accepted of n1 yet"},
	} {
		t.Run(name, func(t *testing.T) {
			m := &v1alpha1.Machine{Status: tt.status}
			m.Name = "n1"
			got, err := acceptHardware(m)
			if got != tt.want || (err == nil) != (tt.err == "") || err != nil && !strings.Contains(err.Error(), tt.err) {
				t.Fatalf("%q, %v", got, err)
			}
			if err != nil {
				return
			}
			// What the server makes of it.
			is, changed := drift.Accept(m.Status.AcceptedHardware, drift.Parts(m.Status.Hardware), m.Annotations[v1alpha1.AnnotationAcceptHardware])
			if !changed || len(is.Parts) != 1 {
				t.Errorf("%v, %+v", changed, is)
			}
		})
	}
}
