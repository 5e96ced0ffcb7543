// Package swarm decides how many machines fetch one blob from each other: which chunk a machine takes next and
// from whom (Picker), whom it gets to know and what the origin sends to whom (Tracker), and how fast a machine
// may give (Bucket).
//
// The package is pure: no sockets, no clock, no disks. Time comes with every call. The same code runs in the
// agent, in the server, and in the simulation of thousands of machines under test/sim.
//
// A blob is cut into chunks, numbered from 0, each with a digest that everybody knows beforehand. Whoever
// carries this out must compare a chunk with its digest before it calls Picker.Arrived.
package swarm

import (
	"fmt"
	"iter"
	"math/bits"
)

// MaxChunks of one blob: 4 TiB in chunks of 4 MiB.
const MaxChunks = 1 << 20

// Set is a set of chunk numbers of a blob.
type Set struct {
	words []uint64
	size  int // of the blob, in chunks
	count int
}

// NewSet returns the empty set for a blob of size chunks.
func NewSet(size int) *Set { return &Set{words: make([]uint64, (size+63)/64), size: size} }

// ParseSet reads what Bytes wrote for a blob of size chunks.
func ParseSet(b []byte, size int) (*Set, error) {
	if size < 1 || size > MaxChunks {
		return nil, fmt.Errorf("set of chunks: the blob has %d chunks, want 1 to %d", size, MaxChunks)
	}
	if want := (size + 7) / 8; len(b) != want {
		return nil, fmt.Errorf("set of chunks: %d bytes, want %d for %d chunks", len(b), want, size)
	}
	s := NewSet(size)
	for i, v := range b {
		s.words[i/8] |= uint64(v) << (i % 8 * 8)
	}
	if last := size % 64; last != 0 && s.words[len(s.words)-1]>>last != 0 {
		return nil, fmt.Errorf("set of chunks: names chunks beyond the last one, %d", size-1)
	}
	for _, w := range s.words {
		s.count += bits.OnesCount64(w)
	}
	return s, nil
}

// Bytes is one bit for each chunk, the lowest number in the lowest bit of the first byte.
func (s *Set) Bytes() []byte {
	b := make([]byte, (s.size+7)/8)
	for i := range b {
		b[i] = byte(s.words[i/8] >> (i % 8 * 8))
	}
	return b
}

// Has says whether chunk i is in the set.
func (s *Set) Has(i int) bool { return s.words[i/64]>>(i%64)&1 == 1 }

// Add puts chunk i into the set and says whether it is new there.
func (s *Set) Add(i int) bool {
	if s.Has(i) {
		return false
	}
	s.words[i/64] |= 1 << (i % 64)
	s.count++
	return true
}

// Remove takes chunk i out of the set.
func (s *Set) Remove(i int) {
	if s.Has(i) {
		s.words[i/64] &^= 1 << (i % 64)
		s.count--
	}
}

// Count of chunks in the set, and Size of the blob.
func (s *Set) Count() int { return s.count }

// Size is the number of chunks of the blob.
func (s *Set) Size() int { return s.size }

// Full says that every chunk of the blob is in the set.
func (s *Set) Full() bool { return s.count == s.size }

// Clone returns a copy.
func (s *Set) Clone() *Set {
	return &Set{words: append([]uint64(nil), s.words...), size: s.size, count: s.count}
}

// Copy makes s equal to from, which is of the same blob.
func (s *Set) Copy(from *Set) {
	copy(s.words, from.words)
	s.count = from.count
}

// changed yields the chunks that are in exactly one of the two sets, and whether it is next.
func changed(last, next *Set) iter.Seq2[int, bool] {
	return func(yield func(int, bool) bool) {
		for w := range last.words {
			for diff := last.words[w] ^ next.words[w]; diff != 0; diff &= diff - 1 {
				i := w*64 + bits.TrailingZeros64(diff)
				if !yield(i, next.Has(i)) {
					return
				}
			}
		}
	}
}
