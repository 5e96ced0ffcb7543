package rehearse

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"
)

// Result is what a rehearsal found out.
type Result struct {
	Machines int     `json:"machines"`
	Ready    int     `json:"ready"`
	Lost     int     `json:"lost"`
	Refused  int     `json:"refused"`
	Waiting  int     `json:"waiting"` // neither ready nor lost in the end
	Ended    string  `json:"ended"`   // why the rehearsal ended
	Subnet   string  `json:"subnet"`
	Loss     float64 `json:"loss,omitempty"`
	// FinishedAt is when the last machine that became ready did so, counted from the first power-on.
	FinishedAt time.Duration        `json:"finishedAt"`
	Arrivals   []Arrival            `json:"arrivals,omitempty"`
	Ramp       time.Duration        `json:"ramp"`
	Timings    map[string]Quantiles `json:"timings"`
	// Spent is how long machines were in a phase on their way, on average over all.
	Spent      map[Phase]time.Duration `json:"spent"`
	Reasons    []Reason                `json:"reasons,omitempty"`
	Repeats    int                     `json:"repeats"` // of messages by the machines' firmware
	Received   int64                   `json:"receivedBytes"`
	Server     ServerUse               `json:"server"`
	Bottleneck string                  `json:"bottleneck"`
	Warnings   []string                `json:"warnings,omitempty"`

	points  []Point
	samples []Sample
}

// ServerUse is what the server took.
type ServerUse struct {
	Cores        int     `json:"cores"` // of this host, shared with the simulation
	CPUSeconds   float64 `json:"cpuSeconds"`
	PeakCPU      float64 `json:"peakCPU"` // cores, over about a second
	MeanCPU      float64 `json:"meanCPU"` // cores, from the first power-on to the last ready machine
	RackMeanCPU  float64 `json:"simulationMeanCPU"`
	StartMemory  int64   `json:"startMemoryBytes"`
	PeakMemory   int64   `json:"peakMemoryBytes"`
	EndMemory    int64   `json:"endMemoryBytes"`
	SentBytes    uint64  `json:"sentBytes"`
	PeakSent     float64 `json:"peakSentBytesPerSecond"`
	HoldCPU      float64 `json:"holdCPU,omitempty"` // cores, while only nodes report
	HoldDuration float64 `json:"holdSeconds,omitempty"`
	RackMemory   int64   `json:"simulationPeakMemoryBytes"`
}

func summarize(o Options, p plan, r *Record, w *watch, why string) *Result {
	result := &Result{Machines: r.machines, Ready: r.counts[Ready], Lost: r.counts[Lost], Refused: r.counts[Refused], Ended: why, Subnet: p.subnet,
		Loss: o.Loss, Ramp: o.Ramp, Timings: map[string]Quantiles{}, Reasons: r.Reasons(), Repeats: r.repeats, Received: r.bytes,
		Warnings: p.warnings, points: r.points, samples: w.samples}
	result.Waiting = result.Machines - result.Ready - result.Lost - result.Refused
	for i, phase := range r.phase {
		if phase == Ready {
			result.FinishedAt = max(result.FinishedAt, r.since[i])
		}
	}
	result.Arrivals = arrivals(r.machines, r.points)
	for what, samples := range r.samples {
		result.Timings[what] = quantiles(samples)
	}
	result.Spent = map[Phase]time.Duration{}
	for phase, total := range r.spent {
		if !phase.ended() {
			result.Spent[phase] = total / time.Duration(max(r.machines, 1))
		}
	}
	result.Server = serverUse(w, result.FinishedAt)
	result.Bottleneck = bottleneck(result)
	return result
}

func serverUse(w *watch, finished time.Duration) ServerUse {
	u := ServerUse{Cores: cores(), StartMemory: w.base.Memory, RackMemory: w.rack.Usage().Peak}
	if len(w.samples) < 2 {
		return u
	}
	last := w.samples[len(w.samples)-1]
	u.CPUSeconds, u.EndMemory, u.SentBytes = last.CPU.Seconds(), last.Memory, last.Sent
	u.PeakMemory = w.server.Usage().Peak
	busy := w.samples[len(w.samples)-1]
	for i := len(w.samples) - 1; i > 0 && w.samples[i].At >= finished; i-- {
		busy = w.samples[i]
	}
	mean := rates(w.samples[0], busy)
	u.MeanCPU, u.RackMeanCPU = mean.CPU, mean.Rack
	for i := 2; i < len(w.samples); i++ {
		r := rates(w.samples[i-2], w.samples[i])
		u.PeakCPU, u.PeakSent = max(u.PeakCPU, r.CPU), max(u.PeakSent, r.Sent)
	}
	// The first half goes to what the server has still to write down of the last machines.
	if from := (w.hold + len(w.samples)) / 2; w.hold > 0 && from < len(w.samples)-1 {
		r := rates(w.samples[from], last)
		u.HoldCPU, u.HoldDuration = r.CPU, (last.At - w.samples[from].At).Seconds()
	}
	return u
}

// bottleneck guesses what a faster rehearsal would need most.
func bottleneck(r *Result) string {
	s := r.Server
	used := s.MeanCPU + s.RackMeanCPU
	sent := float64(s.SentBytes)
	perLink := fmt.Sprintf("the server sent %s, which takes %s over 1 Gbit/s and %s over 10 Gbit/s at least", bytesText(sent),
		durationText(time.Duration(sent/118e6*float64(time.Second))), durationText(time.Duration(sent/1.18e9*float64(time.Second))))
	switch {
	case r.Ready == 0:
		return "no machine became ready; see the reasons"
	case used >= 0.85*float64(s.Cores) && s.MeanCPU >= s.RackMeanCPU:
		return fmt.Sprintf("the server's processors: it used %.1f of %d cores, the simulation on the same host %.1f; %s", s.MeanCPU, s.Cores, s.RackMeanCPU, perLink)
	case used >= 0.85*float64(s.Cores):
		return fmt.Sprintf("this host, not the server: the simulation used %.1f of %d cores, the server %.1f; a real rack would be served faster; %s", s.RackMeanCPU, s.Cores, s.MeanCPU, perLink)
	case 2*r.Spent[Waiting] > total(r.Spent):
		return fmt.Sprintf("the server's decisions: machines spent %s of %s waiting for approval and plan, while the processors were idle for %.0f %% of the time; %s",
			durationText(r.Spent[Waiting]), durationText(total(r.Spent)), 100*max(0, 1-used/float64(s.Cores)), perLink)
	case r.FinishedAt > 0 && r.Ramp > 0 && r.FinishedAt < r.Ramp+r.Ramp/4:
		return "how fast the machines are switched on; " + perLink
	case r.Repeats > r.Machines/10:
		return fmt.Sprintf("waiting: firmware sent %d messages again after its time-outs, and the processors were idle for %.0f %% of the time; %s",
			r.Repeats, 100*max(0, 1-used/float64(s.Cores)), perLink)
	}
	return "the machines' links and pauses of the protocols: the processors were not busy; " + perLink
}

func total(spent map[Phase]time.Duration) (sum time.Duration) {
	for _, d := range spent {
		sum += d
	}
	return sum
}

// Text writes the result for a person.
func (r *Result) Text(out io.Writer) error {
	var b strings.Builder
	for _, warning := range r.Warnings {
		fmt.Fprintf(&b, "Note: %s.\n", warning)
	}
	fmt.Fprintf(&b, "%d of %d machines ready", r.Ready, r.Machines)
	if r.Ready > 0 {
		fmt.Fprintf(&b, " %s after the first was switched on", durationText(r.FinishedAt))
	}
	fmt.Fprintf(&b, "; %d lost, %d refused, %d waiting.\n", r.Lost, r.Refused, r.Waiting)
	fmt.Fprintf(&b, "The time that firmware and kernels take to start, and disks to write, is not in it.\n\n")
	table := tabwriter.NewWriter(&b, 0, 0, 3, ' ', 0)
	fmt.Fprintln(table, "STEP\tCOUNT\tP50\tP99\tMAX")
	for _, what := range measurements() {
		if q, ok := r.Timings[what]; ok {
			fmt.Fprintf(table, "%s\t%d\t%s\t%s\t%s\n", what, q.Count, durationText(q.P50), durationText(q.P99), durationText(q.Max))
		}
	}
	if err := table.Flush(); err != nil {
		return err
	}
	if len(r.Reasons) > 0 {
		fmt.Fprintf(&b, "\nNot ready:\n")
		const most = 12
		for i, reason := range r.Reasons {
			if i == most {
				fmt.Fprintf(&b, "  and %d more reasons\n", len(r.Reasons)-most)
				break
			}
			text := reason.Text
			if text == "" {
				text = "no reason given"
			}
			fmt.Fprintf(&b, "  %d %s: %s\n", reason.Machines, reason.Phase, text)
		}
	}
	s := r.Server
	fmt.Fprintf(&b, "\nServer: %.1f s of processor time, at most %.1f of %d cores (on average %.1f; the simulation took %.1f);\n",
		s.CPUSeconds, s.PeakCPU, s.Cores, s.MeanCPU, s.RackMeanCPU)
	fmt.Fprintf(&b, "        memory %s at the start, %s at most; sent %s, at most %.2f Gbit/s.\n",
		bytesText(float64(s.StartMemory)), bytesText(float64(s.PeakMemory)), bytesText(float64(s.SentBytes)), s.PeakSent*8/1e9)
	if s.HoldDuration > 0 {
		fmt.Fprintf(&b, "        %.2f cores for the heartbeats of %d nodes, over %.0f s.\n", s.HoldCPU, r.Ready, s.HoldDuration)
	}
	fmt.Fprintf(&b, "Firmware sent %d messages again. Bottleneck: %s.\n", r.Repeats, r.Bottleneck)
	_, err := io.WriteString(out, b.String())
	return err
}

// durationText shows three digits at most.
func durationText(d time.Duration) string {
	switch {
	case d < time.Millisecond:
		return fmt.Sprintf("%d µs", d.Microseconds())
	case d < 100*time.Millisecond:
		return fmt.Sprintf("%.1f ms", float64(d)/float64(time.Millisecond))
	case d < time.Second:
		return fmt.Sprintf("%d ms", d.Milliseconds())
	case d < 2*time.Minute:
		return fmt.Sprintf("%.1f s", d.Seconds())
	}
	return d.Round(time.Second).String()
}

func bytesText(n float64) string {
	for _, unit := range []string{"B", "KiB", "MiB"} {
		if n < 1024 {
			return fmt.Sprintf("%.0f %s", n, unit)
		}
		n /= 1024
	}
	return fmt.Sprintf("%.1f GiB", n)
}
