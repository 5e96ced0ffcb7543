package rehearse

import (
	"cmp"
	"net/netip"
	"regexp"
	"slices"
	"time"
)

// Phase is where a simulated machine stands.
type Phase string

// Phases in the order in which a machine goes through them.
const (
	Off         Phase = "off"
	DHCP        Phase = "dhcp"        // the firmware asks for an address
	FirstStage  Phase = "first-stage" // iPXE by TFTP
	IPXE        Phase = "ipxe"        // iPXE: address, script, decision
	Loading     Phase = "loading"     // kernel and initramfs
	Enrolling   Phase = "enrolling"   // the discovery system: address, enrolment, inventory
	Waiting     Phase = "waiting"     // for something to do
	Installing  Phase = "installing"
	Restarting  Phase = "restarting" // the way to its own disk
	Ready       Phase = "ready"      // the installed node has reported
	Lost        Phase = "lost"       // the firmware has given up
	Refused     Phase = "refused"    // the server wants nothing of it
	phasesCount       = 12
)

// Phases are all phases in order.
func Phases() []Phase {
	return []Phase{Off, DHCP, FirstStage, IPXE, Loading, Enrolling, Waiting, Installing, Restarting, Ready, Lost, Refused}
}

// ended says that nothing more comes of a machine.
func (p Phase) ended() bool { return p == Ready || p == Lost || p == Refused }

// Event is what the machines tell of themselves, one line of JSON each.
type Event struct {
	At      time.Duration `json:"at"` // since the start
	Machine int           `json:"machine"`
	// Phase that the machine enters; empty for a measurement.
	Phase  Phase  `json:"phase,omitempty"`
	Reason string `json:"reason,omitempty"`
	// What was measured, and how long it took; with a phase, how long ago the boot began.
	What string        `json:"what,omitempty"`
	Took time.Duration `json:"took,omitempty"`
	// Address that the machine was leased.
	Address netip.Addr `json:"address,omitzero"`
	// Bytes that have come since the last such event, of all machines.
	Bytes int64 `json:"bytes,omitempty"`
	// Repeats counts messages that were sent again: by the firmware over UDP.
	Repeats int `json:"repeats,omitempty"`
}

// What is measured.
const (
	tookLease     = "DHCP exchange"
	tookStage     = "first stage by TFTP"
	tookDecision  = "boot decision"
	tookKernel    = "kernel and initramfs"
	tookEnrol     = "enrolment"
	tookInventory = "inventory report"
	tookImage     = "image"
	tookInstall   = "install"
	tookRestart   = "way to the own disk"
	tookHeartbeat = "heartbeat"
	tookAll       = "power-on to ready"
)

// measurements in the order in which they are shown.
func measurements() []string {
	return []string{tookLease, tookStage, tookDecision, tookKernel, tookEnrol, tookInventory, tookImage, tookInstall, tookRestart, tookHeartbeat, tookAll}
}

// Record takes events in and sums them up. It is pure.
type Record struct {
	machines int
	phase    []Phase
	since    []time.Duration
	began    []time.Duration
	reasons  map[int]string
	samples  map[string][]time.Duration
	counts   map[Phase]int
	points   []Point
	step     time.Duration
	last     time.Duration // of a change of phase
	bytes    int64
	repeats  int
	spent    map[Phase]time.Duration // by all machines together, in phases that they have left
}

// Point is how many machines are in each phase at a time.
type Point struct {
	At     time.Duration
	Counts [phasesCount]int
}

// NewRecord is for a number of machines, all off. Points are at least step apart.
func NewRecord(machines int, step time.Duration) *Record {
	r := &Record{machines: machines, step: step, phase: make([]Phase, machines), since: make([]time.Duration, machines),
		began: make([]time.Duration, machines), reasons: map[int]string{}, samples: map[string][]time.Duration{}, counts: map[Phase]int{Off: machines}, spent: map[Phase]time.Duration{}}
	for i := range r.phase {
		r.phase[i] = Off
	}
	r.point(0)
	return r
}

// Add takes one event in. Events of different machines may come a little out of order.
func (r *Record) Add(e Event) {
	if e.Machine < 0 || e.Machine >= r.machines {
		return
	}
	r.bytes += e.Bytes
	r.repeats += e.Repeats
	if e.What != "" {
		r.samples[e.What] = append(r.samples[e.What], e.Took)
	}
	if e.Phase == "" {
		return
	}
	if r.phase[e.Machine] == Off {
		r.began[e.Machine] = e.At
	}
	if e.Phase == Ready {
		r.samples[tookAll] = append(r.samples[tookAll], e.At-r.began[e.Machine])
	}
	delete(r.reasons, e.Machine)
	if e.Reason != "" {
		r.reasons[e.Machine] = e.Reason
	}
	for len(r.points) > 0 && e.At-r.points[len(r.points)-1].At >= r.step {
		r.point(r.points[len(r.points)-1].At + r.step)
	}
	if was := r.phase[e.Machine]; was != Off {
		r.spent[was] += max(0, e.At-r.since[e.Machine])
	}
	r.counts[r.phase[e.Machine]]--
	r.counts[e.Phase]++
	r.phase[e.Machine], r.since[e.Machine] = e.Phase, e.At
	r.last = max(r.last, e.At)
}

// Finish closes the series of points.
func (r *Record) Finish() { r.point(max(r.last, r.points[len(r.points)-1].At) + 1) }

func (r *Record) point(at time.Duration) {
	p := Point{At: at}
	for i, phase := range Phases() {
		p.Counts[i] = r.counts[phase]
	}
	r.points = append(r.points, p)
}

// Count is how many machines are in a phase now.
func (r *Record) Count(phase Phase) int { return r.counts[phase] }

// Stuck says whether nothing has moved for so long that nothing more will: all machines have ended or wait.
func (r *Record) Stuck(now, quiet time.Duration) bool {
	moving := r.machines
	for _, phase := range []Phase{Ready, Lost, Refused, Waiting} {
		moving -= r.counts[phase]
	}
	return moving == 0 && now-r.last >= quiet
}

// Ended says whether nothing more comes of any machine.
func (r *Record) Ended() bool {
	return r.counts[Ready]+r.counts[Lost]+r.counts[Refused] == r.machines
}

// Quantiles sums up a list of durations.
type Quantiles struct {
	Count int           `json:"count"`
	P50   time.Duration `json:"p50"`
	P99   time.Duration `json:"p99"`
	Max   time.Duration `json:"max"`
}

// quantiles uses the nearest-rank method.
func quantiles(samples []time.Duration) Quantiles {
	if len(samples) == 0 {
		return Quantiles{}
	}
	sorted := slices.Clone(samples)
	slices.Sort(sorted)
	rank := func(percent int) time.Duration { return sorted[max((len(sorted)*percent+99)/100, 1)-1] }
	return Quantiles{len(sorted), rank(50), rank(99), sorted[len(sorted)-1]}
}

// Reason is why machines did not become ready, with how many of them.
type Reason struct {
	Phase    Phase  `json:"phase"`
	Text     string `json:"text"`
	Machines int    `json:"machines"`
}

// alike takes out of a reason what is one machine's own, so that those of many can be counted together.
func alike(reason string) string {
	for _, own := range ownWords {
		reason = own.pattern.ReplaceAllString(reason, own.name)
	}
	return reason
}

var ownWords = []struct {
	pattern *regexp.Regexp
	name    string
}{
	{regexp.MustCompile(`\bm-[0-9a-f]{12}\b`), "NAME"},
	{regexp.MustCompile(`\b[0-9a-f]{2}(:[0-9a-f]{2}){5}\b`), "MAC"},
	{regexp.MustCompile(`\b\d+\.\d+\.\d+\.\d+:\d+\b`), "ADDRESS"},
	{regexp.MustCompile(`\b[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\b`), "ID"},
	{regexp.MustCompile(`\bat byte \d+( of \d+)?`), "in the middle"},
}

// Reasons are those of all machines that are not ready, the most frequent first.
func (r *Record) Reasons() []Reason {
	type key struct {
		phase Phase
		text  string
	}
	counts := map[key]int{}
	for i, phase := range r.phase {
		if phase != Ready {
			counts[key{phase, alike(r.reasons[i])}]++
		}
	}
	var out []Reason
	for k, n := range counts {
		out = append(out, Reason{k.phase, k.text, n})
	}
	slices.SortFunc(out, func(a, b Reason) int {
		return cmp.Or(b.Machines-a.Machines, cmp.Compare(a.Phase, b.Phase), cmp.Compare(a.Text, b.Text))
	})
	return out
}
