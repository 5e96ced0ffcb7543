package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
)

const (
	// headerTime bounds the wait for an upstream's answer, idleTime that for its next byte.
	headerTime = 30 * time.Second
	idleTime   = 30 * time.Second
	// A blob may take wholeTime, and longer by its size at slowestRate, in bytes a second.
	wholeTime   = 10 * time.Minute
	slowestRate = 256 << 10
	// maxResumes is how often in a row a transfer is taken up again that brings nothing.
	maxResumes = 5
	// firstResume is the pause before the first; each further one doubles it.
	firstResume = 200 * time.Millisecond
)

// errStalled ends a transfer that brings nothing for idleTime, errSlow one that takes too long as a whole.
var (
	errStalled = errors.New("the upstream sends nothing any more")
	errSlow    = errors.New("the transfer takes too long")
)

// transfer reads a blob from an upstream. When it breaks off or stalls it goes on from where it was (RFC 9110, section 14), also at an
// upstream that sends everything again. Whether what was put together is right is seen by its digest.
type transfer struct {
	upstream *upstream
	host     string // as images' names have it
	blob     name.Digest
	ctx      context.Context
	cancel   context.CancelCauseFunc
	size, at int64
	body     io.ReadCloser
	endBody  context.CancelCauseFunc
	deadline *time.Timer
}

// open asks for the blob from the byte that is wanted next.
func (t *transfer) open() (err error) {
	ctx, end := context.WithCancelCause(t.ctx)
	defer func() {
		if err != nil {
			end(nil)
		}
	}()
	idle := time.AfterFunc(t.upstream.headerTime, func() { end(errStalled) })
	defer idle.Stop()
	repository := t.blob.Context()
	auth, err := t.upstream.authOf(t.host)
	if err != nil {
		return err
	}
	tripper, err := transport.NewWithContext(ctx, repository.Registry, auth, t.upstream.transport, []string{repository.Scope(transport.PullScope)})
	if err != nil {
		return because(ctx, err)
	}
	url := fmt.Sprintf("%s://%s/v2/%s/blobs/%s", repository.Scheme(), repository.RegistryStr(), repository.RepositoryStr(), t.blob.DigestStr())
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	request.Header.Set("Accept-Encoding", "identity")
	if t.at > 0 {
		request.Header.Set("Range", fmt.Sprintf("bytes=%d-", t.at))
	}
	response, err := (&http.Client{Transport: tripper}).Do(request)
	if err != nil {
		return because(ctx, err)
	}
	if err := transport.CheckError(response, http.StatusOK, http.StatusPartialContent); err != nil {
		_ = response.Body.Close()
		return err
	}
	skip := t.at
	if response.StatusCode == http.StatusPartialContent {
		if !strings.HasPrefix(response.Header.Get("Content-Range"), fmt.Sprintf("bytes %d-", t.at)) {
			_ = response.Body.Close()
			return fmt.Errorf("the upstream answers a request from byte %d on with range %q", t.at, clip(response.Header.Get("Content-Range")))
		}
		skip = 0
	}
	if t.deadline == nil {
		t.size = t.at + response.ContentLength // a part of an answer before the first whole one is all that is left, too
		if response.ContentLength < 0 {
			t.size = -1
		}
		t.deadline = time.AfterFunc(t.upstream.wholeTime+time.Duration(max(t.size, 0)/slowestRate)*time.Second, func() { t.cancel(errSlow) })
	}
	t.body, t.endBody = response.Body, end
	for skip > 0 {
		n, err := t.read(make([]byte, min(skip, 64<<10)))
		if skip -= int64(n); err != nil {
			t.drop()
			return err
		}
	}
	return nil
}

// because is what ended a context, where it ended, or else the error.
func because(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	return err
}

// read reads from the present answer, which must bring something within idleTime.
func (t *transfer) read(p []byte) (int, error) {
	end := t.endBody
	idle := time.AfterFunc(t.upstream.idleTime, func() { end(errStalled) })
	defer idle.Stop()
	n, err := t.body.Read(p)
	if n > 0 {
		return n, nil
	}
	if errors.Is(err, io.EOF) {
		return 0, io.ErrUnexpectedEOF
	}
	return 0, err
}

// Read implements io.Reader.
func (t *transfer) Read(p []byte) (int, error) {
	for failures := 0; ; {
		if t.size >= 0 && t.at >= t.size {
			return 0, io.EOF
		}
		var n int
		err := error(nil)
		if t.body == nil {
			err = t.open()
		}
		if err == nil {
			if n, err = t.read(p[:min(int64(len(p)), max(t.size-t.at, 1))]); n > 0 {
				t.at += int64(n)
				return n, nil
			}
			t.drop()
		}
		if t.ctx.Err() != nil {
			return 0, because(t.ctx, err)
		}
		if failures++; failures > maxResumes {
			return 0, fmt.Errorf("gave up at byte %d of %d: %w", t.at, t.size, err)
		}
		t.upstream.log.Info("taking a transfer from an upstream registry up again", "blob", t.blob.String(), "at", t.at, "of", t.size, "err", err)
		pause := time.NewTimer(t.upstream.firstResume << (failures - 1))
		select {
		case <-t.ctx.Done():
		case <-pause.C:
		}
		pause.Stop()
	}
}

// drop ends the present answer.
func (t *transfer) drop() {
	if t.body != nil {
		t.endBody(nil)
		_ = t.body.Close()
		t.body = nil
	}
}

// Close implements io.Closer.
func (t *transfer) Close() error {
	t.drop()
	t.cancel(nil)
	if t.deadline != nil {
		t.deadline.Stop()
	}
	return nil
}
