package controlplane

import (
	"context"
	"log/slog"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/go-logr/logr"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"k8s.io/klog/v2"
)

// SendKlogTo makes the Kubernetes libraries, which log through one logger per process, write to log: what they
// call information becomes debug. A process calls it once, before anything else of this package.
func SendKlogTo(log *slog.Logger) {
	klog.SetLoggerWithOptions(logr.FromSlogHandler(demoted{log.Handler()}), klog.ContextualLogger(true))
}

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

// zapTo returns a zap logger, as etcd wants one, that writes to log. What etcd calls information becomes
// debug, and so does everything while stopping is set: etcd reports the close of each of its sockets as an
// error. Where etcd would end the process, the logger panics, so that a start can still say what is wrong.
func zapTo(log *slog.Logger, stopping *atomic.Bool) *zap.Logger {
	return zap.New(&zapCore{log.With("from", "etcd"), stopping}, zap.WithFatalHook(zapcore.WriteThenPanic))
}

type zapCore struct {
	log      *slog.Logger
	stopping *atomic.Bool
}

func (c *zapCore) level(level zapcore.Level) slog.Level {
	switch {
	case c.stopping.Load() && level <= zapcore.ErrorLevel:
		return slog.LevelDebug
	case level >= zapcore.ErrorLevel:
		return slog.LevelError
	case level == zapcore.WarnLevel:
		return slog.LevelWarn
	}
	return slog.LevelDebug
}

func (c *zapCore) Enabled(level zapcore.Level) bool {
	return level >= zapcore.InfoLevel && c.log.Enabled(context.Background(), c.level(level))
}

func (c *zapCore) With(fields []zapcore.Field) zapcore.Core {
	return &zapCore{c.log.With(zapFields(fields)...), c.stopping}
}

func (c *zapCore) Check(e zapcore.Entry, ce *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	// A warning of every start, about a kind of login that nobody can reach the socket to use.
	const noise = "simple token is not cryptographically signed"
	if c.Enabled(e.Level) && e.Message != noise {
		return ce.AddCore(e, c)
	}
	return ce
}

func (c *zapCore) Write(e zapcore.Entry, fields []zapcore.Field) error {
	c.log.Log(context.Background(), c.level(e.Level), e.Message, zapFields(fields)...)
	return nil
}

func (c *zapCore) Sync() error { return nil }

func zapFields(fields []zapcore.Field) []any {
	enc := zapcore.NewMapObjectEncoder()
	for _, f := range fields {
		f.AddTo(enc)
	}
	attrs := make([]any, 0, len(enc.Fields))
	for _, f := range fields {
		if v, ok := enc.Fields[f.Key]; ok {
			attrs = append(attrs, slog.Any(f.Key, v))
		}
	}
	return attrs
}
