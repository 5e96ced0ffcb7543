// Package labs is what `coldrack lab` does beside flags: it finds a lab, shows it as a table or as data, and connects a
// terminal with a machine's console.
package labs

import (
	"errors"
	"path/filepath"
	"strings"

	"coldrack.dev/internal/cli/exit"
	"coldrack.dev/internal/lab"
)

// Place says which lab is meant.
type Place struct{ Name, StateDir string }

// Dir is the lab's own folder.
func (p Place) Dir() string { return filepath.Join(p.StateDir, p.Name) }

// Open finds the lab, or says which ones there are.
func (p Place) Open() (*lab.Lab, error) {
	l, err := lab.Open(p.Dir(), nil)
	if !errors.Is(err, lab.ErrNotFound) {
		return l, err
	}
	names, _ := lab.List(p.StateDir)
	if len(names) > 0 {
		return nil, exit.NotFoundf("there is no lab %q in %s; there are %s (choose with --name)", p.Name, p.StateDir, strings.Join(names, ", "))
	}
	return nil, exit.NotFoundf("there is no lab %q in %s; `coldrack lab up` makes one", p.Name, p.StateDir)
}

// Machine finds a machine of the lab by its name or number.
func (p Place) Machine(name string) (*lab.Machine, error) {
	l, err := p.Open()
	if err != nil {
		return nil, err
	}
	m, err := l.Lookup(name)
	if errors.Is(err, lab.ErrNotFound) {
		return nil, exit.NotFoundf("%w", err)
	}
	return m, err
}

// Machines finds several machines; the name "all" stands for each of the lab.
func (p Place) Machines(names ...string) ([]*lab.Machine, error) {
	l, err := p.Open()
	if err != nil {
		return nil, err
	}
	var machines []*lab.Machine
	for _, name := range names {
		if name == "all" {
			machines = append(machines, l.Machines()...)
			continue
		}
		m, err := p.Machine(name)
		if err != nil {
			return nil, err
		}
		machines = append(machines, m)
	}
	return machines, nil
}

// MachineNames are the names of the lab's machines, none if there is no such lab.
func (p Place) MachineNames() []string {
	l, err := p.Open()
	if err != nil {
		return nil
	}
	var names []string
	for _, m := range l.Machines() {
		names = append(names, m.Name())
	}
	return names
}
