package diskimage

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"runtime"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sync/errgroup"

	"coldrack.dev/internal/base/digest"
)

// Encode reads exactly size bytes of a raw image and writes its stored chunks to blob. The same
// input gives the same blob and index as long as the compressor's version is the same.
func Encode(ctx context.Context, raw io.Reader, size int64, blob io.Writer) (Index, error) {
	if size <= 0 || size > maxImageSize {
		return Index{}, fmt.Errorf("encode image: size is %d, want 1 to %d bytes", size, int64(maxImageSize))
	}
	// One frame is made by one goroutine; parallelism comes from several chunks at once.
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedDefault), zstd.WithEncoderConcurrency(runtime.GOMAXPROCS(0)))
	if err != nil {
		return Index{}, fmt.Errorf("encode image: %w", err)
	}
	defer func() { _ = enc.Close() }() // a writer to nowhere has nothing to flush

	idx := Index{Size: size, ChunkSize: DefaultChunkSize}
	whole, stored := sha256.New(), sha256.New()
	out := io.MultiWriter(blob, stored)

	type job struct {
		offset int64
		raw    []byte
		done   chan []byte
	}
	workers := runtime.GOMAXPROCS(0)
	ordered := make(chan *job, workers)
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		defer close(ordered)
		// One goroutine compresses each chunk; the bound on ordered bounds their number.
		compressors, ctx := errgroup.WithContext(ctx)
		defer func() { _ = compressors.Wait() }()
		for offset := int64(0); offset < size; offset += DefaultChunkSize {
			buf := make([]byte, min(DefaultChunkSize, size-offset))
			if n, err := io.ReadFull(raw, buf); err != nil {
				if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
					return fmt.Errorf("read raw image: it ends after %d bytes, want %d", offset+int64(n), size)
				}
				return fmt.Errorf("read raw image at byte %d: %w", offset, err)
			}
			_, _ = whole.Write(buf)
			if allZero(buf) {
				continue
			}
			j := &job{offset: offset, raw: buf, done: make(chan []byte, 1)}
			select {
			case ordered <- j:
			case <-ctx.Done():
				return ctx.Err()
			}
			compressors.Go(func() error {
				j.done <- enc.EncodeAll(j.raw, make([]byte, 0, len(j.raw)/2))
				return nil
			})
		}
		return nil
	})
	g.Go(func() error {
		for j := range ordered {
			var b []byte
			select {
			case b = <-j.done:
			case <-ctx.Done():
				return ctx.Err()
			}
			if _, err := out.Write(b); err != nil {
				return fmt.Errorf("write image blob at byte %d: %w", idx.BlobSize, err)
			}
			idx.Chunks = append(idx.Chunks, Chunk{
				Offset: j.offset, Length: int64(len(j.raw)), Digest: digest.Of(b).String(),
				BlobOffset: idx.BlobSize, BlobLength: int64(len(b)),
			})
			idx.BlobSize += int64(len(b))
		}
		return nil
	})
	if err := g.Wait(); err != nil {
		return Index{}, fmt.Errorf("encode image: %w", err)
	}
	idx.Digest, idx.Blob = digest.Sum(whole).String(), digest.Sum(stored).String()
	return idx, nil
}

func allZero(b []byte) bool {
	for len(b) >= len(zeros) {
		if string(b[:len(zeros)]) != zeros {
			return false
		}
		b = b[len(zeros):]
	}
	return string(b) == zeros[:len(b)]
}

// zeros is compared as a string so that the runtime's vectorised comparison does the work.
const zeros = "\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00" +
	"\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00" +
	"\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00" +
	"\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
