// Package etcddiscovery introduces the members of new etcd clusters to each other: by the protocol of the public discovery
// service (etcd up to 3.6, --discovery), and by the part of etcd's own API that --discovery-token uses (etcd 3.6 and later).
// Both read and write the same tokens. See docs/adr/0020-etcd-discovery-has-a-registry-of-its-own.md.
package etcddiscovery

import (
	"cmp"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"coldrack.dev/internal/base/durable"
)

const (
	// DefaultTTL is how long a token lives that was made without a wish; the public service has the same.
	DefaultTTL = 168 * time.Hour
	// MaxTTL bounds it.
	MaxTTL = 90 * 24 * time.Hour
	// DefaultSize of a cluster, and the largest.
	DefaultSize, MaxSize = 3, 32

	// maxTokens that are kept, ended ones included; strangers may have fewer.
	maxTokens, maxTokensOfStrangers = 500, 100
	// rememberEnded is how long a token is kept after its end, to say of it that it has ended.
	rememberEnded = 7 * 24 * time.Hour
	// sinceTold is for how long a member may register again that was told its cluster. Clients ask who is there before they register, so
	// that one which was started again has just been told; and one that waited is told before it hears that it is registered.
	sinceTold = time.Minute
	// maxPeers bounds what a member says of itself.
	maxPeers = 1 << 10

	// sizeIndex is the index at which a token's size was written. A member's client watches from the index before its own.
	sizeIndex = 2
)

// What keeps somebody from what he asks for. Errors that wrap them say more.
var (
	ErrNoToken = errors.New("no such token")
	ErrBad     = errors.New("not accepted")
	ErrFull    = errors.New("the cluster is full")
	ErrExists  = errors.New("the member is registered")
	ErrTooMany = errors.New("too many tokens")
)

// Token is a cluster that is being formed.
type Token struct {
	ID   string `json:"id"`
	Size int    `json:"size"`
	// Created and Expires are when it was made and when it ends, by the wall clock.
	Created time.Time `json:"created"`
	Expires time.Time `json:"expires"`
	// By is the person or the address that asked for it; Open is true where that was anybody.
	By   string `json:"by"`
	Open bool   `json:"open,omitempty"`
	// Members in the order in which they came.
	Members []Member `json:"members,omitempty"`
}

// Member of a cluster that is being formed.
type Member struct {
	// ID is etcd's own, in hexadecimal without leading zeros.
	ID string `json:"id"`
	// Peers is NAME=URL, or several of them for one name, separated by commas.
	Peers string `json:"peers"`
	// Index at which it was registered, one more than that of the member before it.
	Index uint64 `json:"index"`
	// From is the address that registered it, At when.
	From netip.Addr `json:"from"`
	At   time.Time  `json:"at"`
	// Told is when From was first told all members: soon after this member may have data. Zero: it was not.
	Told time.Time `json:"told,omitzero"`
}

// Complete says whether all members are there.
func (t Token) Complete() bool { return len(t.Members) >= t.Size }

// Index of the last change.
func (t Token) Index() uint64 { return sizeIndex + uint64(len(t.Members)) }

// member returns the member with an ID.
func (t Token) member(id string) (Member, bool) {
	i := slices.IndexFunc(t.Members, func(m Member) bool { return m.ID == id })
	if i < 0 {
		return Member{}, false
	}
	return t.Members[i], true
}

// since returns the members that were registered at an index or later.
func (t Token) since(index uint64) []Member {
	i := slices.IndexFunc(t.Members, func(m Member) bool { return m.Index >= index })
	if i < 0 {
		return nil
	}
	return t.Members[i:]
}

// Registry keeps tokens in a file. It is safe for concurrent use.
type Registry struct {
	file      string
	now       func() time.Time
	sinceTold time.Duration

	mu     sync.Mutex
	tokens map[string]*entry
}

// entry is a token, and a channel that is closed at its next change.
type entry struct {
	Token
	changed chan struct{}
}

// Open reads the tokens of a file, which need not exist.
func Open(file string) (*Registry, error) { return open(file, time.Now) }

func open(file string, now func() time.Time) (*Registry, error) {
	r := &Registry{file: file, now: now, sinceTold: sinceTold, tokens: map[string]*entry{}}
	text, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return r, nil
	} else if err != nil {
		return nil, fmt.Errorf("tokens of etcd discovery: %w", err)
	}
	var tokens []Token
	if err := json.Unmarshal(text, &tokens); err != nil {
		return nil, fmt.Errorf("tokens of etcd discovery: %s: %w; move the file away to go on without them, and make new tokens for clusters that have not formed yet", file, err)
	}
	for _, t := range tokens {
		r.tokens[t.ID] = &entry{t, make(chan struct{})}
	}
	return r, nil
}

// New makes a token.
func (r *Registry) New(size int, ttl time.Duration, by string, stranger bool) (Token, error) {
	if size < 1 || size > MaxSize {
		return Token{}, fmt.Errorf("%w: size %d: a cluster has 1 to %d members", ErrBad, size, MaxSize)
	}
	if ttl == 0 {
		ttl = DefaultTTL
	}
	if ttl < time.Minute || ttl > MaxTTL {
		return Token{}, fmt.Errorf("%w: a token lives between a minute and %d days, not %s", ErrBad, MaxTTL/(24*time.Hour), ttl)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	now, strangers := r.now(), 0
	forgotten := map[string]*entry{}
	for id, e := range r.tokens {
		if now.Sub(e.Expires) > rememberEnded {
			forgotten[id] = e
			delete(r.tokens, id)
		} else if e.Open {
			strangers++
		}
	}
	restore := func() {
		for id, e := range forgotten {
			r.tokens[id] = e
		}
	}
	switch {
	case len(r.tokens) >= maxTokens:
		restore()
		return Token{}, fmt.Errorf("%w: there are %d; delete some with `coldrack discovery delete`", ErrTooMany, maxTokens)
	case stranger && strangers >= maxTokensOfStrangers:
		restore()
		return Token{}, fmt.Errorf("%w: machines have made %d of themselves, which is as many as may be; ask for one made with `coldrack discovery new`", ErrTooMany, strangers)
	}
	secret := make([]byte, 16)
	_, _ = rand.Read(secret) // it never fails
	t := Token{ID: hex.EncodeToString(secret), Size: size, Created: now.UTC().Truncate(time.Second), Expires: now.Add(ttl).UTC().Truncate(time.Second), By: by, Open: stranger}
	r.tokens[t.ID] = &entry{t, make(chan struct{})}
	if err := r.save(); err != nil {
		delete(r.tokens, t.ID)
		restore()
		return Token{}, err
	}
	return t, nil
}

// Get returns a token that has not ended, and a channel that is closed at its next change.
func (r *Registry) Get(id string) (Token, <-chan struct{}, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	e, err := r.living(id)
	if err != nil {
		return Token{}, nil, err
	}
	return e.copy(), e.changed, nil
}

// copy is the token without what its registry may change.
func (e *entry) copy() Token {
	t := e.Token
	t.Members = slices.Clone(t.Members)
	return t
}

// living needs mu.
func (r *Registry) living(id string) (*entry, error) {
	e := r.tokens[id]
	if e == nil {
		return nil, fmt.Errorf("%w: this server did not make it, or it was deleted", ErrNoToken)
	}
	if !r.now().Before(e.Expires) {
		return nil, fmt.Errorf("%w: it has ended on %s; make another with `coldrack discovery new`", ErrNoToken, e.Expires.Format(time.RFC3339))
	}
	return e, nil
}

var memberID = regexp.MustCompile(`^[1-9a-f][0-9a-f]{0,15}$`)

// Register adds a member, or says why not. A member that is registered may register again with the same words until a minute after its
// address was told all members: before, it cannot have started, so that nothing is lost when it crashed or an answer was. It keeps its index.
func (r *Registry) Register(token, id, peers string, from netip.Addr) (t Token, m Member, err error) {
	if !memberID.MatchString(id) {
		return Token{}, Member{}, fmt.Errorf("%w: member %.40q: must be etcd's id of it, in hexadecimal", ErrBad, id)
	}
	name, err := nameOf(peers)
	if err != nil {
		return Token{}, Member{}, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	e, err := r.living(token)
	if err != nil {
		return Token{}, Member{}, err
	}
	if known, ok := e.member(id); ok {
		switch {
		case known.Peers != peers:
			return e.copy(), known, fmt.Errorf("%w as %q, not as %q; a member that changed needs a new token for its cluster", ErrExists, known.Peers, peers)
		case !known.Told.IsZero() && r.now().Sub(known.Told) >= r.sinceTold:
			return e.copy(), known, fmt.Errorf("%w and was told the cluster, so that it may have run: if its data folder is lost, remove the member from the cluster and add it again; "+
				"if the cluster never formed, make a new token for it", ErrExists)
		}
		return e.copy(), known, nil
	}
	if e.Complete() {
		return e.copy(), Member{}, fmt.Errorf("%w: its %d members have registered", ErrFull, e.Size)
	}
	for _, other := range e.Members {
		if taken, _ := nameOf(other.Peers); taken == name {
			return e.copy(), Member{}, fmt.Errorf("%w: %s has registered a member with the name %q; give each member a name of its own (--name)", ErrBad, other.From, name)
		}
	}
	m = Member{ID: id, Peers: peers, Index: e.Index() + 1, From: from, At: r.now().UTC().Truncate(time.Second)}
	e.Members = append(e.Members, m)
	if err := r.save(); err != nil {
		e.Members = e.Members[:len(e.Members)-1]
		return e.copy(), Member{}, err
	}
	close(e.changed)
	e.changed = make(chan struct{})
	return e.copy(), m, nil
}

// Tell records that an address is about to be told all members of a token. They may be told only if there is no error.
func (r *Registry) Tell(token string, from netip.Addr) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	e, err := r.living(token)
	if err != nil {
		return err
	}
	before, changed := slices.Clone(e.Members), false
	for i := range e.Members {
		if m := &e.Members[i]; m.From == from && m.Told.IsZero() {
			m.Told, changed = r.now().UTC(), true
		}
	}
	if !changed {
		return nil
	}
	if err := r.save(); err != nil {
		e.Members = before
		return err
	}
	return nil
}

// List returns all tokens, also those that have ended, the newest first.
func (r *Registry) List() []Token {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.list()
}

func (r *Registry) list() []Token {
	all := []Token{}
	for _, e := range r.tokens {
		all = append(all, e.copy())
	}
	slices.SortFunc(all, func(a, b Token) int { return cmp.Or(b.Created.Compare(a.Created), cmp.Compare(a.ID, b.ID)) })
	return all
}

// Delete ends a token. Who waits for its members learns that there is none.
func (r *Registry) Delete(id string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	e := r.tokens[id]
	if e == nil {
		return ErrNoToken
	}
	delete(r.tokens, id)
	if err := r.save(); err != nil {
		r.tokens[id] = e
		return err
	}
	close(e.changed)
	return nil
}

// save needs mu.
func (r *Registry) save() error {
	text, err := json.MarshalIndent(r.list(), "", " ")
	if err == nil {
		err = durable.WriteFile(r.file, append(text, '\n'), 0o600)
	}
	if err != nil {
		return fmt.Errorf("keep the tokens of etcd discovery: %w", err)
	}
	return nil
}

// nameOf checks what a member says of itself, and returns its name.
func nameOf(peers string) (name string, err error) {
	bad := func(format string, args ...any) (string, error) {
		return "", fmt.Errorf("%w: %s; a member says NAME=http://HOST:PORT", ErrBad, fmt.Sprintf(format, args...))
	}
	if len(peers) > maxPeers {
		return bad("%d bytes, at most %d are taken", len(peers), maxPeers)
	}
	for _, one := range strings.Split(peers, ",") {
		its, address, found := strings.Cut(one, "=")
		if !found || its == "" || strings.ContainsFunc(one, func(r rune) bool { return r <= ' ' || r > '~' }) {
			return bad("%.80q", one)
		}
		if name != "" && its != name {
			return bad("two names, %.40q and %.40q", name, its)
		}
		name = its
		if u, err := url.Parse(address); err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" || u.Port() == "" || u.Path != "" {
			return bad("%.80q is not the URL of a peer", address)
		}
	}
	return name, nil
}
