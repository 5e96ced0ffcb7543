package ratelimit

import (
	"net/netip"
	"testing"
	"time"
)

func TestAClientHasItsShare(t *testing.T) {
	now := time.Unix(1e9, 0)
	l := New(10, 5, 3)
	allowed := func(client string, tries int) (n int) {
		for range tries {
			if l.Allow(netip.MustParseAddr(client), now) {
				n++
			}
		}
		return n
	}
	for _, step := range []struct {
		what, client string
		wait         time.Duration
		tries, want  int
	}{
		{"a burst", "192.0.2.1", 0, 100, 5},
		{"one more a tenth of a second later", "192.0.2.1", 100 * time.Millisecond, 100, 1},
		{"another client meanwhile", "192.0.2.2", 0, 100, 5},
		{"a burst again after a rest", "192.0.2.1", time.Minute, 100, 5},
		{"an IPv6 network", "2001:db8::1", 0, 3, 3},
		{"another of its addresses", "2001:db8::2", 0, 100, 2},
		{"a third client takes the last place", "192.0.2.3", 0, 100, 5},
		{"those without a place share one", "192.0.2.4", 0, 3, 3},
		{"all of them", "192.0.2.5", 0, 100, 2},
		{"whoever has a place keeps it", "192.0.2.3", 200 * time.Millisecond, 100, 2},
		{"places become free", "192.0.2.6", time.Minute, 100, 5},
	} {
		now = now.Add(step.wait)
		if got := allowed(step.client, step.tries); got != step.want {
			t.Errorf("%s: %d answers of %d, want %d", step.what, got, step.tries, step.want)
		}
	}
	if l.Refused() == 0 || len(l.due) > 4 {
		t.Errorf("%d refused, %d remembered", l.Refused(), len(l.due))
	}
}
