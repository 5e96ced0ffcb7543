package client

import (
	"context"
	"net/http"

	"coldrack.dev/internal/contract/wire"
)

// Swarm says what this machine has of a blob and asks for peers.
func (c *Client) Swarm(ctx context.Context, a wire.SwarmAnnounce) (wire.SwarmAnswer, error) {
	return call[wire.SwarmAnswer](ctx, c, http.MethodPost, wire.PathSwarm, callLimit, a)
}
