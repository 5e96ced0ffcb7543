package machineapi

import (
	"context"
	"net/http"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"coldrack.dev/internal/contract/wire"
)

// live says who may log in to the live system. Whoever has the nonce learns public keys and a name, and gets no certificate; a boot of
// another kind gets nothing.
func (a *API) live(ctx context.Context, c call, in wire.LiveRequest) (any, error) {
	binding, ok := a.Nonces.Peek(in.Nonce, "")
	if !ok || !binding.live() {
		return nil, refuse(http.StatusForbidden, wire.CodeUnknownNonce, "this is no boot of the live system, or one that is older than %v; boot from the network again", nonceTTL)
	}
	answer := wire.LiveResponse{Machine: binding.Machine}
	if binding.Machine == "" {
		return answer, nil
	}
	m, err := a.Store.Get(ctx, binding.Machine)
	if apierrors.IsNotFound(err) {
		return answer, nil
	}
	if err != nil {
		return nil, err
	}
	if m.Spec.Rescue != nil {
		answer.SSHKeys = m.Spec.Rescue.SSHKeys
	}
	a.Fleet.Log(m.Name, "the live system runs, at "+address(c.request))
	return answer, nil
}
