// Package retry tries again what may succeed later, and says what cannot.
package retry

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"
)

// Transient says that the same attempt may succeed later. An error that another attempt cannot cure says so by a
// method Final() bool; so does the end of the caller's own context.
func Transient(err error) bool {
	if f := (interface{ Final() bool })(nil); errors.As(err, &f) && f.Final() {
		return false
	}
	return err != nil && !errors.Is(err, context.Canceled)
}

// Do calls f until it succeeds, fails for good, or ctx ends. Delays double from a second to at most half a minute,
// with jitter, so that hundreds of machines do not come back in step. tell is called before each wait; nil for none.
func Do(ctx context.Context, tell func(err error, wait time.Duration), f func(context.Context) error) error {
	for delay := time.Second; ; delay = min(2*delay, 30*time.Second) {
		err := f(ctx)
		if err == nil || !Transient(err) {
			return err
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		wait := delay/2 + rand.N(delay)
		if tell != nil {
			tell(err, wait)
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(wait):
		}
	}
}
