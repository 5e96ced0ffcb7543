// Package noise makes disk images that do not compress, for tests that move them.
package noise

import (
	"math/rand/v2"
	"strings"

	"coldrack.dev/internal/base/digest"
	"coldrack.dev/internal/content/diskimage"
)

// Image has chunks of chunkSize bytes each, stored in least to least+spread bytes of noise, and the blob that
// holds them. The same arguments give the same image. Its own digest is none: what is moved are stored chunks.
func Image(chunks int, chunkSize int64, least, spread int) (diskimage.Index, []byte) {
	x := diskimage.Index{ChunkSize: chunkSize, Digest: "sha256:" + strings.Repeat("0", 64)}
	source := rand.NewChaCha8([32]byte{1})
	dice := rand.New(rand.NewPCG(1, 1))
	var blob []byte
	for range chunks {
		b := make([]byte, least+dice.IntN(spread))
		_, _ = source.Read(b)
		x.Chunks = append(x.Chunks, diskimage.Chunk{
			Offset: x.Size, Length: x.ChunkSize, Digest: digest.Of(b).String(), BlobOffset: int64(len(blob)), BlobLength: int64(len(b)),
		})
		x.Size += x.ChunkSize
		blob = append(blob, b...)
	}
	x.Blob, x.BlobSize = digest.Of(blob).String(), int64(len(blob))
	return x, blob
}
