package rehearse

import (
	"fmt"
	"html"
	"io"
	"math"
	"slices"
	"strings"
	"time"
)

// Colours of phases: those on the way from grey-blue to blue, an end in green or red.
var phaseColours = map[Phase]string{
	DHCP: "#7c8ba1", FirstStage: "#9aa9bf", IPXE: "#b9a5d6", Loading: "#8f74bf", Enrolling: "#e0b04c",
	Waiting: "#f0d58a", Installing: "#4f8fd0", Restarting: "#8fc1e8", Ready: "#4da167", Lost: "#c8413b", Refused: "#e58a80",
}

// stacked are phases from the bottom to the top: what is done grows from below.
var stacked = []Phase{Ready, Restarting, Installing, Waiting, Enrolling, Loading, IPXE, FirstStage, DHCP, Refused, Lost}

const (
	plotWidth, plotLeft, plotRight = 960, 64, 170
	panelGap                       = 46
)

// Plot draws the machines by phase over time, and below what the server took, as SVG.
func (r *Result) Plot(out io.Writer) error {
	var b strings.Builder
	end := time.Second
	if n := len(r.points); n > 0 {
		end = max(end, r.points[n-1].At)
	}
	if n := len(r.samples); n > 0 {
		end = max(end, r.samples[n-1].At)
	}
	const top, tall, small = 64, 300, 110
	height := top + tall + 2*(panelGap+small) + 44
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" width="%d" height="%d" font-family="system-ui, sans-serif" font-size="12">`, plotWidth, height, plotWidth, height)
	fmt.Fprintf(&b, `<rect width="%d" height="%d" fill="#ffffff"/>`, plotWidth, height)
	title := fmt.Sprintf("%d machines switched on within %s: %d ready, %d lost", r.Machines, durationText(r.Ramp), r.Ready, r.Lost)
	if r.Ready > 0 {
		title += fmt.Sprintf(", the last after %s", durationText(r.FinishedAt))
	}
	fmt.Fprintf(&b, `<text x="%d" y="28" font-size="17" font-weight="600" fill="#1b2430">%s</text>`, plotLeft, html.EscapeString(title))

	machines := panel{&b, top, tall, end, niceCeiling(float64(max(r.Machines, 1)))}
	machines.frame("machines", "%.0f")
	r.areas(machines)

	var cpu, rack, sent []value
	most := rate{CPU: 0.1, Sent: 1e6}
	for i := 1; i < len(r.samples); i++ {
		s := rates(r.samples[i-1], r.samples[i])
		at := (r.samples[i-1].At + r.samples[i].At) / 2
		cpu, rack, sent = append(cpu, value{at, s.CPU}), append(rack, value{at, s.Rack}), append(sent, value{at, s.Sent * 8 / 1e9})
		most.CPU, most.Sent = max(most.CPU, s.CPU, s.Rack), max(most.Sent, s.Sent)
	}
	second := panel{&b, top + tall + panelGap, small, end, niceCeiling(most.CPU)}
	second.frame("processor cores", "%g")
	second.line(rack, "#b4bcc8")
	second.line(cpu, "#c2571a")
	second.label(0, "server", "#c2571a")
	second.label(1, "simulation", "#8a94a3")
	third := panel{&b, second.top + small + panelGap, small, end, niceCeiling(most.Sent * 8 / 1e9)}
	third.frame("sent, Gbit/s", "%g")
	third.line(sent, "#2f6db3")
	third.label(0, "server to rack", "#2f6db3")
	third.times()
	b.WriteString("</svg>\n")
	_, err := io.WriteString(out, b.String())
	return err
}

type value struct {
	at time.Duration
	y  float64
}

// panel is one diagram; all share the axis of time.
type panel struct {
	b         *strings.Builder
	top, tall int
	end       time.Duration
	most      float64
}

func (p panel) x(at time.Duration) float64 {
	return plotLeft + float64(at)/float64(p.end)*(plotWidth-plotLeft-plotRight)
}

func (p panel) y(v float64) float64 { return float64(p.top) + float64(p.tall)*(1-v/p.most) }

func (p panel) frame(what, format string) {
	fmt.Fprintf(p.b, `<text x="%d" y="%d" fill="#4a5563">%s</text>`, plotLeft, p.top-9, what)
	for i := range 3 {
		v := p.most * float64(i) / 2
		fmt.Fprintf(p.b, `<line x1="%d" x2="%d" y1="%.1f" y2="%.1f" stroke="#e3e7ec"/>`, plotLeft, plotWidth-plotRight, p.y(v), p.y(v))
		fmt.Fprintf(p.b, `<text x="%d" y="%.1f" text-anchor="end" fill="#6b7685">`+format+`</text>`, plotLeft-8, p.y(v)+4, v)
	}
}

// times draws the axis below the last panel.
func (p panel) times() {
	step := niceStep(p.end.Seconds() / 8)
	for s := 0.0; s <= p.end.Seconds(); s += step {
		x := p.x(time.Duration(s * float64(time.Second)))
		fmt.Fprintf(p.b, `<text x="%.1f" y="%d" text-anchor="middle" fill="#6b7685">%g s</text>`, x, p.top+p.tall+20, s)
	}
}

func (p panel) line(values []value, colour string) {
	if len(values) == 0 {
		return
	}
	p.b.WriteString(`<polyline fill="none" stroke-width="1.8" stroke="` + colour + `" points="`)
	for _, v := range values {
		fmt.Fprintf(p.b, "%.1f,%.1f ", p.x(v.at), p.y(min(v.y, p.most)))
	}
	p.b.WriteString(`"/>`)
}

func (p panel) label(row int, text, colour string) {
	y := p.top + 14 + 18*row
	fmt.Fprintf(p.b, `<line x1="%d" x2="%d" y1="%d" y2="%d" stroke="%s" stroke-width="3"/>`, plotWidth-plotRight+14, plotWidth-plotRight+30, y-4, y-4, colour)
	fmt.Fprintf(p.b, `<text x="%d" y="%d" fill="#1b2430">%s</text>`, plotWidth-plotRight+36, y, text)
}

// areas draws the phases on top of each other, and says which is which.
func (r *Result) areas(p panel) {
	order := Phases()
	base := make([]int, len(r.points))
	var shown []Phase
	for _, phase := range stacked {
		index := slices.Index(order, phase)
		ever := false
		var upper, lower []string
		for i, point := range r.points {
			n := point.Counts[index]
			ever = ever || n > 0
			lower = append(lower, fmt.Sprintf("%.1f,%.1f", p.x(point.At), p.y(float64(base[i]))))
			base[i] += n
			upper = append(upper, fmt.Sprintf("%.1f,%.1f", p.x(point.At), p.y(float64(base[i]))))
		}
		if !ever {
			continue
		}
		slices.Reverse(lower)
		fmt.Fprintf(p.b, `<polygon fill="%s" points="%s %s"/>`, phaseColours[phase], strings.Join(upper, " "), strings.Join(lower, " "))
		shown = append(shown, phase)
	}
	slices.Reverse(shown)
	for i, phase := range shown {
		y := p.top + 12 + 20*i
		fmt.Fprintf(p.b, `<rect x="%d" y="%d" width="12" height="12" fill="%s"/>`, plotWidth-plotRight+14, y-10, phaseColours[phase])
		fmt.Fprintf(p.b, `<text x="%d" y="%d" fill="#1b2430">%s</text>`, plotWidth-plotRight+32, y, phase)
	}
}

// niceStep is the next of 1, 2, 5, 10, ... above v.
func niceStep(v float64) float64 {
	if v <= 0 {
		return 1
	}
	power := math.Pow(10, math.Floor(math.Log10(v)))
	for _, factor := range []float64{1, 2, 5} {
		if v <= factor*power*(1+1e-9) {
			return factor * power
		}
	}
	return 10 * power
}

// niceCeiling is an end for an axis whose half reads well, too.
func niceCeiling(v float64) float64 {
	step := niceStep(v / 4)
	return math.Ceil(v/step/2-1e-9) * step * 2
}
