package kit

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"io/fs"
	"math/rand/v2"
	"strings"
	"testing"

	"coldrack.dev/internal/base/digest"
)

// blobs by digest.
type blobs map[string][]byte

func (b blobs) add(size int, seed byte) Part {
	content := make([]byte, size)
	_, _ = rand.NewChaCha8([32]byte{seed}).Read(content)
	sum := sha256.Sum256(content)
	p := Part{Digest: digest.Digest(sum).String(), Size: int64(size)}
	b[p.Digest] = content
	return p
}

func (b blobs) open(digest string) (io.ReadCloser, error) {
	content, ok := b[digest]
	if !ok {
		return nil, fs.ErrNotExist
	}
	return io.NopCloser(bytes.NewReader(content)), nil
}

func TestAKitIsItsPartsBackToBack(t *testing.T) {
	all := blobs{}
	// Smaller than a chunk, larger, exactly one, and two that share a chunk with others.
	parts := []Part{all.add(10, 1), all.add(3*ChunkSize+5, 2), all.add(ChunkSize, 3), all.add(ChunkSize-15, 4), all.add(7, 5)}
	k, err := Make(t.Context(), append(parts, parts[1], Part{Digest: "sha256:empty"}), all.open)
	if err != nil {
		t.Fatal(err)
	}
	var whole []byte
	for i, p := range parts {
		if got, at, ok := k.Find(p.Digest); !ok || got != p || at != int64(len(whole)) {
			t.Errorf("part %d is found at %d (%v), want %d", i, at, ok, len(whole))
		}
		whole = append(whole, all[p.Digest]...)
	}
	sum := sha256.Sum256(whole)
	x := k.Index()
	if k.Digest != digest.Digest(sum).String() || k.Size() != int64(len(whole)) || x.Blob != k.Digest || len(k.Parts) != len(parts) {
		t.Fatalf("kit %s of %d bytes and %d parts", k.Digest, k.Size(), len(k.Parts))
	}
	for i, c := range x.Chunks {
		if err := c.Verify(whole[c.BlobOffset : c.BlobOffset+c.BlobLength]); err != nil {
			t.Errorf("chunk %d: %v", i, err)
		}
		var again []byte
		for _, p := range k.Pieces(c.BlobOffset, c.BlobLength) {
			again = append(again, all[p.Part.Digest][p.Offset:p.Offset+p.Size]...)
		}
		if !bytes.Equal(again, whole[c.BlobOffset:c.BlobOffset+c.BlobLength]) {
			t.Errorf("chunk %d is not its pieces", i)
		}
	}
	var image bytes.Buffer
	for _, c := range x.Chunks { // whatever takes images takes kits
		image.Write(whole[c.Offset : c.Offset+c.Length])
	}
	if !bytes.Equal(image.Bytes(), whole) {
		t.Error("the chunks are not the whole")
	}
	if _, _, ok := k.Find("sha256:other"); ok {
		t.Error("found what is not there")
	}
}

func TestWhatIsNoKit(t *testing.T) {
	all := blobs{}
	p, q := all.add(2*ChunkSize, 1), all.add(5, 2)
	good, err := Make(t.Context(), []Part{p, q}, all.open)
	if err != nil {
		t.Fatal(err)
	}
	for what, change := range map[string]func(*Kit){
		"no parts":             func(k *Kit) { k.Parts = nil },
		"an empty part":        func(k *Kit) { k.Parts[1].Size = 0 },
		"a huge part":          func(k *Kit) { k.Parts[1].Size = 1 << 62 },
		"a part twice":         func(k *Kit) { k.Parts[1].Digest = k.Parts[0].Digest },
		"a digest less":        func(k *Kit) { k.Sums = k.Sums[:64] },
		"a digest more":        func(k *Kit) { k.Sums = append(k.Sums, make([]byte, 32)...) },
		"half a digest":        func(k *Kit) { k.Sums = k.Sums[:80] },
		"a digest of no kind":  func(k *Kit) { k.Digest = "md5:1" },
		"more parts than kept": func(k *Kit) { k.Parts = append(k.Parts, make([]Part, maxParts)...) },
	} {
		k := Kit{Parts: append([]Part(nil), good.Parts...), Digest: good.Digest, Sums: append([]byte(nil), good.Sums...)}
		change(&k)
		if err := k.Validate(); err == nil {
			t.Errorf("%s: accepted", what)
		}
	}
	if err := good.Validate(); err != nil {
		t.Error(err)
	}
}

func TestAKitIsNotMadeOfDamage(t *testing.T) {
	all := blobs{}
	p, q := all.add(100, 1), all.add(100, 2)
	all[q.Digest][3]++
	if _, err := Make(t.Context(), []Part{p, q}, all.open); err == nil || !strings.Contains(err.Error(), "bundle import --again") {
		t.Errorf("a damaged blob: %v", err)
	}
	if _, err := Make(t.Context(), []Part{{Digest: "sha256:1", Size: 1}}, all.open); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a missing blob: %v", err)
	}
	if _, err := Make(t.Context(), nil, all.open); err == nil {
		t.Error("nothing is a kit")
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Make(ended, []Part{p}, all.open); !errors.Is(err, context.Canceled) {
		t.Errorf("when nobody waits any more: %v", err)
	}
}

func FuzzValidate(f *testing.F) {
	f.Add(int64(10), int64(2*ChunkSize), 3)
	f.Add(int64(1), int64(1<<62), 0)
	f.Fuzz(func(t *testing.T, a, b int64, sums int) {
		if sums < 0 || sums > 1000 {
			return
		}
		k := Kit{Parts: []Part{{Digest: "a", Size: a}, {Digest: "b", Size: b}}, Digest: "sha256:" + strings.Repeat("0", 64), Sums: make([]byte, sums*sha256.Size)}
		if k.Validate() != nil {
			return
		}
		var n int64
		for _, c := range k.Index().Chunks {
			for _, p := range k.Pieces(c.BlobOffset, c.BlobLength) {
				if p.Offset < 0 || p.Size <= 0 || p.Offset+p.Size > p.Part.Size {
					t.Fatalf("piece %+v", p)
				}
				n += p.Size
			}
		}
		if n != a+b {
			t.Fatalf("%d bytes in pieces, want %d", n, a+b)
		}
	})
}
