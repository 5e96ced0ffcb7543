package liblog

import (
	"context"
	"log/slog"
	"net/netip"
	"sync"
	"time"
)

// Limits of Throttle, lines of one message in a minute.
const (
	perSource = 30
	perMinute = 10_000
	// maxSources bounds what is remembered of a minute.
	maxSources = 1 << 15
)

// sourceKeys are the attributes that say who caused a line.
var sourceKeys = map[string]bool{"remote": true, "from": true, "source": true, "client": true, "address": true, "mac": true}

// Throttle bounds how much others make a server log: of one message, 30 lines a minute for each source, and 10,000 for all.
// What was left out is counted in the next line of that message ("suppressed"). Lines that name no source pass. now is the
// clock; nil means time.Now.
func Throttle(next slog.Handler, now func() time.Time) slog.Handler {
	if now == nil {
		now = time.Now
	}
	return throttled{next, &throttle{now: now, sources: map[[2]string]int{}, messages: map[string]int{}, suppressed: map[string]int{}}}
}

type throttled struct {
	next   slog.Handler
	shared *throttle
}

type throttle struct {
	now func() time.Time

	mu         sync.Mutex
	since      time.Time
	sources    map[[2]string]int // by message and source
	messages   map[string]int
	suppressed map[string]int
}

// Enabled implements slog.Handler.
func (h throttled) Enabled(ctx context.Context, level slog.Level) bool {
	return h.next.Enabled(ctx, level)
}

// Handle implements slog.Handler.
func (h throttled) Handle(ctx context.Context, r slog.Record) error {
	source := sourceOf(r)
	if source == "" {
		return h.next.Handle(ctx, r)
	}
	pass, suppressed := h.shared.take(r.Message, source)
	if !pass {
		return nil
	}
	if suppressed > 0 {
		r = r.Clone()
		r.AddAttrs(slog.Int("suppressed", suppressed))
	}
	return h.next.Handle(ctx, r)
}

// WithAttrs implements slog.Handler.
func (h throttled) WithAttrs(attrs []slog.Attr) slog.Handler {
	return throttled{h.next.WithAttrs(attrs), h.shared}
}

// WithGroup implements slog.Handler.
func (h throttled) WithGroup(name string) slog.Handler {
	return throttled{h.next.WithGroup(name), h.shared}
}

// take counts a line and says whether it is written, and how many of its message were not since the last one that was.
func (t *throttle) take(message, source string) (pass bool, suppressed int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if now := t.now(); now.Sub(t.since) >= time.Minute {
		t.since = now
		clear(t.sources)
		clear(t.messages)
	}
	key := [2]string{message, source}
	if _, known := t.sources[key]; known || len(t.sources) < maxSources {
		t.sources[key]++
	}
	t.messages[message]++
	if t.sources[key] > perSource || t.messages[message] > perMinute {
		t.suppressed[message]++
		return false, 0
	}
	suppressed = t.suppressed[message]
	delete(t.suppressed, message)
	return true, suppressed
}

// sourceOf is who caused a line, without the port that each connection has anew.
func sourceOf(r slog.Record) (source string) {
	r.Attrs(func(a slog.Attr) bool {
		if !sourceKeys[a.Key] {
			return true
		}
		source = a.Value.String()
		if address, err := netip.ParseAddrPort(source); err == nil {
			source = address.Addr().String()
		}
		return source == ""
	})
	return source
}
