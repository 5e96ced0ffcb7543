package controlplane

import (
	"bytes"
	"errors"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"

	"go.uber.org/zap"

	"coldrack.dev/internal/liblog"
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
	etcd := zapTo(log, &stopping)
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
