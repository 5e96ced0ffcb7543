package daemon

import (
	"context"

	"golang.org/x/sync/errgroup"

	"coldrack.dev/internal/controllers"
)

func (s *server) serveDHCP(context.Context, *errgroup.Group, *booter) (controllers.SubnetSink, error) {
	return nil, nil
}
