package nodecache

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"path"
	"strings"
	"time"

	"coldrack.dev/internal/content/diskimage"
	"coldrack.dev/internal/content/swarm/kit"
)

type chunk = diskimage.Chunk

// errNotHere says that the exchange does not bring something.
var errNotHere = errors.New("it did not come")

// blob reads one blob of a kit while it arrives.
type blob struct {
	ctx    context.Context
	have   *session
	chunks []chunk
	part   kit.Part
	offset int64 // of the blob in the kit
	at     int64 // in the blob
	held   []byte
	number int // of the chunk in held
}

// open returns nil for what is not in the kit.
func (s *session) open(ctx context.Context, digest string) *blob {
	part, offset, ok := s.kit.Find(digest)
	if !ok {
		return nil
	}
	return &blob{ctx: ctx, have: s, chunks: s.chunks, part: part, offset: offset, number: -1}
}

func (b *blob) Read(p []byte) (int, error) {
	if b.at >= b.part.Size {
		return 0, io.EOF
	}
	if err := b.hold(); err != nil {
		return 0, err
	}
	from := (b.offset + b.at) % kit.ChunkSize
	n := copy(p, b.held[from:min(int64(len(b.held)), from+b.part.Size-b.at)])
	b.at += int64(n)
	return n, nil
}

// hold the chunk in which the next byte is.
func (b *blob) hold() error {
	i := int((b.offset + b.at) / kit.ChunkSize)
	if i == b.number {
		return nil
	}
	held, err := b.have.ReadChunk(b.ctx, b.chunks[i])
	if err != nil {
		return fmt.Errorf("%w: %w", errNotHere, err)
	}
	b.held, b.number = held, i
	return nil
}

func (b *blob) Seek(offset int64, whence int) (int64, error) {
	switch whence {
	case io.SeekCurrent:
		offset += b.at
	case io.SeekEnd:
		offset += b.part.Size
	}
	if offset < 0 {
		return 0, errors.New("a place before the beginning")
	}
	b.at = offset
	return offset, nil
}

// images gives blobs and manifests of the kit by the OCI distribution protocol, whatever the name of the repository:
// who asks knows the digest. What is not here containerd fetches from the next host of its list.
type images struct {
	*session
	log *slog.Logger
}

func (i *images) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		http.Error(w, "only GET and HEAD", http.StatusMethodNotAllowed)
		return
	}
	if r.URL.Path == "/v2" || r.URL.Path == "/v2/" {
		return
	}
	dir, digest := path.Split(r.URL.Path)
	kind := path.Base(dir)
	b := i.open(r.Context(), digest)
	if !strings.HasPrefix(dir, "/v2/") || (kind != "blobs" && kind != "manifests") || b == nil {
		http.NotFound(w, r)
		return
	}
	// Whether it can be had shows with the first byte.
	if err := b.hold(); err != nil {
		i.log.Warn("cannot fetch an image from peers; using the server", "digest", digest, "err", err)
		http.NotFound(w, r)
		return
	}
	w.Header().Set("Content-Type", b.part.MediaType)
	if kind == "blobs" || b.part.MediaType == "" {
		w.Header().Set("Content-Type", "application/octet-stream")
	}
	w.Header().Set("Docker-Content-Digest", digest)
	http.ServeContent(w, r, "", time.Time{}, b)
}
