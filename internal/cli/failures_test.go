package cli

import (
	"bytes"
	"testing"
	"time"

	"coldrack.dev/api/v1alpha1"
)

// Machines with one trouble are one line, whatever each message has of its own machine.
func TestFailuresByCause(t *testing.T) {
	machine := func(name string, phase v1alpha1.MachinePhase, step, message string) v1alpha1.Machine {
		m := v1alpha1.Machine{}
		m.Name, m.Status.Phase, m.Status.Message = name, phase, message
		if step != "" {
			m.Status.Steps = []v1alpha1.Step{{Name: step, State: v1alpha1.StepFailed, Message: message}}
		}
		return m
	}
	var b bytes.Buffer
	err := PrintFailures(&b, Failures([]v1alpha1.Machine{
		machine("a1-u3", v1alpha1.PhaseFailed, "image", "machine a1-u3: 10.0.0.13: no chunk in 30s from 52:54:00:00:00:03"),
		machine("a1-u1", v1alpha1.PhaseFailed, "network", "no link on eno1"),
		machine("a1-u2", v1alpha1.PhaseFailed, "network", "no link on eno1"),
		machine("a1-u4", v1alpha1.PhaseFailed, "network", "no link on eno2"),
		machine("a1-u5", v1alpha1.PhaseReady, "", ""),
		machine("a1-u6", v1alpha1.PhaseFailed, "image", "machine a1-u6: 10.0.0.16: no chunk in 45s from 52:54:00:00:00:06"),
		machine("a1-u7", v1alpha1.PhaseFailed, "image", "machine a1-u7: 10.0.0.17: no chunk in 45s from 52:54:00:00:00:07"),
	}, time.Unix(0, 0)))
	want := `3 machines: image: machine …: …: no chunk in … from …
  a1-u3 a1-u6 a1-u7
2 machines: network: no link on eno1
  a1-u1 a1-u2
1 machine: network: no link on eno2
  a1-u4
`
	if err != nil || b.String() != want {
		t.Errorf("got\n%s%v\nwant\n%s", b.String(), err, want)
	}
}
