package bringup

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path"
	"slices"
	"strings"
	"sync"

	"coldrack.dev/internal/wire"
)

// StateDir holds what a node remembers of its cluster.
const StateDir = "/var/lib/coldrack/kubernetes"

const (
	assignmentFile = StateDir + "/assignment.json"
	ledgerFile     = StateDir + "/ledger.json"
	digestsFile    = StateDir + "/digests.json"
)

// ledger remembers what cannot be seen on the machine: which paths are ours, and which units have not been
// restarted since something that they read was changed. Both are noted before the change is made, so that
// whoever goes on after a power cut knows of it.
type ledger struct {
	disk disk

	mu      sync.Mutex
	written map[string]bool
	// restart holds a number that grows with each change, so that a change during a restart is not lost.
	restart map[string]uint64
}

type ledgerContent struct {
	Written []string          `json:"written"`
	Restart map[string]uint64 `json:"restart,omitempty"`
}

func openLedger(d disk, log *slog.Logger) *ledger {
	l := &ledger{disk: d, written: map[string]bool{}, restart: map[string]uint64{}}
	var c ledgerContent
	switch err := readJSON(d, ledgerFile, &c); {
	case err == nil:
		for _, p := range c.Written {
			l.written[p] = true
		}
		maps.Copy(l.restart, c.Restart)
	case !errors.Is(err, fs.ErrNotExist):
		log.Error("what was written on this node before is not known any more; files that a later plan drops will stay", "err", err)
	}
	return l
}

// prepare notes that paths are about to be written and that units will have to be restarted for it.
func (l *ledger) prepare(paths, units []string) error {
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

// pending is the number of a unit's restart that is due, 0 for none.
func (l *ledger) pending(unit string) uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.restart[unit]
}

// restarted notes that a unit was restarted after the change with that number.
func (l *ledger) restarted(unit string, number uint64) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if number == 0 || l.restart[unit] != number {
		return nil
	}
	delete(l.restart, unit)
	return l.save()
}

// forget drops paths that are gone.
func (l *ledger) forget(paths []string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, p := range paths {
		delete(l.written, p)
		if path.Dir(p) == unitDir {
			delete(l.restart, path.Base(p))
		}
	}
	return l.save()
}

func (l *ledger) paths() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Sorted(maps.Keys(l.written))
}

func (l *ledger) save() error {
	return writeJSON(l.disk, ledgerFile, ledgerContent{slices.Sorted(maps.Keys(l.written)), l.restart})
}

// loadAssignment returns the last assignment that was begun, nil if there is none.
func loadAssignment(d disk) (*wire.NodeAssignment, error) {
	var a wire.NodeAssignment
	if err := readJSON(d, assignmentFile, &a); errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	if a.Plan == nil {
		return nil, fmt.Errorf("%s has no plan", assignmentFile)
	}
	return &a, nil
}

func readJSON(d disk, file string, v any) error {
	b, err := os.ReadFile(d.at(file))
	if err != nil {
		return err
	}
	if err := json.Unmarshal(b, v); err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	return nil
}

func writeJSON(d disk, file string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode %s: %w", file, err)
	}
	return d.write(file, append(b, '\n'), 0o600)
}

// cleanUp removes what a write that was cut off left.
func (l *ledger) cleanUp() {
	own := []string{assignmentFile, ledgerFile, digestsFile}
	for _, p := range append(l.paths(), own...) {
		if !strings.HasSuffix(p, "/") {
			_ = os.Remove(l.disk.at(partOf(p)))
		}
	}
}
