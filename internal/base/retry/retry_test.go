package retry

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"
)

type final bool

func (final) Error() string { return "refused" }
func (f final) Final() bool { return bool(f) }

func TestTransient(t *testing.T) {
	for name, c := range map[string]struct {
		err  error
		want bool
	}{
		"no error":                       {nil, false},
		"the network failed":             {errors.New("connection refused"), true},
		"a refusal":                      {fmt.Errorf("enroll: %w", final(true)), false},
		"a server in trouble":            {final(false), true},
		"the caller gave up":             {context.Canceled, false},
		"a deadline of one attempt only": {context.DeadlineExceeded, true},
	} {
		if got := Transient(c.err); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

func TestDo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var waits []time.Duration
		tries := 0
		err := Do(t.Context(), func(_ error, wait time.Duration) { waits = append(waits, wait) }, func(context.Context) error {
			if tries++; tries < 9 {
				return errors.New("busy")
			}
			return final(true)
		})
		if err != error(final(true)) || tries != 9 || len(waits) != 8 {
			t.Errorf("%v after %d tries and %d waits", err, tries, len(waits))
		}
		for i, wait := range waits {
			if delay := min(time.Second<<i, 30*time.Second); wait < delay/2 || wait >= delay*3/2 {
				t.Errorf("wait %d is %s", i, wait)
			}
		}
	})
}

func TestDoEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		stopped := errors.New("shutting down")
		ctx, cancel := context.WithCancelCause(t.Context())
		err := Do(ctx, func(error, time.Duration) { cancel(stopped) }, func(context.Context) error { return errors.New("busy") })
		if !errors.Is(err, stopped) {
			t.Errorf("got %v", err)
		}
	})
}
