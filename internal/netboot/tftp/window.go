package tftp

// window is the sender's state of RFC 7440; with size 1 it is RFC 1350's lock-step. It is pure: the
// transfer around it sends, waits and measures.
//
// Blocks are counted from the file's start without wrapping. The wire has the low 16 bits, so a file
// may have any number of blocks and wraps from 65535 to 0. Block 0 is the OACK, if there is one.
type window struct {
	size int
	last uint64 // number of the last, short block
	base uint64 // first block that is not acknowledged
	sent uint64 // one more than the highest block sent since base was last moved
}

type verdict int

const (
	// stale: the ACK belongs to an earlier window. Answering it would double every packet from here
	// on (the Sorcerer's Apprentice, RFC 1123 section 4.2.3.1).
	stale verdict = iota
	// repeated: the ACK says once more what is known. In a window it may mean that its first block
	// was lost, or that the network doubled the last ACK.
	repeated
	// advanced: base has moved; the next window is due.
	advanced
	// finished: the last block has arrived.
	finished
)

// next gives the half-open range of blocks to send now.
func (w *window) next() (from, to uint64) {
	to = min(w.base+uint64(w.size), w.last+1)
	if w.base == 0 {
		to = 1 // The OACK goes alone: what follows depends on its being accepted.
	}
	w.sent = to
	return w.base, to
}

// ack takes a block number from the wire.
func (w *window) ack(number uint16) verdict {
	distance := uint64(number - uint16(w.base)) // modulo 65536
	if distance < w.sent-w.base {
		w.base += distance + 1
		if w.base > w.last {
			return finished
		}
		return advanced
	}
	if w.base > 0 && number == uint16(w.base-1) {
		return repeated
	}
	return stale
}
