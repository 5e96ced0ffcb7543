package tftp

import (
	"container/list"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/netip"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"coldrack.dev/internal/base/termtext"
	"coldrack.dev/internal/netboot/filename"
)

// Transfer tells how one request ended.
type Transfer struct {
	Remote     netip.AddrPort
	Local      netip.AddrPort
	Name       string // as the client asked for it, fit for a log
	Size       int64  // of the file, bytes
	Bytes      int64  // acknowledged by the client
	BlockSize  int    // bytes
	WindowSize int    // blocks
	Duration   time.Duration
	// Retransmits counts blocks that were sent again.
	Retransmits int
	// Err is nil when the client has the whole file. It is ErrAborted when the client said it did
	// not want more; firmware does that after asking only for the size.
	Err error
}

// ErrAborted says that the client ended a transfer by an ERROR packet.
var ErrAborted = errors.New("client aborted the transfer")

// Timing of retransmissions.
const (
	firstTimeout = time.Second
	leastTimeout = 200 * time.Millisecond
	mostTimeout  = 4 * time.Second
)

// Limits of a client's silence.
const (
	// firstAck is how long a client has to acknowledge the first packet. Until then nothing is sent again but for a
	// repeated request: the request's sender may be forged, and its victim would get many times what the liar sent.
	// Firmware repeats its request every four seconds.
	firstAck = 9 * time.Second
	// mostGiveUp bounds what a client gets by negotiating a long timeout.
	mostGiveUp = time.Minute
)

// quiet is how long a client that is reading normally may take between two acknowledgements. A machine
// that was reset takes longer to ask again.
const quiet = 2 * time.Second

// transfer serves one read request on its own socket. It is opened in a goroutine of its own; then a loop's thread
// owns it until it has ended.
type transfer struct {
	server  *Server
	conn    *net.UDPConn // connected to the client, until detach
	request request
	raw     string // the request as received, to tell a repeated one from a new one
	cancel  context.CancelCauseFunc
	began   time.Time
	place   *list.Element // among the server's unanswered; needs its mu
	// heard is when the client last acknowledged something new, in Unix nanoseconds; 0 before that.
	heard atomic.Int64

	fd   int // non-blocking; -1 when there is none
	loop *loop
	// adopted says that the loop's thread has the transfer, or had it. It is that thread's.
	adopted bool
	ended   chan error // by the loop, once
	file    File
	params  parameters
	window  window
	rtt     estimator
	report  Transfer

	highest  uint64 // one more than the highest block ever sent
	progress time.Time
	sentAt   time.Time // of the present window
	deadline time.Time // when it is sent again
	attempt  int       // sends of the present window
	fresh    bool      // it was not sent before
	hurried  bool      // the deadline was moved forward

	ahead   []byte // of the file, in lock-step
	aheadAt int64
	// single says that this path does not take several blocks in one system call.
	single bool
}

// run serves the request to its end and fills the report.
func (t *transfer) run(ctx context.Context) {
	err := t.detach()
	if err == nil {
		err = t.open(ctx)
	}
	if err == nil {
		defer t.file.Close()
		err = t.loop.serve(ctx, t)
	}
	if err != nil && ctx.Err() != nil {
		err = context.Cause(ctx)
		// Whoever has acknowledged nothing may have asked for nothing.
		if !errors.Is(err, errSuperseded) && !errors.Is(err, errUnanswered) && t.heard.Load() != 0 {
			t.write(encodeError(codeUndefined, "server is stopping, try again"))
		}
	}
	t.report.Err = err
}

// detach takes the socket out of Go's network poller, which would wake up for every packet beside the loop.
func (t *transfer) detach() error {
	t.fd = -1
	defer t.conn.Close()
	raw, err := t.conn.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = raw.Control(func(fd uintptr) { t.fd, failed = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0) })
	return errors.Join(err, failed)
}

func (t *transfer) close() {
	if t.fd >= 0 {
		unix.Close(t.fd)
	}
}

// optional says whether the client goes on without the file.
func (t *transfer) optional() bool {
	name, ok := filename.Clean(t.request.name)
	return ok && filename.Optional(name)
}

// open checks the request, opens the file and agrees on options. What is wrong is told to the client.
func (t *transfer) open(ctx context.Context) error {
	refuse := func(code ErrorCode, text string, err error) error {
		t.write(encodeError(code, text))
		return err
	}
	if t.request.mode != "octet" {
		err := fmt.Errorf("transfer mode %q is not supported, only octet (binary)", termtext.Mark(t.request.mode, 0))
		return refuse(codeIllegal, err.Error(), err)
	}
	name, ok := filename.Clean(t.request.name)
	if !ok {
		err := fmt.Errorf("file name %q: %w", termtext.Mark(t.request.name, 0), fs.ErrNotExist)
		return refuse(codeNotFound, "this cannot be a file's name", err)
	}
	file, err := t.server.options.FS.Open(ctx, name, t.report.Remote)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return refuse(codeNotFound, "file not found: "+name, err)
	case errors.Is(err, fs.ErrPermission):
		return refuse(codeAccess, "access denied: "+name, err)
	case err != nil:
		return refuse(codeUndefined, "server cannot open "+name, err)
	}
	info, err := file.Stat()
	if err != nil {
		file.Close()
		return refuse(codeUndefined, "server cannot read "+name, err)
	}
	t.file = file
	t.params = negotiate(t.request.options, info.Size(), t.server.limits())
	t.report.Size = info.Size()
	t.report.BlockSize = t.params.blockSize
	t.report.WindowSize = t.params.windowSize
	// A file whose size is a multiple of the block size ends with an empty block.
	t.window = window{size: t.params.windowSize, last: uint64(info.Size())/uint64(t.params.blockSize) + 1}
	if len(t.params.accepted) == 0 {
		t.window.base = 1
	}
	return nil
}

// begin sends what comes first.
func (t *transfer) begin() error {
	t.progress = time.Now()
	return t.sendWindow()
}

// sendWindow sends what the window says is due, new or again.
func (t *transfer) sendWindow() error {
	from, to := t.window.next()
	if err := t.sendBlocks(from, to); err != nil {
		return t.end(err)
	}
	t.report.Retransmits += int(min(to, t.highest) - min(from, t.highest))
	t.fresh = from >= t.highest
	t.highest = max(t.highest, to)
	t.sentAt, t.hurried = time.Now(), false
	t.deadline = t.sentAt.Add(t.rtt.timeout(t.params.timeout, t.attempt))
	return nil
}

// hurry brings the deadline forward, to when an ACK on its way would have come.
func (t *transfer) hurry(now time.Time) {
	t.hurried = true
	if soon := now.Add(t.rtt.patience()); soon.Before(t.deadline) {
		t.deadline = soon
	}
}

// expire is called when the deadline has passed.
func (t *transfer) expire(now time.Time) error {
	if idle := now.Sub(t.progress); idle >= t.giveUp() {
		return fmt.Errorf("client did not acknowledge block %d for %s; it is gone or the network loses packets",
			t.window.base, idle.Round(time.Second))
	}
	if t.heard.Load() == 0 {
		t.deadline = t.progress.Add(t.giveUp())
		return nil
	}
	if !t.hurried {
		t.attempt++
	}
	return t.sendWindow()
}

// receive takes a packet of the client. done is true when the client has the whole file.
func (t *transfer) receive(packet []byte) (done bool, err error) {
	said, err := parseReply(packet)
	if err != nil {
		return false, nil // RFC 1350 has no use for it and the client may still be well
	}
	if said.op == opError {
		return false, fmt.Errorf("%w: code %d %s", ErrAborted, said.code, said.text)
	}
	switch t.window.ack(said.block) {
	case finished:
		t.report.Bytes = t.report.Size
		return true, nil
	case advanced:
		now := time.Now()
		if t.attempt == 0 && t.fresh && !t.hurried {
			t.rtt.observe(now.Sub(t.sentAt))
		}
		if t.heard.Swap(now.UnixNano()) == 0 {
			t.server.mu.Lock()
			t.server.answered(t)
			t.server.mu.Unlock()
		}
		t.report.Bytes = int64(max(t.window.base, 1)-1) * int64(t.params.blockSize)
		t.progress, t.attempt = now, 0
		if t.fresh || t.window.base == t.window.sent {
			return false, t.sendWindow() // the next window, or RFC 7440's restart behind a gap
		}
		// A gap in what was sent again: most likely an echo of packets still under way, and to restart
		// on each would multiply them. See whether the rest arrives.
		t.hurry(now)
	case repeated:
		// Perhaps the window's first block is lost, perhaps the network doubled an ACK. Wait a little
		// for the ACK that would prove the second before sending again.
		if t.params.windowSize > 1 && !t.hurried {
			t.hurry(time.Now())
		}
	}
	return false, nil
}

// isRepeated tells whether a request that came while this transfer runs is only this one's once more: sent
// again before our answer arrived, or late on the network. The same request from a client that has
// gone quiet means that it has started over.
func (t *transfer) isRepeated(raw string, now time.Time) bool {
	heard := t.heard.Load()
	return raw == t.raw && (heard == 0 || now.Sub(time.Unix(0, heard)) < quiet)
}

// end interprets an error of the socket. A client that has closed its port after the last block was
// sent has the file: only its last ACK was lost.
func (t *transfer) end(err error) error {
	if errors.Is(err, unix.ECONNREFUSED) {
		if t.window.base > 0 && t.window.sent == t.window.last+1 && t.heard.Load() != 0 {
			t.report.Bytes = t.report.Size
			return errFinished
		}
		return errors.New("client closed its port in the middle of the transfer")
	}
	return err
}

func (t *transfer) giveUp() time.Duration {
	limit := max(t.server.options.GiveUp, min(4*t.params.timeout, mostGiveUp))
	if t.heard.Load() == 0 {
		return min(limit, firstAck)
	}
	return limit
}

// again answers a request that has come once more before anything was acknowledged.
func (t *transfer) again() error {
	if t.heard.Load() != 0 {
		return nil
	}
	t.progress = time.Now()
	return t.sendWindow()
}

// sendBlocks sends the blocks [from, to); block 0 is the OACK.
func (t *transfer) sendBlocks(from, to uint64) error {
	if from == 0 {
		return t.write(encodeOack(t.params.accepted))
	}
	size := 4 + t.params.blockSize
	packets := t.loop.packets[:0]
	offset := int64(from-1) * int64(t.params.blockSize)
	content, err := t.content(offset, int(min(t.report.Size-offset, int64(to-from)*int64(t.params.blockSize))))
	if err != nil {
		return err
	}
	for number := from; number < to; number++ {
		n := min(len(content), t.params.blockSize)
		packets = binary.BigEndian.AppendUint16(packets, opData)
		packets = binary.BigEndian.AppendUint16(packets, uint16(number))
		packets = append(packets, content[:n]...)
		content = content[n:]
	}
	most := min(gsoSegments, gsoBytes/size) * size
	for len(packets) > 0 {
		n := size
		if !t.single && most > size {
			n = most
		}
		n = min(n, len(packets))
		err := t.sendPackets(packets[:n], size)
		if errors.Is(err, errSingle) {
			t.single = true
			continue
		}
		if err != nil {
			return err
		}
		packets = packets[n:]
	}
	return nil
}

// lookAhead is how much is read at once in lock-step, bytes: a thousand transfers hold as much.
const lookAhead = 8 << 10

// content gives n bytes of the file, good until the next call on the same loop.
func (t *transfer) content(offset int64, n int) ([]byte, error) {
	buffer := t.loop.content[:n]
	if t.params.windowSize == 1 && t.params.blockSize <= lookAhead/2 {
		if at := offset - t.aheadAt; at >= 0 && at+int64(n) <= int64(len(t.ahead)) {
			return t.ahead[at : at+int64(n)], nil
		}
		if t.ahead == nil {
			t.ahead = make([]byte, 0, lookAhead)
		}
		t.ahead = t.ahead[:min(t.report.Size-offset, lookAhead)]
		t.aheadAt, buffer = offset, t.ahead
	}
	if got, err := t.file.ReadAt(buffer, offset); got < len(buffer) {
		t.ahead = t.ahead[:0]
		if got >= n {
			return buffer[:n], nil // what is missing will be missed when its turn comes
		}
		if err == nil || errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		err = fmt.Errorf("read %s at byte %d of %d: %w", termtext.Mark(t.request.name, 0), offset+int64(got), t.report.Size, err)
		t.write(encodeError(codeUndefined, "server cannot read the file"))
		return nil, err
	}
	return buffer[:n], nil
}

// estimator smooths round-trip times, RFC 6298, to choose retransmission timeouts.
type estimator struct {
	smooth, variation time.Duration
}

func (e *estimator) observe(sample time.Duration) {
	if e.smooth == 0 {
		e.smooth, e.variation = sample, sample/2
		return
	}
	e.variation += ((e.smooth - sample).Abs() - e.variation) / 4
	e.smooth += (sample - e.smooth) / 8
}

// timeout gives the time to wait for an ACK: what the line shows, doubled for every attempt that
// failed. A negotiated timeout (RFC 2349) bounds it. Waiting out the five seconds that common
// clients propose would make a single lost packet cost more than the whole file.
func (e *estimator) timeout(negotiated time.Duration, attempt int) time.Duration {
	timeout := firstTimeout
	if e.smooth > 0 {
		timeout = max(leastTimeout, e.smooth+4*e.variation)
	}
	timeout = min(timeout<<min(attempt, 8), mostTimeout)
	if negotiated > 0 {
		timeout = min(timeout, negotiated)
	}
	return timeout
}

// patience gives the time in which an ACK on its way would surely have come.
func (e *estimator) patience() time.Duration {
	return max(10*time.Millisecond, 2*e.smooth+4*e.variation)
}
