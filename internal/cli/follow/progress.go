package follow

import (
	"fmt"
	"io"
	"time"

	"coldrack.dev/internal/cli"
	"coldrack.dev/internal/lab/rehearse"
)

// RehearsalProgress keeps one line up to date where a person looks on.
type RehearsalProgress struct {
	out   io.Writer
	width int
	doing string
	last  time.Time
}

// NewRehearsalProgress writes to out.
func NewRehearsalProgress(out io.Writer) *RehearsalProgress {
	width, _, _ := cli.Terminal(out)
	return &RehearsalProgress{out: out, width: width}
}

// At shows a snapshot, if it is time.
func (p *RehearsalProgress) At(s rehearse.Snapshot) {
	if s.Doing != "" {
		if s.Doing != p.doing {
			p.doing = s.Doing
			p.show(s.Doing, true)
		}
		return
	}
	every := time.Second
	if p.width == 0 {
		every = 10 * time.Second
	}
	if time.Since(p.last) < every {
		return
	}
	p.last = time.Now()
	asked := s.Machines - s.Counts[rehearse.Off]
	line := fmt.Sprintf("%4.0f s  %d asked", s.At.Seconds(), asked)
	for _, phase := range rehearse.Phases()[1:] {
		if n := s.Counts[phase]; n > 0 || phase == rehearse.Lost {
			line += fmt.Sprintf(", %d %s", n, phase)
		}
	}
	line += fmt.Sprintf("  |  server %.1f cores, %d MiB, %.1f Gbit/s", s.CPU, s.Memory>>20, s.Sent*8/1e9)
	p.show(line, false)
}

func (p *RehearsalProgress) show(line string, step bool) {
	switch {
	case p.width == 0:
		fmt.Fprintln(p.out, line)
	case step:
		fmt.Fprintf(p.out, "\r\x1b[K%s", line)
	default:
		fmt.Fprintf(p.out, "\r\x1b[K%.*s", p.width-1, line)
	}
}

// End clears the line.
func (p *RehearsalProgress) End() {
	if p.width > 0 {
		fmt.Fprint(p.out, "\r\x1b[K")
	}
}
