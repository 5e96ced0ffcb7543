package build

import (
	"archive/tar"
	"bufio"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	"github.com/klauspost/compress/zstd"

	"coldrack.dev/internal/base/digest"
)

const downloadTries = 5

// DigestError says that what lies at an address is not what the recipe wants.
type DigestError struct {
	Source    string // address
	Want, Got string // digests
}

func (e *DigestError) Error() string {
	return fmt.Sprintf("%s is %s, but the recipe wants %s; compare with what the publisher states", e.Source, e.Got, e.Want)
}

// fetchFile returns the file that a source names, from the cache if an earlier build fetched it.
func (b *builder) fetchFile(ctx context.Context, s SourceRecipe) (string, error) {
	file, err := b.download(ctx, s.URL, s.Digest)
	if err != nil || s.Member == "" {
		return file, err
	}
	dir, err := b.steps.run(ctx, "extract-"+stepName(path.Base(s.Member)), s, func(_ context.Context, dir string) error {
		return extractMember(file, s.Member, filepath.Join(dir, fileMember))
	})
	if err != nil {
		return "", fmt.Errorf("%s: %w", s.URL, err)
	}
	return filepath.Join(dir, fileMember), nil
}

const fileMember = "file"

// stepName makes a name fit for a folder.
func stepName(s string) string {
	return strings.Map(func(r rune) rune {
		if strings.ContainsRune("/:@ ", r) {
			return '-'
		}
		return r
	}, s)
}

// download brings what lies at address into the cache, where it is known by its digest. A download that was
// cut off goes on where it was, in this build or the next.
func (b *builder) download(ctx context.Context, address, want string) (string, error) {
	dir := filepath.Join(b.opt.CacheDir, "downloads")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("download: %w", err)
	}
	final := filepath.Join(dir, digest.Hex(want))
	if _, err := os.Stat(final); err == nil {
		now := time.Now()
		_ = os.Chtimes(final, now, now) // dropUnused goes by the time of last use
		return final, nil
	}
	b.steps.name, b.steps.begun = "download "+path.Base(address), time.Now()
	b.steps.event(Started, "", 0)
	part := final + ".part"
	var err error
	for try := range downloadTries {
		if try > 0 {
			b.steps.detail("try again: %v", err)
			select {
			case <-ctx.Done():
				return "", ctx.Err()
			case <-time.After(b.retryAfter << (try - 1)):
			}
		}
		var final bool
		if final, err = b.continueDownload(ctx, address, part); err == nil || final {
			break
		}
	}
	if err != nil {
		return "", fmt.Errorf("download %s: %w", address, err)
	}
	got, size, err := hashFile(part)
	if err != nil {
		return "", fmt.Errorf("download %s: %w", address, err)
	}
	if got != want {
		_ = os.Remove(part) // it is of no use for a next try
		return "", &DigestError{Source: address, Want: want, Got: got}
	}
	if err := os.Rename(part, final); err != nil {
		return "", fmt.Errorf("download %s: %w", address, err)
	}
	b.steps.event(Done, "", size)
	return final, nil
}

// continueDownload appends to part what is missing. final says that another try would be in vain.
func (b *builder) continueDownload(ctx context.Context, address, part string) (final bool, err error) {
	f, err := os.OpenFile(part, os.O_WRONLY|os.O_CREATE, 0o644)
	if err != nil {
		return true, err
	}
	defer func() { _ = f.Close() }()
	have, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return true, err
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return true, err
	}
	if have > 0 {
		request.Header.Set("Range", fmt.Sprintf("bytes=%d-", have))
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return ctx.Err() != nil, err
	}
	defer func() { _ = response.Body.Close() }()
	switch {
	case response.StatusCode == http.StatusPartialContent && strings.HasPrefix(response.Header.Get("Content-Range"), fmt.Sprintf("bytes %d-", have)):
	case response.StatusCode == http.StatusOK:
		// The server knows no ranges, or this is the first try.
		if _, err = f.Seek(0, io.SeekStart); err == nil {
			err = f.Truncate(0)
		}
		if err != nil {
			return true, err
		}
	case response.StatusCode == http.StatusRequestedRangeNotSatisfiable && have > 0:
		return true, nil // all of it is there; the digest tells whether it is right
	default:
		return response.StatusCode < 500 && response.StatusCode != http.StatusTooManyRequests, fmt.Errorf("the server says %s", response.Status)
	}
	if _, err := io.Copy(f, response.Body); err != nil {
		return ctx.Err() != nil, err
	}
	return false, f.Close()
}

// extractMember takes one file out of a tar archive.
func extractMember(archive, member, to string) error {
	f, err := os.Open(archive)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	r, err := decompress(f)
	if err != nil {
		return err
	}
	tr := tar.NewReader(r)
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return fmt.Errorf("the archive has no file %s", member)
		}
		if err != nil {
			return fmt.Errorf("is not a readable tar archive: %w", err)
		}
		if h.Typeflag != tar.TypeReg || path.Clean("/"+h.Name) != path.Clean("/"+member) {
			continue
		}
		out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o755)
		if err != nil {
			return err
		}
		_, err = io.Copy(out, tr)
		return errors.Join(err, out.Close())
	}
}

// decompress recognizes gzip and zstd by their first bytes.
func decompress(r io.Reader) (io.Reader, error) {
	b := bufio.NewReader(r)
	magic, _ := b.Peek(4) // a shorter file is something else
	switch {
	case len(magic) == 4 && string(magic[:2]) == "\x1f\x8b":
		return gzip.NewReader(b)
	case string(magic) == "\x28\xb5\x2f\xfd":
		z, err := zstd.NewReader(b, zstd.WithDecoderConcurrency(1))
		if err != nil {
			return nil, err
		}
		return z.IOReadCloser(), nil
	}
	return b, nil
}

func hashFile(file string) (name string, size int64, err error) {
	f, err := os.Open(file)
	if err != nil {
		return "", 0, err
	}
	defer func() { _ = f.Close() }()
	sum := sha256.New()
	size, err = io.Copy(sum, f)
	return digest.Sum(sum).String(), size, err
}
