// Package exit has the exit codes of the command line and the errors that decide them.
package exit

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"syscall"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
)

// Exit codes. Scripts rely on them; docs/reference/cli.md lists them.
const (
	OK       = 0
	Failure  = 1 // anything that has no code of its own
	Usage    = 2 // the command line or the configuration is wrong; nothing was done
	NotFound = 3 // a named object does not exist
	Timeout  = 4 // what was waited for did not happen in time
	Refused  = 5 // not done, because it conflicts with what is there or needs --yes
	Changes  = 6 // a plan that is not empty
	Partial  = 7 // done, without a part that is named
)

// Error is an error that decides the exit code.
type Error struct {
	Code int
	Err  error
}

func (e *Error) Error() string { return e.Err.Error() }
func (e *Error) Unwrap() error { return e.Err }

// Usagef says what is wrong with the command line or the configuration.
func Usagef(format string, args ...any) error {
	return &Error{Usage, fmt.Errorf(format, args...)}
}

// NotFoundf says which named object does not exist.
func NotFoundf(format string, args ...any) error {
	return &Error{NotFound, fmt.Errorf(format, args...)}
}

// Timeoutf says what did not happen in time.
func Timeoutf(format string, args ...any) error {
	return &Error{Timeout, fmt.Errorf(format, args...)}
}

// Refusedf says why something was not done.
func Refusedf(format string, args ...any) error {
	return &Error{Refused, fmt.Errorf(format, args...)}
}

// Silent carries a code whose reason was already printed.
type Silent struct{ Code int }

func (e *Silent) Error() string { return fmt.Sprintf("exit code %d", e.Code) }

// CodeOf maps an error to the code of the process.
func CodeOf(err error) int {
	var coded *Error
	var silent *Silent
	switch {
	case err == nil:
		return OK
	case errors.As(err, &silent):
		return silent.Code
	case errors.As(err, &coded):
		return coded.Code
	case apierrors.IsNotFound(err), meta.IsNoMatchError(err):
		return NotFound
	case apierrors.IsConflict(err), apierrors.IsAlreadyExists(err):
		return Refused
	case apierrors.IsTimeout(err), errors.Is(err, context.DeadlineExceeded):
		return Timeout
	}
	return Failure
}

// Explain rewrites errors of the transport, which name what failed but not what to do.
func Explain(err error, server string) error {
	var urlErr *url.Error
	var opErr *net.OpError
	switch {
	case err == nil:
		return nil
	case errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("nothing listens at %s: start the server with `coldrack serve`, or name the right one with --kubeconfig", server)
	case errors.Is(err, os.ErrDeadlineExceeded), errors.As(err, &urlErr) && urlErr.Timeout():
		return Timeoutf("no answer from %s: %w", server, err)
	case errors.As(err, &opErr):
		return fmt.Errorf("cannot reach %s: %w", server, opErr)
	case apierrors.IsUnauthorized(err):
		return fmt.Errorf("%s does not accept these credentials: the certificate or token of the kubeconfig has expired or was revoked: %w", server, err)
	case apierrors.IsServiceUnavailable(err):
		return fmt.Errorf("%s lives, and its store does not answer; installed machines are answered meanwhile. `kubectl get --raw /readyz` says why, and `coldrack doctor` on the server: %w", server, err)
	}
	return err
}
