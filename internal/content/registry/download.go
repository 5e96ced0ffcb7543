package registry

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"

	"coldrack.dev/internal/base/digest"
)

// download is a blob on its way from an upstream into the cache. Any number of clients follow it: they get what
// has come so far, except for the last byte, which nobody gets before all of them are known to be right.
type download struct {
	digest string
	// known is closed when size is, or when the download has failed before that.
	known chan struct{}
	size  int64

	mu      sync.Mutex
	path    string // of the file, wherever it is now
	written int64
	ended   bool
	err     error
	changed chan struct{} // closed at the next change
}

func newDownload(digest string) *download {
	return &download{digest: digest, known: make(chan struct{}), changed: make(chan struct{})}
}

// update changes the state under the lock and wakes everybody who waits.
func (d *download) update(change func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	change()
	close(d.changed)
	d.changed = make(chan struct{})
}

// run brings the blob into the cache. open asks the upstream for its size and bytes.
func (d *download) run(c *cache, open func() (io.ReadCloser, int64, error), received func(int)) (err error) {
	announced := false
	defer func() {
		d.update(func() { d.ended, d.err = true, err })
		if !announced {
			close(d.known)
		}
	}()
	content, size, err := open()
	if err != nil {
		return err
	}
	defer content.Close()
	if size < 0 {
		return fmt.Errorf("blob %s: the upstream does not say how large it is", d.digest)
	}
	if err := c.reserve(size); err != nil {
		return err
	}
	kept := false
	defer func() {
		if !kept {
			c.release(size)
		}
	}()
	file, err := c.temporary(d.digest)
	if err != nil {
		return err
	}
	defer func() { _ = file.Close() }()
	d.size = size
	d.update(func() { d.path = file.Name() })
	announced = true
	close(d.known)

	sum := sha256.New()
	buffer := make([]byte, 256<<10)
	for total := int64(0); ; {
		n, readErr := content.Read(buffer)
		received(n)
		total += int64(n)
		if total > size {
			readErr = fmt.Errorf("blob %s: the upstream sent more than the %d bytes it announced", d.digest, size)
		} else if n > 0 {
			sum.Write(buffer[:n])
			if _, err := file.Write(buffer[:n]); err != nil {
				readErr = err
			} else {
				d.update(func() { d.written = total })
			}
		}
		if errors.Is(readErr, io.EOF) {
			break
		}
		if readErr != nil {
			_ = os.Remove(file.Name())
			return readErr
		}
	}
	if got := digest.Sum(sum).String(); got != d.digest {
		_ = os.Remove(file.Name())
		return fmt.Errorf("blob %s: the upstream sent %s", d.digest, got)
	}
	if err := errors.Join(file.Chmod(0o644), file.Sync()); err != nil {
		_ = os.Remove(file.Name())
		return err
	}
	// Whoever opens the file does so under the lock and so finds it before or after.
	d.update(func() {
		if err = c.keep(d.digest, d.path, size); err == nil {
			d.path, kept = c.blobPath(d.digest), true
		}
	})
	return err
}

// follow opens what has come so far. The caller closes it.
func (d *download) follow(ctx context.Context) (*follower, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.err != nil {
		return nil, d.err
	}
	file, err := os.Open(d.path)
	if err != nil {
		return nil, fmt.Errorf("blob %s: %w", d.digest, err)
	}
	return &follower{ctx: ctx, download: d, file: file}, nil
}

// wait returns when the download has ended.
func (d *download) wait(ctx context.Context) error {
	for {
		d.mu.Lock()
		ended, err, changed := d.ended, d.err, d.changed
		d.mu.Unlock()
		if ended {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-changed:
		}
	}
}

// follower reads a download as it comes.
type follower struct {
	ctx      context.Context
	download *download
	file     *os.File
	at       int64
}

func (f *follower) Close() error { return f.file.Close() }

func (f *follower) Read(p []byte) (int, error) {
	d := f.download
	for {
		d.mu.Lock()
		written, ended, err, changed := d.written, d.ended, d.err, d.changed
		d.mu.Unlock()
		if err != nil {
			return 0, err
		}
		ready := written
		if !ended {
			ready--
		}
		if ready > f.at {
			n, err := f.file.ReadAt(p[:min(int64(len(p)), ready-f.at)], f.at)
			f.at += int64(n)
			if n > 0 {
				err = nil
			}
			return n, err
		}
		if ended {
			return 0, io.EOF
		}
		select {
		case <-f.ctx.Done():
			return 0, f.ctx.Err()
		case <-changed:
		}
	}
}
