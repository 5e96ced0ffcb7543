package diskimage

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sync/errgroup"

	"coldrack.dev/internal/base/digest"
)

// Source hands out stored chunks: from one URL, from peers, from a file. It may be called by
// several goroutines at once, returns exactly the stored bytes, and need not verify them.
type Source interface {
	ReadChunk(ctx context.Context, c Chunk) ([]byte, error)
}

// Blob is the Source that reads a whole blob file.
type Blob struct{ io.ReaderAt }

// ReadChunk implements Source.
func (b Blob) ReadChunk(_ context.Context, c Chunk) ([]byte, error) {
	buf := make([]byte, c.BlobLength)
	if n, err := b.ReadAt(buf, c.BlobOffset); n < len(buf) {
		return nil, fmt.Errorf("read %d bytes at byte %d of the blob: got %d: %w", len(buf), c.BlobOffset, n, err)
	}
	return buf, nil
}

// Progress says how far Write has come. Both numbers only grow.
type Progress struct {
	Raw    int64 // bytes of the image that are now right on the target, zeros included
	Stored int64 // bytes of the blob that this took
}

// WriteOptions tune Write; the zero value is safe for any target.
type WriteOptions struct {
	// TargetIsZero promises that the target reads as zero wherever it was not written yet (a new
	// sparse file, a freshly discarded disk that guarantees it). Then zeros are not written.
	TargetIsZero bool
	// Zero, if set, makes a range of the target read as zero faster than writing it would (BLKZEROOUT).
	// When it fails, zeros are written.
	Zero func(offset, length int64) error
	// Ahead is how many chunks are fetched and unpacked at once, 4 if 0. Each takes up to twice the
	// chunk size in memory.
	Ahead int
	// Progress is called after every chunk, from one goroutine at a time.
	Progress func(Progress)
}

// Write brings the image onto dst. Every chunk is verified before it is unpacked, and the digest of
// everything written is compared with the index's at the end. An error leaves dst partly written.
// It wraps a *ChunkError where one chunk is at fault and a *DigestError where bytes are wrong.
func Write(ctx context.Context, idx Index, src Source, dst io.WriterAt, opt WriteOptions) error {
	if err := idx.Validate(); err != nil {
		return err
	}
	ahead := opt.Ahead
	if ahead <= 0 {
		ahead = 4
	}
	dec, err := zstd.NewReader(nil,
		zstd.WithDecoderConcurrency(ahead),
		zstd.WithDecoderMaxMemory(2*maxChunkSize),
		zstd.WithDecodeAllCapLimit(true))
	if err != nil {
		return fmt.Errorf("write image: %w", err)
	}
	defer dec.Close()

	ordered := make(chan *slot, ahead)
	free := make(chan *slot, ahead)
	for range ahead {
		free <- &slot{done: make(chan error, 1)}
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		defer close(ordered)
		for i, c := range idx.Chunks {
			var s *slot
			select {
			case s = <-free:
			case <-ctx.Done():
				return ctx.Err()
			}
			s.number, s.chunk = i, c
			g.Go(func() error {
				s.done <- s.load(ctx, src, dec)
				return nil
			})
			ordered <- s // never blocks: there are no more slots than room
		}
		return nil
	})
	g.Go(func() error {
		w := &writer{idx: idx, dst: dst, opt: opt, whole: sha256.New()}
		for s := range ordered {
			var err error
			select {
			case err = <-s.done:
			case <-ctx.Done():
				return ctx.Err()
			}
			if err == nil {
				err = w.chunk(s.chunk, s.raw)
			}
			if err != nil {
				return &ChunkError{Number: s.number, Total: len(idx.Chunks), Chunk: s.chunk, Err: err}
			}
			free <- s
		}
		if err := ctx.Err(); err != nil {
			return err // ordered was closed early
		}
		return w.finish()
	})
	if err := g.Wait(); err != nil {
		return fmt.Errorf("write image: %w", err)
	}
	return nil
}

// Unpack verifies one stored chunk and gives its raw bytes.
func (c Chunk) Unpack(stored []byte) ([]byte, error) {
	if err := c.Verify(stored); err != nil {
		return nil, err
	}
	dec, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(2*maxChunkSize), zstd.WithDecodeAllCapLimit(true))
	if err != nil {
		return nil, err
	}
	defer dec.Close()
	raw, err := dec.DecodeAll(stored, make([]byte, 0, c.Length))
	if err != nil || int64(len(raw)) != c.Length {
		return nil, fmt.Errorf("unpacks to %d bytes, want %d: %w", len(raw), c.Length, err)
	}
	return raw, nil
}

// slot is the place of one chunk on its way through the pipeline; its buffer is used again.
type slot struct {
	number int
	chunk  Chunk
	raw    []byte // the unpacked chunk, in buf
	buf    []byte
	done   chan error
}

func (s *slot) load(ctx context.Context, src Source, dec *zstd.Decoder) error {
	stored, err := src.ReadChunk(ctx, s.chunk)
	if err != nil {
		return fmt.Errorf("fetch: %w", err)
	}
	if err := s.chunk.Verify(stored); err != nil {
		return err
	}
	if int64(len(s.buf)) < s.chunk.Length {
		s.buf = make([]byte, s.chunk.Length)
	}
	// Capacity bounds what a frame can unpack to, so it must be exactly what the index says.
	raw, err := dec.DecodeAll(stored, s.buf[:0:s.chunk.Length])
	if err != nil {
		return fmt.Errorf("unpack to %d bytes: %w", s.chunk.Length, err)
	}
	if int64(len(raw)) != s.chunk.Length {
		return fmt.Errorf("unpacks to %d bytes, want %d", len(raw), s.chunk.Length)
	}
	s.raw = raw
	return nil
}

// writer is the last stage: it writes and hashes, in the order of raw offsets.
type writer struct {
	idx   Index
	dst   io.WriterAt
	opt   WriteOptions
	whole interface {
		io.Writer
		Sum([]byte) []byte
	}
	at   Progress
	zero []byte
}

func (w *writer) chunk(c Chunk, raw []byte) error {
	if err := w.zeroUntil(c.Offset); err != nil {
		return err
	}
	err := w.both(raw, func() error {
		_, err := w.dst.WriteAt(raw, c.Offset)
		return err
	})
	if err != nil {
		return fmt.Errorf("write %d bytes to the target at byte %d: %w", len(raw), c.Offset, err)
	}
	w.at.Raw += c.Length
	w.at.Stored += c.BlobLength
	w.report()
	return nil
}

func (w *writer) zeroUntil(end int64) error {
	if w.at.Raw == end {
		return nil
	}
	skip := w.opt.TargetIsZero
	if !skip && w.opt.Zero != nil {
		skip = w.opt.Zero(w.at.Raw, end-w.at.Raw) == nil
	}
	if w.zero == nil {
		w.zero = make([]byte, min(1<<20, w.idx.ChunkSize))
	}
	for w.at.Raw < end {
		b := w.zero[:min(int64(len(w.zero)), end-w.at.Raw)]
		err := w.both(b, func() error {
			if skip {
				return nil
			}
			_, err := w.dst.WriteAt(b, w.at.Raw)
			return err
		})
		if err != nil {
			return fmt.Errorf("write zeros to the target at byte %d: %w", w.at.Raw, err)
		}
		w.at.Raw += int64(len(b))
	}
	w.report()
	return nil
}

// both hashes b while write runs.
func (w *writer) both(b []byte, write func() error) error {
	var g errgroup.Group
	g.Go(func() error {
		_, err := w.whole.Write(b)
		return err
	})
	err := write()
	_ = g.Wait() // a hash does not fail
	return err
}

func (w *writer) finish() error {
	if err := w.zeroUntil(w.idx.Size); err != nil {
		return err
	}
	if got := digest.Sum(w.whole).String(); got != w.idx.Digest {
		return &DigestError{What: "whole image", Want: w.idx.Digest, Got: got}
	}
	return nil
}

func (w *writer) report() {
	if w.opt.Progress != nil {
		w.opt.Progress(w.at)
	}
}
