// Package liblog brings what the Kubernetes libraries log into our log, at the level it has for the operator
// of a rack.
package liblog

import (
	"context"
	"log/slog"
	"slices"
	"strings"

	"github.com/go-logr/logr"
)

// Kubernetes returns a logger for klog and controller-runtime. What they call information becomes debug.
func Kubernetes(log *slog.Logger) logr.Logger { return logr.FromSlogHandler(demoted{log.Handler()}) }

// demoted passes records on: what is below warning as debug, what a client caused by going away as debug too, and
// a failed login, of which the library makes an error of its own, as a warning.
type demoted struct{ next slog.Handler }

// goneAway are parts of messages about a client that did not wait for its answer.
var goneAway = []string{"http: Handler timeout", "; CANCEL", "context canceled", "client disconnected"}

func demote(r slog.Record) slog.Level {
	if r.Level < slog.LevelWarn || r.Message == "Post-timeout activity" {
		return slog.LevelDebug
	}
	level := r.Level
	if r.Message == "Unable to authenticate the request" {
		level = slog.LevelWarn
	}
	r.Attrs(func(a slog.Attr) bool {
		if a.Key == "err" && slices.ContainsFunc(goneAway, func(part string) bool { return strings.Contains(a.Value.String(), part) }) {
			level = slog.LevelDebug
		}
		return true
	})
	return level
}

func (d demoted) Enabled(ctx context.Context, level slog.Level) bool {
	if level < slog.LevelWarn {
		return level >= slog.LevelInfo && d.next.Enabled(ctx, slog.LevelDebug)
	}
	return d.next.Enabled(ctx, level)
}

func (d demoted) Handle(ctx context.Context, r slog.Record) error {
	if r.Level = demote(r); !d.next.Enabled(ctx, r.Level) {
		return nil
	}
	return d.next.Handle(ctx, r)
}

func (d demoted) WithAttrs(attrs []slog.Attr) slog.Handler { return demoted{d.next.WithAttrs(attrs)} }
func (d demoted) WithGroup(name string) slog.Handler       { return demoted{d.next.WithGroup(name)} }
