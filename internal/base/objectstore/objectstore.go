// Package objectstore keeps files elsewhere: in a bucket of a store that speaks S3, or in a folder, such as a mount of another machine. An
// object is there as a whole or not at all.
package objectstore

import (
	"context"
	"errors"
	"io"
	"time"
)

// Store keeps objects under names with slashes. Its String says where it is, without credentials.
type Store interface {
	String() string
	// Put writes an object of so many bytes, in place of one that is there. When content fails, nothing was changed.
	Put(ctx context.Context, name string, size int64, content io.Reader) error
	// Get opens an object. ErrNone: there is none.
	Get(ctx context.Context, name string) (io.ReadCloser, error)
	// List the objects whose names begin with a prefix.
	List(ctx context.Context, prefix string) ([]Object, error)
	// Remove an object, also one that is not there.
	Remove(ctx context.Context, name string) error
	// Clear removes what Puts have left behind that were interrupted before a time.
	Clear(ctx context.Context, prefix string, before time.Time) error
}

// Object is one that is there.
type Object struct {
	Name     string
	Size     int64
	Modified time.Time
}

// ErrNone is the error for an object that is not there.
var ErrNone = errors.New("there is no such object")
