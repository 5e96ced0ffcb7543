package rehearse

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"coldrack.dev/internal/contract/manifest"
)

// Options of a rehearsal.
type Options struct {
	// Program is this very program: it is started as the server and as the machines.
	Program string
	// Machines is how many there are. 0: as many as the plan names, or 100.
	Machines int
	// Manifests of the operator; none: a plan that installs everything.
	Manifests []string
	Stdin     io.Reader
	// Bundle to serve and the keys of who signed it; none: a made-up one of the given sizes.
	Bundle      string
	TrustedKeys []string
	Sizes       Sizes

	Ramp time.Duration // all machines are switched on within it
	Loss float64       // chance of a packet to be lost, each way; on TCP only from the server
	// SlowShare of the machines has links of SlowRate bytes a second, the others of Rate; 0: no limit.
	SlowShare      float64
	SlowRate, Rate int64
	Seed           uint64
	// Hold goes on that long after the last machine is ready, to see what its nodes cost.
	Hold time.Duration
	// Limit ends the rehearsal.
	Limit time.Duration
	// Settle is how long nothing must have moved before waiting machines are taken to wait for ever.
	Settle time.Duration
	// LogFile gets the server's log; empty: it is dropped with everything else.
	LogFile string
	// Heartbeat is the interval that nodes are told; 0: the server's default.
	Heartbeat time.Duration
	// Progress is called about once a second.
	Progress func(Snapshot)
}

// Snapshot is how far a rehearsal is.
type Snapshot struct {
	At       time.Duration
	Doing    string // what is prepared; empty while machines run
	Machines int
	Counts   map[Phase]int
	CPU      float64 // of the server, cores
	Memory   int64   // of the server, bytes
	Sent     float64 // by the server, bytes a second
}

// Rehearse makes the network, starts a server and the machines, and sums up what happened. Everything it makes is
// gone when it returns.
func Rehearse(ctx context.Context, o Options) (r *Result, err error) {
	if o.Progress == nil {
		o.Progress = func(Snapshot) {}
	}
	o.Progress(Snapshot{Doing: "preparing"})
	dir, err := os.MkdirTemp("", "coldrack-rehearsal-")
	if err != nil {
		return nil, err
	}
	defer func() {
		if o.LogFile != "" {
			_ = copyFile(filepath.Join(dir, "server.log"), o.LogFile)
		}
		err = errors.Join(err, os.RemoveAll(dir))
	}()
	files, plan, machines, err := o.prepare(dir)
	if err != nil {
		return nil, err
	}
	o.Machines = machines
	if o.Bundle == "" {
		o.Progress(Snapshot{Doing: "making up a bundle"})
		work := filepath.Join(dir, "bundle")
		if err := os.Mkdir(work, 0o700); err != nil {
			return nil, err
		}
		var key string
		if o.Bundle, key, err = MakeBundle(ctx, work, o.Sizes, plan.images); err != nil {
			return nil, err
		}
		o.TrustedKeys = []string{key}
	}
	stage, err := OpenStage(plan.server, o.Loss > 0)
	if err != nil {
		return nil, err
	}
	defer stage.Close()

	o.Progress(Snapshot{Doing: "starting the server"})
	args := []string{"--config", os.DevNull, "--data-dir", filepath.Join(dir, "data"), "--api-address", "127.0.0.1:0", "--log-level", "info",
		"--boot-netns", stage.ServerPath(), "--interfaces", ServerLink, "--bundles", o.Bundle}
	if o.Heartbeat > 0 {
		args = append(args, "--heartbeat-interval", o.Heartbeat.String())
	}
	for _, key := range o.TrustedKeys {
		args = append(args, "--trusted-keys", key)
	}
	for _, file := range files {
		args = append(args, "--manifests", file)
	}
	server, err := StartServer(ctx, ServerOptions{Program: o.Program, Args: args, Log: filepath.Join(dir, "server.log")})
	if err != nil {
		return nil, err
	}
	defer server.Stop(20 * time.Second)
	o.Progress(Snapshot{Doing: "importing the bundle"})
	if err := server.AwaitBundle(ctx, stage.ServerPath(), plan.server.Addr()); err != nil {
		return nil, err
	}
	return o.run(ctx, stage, server, plan)
}

// prepare reads the plan and gives the files to tell the server.
func (o Options) prepare(dir string) (files []string, p plan, machines int, err error) {
	files = append(files, o.Manifests...)
	for i, name := range files {
		if name != "-" {
			continue
		}
		text, err := io.ReadAll(o.Stdin)
		if err != nil {
			return nil, p, 0, fmt.Errorf("read standard input: %w", err)
		}
		files[i] = filepath.Join(dir, "stdin.yaml")
		if err := os.WriteFile(files[i], text, 0o600); err != nil {
			return nil, p, 0, err
		}
	}
	machines = o.Machines
	if len(files) == 0 {
		if machines == 0 {
			machines = 100
		}
		files = []string{filepath.Join(dir, "plan.yaml")}
		if err := os.WriteFile(files[0], []byte(defaultManifest(machines)), 0o600); err != nil {
			return nil, p, 0, err
		}
	}
	documents, err := manifest.Read(files, nil)
	if err != nil {
		return nil, p, 0, err
	}
	if machines == 0 {
		if p, err = readPlan(documents, 0); err != nil {
			return nil, p, 0, err
		}
		if machines = len(p.known); machines == 0 {
			machines = 100
		}
	}
	p, err = readPlan(documents, machines)
	return files, p, machines, err
}

// run lets the machines live, and watches.
func (o Options) run(ctx context.Context, stage *Stage, server *Process, plan plan) (*Result, error) {
	config := RackConfig{Link: RackLink, ServerNS: stage.ServerPath(), Port: ServerLink, Loss: o.Loss,
		Machines: Fleet(FleetOptions{Machines: o.Machines, Seed: o.Seed, Ramp: o.Ramp, SlowShare: o.SlowShare, SlowRate: o.SlowRate, Rate: o.Rate, Known: plan.known})}
	base := server.Usage()
	began := time.Now()
	rack, err := StartRack(o.Program, stage, config)
	if err != nil {
		return nil, err
	}
	defer rack.Stop()

	record := NewRecord(o.Machines, max(o.Ramp/40, 250*time.Millisecond))
	watch := &watch{stage: stage, server: server, rack: rack.Process, base: base, began: began}
	watch.sample()
	ticker := time.NewTicker(500 * time.Millisecond)
	defer ticker.Stop()
	var endAt time.Time
	why := ""
	for why == "" {
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-server.ended:
			return nil, fmt.Errorf("the server ended in the middle of the rehearsal: %w", server.Err())
		case e, ok := <-rack.Events():
			if !ok {
				return nil, fmt.Errorf("the process of the machines ended: %w", rack.Process.Err())
			}
			record.Add(e)
			continue
		case <-ticker.C:
		}
		watch.sample()
		at := time.Since(began)
		o.Progress(watch.snapshot(record, at))
		switch {
		case at >= o.Limit:
			why = fmt.Sprintf("stopped after %s", o.Limit)
		case record.Ended() && endAt.IsZero():
			endAt = time.Now().Add(o.Hold)
			watch.holdFrom()
		case record.Stuck(at, o.Settle):
			why = "the machines that are not ready wait, and nothing has moved for " + o.Settle.String()
		}
		if why == "" && !endAt.IsZero() && time.Now().After(endAt) {
			why = "all machines have come to an end"
		}
	}
	watch.sample()
	record.Finish()
	return summarize(o, plan, record, watch, why), nil
}

// watch measures processes and cable over time.
type watch struct {
	stage        *Stage
	server, rack *Process
	base         Usage // of the server, before the first machine
	began        time.Time
	samples      []Sample
	hold         int // index of the sample with which holding began, 0: never
}

// Sample is what was measured up to a moment.
type Sample struct {
	At     time.Duration `json:"at"`
	CPU    time.Duration `json:"cpu"`    // of the server since the first machine
	Rack   time.Duration `json:"rack"`   // of the machines' process
	Memory int64         `json:"memory"` // of the server, bytes
	Sent   uint64        `json:"sent"`   // by the server, bytes
}

func (w *watch) sample() {
	s, r := w.server.Usage(), w.rack.Usage()
	w.samples = append(w.samples, Sample{At: time.Since(w.began), CPU: s.CPU - w.base.CPU, Rack: r.CPU, Memory: s.Memory, Sent: w.stage.sent()})
}

func (w *watch) holdFrom() { w.hold = len(w.samples) - 1 }

func (w *watch) snapshot(r *Record, at time.Duration) Snapshot {
	s := Snapshot{At: at, Machines: r.machines, Counts: map[Phase]int{}}
	for phase, n := range r.counts {
		s.Counts[phase] = n
	}
	if n := len(w.samples); n > 1 {
		a, b := w.samples[n-2], w.samples[n-1]
		s.CPU, s.Sent, s.Memory = rates(a, b).CPU, rates(a, b).Sent, b.Memory
	}
	return s
}

// rate is what happened between two samples, a second.
type rate struct{ CPU, Rack, Sent float64 }

func rates(a, b Sample) rate {
	took := (b.At - a.At).Seconds()
	if took <= 0 {
		return rate{}
	}
	return rate{(b.CPU - a.CPU).Seconds() / took, (b.Rack - a.Rack).Seconds() / took, float64(b.Sent-a.Sent) / took}
}

func copyFile(from, to string) error {
	text, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, text, 0o600)
}

// cores of this host, which server and simulation share.
func cores() int { return runtime.NumCPU() }
