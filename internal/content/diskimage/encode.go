package diskimage

import (
	"context"
	"crypto/sha256"
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
	return encode(ctx, raw, size, false, blob)
}

// EncodeAll is Encode for a raw image of unknown size: it reads to the end, and fails when that is beyond limit bytes.
func EncodeAll(ctx context.Context, raw io.Reader, limit int64, blob io.Writer) (Index, error) {
	return encode(ctx, raw, min(limit, maxImageSize), true, blob)
}

// encode reads size bytes, or with open to the end of raw, which may come earlier.
func encode(ctx context.Context, raw io.Reader, size int64, open bool, blob io.Writer) (Index, error) {
	// One frame is made by one goroutine; parallelism comes from several chunks at once.
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedDefault), zstd.WithEncoderConcurrency(runtime.GOMAXPROCS(0)))
	if err != nil {
		return Index{}, fmt.Errorf("encode image: %w", err)
	}
	defer func() { _ = enc.Close() }() // a writer to nowhere has nothing to flush

	idx := Index{ChunkSize: DefaultChunkSize}
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
			n, err := io.ReadFull(raw, buf)
			// Bare: an error of raw that wraps one of these says more.
			ended := err == io.EOF || err == io.ErrUnexpectedEOF //nolint:errorlint
			switch {
			case ended && open && offset+int64(n) > 0:
				size, buf = offset+int64(n), buf[:n]
			case ended:
				return fmt.Errorf("read raw image: it ends after %d bytes, want %d", offset+int64(n), size)
			case err != nil:
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
		if open {
			switch _, err := io.ReadFull(raw, make([]byte, 1)); {
			case err == nil:
				return fmt.Errorf("read raw image: it is larger than %d bytes", size)
			case err != io.EOF: //nolint:errorlint // as above
				return fmt.Errorf("read raw image at byte %d: %w", size, err)
			}
		}
		idx.Size = size
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
