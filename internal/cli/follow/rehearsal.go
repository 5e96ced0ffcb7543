package follow

import (
	"fmt"
	"os"
	"time"

	"sigs.k8s.io/yaml"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/lab/rehearse"
)

// Rehearsal is what a run is compared with.
type Rehearsal struct {
	result *rehearse.Result
	// from is when a machine must have booted at the earliest to be part of the run.
	from time.Time
}

// ReadRehearsal returns nil for no file.
func ReadRehearsal(file string, now time.Time) (*Rehearsal, error) {
	if file == "" {
		return nil, nil
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("read the rehearsal: %w", err)
	}
	result := &rehearse.Result{}
	if err := yaml.Unmarshal(text, result); err != nil {
		return nil, fmt.Errorf("%s: %w; it must be what \"coldrack rehearse -o json\" wrote", file, err)
	}
	if result.Machines == 0 || len(result.Arrivals) == 0 {
		return nil, fmt.Errorf("%s: no machine was ready in it, or it is not what \"coldrack rehearse -o json\" wrote", file)
	}
	// Whoever begins to watch late sees the whole run all the same.
	return &Rehearsal{result, now.Add(-2*result.FinishedAt - 10*time.Minute)}, nil
}

func (r *Rehearsal) compare(machines map[string]*v1alpha1.Machine, now time.Time) rehearse.Comparison {
	var real []rehearse.Real
	for _, m := range machines {
		real = append(real, realOf(m))
	}
	return r.result.Compare(real, r.from, now)
}

// realOf finds the boot into the agent that the machine's run began with, its last one.
func realOf(m *v1alpha1.Machine) rehearse.Real {
	out := rehearse.Real{Name: m.Name}
	for _, b := range m.Status.Boots {
		if (b.Action == v1alpha1.BootDiscover || b.Action == v1alpha1.BootInstall) && b.At.After(out.Booted) {
			out.Booted = b.At.Time
		}
	}
	if m.Status.Phase == v1alpha1.PhaseReady && m.Status.PhaseSince != nil && m.Status.PhaseSince.After(out.Booted) {
		out.Ready = m.Status.PhaseSince.Time
	}
	return out
}
