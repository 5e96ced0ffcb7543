package rehearse

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync"
	"time"

	"coldrack.dev/internal/base/netns"
	"coldrack.dev/internal/content/diskimage"
)

// RackConfig is what the process of the machines is told, as JSON on its standard input. It runs until that
// input ends.
type RackConfig struct {
	Link     string    `json:"link"`     // the machines' interface, in this process' namespace
	ServerNS string    `json:"serverNS"` // path of the server's namespace
	Port     string    `json:"port"`     // the interface at the other end
	Loss     float64   `json:"loss"`
	Machines []Machine `json:"machines"`
	// Cycle is how long an installed machine runs before it is switched off and on again, by and large; one that could not
	// start is switched on once more after a while. 0: nothing of the kind.
	Cycle time.Duration `json:"cycle,omitempty"`
}

// Rack is the process of the machines, seen from outside.
type Rack struct {
	*Process
	in     io.Closer
	events chan Event
}

// StartRack starts the machines on the stage's network.
func StartRack(program string, stage *Stage, config RackConfig) (*Rack, error) {
	text, err := json.Marshal(config)
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(program, "rehearse", "machines")
	cmd.Env, cmd.Stderr = withoutSettings(os.Environ()), os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	// Not of Process: its Wait would close the pipe before the last events are read.
	out, write, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	cmd.Stdout = write
	process, err := start("machines", cmd, func(fn func() error) error { return netns.Do(stage.RackPath(), fn) })
	write.Close()
	if err != nil {
		out.Close()
		return nil, err
	}
	r := &Rack{Process: process, in: in, events: make(chan Event, 4096)}
	go func() {
		defer out.Close()
		defer close(r.events)
		decoder := json.NewDecoder(out)
		for {
			var e Event
			if decoder.Decode(&e) != nil {
				<-process.ended
				return
			}
			r.events <- e
		}
	}()
	if _, err := in.Write(text); err != nil {
		r.Stop()
		return nil, fmt.Errorf("tell the machines: %w", err)
	}
	return r, nil
}

// Events are what the machines tell. The channel is closed when their process has ended.
func (r *Rack) Events() <-chan Event { return r.events }

// Stop ends the machines.
func (r *Rack) Stop() {
	r.in.Close()
	drained := make(chan struct{})
	go func() {
		defer close(drained)
		for range r.events {
		}
	}()
	r.Process.Stop(10 * time.Second)
	<-drained
}

// rack is the process of the machines.
type rack struct {
	cable   *cable
	indexes indexes
	began   time.Time
	cycle   time.Duration

	mu  sync.Mutex
	out *json.Encoder
}

func (r *rack) tell(e Event) {
	e.At = time.Since(r.began)
	r.mu.Lock()
	defer r.mu.Unlock()
	_ = r.out.Encode(e) // a reader that went away has ended this process' input too
}

// RunRack lets machines live until in ends, and tells of them on out, one Event a line.
func RunRack(ctx context.Context, in io.Reader, out io.Writer) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	decoder := json.NewDecoder(in)
	var config RackConfig
	if err := decoder.Decode(&config); err != nil {
		return fmt.Errorf("configuration of the rack: %w", err)
	}
	// The reader ends with the process: nothing interrupts a read of a pipe.
	go func() {
		_, _ = io.Copy(io.Discard, in)
		cancel()
	}()
	w, err := openCable(config.Link, config.ServerNS, config.Port, config.Loss)
	if err != nil {
		return err
	}
	defer w.close()
	buffered := bufio.NewWriterSize(out, 64<<10)
	r := &rack{cable: w, indexes: indexes{known: map[string]*diskimage.Index{}}, began: time.Now(), cycle: config.Cycle, out: json.NewEncoder(buffered)}
	flush := func() error {
		if n := w.received.Swap(0); n > 0 {
			r.tell(Event{Bytes: n})
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		return buffered.Flush()
	}
	var machines sync.WaitGroup
	for _, m := range config.Machines {
		simulated := &simulatedMachine{Machine: m, rack: r}
		machines.Go(func() { simulated.run(ctx) })
	}
	ticker := time.NewTicker(100 * time.Millisecond)
	defer ticker.Stop()
	for ctx.Err() == nil {
		select {
		case <-ticker.C:
			if err := flush(); err != nil {
				cancel()
			}
		case <-ctx.Done():
		}
	}
	machines.Wait()
	return flush()
}
