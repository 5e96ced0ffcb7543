package ui

import (
	"fmt"
	"net"
	"net/http"
	"sync"
	"time"

	"coldrack.dev/internal/server/controlplane"
)

const (
	// linkLife is how long a link can be used.
	linkLife = 5 * time.Minute
	// maxLinks of one person that were not used yet, and of all.
	maxLinksOfOne, maxLinks = 16, 256
)

// links are one-time secrets that open a session. They live in memory: a restart ends them.
type links struct {
	now func() time.Time

	mu   sync.Mutex
	open map[string]openLink // by hash
}

type openLink struct {
	person controlplane.Person
	until  time.Time
}

func newLinks(now func() time.Time) *links { return &links{now: now, open: map[string]openLink{}} }

func (l *links) make(p controlplane.Person) (secret string, until time.Time, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now, ofOne := l.now(), 0
	for key, one := range l.open {
		switch {
		case !now.Before(one.until):
			delete(l.open, key)
		case one.person.Name == p.Name:
			ofOne++
		}
	}
	if ofOne >= maxLinksOfOne || len(l.open) >= maxLinks {
		return "", time.Time{}, fmt.Errorf("%d links of %s were not used yet; use one, or wait %s", ofOne, p.Name, linkLife)
	}
	secret, until = newSecret(), now.Add(linkLife).UTC().Truncate(time.Second)
	l.open[hash(secret)] = openLink{p, until}
	return secret, until, nil
}

// take returns the person of a link, once.
func (l *links) take(secret string) (controlplane.Person, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	key := hash(secret)
	one, ok := l.open[key]
	delete(l.open, key)
	return one.person, ok && l.now().Before(one.until)
}

// Failed log-ins in a minute, of one address and of all, before further ones wait for the next.
const (
	failuresOfOne = 10
	failuresOfAll = 1000
)

// failures counts failed log-ins.
type failures struct {
	now func() time.Time

	mu    sync.Mutex
	since time.Time
	all   int
	of    map[string]int
}

func newFailures(now func() time.Time) *failures { return &failures{now: now, of: map[string]int{}} }

func (f *failures) add(from string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.begin()
	f.all++
	f.of[from]++
}

// wait is how long an address has to wait before it may try; 0: it may now.
func (f *failures) wait(from string) time.Duration {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.begin()
	if f.of[from] < failuresOfOne && f.all < failuresOfAll {
		return 0
	}
	return f.since.Add(time.Minute).Sub(f.now())
}

// begin begins a new minute when one is over. At most failuresOfAll addresses are remembered.
func (f *failures) begin() {
	if now := f.now(); now.Sub(f.since) >= time.Minute || now.Before(f.since) {
		f.since, f.all = now, 0
		clear(f.of)
	}
}

func source(r *http.Request) string {
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		return r.RemoteAddr
	}
	return host
}
