package main

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
	exitOK       = 0
	exitFailure  = 1 // anything that has no code of its own
	exitUsage    = 2 // the command line or the configuration is wrong; nothing was done
	exitNotFound = 3 // a named object does not exist
	exitTimeout  = 4 // what was waited for did not happen in time
	exitRefused  = 5 // not done, because it conflicts with what is there or needs --yes
	exitChanges  = 6 // a plan that is not empty
)

// codedError is an error that decides the exit code.
type codedError struct {
	code int
	err  error
}

func (e *codedError) Error() string { return e.err.Error() }
func (e *codedError) Unwrap() error { return e.err }

func usageError(format string, args ...any) error {
	return &codedError{exitUsage, fmt.Errorf(format, args...)}
}

func notFoundError(format string, args ...any) error {
	return &codedError{exitNotFound, fmt.Errorf(format, args...)}
}

func timeoutError(format string, args ...any) error {
	return &codedError{exitTimeout, fmt.Errorf(format, args...)}
}

func refusedError(format string, args ...any) error {
	return &codedError{exitRefused, fmt.Errorf(format, args...)}
}

// silentError carries a code whose reason was already printed.
type silentError struct{ code int }

func (e *silentError) Error() string { return fmt.Sprintf("exit code %d", e.code) }

// exitCode maps an error to the code of the process.
func exitCode(err error) int {
	var coded *codedError
	var silent *silentError
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &silent):
		return silent.code
	case errors.As(err, &coded):
		return coded.code
	case apierrors.IsNotFound(err), meta.IsNoMatchError(err):
		return exitNotFound
	case apierrors.IsConflict(err), apierrors.IsAlreadyExists(err):
		return exitRefused
	case apierrors.IsTimeout(err), errors.Is(err, context.DeadlineExceeded):
		return exitTimeout
	}
	return exitFailure
}

// explain rewrites errors of the transport, which name what failed but not what to do.
func explain(err error, server string) error {
	var urlErr *url.Error
	var opErr *net.OpError
	switch {
	case err == nil:
		return nil
	case errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("nothing listens at %s: start the server with `coldrack serve`, or name the right one with --kubeconfig", server)
	case errors.Is(err, os.ErrDeadlineExceeded), errors.As(err, &urlErr) && urlErr.Timeout():
		return timeoutError("no answer from %s: %w", server, err)
	case errors.As(err, &opErr):
		return fmt.Errorf("cannot reach %s: %w", server, opErr)
	case apierrors.IsUnauthorized(err):
		return fmt.Errorf("%s does not accept these credentials: the certificate or token of the kubeconfig has expired or was revoked: %w", server, err)
	}
	return err
}
