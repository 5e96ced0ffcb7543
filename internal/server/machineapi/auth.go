package machineapi

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"coldrack.dev/internal/base/pki"
	"coldrack.dev/internal/contract/wire"
)

// What certificates of machines say. These texts are part of the contract with nodes in the field.
const (
	sessionOrganization = "coldrack:session"
	nodeOrganization    = "coldrack:node"
	sessionPrefix       = "machine:"
	nodePrefix          = "node:"

	sessionTTL = 24 * time.Hour
	nodeTTL    = 365 * 24 * time.Hour
)

type kind string

const (
	kindSession kind = "session"
	kindNode    kind = "node"
)

// peer is whoever showed a certificate of the machine CA.
type peer struct {
	kind        kind
	machine     string
	fingerprint string    // of its public key
	issued      time.Time // when its certificate was signed
	expires     time.Time
}

// authenticate reads the client certificate, which the TLS stack has verified.
func (a *API) authenticate(r *http.Request) (peer, error) {
	if r.TLS == nil || len(r.TLS.VerifiedChains) == 0 {
		return peer{}, refuse(http.StatusUnauthorized, wire.CodeForbidden, "%s needs a client certificate of this server's machine CA", r.URL.Path)
	}
	leaf := r.TLS.VerifiedChains[0][0]
	// A connection may outlive the certificate that opened it.
	if a.Now().After(leaf.NotAfter) {
		return peer{}, refuse(http.StatusUnauthorized, wire.CodeForbidden, "the client certificate expired at %s", leaf.NotAfter.UTC().Format(time.RFC3339))
	}
	fingerprint, err := pki.Fingerprint(leaf.PublicKey)
	if err != nil {
		return peer{}, refuse(http.StatusUnauthorized, wire.CodeForbidden, "client certificate: %v", err)
	}
	p := peer{fingerprint: fingerprint, issued: pki.IssuedAt(leaf), expires: leaf.NotAfter}
	name, organizations := leaf.Subject.CommonName, leaf.Subject.Organization
	switch {
	case slices.Equal(organizations, []string{sessionOrganization}) && strings.HasPrefix(name, sessionPrefix):
		p.kind, p.machine = kindSession, strings.TrimPrefix(name, sessionPrefix)
	case slices.Equal(organizations, []string{nodeOrganization}) && strings.HasPrefix(name, nodePrefix):
		p.kind, p.machine = kindNode, strings.TrimPrefix(name, nodePrefix)
	}
	if p.machine == "" {
		return peer{}, refuse(http.StatusForbidden, wire.CodeForbidden, "a certificate for %q of %q is none of a machine", name, organizations)
	}
	return p, nil
}

func (p peer) may(need access) error {
	switch {
	case need == sessionsAndNodes, need == sessions && p.kind == kindSession, need == nodes && p.kind == kindNode:
		return nil
	}
	return refuse(http.StatusForbidden, wire.CodeForbidden, "a %s certificate of machine %s does not open this path", p.kind, p.machine)
}

// errSessionEnded is the refusal of a session after which the machine enrolled again.
var errSessionEnded = errors.New("this session has ended")

// twoSystems records that a session is still used although its machine has enrolled again. A system that was
// reset asks nothing any more, so there are two at once: a clone, or a board that gives every machine the same
// identifiers. Each ends the other's session, and neither would ever get through an install.
func (a *API) twoSystems(name string, r *http.Request) {
	a.Log.Warn("two running systems have the identifiers of one machine", "machine", name, "from", address(r), "other", a.Fleet.Live(name).Address)
	a.Fleet.Conflicted(name, fmt.Sprintf("two running systems, at %s and %s, have the identifiers of machine %s: switch one off, and look for a clone or a MAC address that is used twice",
		address(r), a.Fleet.Live(name).Address, name))
}

// checkSession refuses a session when the machine has enrolled again since: there is one running system
// on a machine at a time, and an old session must not profit from an intent that was written later. After a
// restart of the server the machine's status says which session is the last one. It may have been written before
// that session began, so a session that was issued later counts, too, and ends those before it.
func (a *API) checkSession(ctx context.Context, p peer) error {
	m, err := a.machine(ctx, p.machine)
	if err != nil {
		return err
	}
	live := a.Fleet.Live(p.machine)
	key, issued := live.SessionKey, live.SessionIssuedAt
	if key == "" && m.Status.Session != nil {
		key, issued = m.Status.Session.KeyFingerprint, m.Status.Session.IssuedAt.Time
	}
	switch {
	case key == p.fingerprint || key == "" || live.Session == "" && p.issued.After(issued):
		if live.SessionKey != p.fingerprint {
			a.Fleet.SessionReturned(p.machine, p.fingerprint, p.issued)
		}
	default:
		return fmt.Errorf("%w: %w", errSessionEnded,
			refuse(http.StatusForbidden, wire.CodeForbidden, "machine %s has booted and enrolled again since; this session has ended", p.machine))
	}
	return nil
}
