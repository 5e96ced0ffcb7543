package tftp

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"sync/atomic"
	"time"

	"golang.org/x/net/ipv4"
	"golang.org/x/sys/unix"
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

// quiet is how long a client that is reading normally may take between two acknowledgements. A machine
// that was reset takes longer to ask again.
const quiet = 2 * time.Second

// transfer serves one read request on its own socket.
type transfer struct {
	server  *Server
	conn    *net.UDPConn // connected to the client
	request request
	raw     string // the request as received, to tell a repeated one from a new one
	cancel  context.CancelCauseFunc
	// heard is when the client last acknowledged something new, in Unix nanoseconds; 0 before that.
	heard atomic.Int64

	file    File
	params  parameters
	window  window
	buffer  []byte
	packets []ipv4.Message
	batch   *ipv4.PacketConn
	rtt     estimator
	report  Transfer
}

// run serves the request to its end and fills the report.
func (t *transfer) run(ctx context.Context) {
	stop := context.AfterFunc(ctx, func() { t.conn.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	err := t.open(ctx)
	if err == nil {
		defer t.file.Close()
		err = t.send(ctx)
	}
	if err != nil && ctx.Err() != nil {
		err = context.Cause(ctx)
		if !errors.Is(err, errSuperseded) {
			t.conn.Write(encodeError(codeUndefined, "server is stopping, try again"))
		}
	}
	t.report.Err = err
}

// open checks the request, opens the file and agrees on options. What is wrong is told to the client.
func (t *transfer) open(ctx context.Context) error {
	refuse := func(code ErrorCode, text string, err error) error {
		t.conn.Write(encodeError(code, text))
		return err
	}
	if t.request.mode != "octet" {
		err := fmt.Errorf("transfer mode %q is not supported, only octet (binary)", printable(t.request.mode))
		return refuse(codeIllegal, err.Error(), err)
	}
	name, ok := Clean(t.request.name)
	if !ok {
		err := fmt.Errorf("file name %q: %w", printable(t.request.name), fs.ErrNotExist)
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

// send moves the file, window by window.
func (t *transfer) send(ctx context.Context) error {
	var (
		highest  uint64 // one more than the highest block ever sent
		progress = time.Now()
		attempt  int // sends of the present window
		reply    [516]byte
	)
	for {
		from, to := t.window.next()
		if err := t.sendBlocks(from, to); err != nil {
			return t.ended(err)
		}
		t.report.Retransmits += int(min(to, highest) - min(from, highest))
		fresh := from >= highest
		highest = max(highest, to)
		sentAt := time.Now()
		timeout := t.rtt.timeout(t.params.timeout, attempt)
		deadline := sentAt.Add(timeout)
		t.conn.SetReadDeadline(deadline)
		hurried := false
		hurry := func(now time.Time) {
			hurried = true
			if soon := now.Add(t.rtt.patience()); soon.Before(deadline) {
				t.conn.SetReadDeadline(soon)
			}
		}

	wait:
		for {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			n, err := t.conn.Read(reply[:])
			if errors.Is(err, os.ErrDeadlineExceeded) {
				if ctx.Err() != nil {
					return ctx.Err()
				}
				if idle := time.Since(progress); idle >= t.giveUp() {
					return fmt.Errorf("client did not acknowledge block %d for %s; it is gone or the network loses packets",
						t.window.base, idle.Round(time.Second))
				}
				if !hurried {
					attempt++
				}
				break wait
			}
			if err != nil {
				return t.ended(err)
			}
			said, err := parseReply(reply[:n])
			if err != nil {
				continue // RFC 1350 has no use for it and the client may still be well
			}
			if said.op == opError {
				return fmt.Errorf("%w: code %d %s", ErrAborted, said.code, said.text)
			}
			switch t.window.ack(said.block) {
			case finished:
				t.report.Bytes = t.report.Size
				return nil
			case advanced:
				now := time.Now()
				if attempt == 0 && fresh && !hurried {
					t.rtt.observe(now.Sub(sentAt))
				}
				t.heard.Store(now.UnixNano())
				t.report.Bytes = int64(max(t.window.base, 1)-1) * int64(t.params.blockSize)
				progress, attempt = now, 0
				if fresh || t.window.base == t.window.sent {
					break wait // the next window, or RFC 7440's restart behind a gap
				}
				// A gap in what was sent again: most likely an echo of packets still under way, and
				// to restart on each would multiply them. See whether the rest arrives.
				hurry(now)
			case repeated:
				// Perhaps the window's first block is lost, perhaps the network doubled an ACK.
				// Wait a little for the ACK that would prove the second before sending again.
				if t.params.windowSize > 1 && !hurried {
					hurry(time.Now())
				}
			}
		}
	}
}

// isRepeated tells whether a request that came while this transfer runs is only this one's once more: sent
// again before our answer arrived, or late on the network. The same request from a client that has
// gone quiet means that it has started over.
func (t *transfer) isRepeated(raw string, now time.Time) bool {
	heard := t.heard.Load()
	return raw == t.raw && (heard == 0 || now.Sub(time.Unix(0, heard)) < quiet)
}

// ended interprets an error of the socket. A client that has closed its port after the last block was
// sent has the file: only its last ACK was lost.
func (t *transfer) ended(err error) error {
	if errors.Is(err, unix.ECONNREFUSED) {
		if t.window.base > 0 && t.window.sent == t.window.last+1 && t.heard.Load() != 0 {
			t.report.Bytes = t.report.Size
			return nil
		}
		return errors.New("client closed its port in the middle of the transfer")
	}
	return err
}

func (t *transfer) giveUp() time.Duration {
	return max(t.server.options.GiveUp, 4*t.params.timeout)
}

// sendBlocks sends the blocks [from, to); block 0 is the OACK.
func (t *transfer) sendBlocks(from, to uint64) error {
	if from == 0 {
		_, err := t.conn.Write(encodeOack(t.params.accepted))
		return err
	}
	if t.buffer == nil {
		t.buffer = make([]byte, t.params.windowSize*(4+t.params.blockSize))
		if t.params.windowSize > 1 {
			t.batch = ipv4.NewPacketConn(t.conn)
			t.packets = make([]ipv4.Message, t.params.windowSize)
			for i := range t.packets {
				t.packets[i].Buffers = make([][]byte, 1)
			}
		}
	}
	if to == from+1 {
		packet, err := t.block(t.buffer, from)
		if err != nil {
			return err
		}
		_, err = t.conn.Write(packet)
		return err
	}
	count := int(to - from)
	for i := range count {
		packet, err := t.block(t.buffer[i*(4+t.params.blockSize):], from+uint64(i))
		if err != nil {
			return err
		}
		t.packets[i].Buffers[0] = packet
	}
	for done := 0; done < count; {
		n, err := t.batch.WriteBatch(t.packets[done:count], 0)
		if err != nil {
			return err
		}
		done += n
	}
	return nil
}

// block builds the DATA packet of a block in the given space.
func (t *transfer) block(space []byte, number uint64) ([]byte, error) {
	offset := int64(number-1) * int64(t.params.blockSize)
	length := int(min(t.report.Size-offset, int64(t.params.blockSize)))
	binary.BigEndian.PutUint16(space, opData)
	binary.BigEndian.PutUint16(space[2:], uint16(number))
	if n, err := t.file.ReadAt(space[4:4+length], offset); n < length {
		if err == nil || errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		err = fmt.Errorf("read %s at byte %d of %d: %w", printable(t.request.name), offset, t.report.Size, err)
		t.conn.Write(encodeError(codeUndefined, "server cannot read the file"))
		return nil, err
	}
	return space[:4+length], nil
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
