package rehearse

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"sync"
	"time"

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
}

// rack is the process of the machines.
type rack struct {
	cable   *cable
	indexes indexes
	began   time.Time

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
	r := &rack{cable: w, indexes: indexes{known: map[string]*diskimage.Index{}}, began: time.Now(), out: json.NewEncoder(buffered)}
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
