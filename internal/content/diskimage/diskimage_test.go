package diskimage_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"testing"

	"coldrack.dev/internal/content/diskimage"
)

const chunk = diskimage.DefaultChunkSize

// memory is a target whose old content is not zero.
type memory []byte

func newMemory(size int64) memory { return bytes.Repeat([]byte{0xA5}, int(size)) }

func (m memory) WriteAt(p []byte, off int64) (int, error) {
	if off < 0 || off+int64(len(p)) > int64(len(m)) {
		return 0, io.ErrShortWrite
	}
	return copy(m[off:], p), nil
}

// sample is an image with text, noise and two ranges of zeros, the last at its end.
func sample(size int64) []byte {
	raw := make([]byte, size)
	noise := rand.NewChaCha8([32]byte{1})
	for off := int64(0); off < size; off += chunk {
		part := raw[off:min(off+chunk, size)]
		switch off / chunk % 4 {
		case 0:
			copy(part, bytes.Repeat([]byte("the quick brown fox "), len(part)/20))
		case 1:
			_, _ = noise.Read(part)
		case 2:
		case 3:
			part[len(part)/2] = 1
		}
	}
	return raw
}

func encode(t testing.TB, raw []byte) (diskimage.Index, []byte) {
	t.Helper()
	var blob bytes.Buffer
	idx, err := diskimage.Encode(context.Background(), bytes.NewReader(raw), int64(len(raw)), &blob)
	if err != nil {
		t.Fatal(err)
	}
	if err := idx.Validate(); err != nil {
		t.Fatalf("Encode made an index that Validate refuses: %v", err)
	}
	return idx, blob.Bytes()
}

func TestRoundTrip(t *testing.T) {
	for name, size := range map[string]int64{
		"one byte":                      1,
		"exactly one chunk":             chunk,
		"a chunk and a byte":            chunk + 1,
		"seven chunks, the last zero":   7 * chunk,
		"a last chunk shorter than all": 5*chunk + 4096,
	} {
		t.Run(name, func(t *testing.T) {
			raw := sample(size)
			idx, blob := encode(t, raw)
			for name, opt := range map[string]diskimage.WriteOptions{
				"stale target":           {},
				"one chunk at a time":    {Ahead: 1},
				"zeroing does not work":  {Zero: func(int64, int64) error { return errors.ErrUnsupported }},
				"more ahead than chunks": {Ahead: 32},
			} {
				dst := newMemory(size)
				var last diskimage.Progress
				opt.Progress = func(p diskimage.Progress) {
					if p.Raw < last.Raw || p.Stored < last.Stored {
						t.Errorf("%s: progress went back from %+v to %+v", name, last, p)
					}
					last = p
				}
				if err := diskimage.Write(context.Background(), idx, diskimage.Blob{ReaderAt: bytes.NewReader(blob)}, dst, opt); err != nil {
					t.Fatalf("%s: %v", name, err)
				}
				if !bytes.Equal(dst, raw) {
					t.Fatalf("%s: the target differs from the image", name)
				}
				if last != (diskimage.Progress{Raw: size, Stored: idx.BlobSize}) {
					t.Errorf("%s: progress ends at %+v", name, last)
				}
			}
		})
	}
}

func TestEncodeIsDeterministic(t *testing.T) {
	raw := sample(5 * chunk)
	a, blobA := encode(t, raw)
	b, blobB := encode(t, raw)
	if a.Blob != b.Blob || a.Digest != b.Digest || !bytes.Equal(blobA, blobB) {
		t.Fatalf("two runs differ: %s and %s", a.Blob, b.Blob)
	}
}

func TestZerosAreNotStoredAndNotWrittenWhereTheTargetIsZero(t *testing.T) {
	raw := make([]byte, 8*chunk)
	raw[3*chunk] = 1
	idx, blob := encode(t, raw)
	if len(idx.Chunks) != 1 || idx.Chunks[0].Offset != 3*chunk {
		t.Fatalf("chunks are %+v, want one at %d", idx.Chunks, 3*chunk)
	}
	count := &counting{}
	err := diskimage.Write(context.Background(), idx, diskimage.Blob{ReaderAt: bytes.NewReader(blob)}, count, diskimage.WriteOptions{TargetIsZero: true})
	if err != nil || count.bytes != chunk {
		t.Fatalf("wrote %d bytes, %v; want %d", count.bytes, err, chunk)
	}
	var zeroed int64
	count = &counting{}
	err = diskimage.Write(context.Background(), idx, diskimage.Blob{ReaderAt: bytes.NewReader(blob)}, count, diskimage.WriteOptions{
		Zero: func(_, n int64) error { zeroed += n; return nil },
	})
	if err != nil || count.bytes != chunk || zeroed != 7*chunk {
		t.Fatalf("wrote %d, zeroed %d bytes, %v", count.bytes, zeroed, err)
	}
}

type counting struct{ bytes int64 }

func (c *counting) WriteAt(p []byte, _ int64) (int, error) {
	c.bytes += int64(len(p))
	return len(p), nil
}

func TestEncodeRefusesAnImageThatEndsEarly(t *testing.T) {
	_, err := diskimage.Encode(context.Background(), strings.NewReader("short"), 100, io.Discard)
	if err == nil || !strings.Contains(err.Error(), "ends after 5 bytes, want 100") {
		t.Fatal(err)
	}
}

func TestWriteRefusesWhatIsNotTheImage(t *testing.T) {
	raw := sample(6 * chunk)
	idx, blob := encode(t, raw)
	other, otherBlob := encode(t, bytes.ToUpper(raw))
	tests := map[string]struct {
		damage func(idx *diskimage.Index, blob []byte) []byte
		chunk  int // number of the chunk that is blamed, or -1
		text   string
	}{
		"one bit of the third chunk flipped": {
			damage: func(idx *diskimage.Index, blob []byte) []byte { blob[idx.Chunks[2].BlobOffset+9] ^= 1; return blob },
			chunk:  2, text: "stored bytes: digest is",
		},
		"a blob cut short": {
			damage: func(_ *diskimage.Index, blob []byte) []byte { return blob[:len(blob)-1] },
			chunk:  len(idx.Chunks) - 1, text: "fetch: read",
		},
		"good chunks of the wrong image": {
			damage: func(idx *diskimage.Index, _ []byte) []byte {
				want := idx.Digest
				*idx = other
				idx.Digest = want
				return otherBlob
			},
			chunk: -1, text: "whole image: digest is " + other.Digest + ", want " + idx.Digest,
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			bad := idx
			badBlob := tt.damage(&bad, bytes.Clone(blob))
			err := diskimage.Write(context.Background(), bad, diskimage.Blob{ReaderAt: bytes.NewReader(badBlob)}, newMemory(bad.Size), diskimage.WriteOptions{})
			if err == nil || !strings.Contains(err.Error(), tt.text) {
				t.Fatalf("error is %v, want %q in it", err, tt.text)
			}
			got := -1
			if ce := (*diskimage.ChunkError)(nil); errors.As(err, &ce) {
				got = ce.Number
			}
			if got != tt.chunk {
				t.Errorf("blames chunk %d, want %d: %v", got, tt.chunk, err)
			}
		})
	}
}

func TestWriteStopsWhenCancelled(t *testing.T) {
	raw := sample(6 * chunk)
	idx, blob := encode(t, raw)
	ctx, cancel := context.WithCancel(context.Background())
	err := diskimage.Write(ctx, idx, diskimage.Blob{ReaderAt: bytes.NewReader(blob)}, newMemory(idx.Size), diskimage.WriteOptions{
		Ahead: 1, Progress: func(diskimage.Progress) { cancel() },
	})
	if !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
}

func TestValidate(t *testing.T) {
	good, _ := encode(t, sample(6*chunk+100))
	for name, tt := range map[string]struct {
		change func(*diskimage.Index)
		text   string
	}{
		"empty":                         {func(x *diskimage.Index) { *x = diskimage.Index{} }, "size is 0"},
		"negative size":                 {func(x *diskimage.Index) { x.Size = -1 }, "size is -1"},
		"a size beyond any disk":        {func(x *diskimage.Index) { x.Size = 1 << 62 }, "size is 4611686018427387904"},
		"chunks that fill the memory":   {func(x *diskimage.Index) { x.ChunkSize = 1 << 40 }, "chunkSize is"},
		"chunks of no size":             {func(x *diskimage.Index) { x.ChunkSize = 0 }, "chunkSize is 0"},
		"a digest of another algorithm": {func(x *diskimage.Index) { x.Digest = "md5:00" }, `digest "md5:00"`},
		"a blob that is a path":         {func(x *diskimage.Index) { x.Blob = "sha256:../../etc/passwd" }, "blob: "},
		"overlapping chunks":            {func(x *diskimage.Index) { x.Chunks[1].Offset = 0 }, "chunks[1]: offset is 0"},
		"unordered chunks":              {func(x *diskimage.Index) { x.Chunks[0], x.Chunks[1] = x.Chunks[1], x.Chunks[0] }, "chunks[0]: blobOffset"},
		"an unaligned chunk":            {func(x *diskimage.Index) { x.Chunks[1].Offset++ }, "want a multiple of"},
		"a chunk beyond the end":        {func(x *diskimage.Index) { x.Size = chunk }, "chunks[1]: offset"},
		"a chunk of another length":     {func(x *diskimage.Index) { x.Chunks[0].Length-- }, "chunks[0]: length"},
		"an offset that overflows":      {func(x *diskimage.Index) { x.Chunks[1].Offset = 1<<63 - 1 }, "chunks[1]: offset"},
		"a hole in the blob":            {func(x *diskimage.Index) { x.Chunks[1].BlobOffset++ }, "chunks[1]: blobOffset"},
		"a stored length that is huge":  {func(x *diskimage.Index) { x.Chunks[0].BlobLength = 1 << 62 }, "chunks[0]: blobLength"},
		"a negative stored length":      {func(x *diskimage.Index) { x.Chunks[0].BlobLength = -1 }, "chunks[0]: blobLength"},
		"a blob longer than its chunks": {func(x *diskimage.Index) { x.BlobSize++ }, "blobSize is"},
	} {
		t.Run(name, func(t *testing.T) {
			x := good
			x.Chunks = append([]diskimage.Chunk(nil), good.Chunks...)
			tt.change(&x)
			if err := x.Validate(); err == nil || !strings.Contains(err.Error(), tt.text) {
				t.Fatalf("error is %v, want %q in it", err, tt.text)
			}
		})
	}
}

// FuzzWrite feeds a hostile index and blob; whatever happens, no byte lands outside the target and
// an image that is accepted has the digest that was asked for.
func FuzzWrite(f *testing.F) {
	raw := sample(2*chunk + 100)
	idx, blob := encode(f, raw)
	b, err := json.Marshal(idx)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b, blob[:min(len(blob), 4096)])
	small := make([]byte, 300)
	small[7] = 9
	idx, blob = encode(f, small)
	if b, err = json.Marshal(idx); err != nil {
		f.Fatal(err)
	}
	f.Add(b, blob)
	f.Fuzz(func(t *testing.T, index, blob []byte) {
		var idx diskimage.Index
		if json.Unmarshal(index, &idx) != nil || idx.Validate() != nil || idx.Size > 1<<20 {
			return
		}
		dst := newMemory(idx.Size)
		err := diskimage.Write(context.Background(), idx, diskimage.Blob{ReaderAt: bytes.NewReader(blob)}, dst, diskimage.WriteOptions{})
		if got := fmt.Sprintf("sha256:%x", sha256.Sum256(dst)); err == nil && got != idx.Digest {
			t.Fatalf("accepted an image with digest %s, want %s", got, idx.Digest)
		}
	})
}

func BenchmarkEncode(b *testing.B) {
	raw := sample(32 * chunk)
	b.SetBytes(int64(len(raw)))
	for b.Loop() {
		if _, err := diskimage.Encode(context.Background(), bytes.NewReader(raw), int64(len(raw)), io.Discard); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkWrite(b *testing.B) {
	raw := sample(32 * chunk)
	idx, blob := encode(b, raw)
	b.SetBytes(int64(len(raw)))
	for b.Loop() {
		if err := diskimage.Write(context.Background(), idx, diskimage.Blob{ReaderAt: bytes.NewReader(blob)}, &counting{}, diskimage.WriteOptions{}); err != nil {
			b.Fatal(err)
		}
	}
}
