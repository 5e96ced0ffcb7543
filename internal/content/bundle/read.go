package bundle

import (
	"fmt"
	"io"

	"coldrack.dev/internal/base/digest"
)

// ReadFile returns a file of an artifact from an archive, verified, at most limit bytes of it.
func ReadFile(path string, d Descriptor, limit int64) ([]byte, error) {
	a, closeFile, err := openArchiveFile(path)
	if err != nil {
		return nil, fmt.Errorf("read bundle %s: %w", path, err)
	}
	defer closeFile()
	s, err := a.blob(d)
	if err != nil {
		return nil, fmt.Errorf("read bundle %s: %w", path, err)
	}
	if s.Size() > limit {
		return nil, fmt.Errorf("read bundle %s: blob %s has %d bytes, want at most %d", path, d.Digest, s.Size(), limit)
	}
	raw, err := io.ReadAll(s)
	if err != nil {
		return nil, fmt.Errorf("read bundle %s: %w", path, err)
	}
	if got := digest.Of(raw).String(); got != d.Digest {
		return nil, fmt.Errorf("read bundle %s: blob %s is %s", path, d.Digest, got)
	}
	return raw, nil
}
