package machineapi

import (
	"context"
	"errors"
	"net/http"
	"testing"
	"time"

	"coldrack.dev/internal/contract/wire"
	"coldrack.dev/internal/machine/units"
)

// storedUnits is a desk beside a store that may say something else.
type storedUnits struct {
	*units.Desk
	stored []wire.UnitFile
	err    error
}

func (s *storedUnits) Stored(context.Context, string) ([]wire.UnitFile, error) {
	return s.stored, s.err
}

func (a *agent) units(version string, has ...wire.UnitState) (wire.UnitAssignment, error) {
	return send[wire.UnitAssignment](a, http.MethodPost, wire.PathUnits+"?wait=0&version="+version, wire.UnitReport{Units: has})
}

// TestUnits: a machine is told to stop a unit only when all that is known, the store included, says that it is not its own.
func TestUnits(t *testing.T) {
	s := newServer(t)
	session, node := s.installed(wire.Identifiers{MACs: []string{"52:54:00:00:00:01"}, Serial: "SN-1"}, "1")
	place := &storedUnits{Desk: units.NewDesk()}
	web, db := wire.UnitFile{Name: "web.service", Text: "w"}, wire.UnitFile{Name: "db.service", Text: "d"}
	has := []wire.UnitState{{Name: web.Name, Active: "active"}, {Name: db.Name, Active: "active"}}

	if _, err := node.units("", has...); code(err) != wire.CodeNotFound {
		t.Errorf("a server without units: %v", err)
	}
	s.api.Units = place
	if a, err := node.units("", has...); err == nil {
		t.Errorf("before anything was read: %+v", a)
	}
	if _, err := session.units(""); err == nil {
		t.Error("a machine in discovery was answered")
	}
	place.Put(map[string][]wire.UnitFile{node.name: {web}, "other": {db}})
	place.err = errors.New("the store is away")
	if a, err := node.units("", has...); err == nil {
		t.Errorf("without a store: %+v", a)
	}
	place.err, place.stored = nil, []wire.UnitFile{web, db} // newer than what is in memory
	a, err := node.units("", has...)
	check(t, err)
	if len(a.Drop) != 0 || len(a.Run) != 1 || a.Run[0].Name != web.Name || a.Machine != node.name {
		t.Errorf("the store says that both are its own: %+v", a)
	}
	place.stored = []wire.UnitFile{web}
	s.fleet.SetRestored(time.Now())
	if a, err = node.units("", has...); err != nil || len(a.Drop) != 0 {
		t.Errorf("restored from a backup: %+v %v", a, err)
	}
	s.fleet.SetRestored(time.Time{})
	if a, err = node.units(a.Version, has...); err != nil || len(a.Drop) != 1 || a.Drop[0].Name != db.Name || a.Drop[0].Reason == "" {
		t.Errorf("one is not its own: %+v %v", a, err)
	}
	has[1].Leaving = true
	if a, err = node.units(a.Version, has...); err != nil || len(a.Drop) != 0 {
		t.Errorf("it is leaving already: %+v %v", a, err)
	}
	has[1].Leaving, has[1].Unknown = false, true
	if a, err = node.units(a.Version, has...); err != nil || len(a.Drop) != 0 {
		t.Errorf("the machine cannot stop it: %+v %v", a, err)
	}
	if _, err := send[wire.UnitAssignment](node, http.MethodPost, wire.PathUnits+"?wait=0&version="+a.Version, wire.UnitReport{Unknown: true}); err != nil {
		t.Errorf("a machine that cannot say what it has: %v", err)
	}
	if r, at := place.Reported(node.name); len(r.Units) != 2 || at.IsZero() {
		t.Errorf("reported: %+v at %s", r, at)
	}
	s.fleet.MarkStale()
	if a, err = node.units("", wire.UnitState{Name: "x.service"}); err == nil {
		t.Errorf("the store is lost: %+v", a)
	}
}
