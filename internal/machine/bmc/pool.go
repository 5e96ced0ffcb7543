package bmc

import (
	"context"
	"fmt"
	"net"
	"strings"
	"sync"
	"time"
)

// PoolOptions bound visits. The zero value has defaults.
type PoolOptions struct {
	// Visits is how many BMCs are talked to at the same time. Default 64.
	Visits int
	// Gap is the time between two visits of one BMC. Default 500 ms.
	Gap time.Duration
	// Backoff is how long a BMC that failed is left alone by those who can wait; it doubles up to MaxBackoff. Defaults 30 s and
	// 30 min. One that refuses the password is left alone for MaxBackoff at once, because it may lock the account.
	Backoff, MaxBackoff time.Duration
	Driver              Options
	// Now is the clock; nil means time.Now.
	Now func() time.Time
}

// Pool lets one visitor at a time at each BMC, however many ask, and bounds how many BMCs are visited at once. One that is slow
// or dead holds up nobody else: its visitors wait for it alone, and Patient ones leave it alone for a while.
type Pool struct {
	options PoolOptions
	places  chan struct{}

	mu   sync.Mutex
	bmcs map[string]*turn
}

// turn is whose turn it is at one BMC.
type turn struct {
	busy chan struct{} // holds one when somebody is there
	// users count those who are there or wait; with none, and nothing to remember, the turn is forgotten.
	users int
	// free is when the next visit may begin, and retry when a patient one may; failures in a row.
	free, retry time.Time
	failures    int
	// secret is what failed, so that another password is tried at once.
	secret string
	last   error
}

// NewPool returns a pool of nobody.
func NewPool(o PoolOptions) *Pool {
	if o.Visits == 0 {
		o.Visits = 64
	}
	if o.Gap == 0 {
		o.Gap = 500 * time.Millisecond
	}
	if o.Backoff == 0 {
		o.Backoff = 30 * time.Second
	}
	if o.MaxBackoff == 0 {
		o.MaxBackoff = 30 * time.Minute
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	return &Pool{options: o, places: make(chan struct{}, o.Visits), bmcs: map[string]*turn{}}
}

// Patience says whether a visitor can wait.
type Patience bool

const (
	// Patient visitors come back: they do not visit a BMC that failed a short while ago.
	Patient Patience = true
	// Urgent ones are people who wait for the answer.
	Urgent Patience = false
)

// maxWaiting bounds the visitors of one BMC.
const maxWaiting = 16

// Visit calls f with the BMC when it is the caller's turn.
func (p *Pool) Visit(ctx context.Context, t Target, patience Patience, f func(context.Context, Driver) error) error {
	key := keyOf(t)
	at, err := p.enter(key, t, patience)
	if err != nil {
		return err
	}
	defer p.leave(key, at)
	gaveUp := func() error {
		return &Error{Kind: Unreachable, Address: t.Address, What: "its turn did not come, because others talk to it", Cause: context.Cause(ctx)}
	}
	select {
	case at.busy <- struct{}{}:
	case <-ctx.Done():
		return gaveUp()
	}
	defer func() { <-at.busy }()
	if err := p.pace(ctx, at); err != nil {
		return gaveUp()
	}
	// A place is taken only by those whose turn it is, so that a crowd at one BMC takes one.
	select {
	case p.places <- struct{}{}:
	case <-ctx.Done():
		return gaveUp()
	}
	defer func() { <-p.places }()
	d, err := Open(t, p.options.Driver)
	if err != nil {
		return err
	}
	err = f(ctx, d)
	d.Close()
	p.note(at, t, err)
	return err
}

// keyOf names one BMC: its protocols share it, because they share its processor.
func keyOf(t Target) string {
	host := t.Address
	if h, port, err := net.SplitHostPort(t.Address); err == nil {
		host = h
		if ip := net.ParseIP(h); ip != nil && ip.IsLoopback() {
			host += ":" + port // virtual ones
		}
	}
	return strings.ToLower(strings.Trim(host, "[]"))
}

func (p *Pool) enter(key string, t Target, patience Patience) (*turn, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	at := p.bmcs[key]
	if at == nil {
		at = &turn{busy: make(chan struct{}, 1)}
		p.bmcs[key] = at
	}
	now := p.options.Now()
	switch {
	case at.users >= maxWaiting:
		return nil, &Error{Kind: Waiting, Address: t.Address, What: fmt.Sprintf("%d requests wait for it already", at.users), Cause: at.last, Remedy: "try again when they have ended"}
	case patience == Patient && now.Before(at.retry) && at.secret == secretOf(t):
		return nil, &Error{Kind: Waiting, Address: t.Address, What: fmt.Sprintf("failed, and is tried again in %s", at.retry.Sub(now).Round(time.Second)), Cause: at.last}
	}
	at.users++
	return at, nil
}

func (p *Pool) leave(key string, at *turn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	at.users--
	if at.users == 0 && at.failures == 0 && !p.options.Now().Before(at.free) {
		delete(p.bmcs, key)
	}
}

func secretOf(t Target) string {
	return t.Username + "\x00" + t.Password.reveal() + "\x00" + t.Certificate
}

// pace waits for the gap between two visits.
func (p *Pool) pace(ctx context.Context, at *turn) error {
	p.mu.Lock()
	pause := at.free.Sub(p.options.Now())
	p.mu.Unlock()
	if pause <= 0 {
		return ctx.Err()
	}
	return p.options.Driver.withDefaults().Wait(ctx, pause)
}

// note remembers how a visit went.
func (p *Pool) note(at *turn, t Target, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := p.options.Now()
	at.free = now.Add(p.options.Gap)
	switch KindOf(err) {
	case Unreachable, Untrusted, Failed:
		at.failures++
		at.retry = now.Add(min(p.options.Backoff<<min(at.failures-1, 16), p.options.MaxBackoff))
	case Refused:
		at.failures++
		at.retry = now.Add(p.options.MaxBackoff)
	default:
		at.failures, at.retry, at.last, at.secret = 0, time.Time{}, nil, ""
		return
	}
	at.last, at.secret = err, secretOf(t)
}

// Forget drops what is remembered of BMCs that nobody will visit again: all but those of the addresses.
func (p *Pool) Forget(but map[string]bool) {
	keep := map[string]bool{}
	for address := range but {
		keep[keyOf(Target{Address: address})] = true
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for key, at := range p.bmcs {
		if at.users == 0 && !keep[key] {
			delete(p.bmcs, key)
		}
	}
}
