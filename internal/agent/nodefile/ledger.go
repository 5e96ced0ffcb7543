package nodefile

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
)

// Ledger remembers what cannot be seen on the machine: which paths are ours, and which units have not been
// Restarted since something that they read was changed. Both are noted before the change is made, so that
// whoever goes on after a power cut knows of it.
type Ledger struct {
	disk Disk
	file string

	mu      sync.Mutex
	written map[string]bool
	// restart holds a number that grows with each change, so that a change during a restart is not lost.
	restart map[string]uint64
}

type ledgerContent struct {
	Written []string          `json:"written"`
	Restart map[string]uint64 `json:"restart,omitempty"`
}

// OpenLedger reads the ledger that is kept in a file. One that cannot be read is told, and begins anew.
func OpenLedger(d Disk, file string, log *slog.Logger) *Ledger {
	l := &Ledger{disk: d, file: file, written: map[string]bool{}, restart: map[string]uint64{}}
	var c ledgerContent
	switch err := ReadJSON(d, file, &c); {
	case err == nil:
		for _, p := range c.Written {
			l.written[p] = true
		}
		maps.Copy(l.restart, c.Restart)
	case !errors.Is(err, fs.ErrNotExist):
		log.Error("cannot read the list of files written on this node; files dropped by a later plan will stay", "err", err)
	}
	return l
}

// Prepare notes that paths are about to be written and that units will have to be restarted for it.
func (l *Ledger) Prepare(paths, units []string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	changed := false
	for _, p := range paths {
		changed = changed || !l.written[p]
		l.written[p] = true
	}
	for _, u := range units {
		changed = changed || l.restart[u] == 0
		l.restart[u]++
	}
	if !changed {
		return nil // what is on the disk says the same
	}
	return l.save()
}

// Pending is the number of a unit's restart that is due, 0 for none.
func (l *Ledger) Pending(unit string) uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.restart[unit]
}

// Restarted notes that a unit was restarted after the change with that number.
func (l *Ledger) Restarted(unit string, number uint64) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if number == 0 || l.restart[unit] != number {
		return nil
	}
	delete(l.restart, unit)
	return l.save()
}

// Forget drops paths that are gone, and what was due for units that are gone.
func (l *Ledger) Forget(paths, units []string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, p := range paths {
		delete(l.written, p)
	}
	for _, u := range units {
		delete(l.restart, u)
	}
	return l.save()
}

// Paths are all that were noted and not forgotten, sorted.
func (l *Ledger) Paths() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Sorted(maps.Keys(l.written))
}

func (l *Ledger) save() error {
	return WriteJSON(l.disk, l.file, ledgerContent{slices.Sorted(maps.Keys(l.written)), l.restart})
}

// ReadJSON reads a file into v.
func ReadJSON(d Disk, file string, v any) error {
	b, err := os.ReadFile(d.At(file))
	if err != nil {
		return err
	}
	if err := json.Unmarshal(b, v); err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	return nil
}

// WriteJSON replaces a file by v; only root may read it.
func WriteJSON(d Disk, file string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode %s: %w", file, err)
	}
	return d.Write(file, append(b, '\n'), 0o600)
}

// CleanUp removes what a write that was cut off left, of the ledger's paths and of others.
func (l *Ledger) CleanUp(others ...string) {
	for _, p := range slices.Concat(l.Paths(), others, []string{l.file}) {
		if !strings.HasSuffix(p, "/") {
			_ = os.Remove(l.disk.At(PartOf(p)))
		}
	}
}
