package controlplane

import (
	"bytes"
	"errors"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"

	"go.uber.org/zap"

	"coldrack.dev/internal/base/liblog"
)

func TestLibrariesAreQuiet(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	log := slog.New(slog.NewTextHandler(&out, &slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey {
			return slog.Attr{}
		}
		return a
	}}))
	kubernetes := liblog.Kubernetes(log)
	var stopping atomic.Bool
	etcd := zapTo(log, &stopping, &lastWords{})
	for name, test := range map[string]struct {
		say  func()
		want string
	}{
		"information of Kubernetes":       {func() { kubernetes.Info("Starting controller") }, ""},
		"an error of Kubernetes":          {func() { kubernetes.Error(errors.New("disk full"), "Unhandled Error") }, `level=ERROR msg="Unhandled Error" err="disk full"`},
		"a client that did not wait":      {func() { kubernetes.Error(errors.New("write: http: Handler timeout"), "Unhandled Error") }, ""},
		"a failed login":                  {func() { kubernetes.Error(errors.New("x"), "Unable to authenticate the request") }, `level=WARN msg="Unable to authenticate the request" err=x`},
		"information of etcd":             {func() { etcd.Info("compacted") }, ""},
		"a warning of etcd":               {func() { etcd.Warn("slow disk", zap.Int("ms", 7)) }, `level=WARN msg="slow disk" from=etcd ms=7`},
		"an error of etcd while stopping": {func() { stopping.Store(true); etcd.Error("closed"); stopping.Store(false) }, ""},
		"an error of etcd":                {func() { etcd.With(zap.String("a", "b")).Error("closed") }, `level=ERROR msg=closed from=etcd a=b`},
	} {
		out.Reset()
		test.say()
		if got := strings.TrimSpace(out.String()); got != test.want {
			t.Errorf("%s: logged %q, want %q", name, got, test.want)
		}
	}
}

// What would end the process is an error of a start, and later the end of one goroutine.
func TestLastWords(t *testing.T) {
	last := &lastWords{said: make(chan error, 1)}
	etcd := zapTo(slog.New(slog.DiscardHandler), &atomic.Bool{}, last)
	func() {
		defer func() {
			if r := recover(); r != "no disk" {
				t.Errorf("while it starts: %v", r)
			}
		}()
		etcd.Fatal("no disk")
	}()
	last.started.Store(true)
	for _, say := range []func(string, ...zap.Field){etcd.Fatal, etcd.Panic} {
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			say("cannot write", zap.Error(errors.New("no space")))
			t.Error("it goes on")
		}()
		<-ended
		if err := <-last.said; err.Error() != "cannot write: no space" {
			t.Errorf("said %v", err)
		}
	}
}
