//go:build !amd64

package soak

import (
	"errors"
	"time"
)

// clock see clock_linux_amd64.go.
type clock struct{}

func takeClock(int) (*clock, error) {
	return nil, errors.New("the code that replaces a process's clock is written for amd64 only")
}

func (*clock) set(time.Duration) error { return nil }
func (*clock) close()                  {}
