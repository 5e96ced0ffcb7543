package daemon

import (
	"context"
	"errors"

	"coldrack.dev/internal/contract/wire"
	"coldrack.dev/internal/machine/units"
	"coldrack.dev/internal/server/controllers"
)

// placedUnits implements machineapi.Units.
type placedUnits struct {
	*units.Desk
	s *server
}

// Stored is what a machine shall run by what the store says now.
func (p placedUnits) Stored(ctx context.Context, machine string) ([]wire.UnitFile, error) {
	direct := p.s.direct.Load()
	if direct == nil || p.s.current.Load() == nil {
		return nil, errors.New("the store is not there")
	}
	return controllers.StoredUnits(ctx, *direct, machine)
}
