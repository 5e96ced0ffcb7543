package install

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"coldrack.dev/internal/contract/wire"
)

// A step may be at work for long without anything to tell: a disk is awaited, or erased by its own controller.
func TestALongStepIsNoSilence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := &countingServer{}
		tr := newTracker("i", []string{wire.StepWipe}, server, time.Now, func(wire.Step) {})
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- tr.run(ctx) }() // ends with ctx
		tr.start(wire.StepWipe)
		time.Sleep(5 * time.Minute)
		stop()
		if err := <-ended; err != nil {
			t.Fatal(err)
		}
		if server.longest > reportAgain+reportEvery || server.reports > 40 {
			t.Errorf("%d reports in five minutes, with %s between two of them", server.reports, server.longest)
		}
	})
}

// countingServer takes every report.
type countingServer struct {
	Server
	reports int
	last    time.Time
	longest time.Duration
}

func (s *countingServer) Progress(context.Context, wire.Progress) (wire.ProgressResponse, error) {
	now := time.Now()
	if s.reports++; s.reports > 1 {
		s.longest = max(s.longest, now.Sub(s.last))
	}
	s.last = now
	return wire.ProgressResponse{}, nil
}
