// Package acme issues certificates to machines of the rack by the ACME protocol (RFC 8555), with challenges of type http-01, for names
// (dns) and addresses (ip, RFC 8738) of approved machines. Only approved machines are answered beyond the directory, and only their own
// addresses are connected to, so that strangers can neither fill what is kept nor point the server at others.
//
// Accounts and orders are in one file, which is replaced before an answer tells of a change: a restart loses none.
package acme

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"coldrack.dev/internal/base/durable"
	"coldrack.dev/internal/base/pki"
	"coldrack.dev/internal/contract/validate"
	"coldrack.dev/internal/netboot/ratelimit"
	"coldrack.dev/internal/server/certs"
)

const (
	// Prefix of all paths, PathDirectory that of the directory, which clients are told.
	Prefix        = "/acme/"
	PathDirectory = Prefix + "directory"

	// perMachine bounds the accounts and the orders of one machine, and maxAll those of all. The oldest makes room.
	perMachine = 8
	maxAll     = 4096
	maxHosts   = 10 // of an order
	orderLife  = 24 * time.Hour
	// validations at once, and how long each may take.
	validations    = 16
	validationTime = 10 * time.Second
)

// Inventory knows the approved machines.
type Inventory interface {
	// MachineAt is the machine that has an address; empty: none.
	MachineAt(netip.Addr) string
	// AddressesOf a machine by one of its names, or by one of its addresses; none: it is not that of a machine.
	AddressesOf(host string) []netip.Addr
}

// Options of a Server.
type Options struct {
	Certs     *certs.Service
	File      string
	Inventory Inventory
	// Dial connects to a machine.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// Now is the clock; nil: time.Now.
	Now func() time.Time
	Log *slog.Logger
}

// What accounts, orders, authorizations and challenges are (RFC 8555, 7.1.6).
const (
	valid       = "valid"
	pending     = "pending"
	processing  = "processing"
	ready       = "ready"
	invalid     = "invalid"
	deactivated = "deactivated"
)

type account struct {
	ID      string    `json:"id"`
	Key     jwk       `json:"key"`
	Machine string    `json:"machine"`
	Status  string    `json:"status"`
	Created time.Time `json:"created"`
}

type order struct {
	ID      string          `json:"id"`
	Account string          `json:"account"`
	Machine string          `json:"machine"`
	Created time.Time       `json:"created"`
	Expires time.Time       `json:"expires"`
	Hosts   []authorization `json:"hosts"`
	// Serial of the certificate, once there is one.
	Serial string `json:"serial,omitempty"`
}

// authorization of an order, with its only challenge.
type authorization struct {
	Type  string `json:"type"` // dns or ip
	Value string `json:"value"`
	Token string `json:"token"`
	// Status is pending, processing while the machine is asked, valid or invalid.
	Status    string    `json:"status"`
	Validated time.Time `json:"validated,omitzero"`
	Problem   *problem  `json:"problem,omitempty"`
}

// status of an order follows from its authorizations.
func (o *order) status() string {
	switch {
	case o.Serial != "":
		return valid
	case slices.ContainsFunc(o.Hosts, func(a authorization) bool { return a.Status == invalid }):
		return invalid
	case slices.ContainsFunc(o.Hosts, func(a authorization) bool { return a.Status != valid }):
		return pending
	}
	return ready
}

// problem is an error that a client is told (RFC 7807).
type problem struct {
	Type   string `json:"type"`
	Detail string `json:"detail"`
	Status int    `json:"status,omitempty"`
}

func fail(status int, kind, format string, args ...any) *problem {
	return &problem{"urn:ietf:params:acme:error:" + kind, fmt.Sprintf(format, args...), status}
}

// Server answers clients. It is safe for concurrent use.
type Server struct {
	Options
	nonces nonces
	limit  *ratelimit.Limiter

	// ctx ends validations, of which work counts those that run.
	ctx  context.Context
	work sync.WaitGroup
	slot chan struct{}

	mu       sync.Mutex
	accounts map[string]*account
	orders   map[string]*order
}

type state struct {
	Accounts []*account `json:"accounts"`
	Orders   []*order   `json:"orders"`
}

// Open reads accounts and orders. What was being validated when the server ended is validated again. Validations end with ctx.
func Open(ctx context.Context, o Options) (*Server, error) {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	s := &Server{Options: o, ctx: ctx, limit: ratelimit.New(20, 200, 10_000), slot: make(chan struct{}, validations), accounts: map[string]*account{}, orders: map[string]*order{}}
	text, err := os.ReadFile(o.File)
	if errors.Is(err, fs.ErrNotExist) {
		return s, nil
	}
	var kept state
	if err == nil {
		err = json.Unmarshal(text, &kept)
	}
	if err != nil {
		return nil, fmt.Errorf("accounts and orders of ACME: %s: %w; move the file away to go on without them: clients make new ones", o.File, err)
	}
	for _, a := range kept.Accounts {
		s.accounts[a.ID] = a
	}
	for _, o := range kept.Orders {
		s.orders[o.ID] = o
		for i := range o.Hosts {
			if a := s.accounts[o.Account]; a != nil && o.Hosts[i].Status == processing {
				s.validate(o.ID, i, o.Hosts[i], a.Key.thumbprint())
			}
		}
	}
	return s, nil
}

// Wait returns when no validation runs, after ctx of Open has ended.
func (s *Server) Wait() { s.work.Wait() }

// save needs mu.
func (s *Server) save() *problem {
	kept := state{Accounts: slices.Collect(maps.Values(s.accounts)), Orders: slices.Collect(maps.Values(s.orders))}
	text, err := json.Marshal(kept)
	if err == nil {
		err = durable.WriteFile(s.File, append(text, '\n'), 0o600)
	}
	if err != nil {
		s.Log.Error("cannot keep accounts and orders of ACME", "err", err)
		return fail(http.StatusInternalServerError, "serverInternal", "the server cannot keep what was asked for; try again later")
	}
	return nil
}

func newID() string {
	b := make([]byte, 16)
	_, _ = rand.Read(b) // it never fails
	return b64.EncodeToString(b)
}

// answer is what a request gets.
type answer struct {
	status   int
	location string
	up       string
	body     any
	chain    []byte // PEM, in the place of body
}

// call is a request of a machine whose signature was checked.
type call struct {
	machine string
	account *account // nil: it has shown a key
	key     jwk
	payload []byte
	base    string // https://HOST:PORT
}

func (c call) url(elem ...string) string { return c.base + Prefix + strings.Join(elem, "/") }

// asGet says whether a request only reads (RFC 8555, 6.3).
func (c call) asGet() bool { return len(c.payload) == 0 }

func (c call) read(into any) *problem {
	if err := json.Unmarshal(c.payload, into); err != nil {
		return fail(http.StatusBadRequest, "malformed", "the payload cannot be read: %v", err)
	}
	return nil
}

// ServeHTTP answers below Prefix.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	from, _ := netip.ParseAddrPort(r.RemoteAddr)
	base := "https://" + r.Host
	w.Header().Set("Link", "<"+base+PathDirectory+`>;rel="index"`)
	if !s.limit.Allow(from.Addr(), s.Now()) {
		w.Header().Set("Retry-After", "5")
		s.tell(w, fail(http.StatusTooManyRequests, "rateLimited", "too many requests of %s", from.Addr()))
		return
	}
	switch path := r.URL.Path; {
	case path == PathDirectory && r.Method == http.MethodGet:
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(map[string]any{
			"newNonce": base + Prefix + "new-nonce", "newAccount": base + Prefix + "new-account", "newOrder": base + Prefix + "new-order", "revokeCert": base + Prefix + "revoke-cert",
			"meta": map[string]any{"externalAccountRequired": false},
		})
	case path == Prefix+"new-nonce" && (r.Method == http.MethodHead || r.Method == http.MethodGet):
		s.giveNonce(w)
		w.Header().Set("Cache-Control", "no-store")
		if r.Method == http.MethodGet {
			w.WriteHeader(http.StatusNoContent)
		}
	case r.Method != http.MethodPost:
		s.tell(w, fail(http.StatusMethodNotAllowed, "malformed", "only POST here, also to read (RFC 8555, 6.3)"))
	default:
		s.giveNonce(w)
		a, p := s.post(w, r, from.Addr().Unmap(), base, strings.Split(strings.TrimPrefix(path, Prefix), "/"))
		if p != nil {
			s.tell(w, p)
			return
		}
		h := w.Header()
		if a.location != "" {
			h.Set("Location", a.location)
		}
		if a.up != "" {
			h.Add("Link", "<"+a.up+`>;rel="up"`)
		}
		if a.chain != nil {
			h.Set("Content-Type", "application/pem-certificate-chain")
			_, _ = w.Write(a.chain)
			return
		}
		h.Set("Content-Type", "application/json")
		w.WriteHeader(a.status)
		if a.body != nil {
			_ = json.NewEncoder(w).Encode(a.body)
		}
	}
}

func (s *Server) giveNonce(w http.ResponseWriter) {
	w.Header().Set("Replay-Nonce", s.nonces.make(s.Now()))
}

func (s *Server) tell(w http.ResponseWriter, p *problem) {
	w.Header().Set("Content-Type", "application/problem+json")
	w.WriteHeader(p.Status)
	_ = json.NewEncoder(w).Encode(p)
}

// post answers a request that is signed.
func (s *Server) post(w http.ResponseWriter, r *http.Request, from netip.Addr, base string, path []string) (answer, *problem) {
	machine := s.Inventory.MachineAt(from)
	if machine == "" {
		return answer{}, fail(http.StatusForbidden, "unauthorized", "%s is the address of no approved machine", from)
	}
	m, p := readMessage(w, r)
	if p != nil {
		return answer{}, p
	}
	if want := base + r.URL.Path; m.url != want {
		return answer{}, fail(http.StatusUnauthorized, "unauthorized", "the request is signed for %.200q, and came to %.200q", m.url, want)
	}
	c := call{machine: machine, payload: m.payload, base: base}
	s.mu.Lock()
	defer s.mu.Unlock()
	if m.key != nil {
		c.key = *m.key
	} else {
		a := s.accounts[strings.TrimPrefix(m.kid, c.url("account", ""))]
		switch {
		case a == nil:
			return answer{}, fail(http.StatusBadRequest, "accountDoesNotExist", "there is no account %.200q; make another", m.kid)
		case a.Machine != machine:
			return answer{}, fail(http.StatusUnauthorized, "unauthorized", "the account is that of another machine")
		case a.Status != valid:
			return answer{}, fail(http.StatusUnauthorized, "unauthorized", "the account is deactivated")
		}
		c.account, c.key = a, a.Key
	}
	if p := m.check(c.key); p != nil {
		return answer{}, p
	}
	if !s.nonces.use(m.nonce, s.Now()) {
		return answer{}, fail(http.StatusBadRequest, "badNonce", "the nonce is unknown or was used; this answer has another")
	}
	switch {
	case path[0] == "new-account" && len(path) == 1 && m.key != nil:
		return s.newAccount(c)
	case path[0] == "revoke-cert" && len(path) == 1:
		return s.revoke(c)
	case c.account == nil:
		return answer{}, fail(http.StatusBadRequest, "malformed", "this is signed by an account (kid), and not by a key alone")
	case path[0] == "account" && len(path) == 2 && path[1] == c.account.ID:
		return s.account(c)
	case path[0] == "new-order" && len(path) == 1:
		return s.newOrder(c)
	case path[0] == "cert" && len(path) == 2:
		return s.certificate(c, path[1])
	}
	if len(path) < 2 || s.orders[path[1]] == nil || s.orders[path[1]].Account != c.account.ID {
		return answer{}, fail(http.StatusNotFound, "malformed", "there is no such thing, or it is another account's")
	}
	o := s.orders[path[1]]
	i := -1
	if len(path) == 3 {
		if n, err := strconv.Atoi(path[2]); err == nil && n >= 0 && n < len(o.Hosts) {
			i = n
		}
	}
	switch {
	case path[0] == "order" && len(path) == 2:
		return answer{status: http.StatusOK, body: s.showOrder(c, o)}, nil
	case path[0] == "order" && len(path) == 3 && path[2] == "finalize":
		return s.finalize(c, o)
	case path[0] == "authz" && i >= 0:
		return s.authorization(c, o, i)
	case path[0] == "challenge" && i >= 0:
		return s.challenge(c, o, i)
	}
	return answer{}, fail(http.StatusNotFound, "malformed", "there is no such thing")
}

func (s *Server) newAccount(c call) (answer, *problem) {
	var wanted struct{ OnlyReturnExisting bool }
	if p := c.read(&wanted); p != nil {
		return answer{}, p
	}
	mine := c.key.thumbprint()
	for _, a := range s.accounts {
		if a.Key.thumbprint() != mine {
			continue
		}
		switch {
		case a.Machine != c.machine:
			return answer{}, fail(http.StatusUnauthorized, "unauthorized", "the key is that of another machine's account; make a key on each machine")
		case a.Status != valid:
			return answer{}, fail(http.StatusUnauthorized, "unauthorized", "the account is deactivated")
		}
		return answer{status: http.StatusOK, location: c.url("account", a.ID), body: showAccount(a)}, nil
	}
	if wanted.OnlyReturnExisting {
		return answer{}, fail(http.StatusBadRequest, "accountDoesNotExist", "there is no account with this key")
	}
	made := &account{ID: newID(), Key: c.key, Machine: c.machine, Status: valid, Created: s.Now().UTC()}
	gone, p := room(s.accounts, c.machine, func(a *account) (string, time.Time) { return a.Machine, a.Created })
	if p != nil {
		return answer{}, p
	}
	s.accounts[made.ID] = made
	if p := s.save(); p != nil {
		delete(s.accounts, made.ID)
		maps.Copy(s.accounts, gone)
		return answer{}, p
	}
	s.Log.Info("ACME account made", "machine", c.machine, "account", made.ID)
	return answer{status: http.StatusCreated, location: c.url("account", made.ID), body: showAccount(made)}, nil
}

// room makes room for one more of a machine, and returns what had to go.
func room[T any](all map[string]T, machine string, of func(T) (machine string, created time.Time)) (gone map[string]T, p *problem) {
	var mine []string
	for id, one := range all {
		if owner, _ := of(one); owner == machine {
			mine = append(mine, id)
		}
	}
	slices.SortFunc(mine, func(a, b string) int {
		_, one := of(all[a])
		_, two := of(all[b])
		return one.Compare(two)
	})
	gone = map[string]T{}
	for len(mine) >= perMachine || len(all) >= maxAll && len(mine) > 0 {
		gone[mine[0]] = all[mine[0]]
		delete(all, mine[0])
		mine = mine[1:]
	}
	if len(all) >= maxAll {
		return nil, fail(http.StatusTooManyRequests, "rateLimited", "%d are kept, which is as many as may be", maxAll)
	}
	return gone, nil
}

func showAccount(a *account) any { return map[string]any{"status": a.Status} }

func (s *Server) account(c call) (answer, *problem) {
	var wanted struct{ Status string }
	if !c.asGet() {
		if p := c.read(&wanted); p != nil {
			return answer{}, p
		}
	}
	if wanted.Status == deactivated {
		c.account.Status = deactivated
		if p := s.save(); p != nil {
			c.account.Status = valid
			return answer{}, p
		}
	}
	return answer{status: http.StatusOK, body: showAccount(c.account)}, nil
}

type identifier struct {
	Type  string `json:"type"`
	Value string `json:"value"`
}

func (s *Server) newOrder(c call) (answer, *problem) {
	var wanted struct{ Identifiers []identifier }
	if p := c.read(&wanted); p != nil {
		return answer{}, p
	}
	if n := len(wanted.Identifiers); n == 0 || n > maxHosts {
		return answer{}, fail(http.StatusBadRequest, "malformed", "an order is for 1 to %d identifiers", maxHosts)
	}
	if _, _, err := s.Certs.Describe(); err != nil {
		return answer{}, fail(http.StatusServiceUnavailable, "serverInternal", "%v", err)
	}
	now := s.Now().UTC()
	made := &order{ID: newID(), Account: c.account.ID, Machine: c.machine, Created: now, Expires: now.Add(orderLife).Truncate(time.Second)}
	for _, id := range wanted.Identifiers {
		value := strings.ToLower(id.Value)
		switch id.Type {
		case "dns":
			if strings.HasPrefix(value, "*.") {
				return answer{}, fail(http.StatusBadRequest, "rejectedIdentifier", "%.80q: a wildcard cannot be shown by http-01; coldrack pki issue makes one", id.Value)
			}
			if _, err := netip.ParseAddr(value); err == nil || validate.DNSName(value) != nil {
				return answer{}, fail(http.StatusBadRequest, "malformed", "%.80q is no name; an address is of type ip", id.Value)
			}
		case "ip":
			a, err := netip.ParseAddr(value)
			if err != nil {
				return answer{}, fail(http.StatusBadRequest, "malformed", "%.80q is no address", id.Value)
			}
			value = a.String()
		default:
			return answer{}, fail(http.StatusBadRequest, "unsupportedIdentifier", "identifiers are of type dns or ip, not %.20q", id.Type)
		}
		if len(s.Inventory.AddressesOf(value)) == 0 {
			return answer{}, fail(http.StatusForbidden, "rejectedIdentifier", "%q belongs to no approved machine", value)
		}
		if !slices.ContainsFunc(made.Hosts, func(a authorization) bool { return a.Value == value }) {
			made.Hosts = append(made.Hosts, authorization{Type: id.Type, Value: value, Token: newID() + newID(), Status: pending})
		}
	}
	gone, p := room(s.orders, c.machine, func(o *order) (string, time.Time) { return o.Machine, o.Created })
	if p != nil {
		return answer{}, p
	}
	s.orders[made.ID] = made
	if p := s.save(); p != nil {
		delete(s.orders, made.ID)
		maps.Copy(s.orders, gone)
		return answer{}, p
	}
	return answer{status: http.StatusCreated, location: c.url("order", made.ID), body: s.showOrder(c, made)}, nil
}

func (s *Server) showOrder(c call, o *order) any {
	shown := map[string]any{"status": s.statusOf(o), "expires": o.Expires.Format(time.RFC3339), "finalize": c.url("order", o.ID, "finalize")}
	var ids []identifier
	var authorizations []string
	for i, a := range o.Hosts {
		ids = append(ids, identifier{a.Type, a.Value})
		authorizations = append(authorizations, c.url("authz", o.ID, strconv.Itoa(i)))
		if a.Problem != nil {
			shown["error"] = a.Problem
		}
	}
	shown["identifiers"], shown["authorizations"] = ids, authorizations
	if o.Serial != "" {
		shown["certificate"] = c.url("cert", o.Serial)
	}
	return shown
}

// statusOf is the status of an order, of which one that has ended is invalid.
func (s *Server) statusOf(o *order) string {
	if status := o.status(); status == valid || s.Now().Before(o.Expires) {
		return status
	}
	return invalid
}

func (s *Server) authorization(c call, o *order, i int) (answer, *problem) {
	a := o.Hosts[i]
	status := a.Status
	if status == processing {
		status = pending
	}
	if status == pending && !s.Now().Before(o.Expires) {
		status = invalid
	}
	shown := map[string]any{"status": status, "expires": o.Expires.Format(time.RFC3339), "identifier": identifier{a.Type, a.Value}, "challenges": []any{s.showChallenge(c, o, i)}}
	return answer{status: http.StatusOK, body: shown}, nil
}

func (s *Server) showChallenge(c call, o *order, i int) any {
	a := o.Hosts[i]
	shown := map[string]any{"type": "http-01", "status": a.Status, "token": a.Token, "url": c.url("challenge", o.ID, strconv.Itoa(i))}
	if !a.Validated.IsZero() {
		shown["validated"] = a.Validated.Format(time.RFC3339)
	}
	if a.Problem != nil {
		shown["error"] = a.Problem
	}
	return shown
}

func (s *Server) challenge(c call, o *order, i int) (answer, *problem) {
	if !c.asGet() && o.Hosts[i].Status == pending && s.Now().Before(o.Expires) {
		o.Hosts[i].Status = processing
		if p := s.save(); p != nil {
			o.Hosts[i].Status = pending
			return answer{}, p
		}
		s.validate(o.ID, i, o.Hosts[i], c.key.thumbprint())
	}
	return answer{status: http.StatusOK, up: c.url("authz", o.ID, strconv.Itoa(i)), body: s.showChallenge(c, o, i)}, nil
}

// validate asks a machine for what it shall show, and records what came of it.
func (s *Server) validate(id string, i int, a authorization, thumbprint string) {
	s.work.Go(func() {
		select {
		case s.slot <- struct{}{}:
			defer func() { <-s.slot }()
		case <-s.ctx.Done():
			return
		}
		p := s.look(a, a.Token+"."+thumbprint)
		if s.ctx.Err() != nil {
			return // the next start looks again
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		o := s.orders[id]
		if o == nil {
			return
		}
		a := &o.Hosts[i]
		if a.Status, a.Problem = valid, p; p != nil {
			a.Status = invalid
			s.Log.Warn("a machine does not show the challenge of ACME", "machine", o.Machine, "name", a.Value, "err", p.Detail)
		} else {
			a.Validated = s.Now().UTC().Truncate(time.Second)
		}
		_ = s.save() // if it cannot be kept, a restart looks again
	})
}

// look asks each address of a machine by which it is known, and says why none shows what it shall. Redirects are not followed: they
// could lead anywhere.
func (s *Server) look(a authorization, want string) *problem {
	addresses := s.Inventory.AddressesOf(a.Value)
	if a.Type == "ip" {
		addresses = slices.DeleteFunc(slices.Clone(addresses), func(at netip.Addr) bool { return at.String() != a.Value })
	}
	if len(addresses) == 0 {
		return fail(http.StatusForbidden, "rejectedIdentifier", "%s belongs to no approved machine any more", a.Value)
	}
	var last *problem
	for _, at := range addresses[:min(len(addresses), 4)] {
		if last = s.ask(at, a, want); last == nil {
			return nil
		}
	}
	return last
}

func (s *Server) ask(at netip.Addr, a authorization, want string) *problem {
	ctx, cancel := context.WithTimeout(s.ctx, validationTime)
	defer cancel()
	host := a.Value
	if at := net.ParseIP(host); at != nil && at.To4() == nil {
		host = "[" + host + "]"
	}
	url := "http://" + host + "/.well-known/acme-challenge/" + a.Token
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return fail(http.StatusBadRequest, "malformed", "%v", err)
	}
	request.Header.Set("User-Agent", "coldrack")
	transport := &http.Transport{
		DisableKeepAlives: true, MaxResponseHeaderBytes: 16 << 10, Proxy: nil,
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return s.Dial(ctx, network, netip.AddrPortFrom(at, 80).String())
		},
	}
	defer transport.CloseIdleConnections()
	response, err := transport.RoundTrip(request)
	if err != nil {
		return fail(http.StatusBadRequest, "connection", "%s of %s cannot be asked on port 80: %v", at, a.Value, err)
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return fail(http.StatusForbidden, "unauthorized", "%s answers %s for %s; 200 is wanted, and redirects are not followed", at, response.Status, url)
	}
	body, err := io.ReadAll(io.LimitReader(response.Body, 1<<10))
	if err != nil {
		return fail(http.StatusBadRequest, "connection", "%s of %s: %v", at, a.Value, err)
	}
	if got := strings.TrimSpace(string(body)); got != want {
		return fail(http.StatusForbidden, "unauthorized", "%s shows %.120q for %s, and not the key authorization %q", at, got, url, want)
	}
	return nil
}

// asker is who asks for a machine's certificate.
func (s *Server) asker(machine string) certs.Asker {
	return certs.Asker{Name: "acme/" + machine, Owns: func(host string) bool { return len(s.Inventory.AddressesOf(host)) > 0 }}
}

func (s *Server) finalize(c call, o *order) (answer, *problem) {
	if is := s.statusOf(o); is != ready {
		if is == valid {
			return answer{status: http.StatusOK, location: c.url("order", o.ID), body: s.showOrder(c, o)}, nil
		}
		return answer{}, fail(http.StatusForbidden, "orderNotReady", "the order is %s", is)
	}
	var wanted struct{ CSR string }
	if p := c.read(&wanted); p != nil {
		return answer{}, p
	}
	der, err := b64.DecodeString(wanted.CSR)
	if err != nil {
		return answer{}, fail(http.StatusBadRequest, "badCSR", "csr is not base64url")
	}
	csr, err := x509.ParseCertificateRequest(der)
	if err != nil {
		return answer{}, fail(http.StatusBadRequest, "badCSR", "%v", err)
	}
	var hosts, asked []string
	for _, a := range o.Hosts {
		hosts = append(hosts, a.Value)
	}
	for _, n := range csr.DNSNames {
		asked = append(asked, strings.ToLower(n))
	}
	for _, ip := range csr.IPAddresses {
		asked = append(asked, ip.String())
	}
	if cn := strings.ToLower(csr.Subject.CommonName); cn != "" {
		asked = append(asked, cn)
	}
	slices.Sort(asked)
	slices.Sort(hosts)
	if asked = slices.Compact(asked); !slices.Equal(asked, hosts) || len(csr.EmailAddresses)+len(csr.URIs) > 0 {
		return answer{}, fail(http.StatusBadRequest, "badCSR", "the request is for %s, and the order for %s", strings.Join(asked, ", "), strings.Join(hosts, ", "))
	}
	if c.key.isSame(csr.PublicKey) {
		return answer{}, fail(http.StatusBadRequest, "badCSR", "the key of the certificate must be another than that of the account")
	}
	issued, err := s.Certs.Issue(certs.Request{CSR: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}), Profile: "server", Hosts: hosts, NoOrganization: true}, s.asker(c.machine))
	switch {
	case errors.Is(err, certs.ErrBad):
		return answer{}, fail(http.StatusBadRequest, "badCSR", "%v", err)
	case errors.Is(err, certs.ErrForbidden):
		return answer{}, fail(http.StatusForbidden, "rejectedIdentifier", "%v", err)
	case errors.Is(err, certs.ErrFull):
		return answer{}, fail(http.StatusTooManyRequests, "rateLimited", "%v", err)
	case err != nil:
		s.Log.Error("cannot issue a certificate by ACME", "machine", c.machine, "err", err)
		return answer{}, fail(http.StatusInternalServerError, "serverInternal", "the server cannot issue it now; try again later")
	}
	o.Serial = issued.Serial
	if p := s.save(); p != nil {
		o.Serial = ""
		return answer{}, p
	}
	s.Log.Info("certificate issued", "serial", issued.Serial, "profile", issued.Profile, "names", strings.Join(hosts, ","), "until", issued.Certificate().NotAfter, "by", issued.By)
	return answer{status: http.StatusOK, location: c.url("order", o.ID), body: s.showOrder(c, o)}, nil
}

// isSame says whether it is a certain key.
func (k jwk) isSame(other crypto.PublicKey) bool {
	mine, err := k.key()
	if err != nil {
		return false
	}
	is, ok := mine.(interface{ Equal(x crypto.PublicKey) bool })
	return ok && is.Equal(other)
}

func (s *Server) certificate(c call, serial string) (answer, *problem) {
	issued, err := s.Certs.Get(serial)
	if err != nil || issued.By != s.asker(c.machine).Name {
		return answer{}, fail(http.StatusNotFound, "malformed", "there is no such certificate of this machine")
	}
	authority, _, err := s.Certs.Describe()
	if err != nil {
		return answer{}, fail(http.StatusServiceUnavailable, "serverInternal", "%v", err)
	}
	return answer{status: http.StatusOK, chain: append(issued.PEM(), pki.EncodeCertificate(authority)...)}, nil
}

// revoke takes a certificate back, for the machine that it was issued to, or for whoever has its key (RFC 8555, 7.6).
func (s *Server) revoke(c call) (answer, *problem) {
	var wanted struct {
		Certificate string
		Reason      int
	}
	if p := c.read(&wanted); p != nil {
		return answer{}, p
	}
	der, err := b64.DecodeString(wanted.Certificate)
	if err != nil {
		der, err = base64.URLEncoding.DecodeString(wanted.Certificate)
	}
	if err != nil {
		return answer{}, fail(http.StatusBadRequest, "malformed", "certificate is not base64url")
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return answer{}, fail(http.StatusBadRequest, "malformed", "%v", err)
	}
	issued, err := s.Certs.Get(cert.SerialNumber.Text(16))
	if err != nil || !bytes.Equal(issued.DER, der) {
		return answer{}, fail(http.StatusNotFound, "malformed", "this server did not issue it, or remembers it no longer")
	}
	if c.account == nil && !c.key.isSame(cert.PublicKey) || c.account != nil && issued.By != s.asker(c.machine).Name {
		return answer{}, fail(http.StatusForbidden, "unauthorized", "it was issued to another machine; sign with its account, or with the certificate's key")
	}
	reason := certs.ReasonName(wanted.Reason)
	if !slices.Contains(certs.Reasons(), reason) {
		return answer{}, fail(http.StatusBadRequest, "badRevocationReason", "reason %d: must be one of %s", wanted.Reason, strings.Join(certs.Reasons(), ", "))
	}
	switch _, err := s.Certs.Revoke(issued.Serial, reason, certs.Asker{Name: issued.By}); {
	case errors.Is(err, certs.ErrRevoked):
		return answer{}, fail(http.StatusBadRequest, "alreadyRevoked", "%v", err)
	case err != nil:
		s.Log.Error("cannot revoke a certificate", "machine", c.machine, "serial", issued.Serial, "err", err)
		return answer{}, fail(http.StatusInternalServerError, "serverInternal", "the server cannot revoke it now; try again later")
	}
	return answer{status: http.StatusOK}, nil
}
