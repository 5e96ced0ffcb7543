package machineapi

import (
	"crypto/rand"
	"encoding/base64"
	"slices"
	"sync"
	"time"

	"coldrack.dev/api/v1alpha1"
)

// Binding is the boot request for which a nonce was issued.
type Binding struct {
	Identifiers v1alpha1.Identifiers
	// Machine that the request was recognised as, or the name that a new one is about to get.
	Machine string
	Action  v1alpha1.BootAction
}

// live says whether the boot is one of the live system, which does not enrol.
func (b Binding) live() bool { return b.Action == v1alpha1.BootRescue }

// Nonces are the one-time secrets of boots. They go over plain HTTP, so they prove no more than that
// somebody on the boot network asked for a boot; what they buy is bounded by what that machine may have.
// They live in memory: a boot that a restart of the server cuts off is repeated by the machine.
type Nonces struct {
	now   func() time.Time
	limit int

	mu     sync.Mutex
	issued map[string]*issued
	order  []string            // oldest first; may name nonces that are gone
	byMAC  map[string][]string // by the first MAC, oldest first
}

type issued struct {
	Binding
	until time.Time
	key   string // fingerprint of the key that used it
}

const (
	nonceTTL   = 30 * time.Minute
	nonceLimit = 16384
	// A boot loader that retries gets a new nonce each time; older ones of the same machine may still be
	// on their way.
	noncesPerMAC = 8
)

// NewNonces returns an empty set. now is the clock; nil means time.Now.
func NewNonces(now func() time.Time) *Nonces {
	if now == nil {
		now = time.Now
	}
	return &Nonces{now: now, limit: nonceLimit, issued: map[string]*issued{}, byMAC: map[string][]string{}}
}

// Issue returns a new nonce of 256 bits, as 43 characters that need no escaping on a kernel command line.
func (n *Nonces) Issue(b Binding) string {
	raw := make([]byte, 32)
	_, _ = rand.Read(raw) // never fails
	nonce := base64.RawURLEncoding.EncodeToString(raw)

	n.mu.Lock()
	defer n.mu.Unlock()
	n.expire()
	n.issued[nonce] = &issued{Binding: b, until: n.now().Add(nonceTTL)}
	n.order = append(n.order, nonce)
	if len(b.Identifiers.MACs) > 0 {
		n.remember(b.Identifiers.MACs[0], nonce)
	}
	return nonce
}

// expire drops what is too old, and the oldest when there are too many.
func (n *Nonces) expire() {
	for len(n.order) > 0 {
		entry, ok := n.issued[n.order[0]]
		if ok && len(n.issued) < n.limit && n.now().Before(entry.until) {
			return
		}
		n.drop(n.order[0])
		n.order = n.order[1:]
	}
}

func (n *Nonces) drop(nonce string) {
	entry, ok := n.issued[nonce]
	if !ok {
		return
	}
	delete(n.issued, nonce)
	if len(entry.Identifiers.MACs) == 0 {
		return
	}
	mac := entry.Identifiers.MACs[0]
	n.byMAC[mac] = slices.DeleteFunc(n.byMAC[mac], func(other string) bool { return other == nonce })
	if len(n.byMAC[mac]) == 0 {
		delete(n.byMAC, mac)
	}
}

// remember keeps one machine from pushing out the nonces of all others.
func (n *Nonces) remember(mac, nonce string) {
	n.byMAC[mac] = append(n.byMAC[mac], nonce)
	if len(n.byMAC[mac]) > noncesPerMAC {
		n.drop(n.byMAC[mac][0])
	}
}

// Exists says whether a nonce was issued and is not too old, whoever used it.
func (n *Nonces) Exists(nonce string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	entry, ok := n.issued[nonce]
	return ok && n.now().Before(entry.until)
}

// Peek returns what a nonce was issued for, if the holder of this key may use it: nobody else has.
func (n *Nonces) Peek(nonce, key string) (Binding, bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	entry, ok := n.issued[nonce]
	if !ok || !n.now().Before(entry.until) || (entry.key != "" && entry.key != key) {
		return Binding{}, false
	}
	return entry.Binding, true
}

// Use gives the nonce to a key. Only one key ever gets it; the same one may come again, because the answer
// to its first request may have been lost.
func (n *Nonces) Use(nonce, key string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	entry, ok := n.issued[nonce]
	if !ok || !n.now().Before(entry.until) || (entry.key != "" && entry.key != key) {
		return false
	}
	entry.key = key
	return true
}
