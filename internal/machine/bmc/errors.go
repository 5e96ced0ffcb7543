package bmc

import (
	"context"
	"errors"
	"strings"
)

// Kind says what kept a BMC from doing what was asked, as far as it decides what to do next.
type Kind string

const (
	// Unreachable: nobody answers, or not in time.
	Unreachable Kind = "Unreachable"
	// Refused: the BMC does not accept the name and password.
	Refused Kind = "CredentialsRefused"
	// Untrusted: the certificate is not the recorded one, or no known authority signed it.
	Untrusted Kind = "CertificateNotTrusted"
	// Misconfigured: what is written of the BMC cannot be.
	Misconfigured Kind = "Misconfigured"
	// Unsupported: the BMC cannot do it.
	Unsupported Kind = "Unsupported"
	// Failed: the BMC answers with an error, or with what makes no sense.
	Failed Kind = "Failed"
	// Unfinished: the BMC accepted it, and it has not happened in time.
	Unfinished Kind = "Unfinished"
	// Uncertain: nobody knows whether it happened.
	Uncertain Kind = "Uncertain"
	// Waiting: the BMC failed a short while ago, and its next turn has not come.
	Waiting Kind = "Waiting"
)

// Error says which BMC, what failed, why, and what to do.
type Error struct {
	Kind    Kind
	Address string
	// What failed, for example "read the power".
	What string
	// Cause may be nil.
	Cause error
	// Remedy is what a person can do; it may be empty.
	Remedy string
}

func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString("BMC " + e.Address + ": " + e.What)
	if e.Cause != nil {
		b.WriteString(": " + e.Cause.Error())
	}
	if e.Remedy != "" {
		b.WriteString("; " + e.Remedy)
	}
	return b.String()
}

func (e *Error) Unwrap() error { return e.Cause }

// KindOf is the kind of an error of this package; Failed for any other, and empty for none.
func KindOf(err error) Kind {
	var e *Error
	switch {
	case err == nil:
		return ""
	case errors.As(err, &e):
		return e.Kind
	case errors.Is(err, context.DeadlineExceeded):
		return Unreachable
	}
	return Failed
}
