// Package diskimage stores a raw disk or file-system image as independently compressed chunks.
//
// An image is two files: an index (JSON, small) and a blob (all stored chunks back to back, in the
// order of their raw offsets). Each chunk is one zstd frame and can be fetched, verified and written
// without its neighbours, so that a machine can take chunks from several places, in parallel, and
// never has to trust the one it got them from. Ranges of zeros are not stored at all.
//
// The package is used by the builder and by the agent; it knows nothing of HTTP, bundles or disks.
package diskimage

import (
	"fmt"

	"coldrack.dev/internal/base/digest"
)

// DefaultChunkSize is the raw length of every chunk that Encode makes, save the last of an image.
const DefaultChunkSize = 4 << 20

// Bounds that Validate enforces. They keep a hostile index from making the agent reserve memory.
const (
	minChunkSize = 4 << 10
	maxChunkSize = 64 << 20
	maxImageSize = 1 << 46
)

// Index describes an image. The zero value is not valid.
type Index struct {
	Size      int64   `json:"size"`      // raw bytes of the whole image
	ChunkSize int64   `json:"chunkSize"` // raw bytes of a chunk; only the image's last may be shorter
	Digest    string  `json:"digest"`    // "sha256:<hex>" of the whole raw image, zeros included
	Blob      string  `json:"blob"`      // digest of the file that holds the stored chunks back to back
	BlobSize  int64   `json:"blobSize"`  // bytes of that file
	Chunks    []Chunk `json:"chunks"`    // in the order of Offset; a chunk-sized range of zeros has none
}

// Chunk is one stored part of an image.
type Chunk struct {
	Offset     int64  `json:"offset"`     // in the raw image, a multiple of the index's ChunkSize
	Length     int64  `json:"length"`     // raw bytes
	Digest     string `json:"digest"`     // "sha256:<hex>" of the stored (compressed) bytes
	BlobOffset int64  `json:"blobOffset"` // in the blob
	BlobLength int64  `json:"blobLength"` // stored bytes
}

// Verify says whether stored is exactly what the chunk's digest promises.
func (c Chunk) Verify(stored []byte) error {
	if int64(len(stored)) != c.BlobLength {
		return fmt.Errorf("stored length is %d bytes, want %d", len(stored), c.BlobLength)
	}
	if got := digest.Of(stored).String(); got != c.Digest {
		return &DigestError{What: "stored bytes", Want: c.Digest, Got: got}
	}
	return nil
}

// DigestError reports bytes that are not what was promised.
type DigestError struct {
	What      string // for example "stored bytes" or "whole image"
	Want, Got string
}

func (e *DigestError) Error() string {
	return fmt.Sprintf("%s: digest is %s, want %s", e.What, e.Got, e.Want)
}

// ChunkError says which chunk of an image could not be fetched, verified or written.
type ChunkError struct {
	Number int // position in Index.Chunks, from 0
	Total  int // number of chunks of the image
	Chunk  Chunk
	Err    error
}

func (e *ChunkError) Error() string {
	return fmt.Sprintf("chunk %d of %d (raw offset %d): %v", e.Number+1, e.Total, e.Chunk.Offset, e.Err)
}

func (e *ChunkError) Unwrap() error { return e.Err }

// StoredBytes is the sum of all chunks' stored lengths, for progress.
func (x Index) StoredBytes() int64 {
	var n int64
	for _, c := range x.Chunks {
		n += c.BlobLength
	}
	return n
}

// Validate checks an index that came from elsewhere. An index that passes can be written without
// further checks of its numbers: nothing overlaps, overflows, or asks for unbounded memory.
func (x Index) Validate() error {
	if x.Size <= 0 || x.Size > maxImageSize {
		return fmt.Errorf("image index: size is %d, want 1 to %d bytes", x.Size, int64(maxImageSize))
	}
	if x.ChunkSize < minChunkSize || x.ChunkSize > maxChunkSize {
		return fmt.Errorf("image index: chunkSize is %d, want %d to %d bytes", x.ChunkSize, minChunkSize, maxChunkSize)
	}
	if _, err := digest.Parse(x.Digest); err != nil {
		return fmt.Errorf("image index: %w", err)
	}
	if _, err := digest.Parse(x.Blob); err != nil {
		return fmt.Errorf("image index: blob: %w", err)
	}
	if x.BlobSize < 0 {
		return fmt.Errorf("image index: blobSize is %d, want at least 0", x.BlobSize)
	}
	next, blobEnd := int64(0), int64(0)
	for i, c := range x.Chunks {
		if err := x.validChunk(c, next, blobEnd); err != nil {
			return fmt.Errorf("image index: chunks[%d]: %w", i, err)
		}
		next, blobEnd = c.Offset+c.Length, c.BlobOffset+c.BlobLength
	}
	if blobEnd != x.BlobSize {
		return fmt.Errorf("image index: chunks end at byte %d of the blob, but blobSize is %d", blobEnd, x.BlobSize)
	}
	return nil
}

// validChunk checks c, given where the chunk before it ended. The order of the checks keeps every
// sum below maxImageSize, so none can overflow.
func (x Index) validChunk(c Chunk, next, blobEnd int64) error {
	switch {
	case c.Offset < next || c.Offset >= x.Size:
		return fmt.Errorf("offset is %d, want %d to %d", c.Offset, next, x.Size-1)
	case c.Offset%x.ChunkSize != 0:
		return fmt.Errorf("offset is %d, want a multiple of %d", c.Offset, x.ChunkSize)
	case c.Length != min(x.ChunkSize, x.Size-c.Offset):
		return fmt.Errorf("length is %d, want %d", c.Length, min(x.ChunkSize, x.Size-c.Offset))
	case c.BlobOffset != blobEnd:
		return fmt.Errorf("blobOffset is %d, want %d", c.BlobOffset, blobEnd)
	case c.BlobLength <= 0 || c.BlobLength > maxStored(c.Length):
		return fmt.Errorf("blobLength is %d, want 1 to %d", c.BlobLength, maxStored(c.Length))
	}
	if _, err := digest.Parse(c.Digest); err != nil {
		return fmt.Errorf("digest: %w", err)
	}
	return nil
}

// maxStored bounds what raw bytes may take when they do not compress: zstd adds three bytes for each
// block of 128 KiB and a frame header.
func maxStored(raw int64) int64 { return raw + raw/1024 + 512 }
