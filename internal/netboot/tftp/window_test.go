package tftp

import "testing"

func TestWindow(t *testing.T) {
	const wrap = 1 << 16
	tests := []struct {
		name string
		w    window
		ack  uint16
		want verdict
		base uint64
	}{
		{"lock-step goes on", window{size: 1, last: 9, base: 3, sent: 4}, 3, advanced, 4},
		{"a doubled ACK in lock-step is repeated", window{size: 1, last: 9, base: 3, sent: 4}, 2, repeated, 3},
		{"an old ACK is stale", window{size: 1, last: 9, base: 3, sent: 4}, 1, stale, 3},
		{"an ACK for what was not sent is stale", window{size: 1, last: 9, base: 3, sent: 4}, 4, stale, 3},
		{"the last block finishes", window{size: 1, last: 3, base: 3, sent: 4}, 3, finished, 4},
		{"the OACK is accepted by block 0", window{size: 4, last: 9, base: 0, sent: 1}, 0, advanced, 1},
		{"before the OACK is accepted nothing else counts", window{size: 4, last: 9, base: 0, sent: 1}, 65535, stale, 0},
		{"a whole window is accepted", window{size: 4, last: 9, base: 1, sent: 5}, 4, advanced, 5},
		{"a gap in the window restarts behind it", window{size: 4, last: 9, base: 1, sent: 5}, 2, advanced, 3},
		{"the window's first block is missing", window{size: 4, last: 9, base: 5, sent: 9}, 4, repeated, 5},
		{"numbers wrap from 65535 to 0", window{size: 1, last: 2 * wrap, base: wrap, sent: wrap + 1}, 0, advanced, wrap + 1},
		{"a window across the wrap", window{size: 8, last: 2 * wrap, base: wrap - 4, sent: wrap + 4}, 3, advanced, wrap + 4},
		{"a gap across the wrap", window{size: 8, last: 2 * wrap, base: wrap - 4, sent: wrap + 4}, 65535, advanced, wrap},
		{"a repeated ACK across the wrap", window{size: 8, last: 2 * wrap, base: wrap, sent: wrap + 8}, 65535, repeated, wrap},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			w := test.w
			if got := w.ack(test.ack); got != test.want || w.base != test.base {
				t.Errorf("ack(%d) = %v with base %d, want %v with base %d", test.ack, got, w.base, test.want, test.base)
			}
		})
	}
}

// A client that loses blocks in every way that fits a window must still get them all, in order.
func FuzzWindow(f *testing.F) {
	f.Add([]byte{1, 2, 3, 0, 255}, uint8(4), uint32(70000))
	f.Fuzz(func(t *testing.T, losses []byte, size uint8, blocks uint32) {
		w := window{size: int(size%64) + 1, last: uint64(blocks%70000) + 1}
		var have uint64 // highest block the client has; 0 is the OACK
		started := false
		for step := 0; ; step++ {
			from, to := w.next()
			if from != w.base || to <= from || to > w.last+1 || to-from > uint64(w.size) {
				t.Fatalf("sends [%d, %d) with %+v", from, to, w)
			}
			lost := to // blocks from here on are lost
			if step < len(losses) {
				lost = from + uint64(losses[step])%(to-from+1)
			}
			if lost > from {
				if from > have+1 || from == 1 && !started {
					t.Fatalf("block %d sent to a client that has %d", from, have)
				}
				started = true
				have = max(have, lost-1)
			}
			if !started {
				continue
			}
			if w.ack(uint16(have)) == finished {
				if have != w.last {
					t.Fatalf("finished at %d of %d", have, w.last)
				}
				return
			}
		}
	})
}
