// Package journal keeps the last lines of an agent's log until they have been reported to the server.
package journal

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
)

// Ring holds the newest lines. The zero value is not usable; see New.
type Ring struct {
	mu    sync.Mutex
	max   int
	first uint64 // number of lines[0]
	lines []string
}

// New returns a ring of max lines.
func New(max int) *Ring { return &Ring{max: max} }

// Add appends a line.
func (r *Ring) Add(line string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.lines = append(r.lines, line)
	if over := len(r.lines) - r.max; over > 0 {
		r.lines = append(r.lines[:0:0], r.lines[over:]...)
		r.first += uint64(over)
	}
}

// Pending returns all lines that were not reported, and a mark to confirm them with.
func (r *Ring) Pending() (lines []string, mark uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]string(nil), r.lines...), r.first + uint64(len(r.lines))
}

// Reported forgets the lines before mark.
func (r *Ring) Reported(mark uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if mark > r.first {
		n := min(mark-r.first, uint64(len(r.lines)))
		r.lines, r.first = r.lines[n:], r.first+n
	}
}

// Handler passes records on, and each as one line to add.
func Handler(next slog.Handler, add func(level slog.Level, line string)) slog.Handler {
	return &handler{next: next, add: add}
}

type handler struct {
	next   slog.Handler
	add    func(slog.Level, string)
	prefix string
	attrs  string
}

func (h *handler) Enabled(_ context.Context, l slog.Level) bool { return l >= slog.LevelInfo }

func (h *handler) Handle(ctx context.Context, rec slog.Record) error {
	var b strings.Builder
	b.WriteString(rec.Message)
	b.WriteString(h.attrs)
	rec.Attrs(func(a slog.Attr) bool {
		b.WriteString(format(h.prefix, a))
		return true
	})
	h.add(rec.Level, b.String())
	if !h.next.Enabled(ctx, rec.Level) {
		return nil
	}
	return h.next.Handle(ctx, rec)
}

func format(prefix string, a slog.Attr) string {
	v := a.Value.Resolve().String()
	if strings.ContainsAny(v, " \t\n\"") {
		v = fmt.Sprintf("%q", v)
	}
	return " " + prefix + a.Key + "=" + v
}

func (h *handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	c := *h
	c.next = h.next.WithAttrs(attrs)
	for _, a := range attrs {
		c.attrs += format(h.prefix, a)
	}
	return &c
}

func (h *handler) WithGroup(name string) slog.Handler {
	c := *h
	c.next, c.prefix = h.next.WithGroup(name), h.prefix+name+"."
	return &c
}
