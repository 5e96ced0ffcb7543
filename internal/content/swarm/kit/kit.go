// Package kit treats what every node of a cluster fetches after its installation, programs and the layers of container
// images, as one image in chunks, so that nodes exchange it like the operating system before: a Kit is all of that back
// to back, in the order in which it is needed. The server makes it of what it has; nodes see from it which chunk belongs
// to which blob.
package kit

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"

	"coldrack.dev/internal/base/digest"
	"coldrack.dev/internal/content/diskimage"
)

// ChunkSize of a kit, save its last chunk. Kits are of some hundred MiB.
const ChunkSize = 1 << 20

// Bounds of what a node accepts.
const (
	maxParts = 4096
	maxSize  = 64 << 30
)

// Part is one blob of a kit.
type Part struct {
	Digest string `json:"digest"`
	Size   int64  `json:"size"`
	// MediaType of what belongs to a container image; empty otherwise.
	MediaType string `json:"mediaType,omitempty"`
}

// Kit is some blobs back to back.
type Kit struct {
	Parts []Part `json:"parts"`
	// Digest of the whole, and the SHA-256 of each chunk, 32 bytes each.
	Digest string `json:"digest"`
	Sums   []byte `json:"sums"`
}

// Make reads the parts one after another. A blob that is named twice is in the kit once, and empty ones are not. Whoever
// made the parts says which digests they have; they are compared.
func Make(ctx context.Context, parts []Part, open func(digest string) (io.ReadCloser, error)) (Kit, error) {
	k := Kit{}
	seen := map[string]bool{}
	for _, p := range parts {
		if !seen[p.Digest] && p.Size > 0 {
			seen[p.Digest] = true
			k.Parts = append(k.Parts, p)
		}
	}
	if len(k.Parts) == 0 {
		return Kit{}, errors.New("a kit of nothing")
	}
	w := &summer{whole: sha256.New(), chunk: sha256.New()}
	for _, p := range k.Parts {
		if err := w.add(ctx, p, open); err != nil {
			return Kit{}, err
		}
	}
	if w.n > 0 {
		w.sums = w.chunk.Sum(w.sums)
	}
	k.Digest, k.Sums = digest.Sum(w.whole).String(), w.sums
	return k, k.Validate()
}

// Size of the whole in bytes.
func (k Kit) Size() int64 {
	var n int64
	for _, p := range k.Parts {
		n += p.Size
	}
	return n
}

// Validate checks a kit that came from elsewhere.
func (k Kit) Validate() error {
	if len(k.Parts) == 0 || len(k.Parts) > maxParts {
		return fmt.Errorf("kit: %d parts, want 1 to %d", len(k.Parts), maxParts)
	}
	seen := map[string]bool{}
	var size int64
	for i, p := range k.Parts {
		if p.Size <= 0 || p.Size > maxSize-size {
			return fmt.Errorf("kit: parts[%d]: size is %d; want 1 or more, and all together at most %d", i, p.Size, int64(maxSize))
		}
		size += p.Size
		if seen[p.Digest] {
			return fmt.Errorf("kit: parts[%d]: %s is there twice", i, p.Digest)
		}
		seen[p.Digest] = true
	}
	if want := (size + ChunkSize - 1) / ChunkSize * sha256.Size; int64(len(k.Sums)) != want {
		return fmt.Errorf("kit: %d bytes of digests of chunks, want %d", len(k.Sums), want)
	}
	return k.Index().Validate()
}

// Index describes the kit as an image whose chunks are stored as they are.
func (k Kit) Index() diskimage.Index {
	size := k.Size()
	x := diskimage.Index{Size: size, ChunkSize: ChunkSize, Digest: k.Digest, Blob: k.Digest, BlobSize: size}
	for at := int64(0); at < size && len(k.Sums) >= (len(x.Chunks)+1)*sha256.Size; at += ChunkSize {
		i, n := len(x.Chunks), min(ChunkSize, size-at)
		x.Chunks = append(x.Chunks, diskimage.Chunk{
			Offset: at, Length: n, BlobOffset: at, BlobLength: n, Digest: digest.Digest(k.Sums[i*sha256.Size : (i+1)*sha256.Size]).String(),
		})
	}
	return x
}

// Find says where a blob begins.
func (k Kit) Find(digest string) (part Part, offset int64, ok bool) {
	for _, p := range k.Parts {
		if p.Digest == digest {
			return p, offset, true
		}
		offset += p.Size
	}
	return Part{}, 0, false
}

// Piece is a range of one blob.
type Piece struct {
	Part         Part
	Offset, Size int64 // in the blob
}

// Pieces of which a range of the kit consists.
func (k Kit) Pieces(at, size int64) []Piece {
	var pieces []Piece
	for _, p := range k.Parts {
		if size == 0 {
			break
		}
		if at < p.Size {
			n := min(size, p.Size-at)
			pieces = append(pieces, Piece{p, at, n})
			at, size = p.Size, size-n
		}
		at -= p.Size
	}
	return pieces
}

// summer cuts what is written to it into chunks.
type summer struct {
	whole, chunk hash.Hash
	n            int64 // in the chunk
	sums         []byte
}

func (s *summer) Write(b []byte) (int, error) {
	_, _ = s.whole.Write(b)
	for rest := b; len(rest) > 0; {
		piece := rest[:min(int64(len(rest)), ChunkSize-s.n)]
		_, _ = s.chunk.Write(piece)
		s.n += int64(len(piece))
		rest = rest[len(piece):]
		if s.n == ChunkSize {
			s.sums = s.chunk.Sum(s.sums)
			s.chunk.Reset()
			s.n = 0
		}
	}
	return len(b), nil
}

func (s *summer) add(ctx context.Context, p Part, open func(string) (io.ReadCloser, error)) error {
	f, err := open(p.Digest)
	if err != nil {
		return err
	}
	defer f.Close()
	own := sha256.New()
	n, err := io.Copy(io.MultiWriter(s, own), &stopped{ctx, f})
	if err != nil {
		return fmt.Errorf("read %s: %w", p.Digest, err)
	}
	if got := digest.Sum(own).String(); n != p.Size || got != p.Digest {
		return fmt.Errorf("%s is damaged: it has %d bytes and digest %s, want %d bytes; coldrack bundle import --again FILE repairs it", p.Digest, n, got, p.Size)
	}
	return nil
}

type stopped struct {
	ctx context.Context
	r   io.Reader
}

func (s *stopped) Read(b []byte) (int, error) {
	if err := s.ctx.Err(); err != nil {
		return 0, err
	}
	return s.r.Read(b)
}
