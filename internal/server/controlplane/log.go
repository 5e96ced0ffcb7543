package controlplane

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"sync/atomic"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"k8s.io/klog/v2"

	"coldrack.dev/internal/base/liblog"
)

// SendKlogTo makes the Kubernetes libraries, which log through one logger per process, write to log: what they
// call information becomes debug. A process calls it once, before anything else of this package.
func SendKlogTo(log *slog.Logger) {
	klog.SetLoggerWithOptions(liblog.Kubernetes(log), klog.ContextualLogger(true))
}

// zapTo returns a zap logger, as etcd wants one, that writes to log. What etcd calls information becomes
// debug, and so does everything while stopping is set: etcd reports the close of each of its sockets as an
// error. Where etcd would end the process, last decides.
func zapTo(log *slog.Logger, stopping *atomic.Bool, last *lastWords) *zap.Logger {
	return zap.New(&zapCore{log.With("from", "etcd"), stopping}, zap.WithFatalHook(last), zap.WithPanicHook(last))
}

// lastWords is what etcd says when it cannot go on, such as when its disk takes nothing more. While it starts, its logger panics, so that
// the start can say what is wrong. Later only the goroutine ends that said so: boot services in this process do not need the store.
type lastWords struct {
	started atomic.Bool
	said    chan error // has room for one
}

// OnWrite implements zapcore.CheckWriteHook. It does not return.
func (l *lastWords) OnWrite(entry *zapcore.CheckedEntry, fields []zapcore.Field) {
	if !l.started.Load() {
		panic(entry.Message)
	}
	err := errors.New(entry.Message)
	for _, f := range fields {
		if cause, ok := f.Interface.(error); ok && f.Type == zapcore.ErrorType {
			err = fmt.Errorf("%s: %w", entry.Message, cause)
		}
	}
	select {
	case l.said <- err:
	default:
	}
	runtime.Goexit()
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
