package tftp

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// loop moves transfers on: one thread that waits for all of their sockets. In lock-step a transfer is as fast as
// the way from a client's ACK to the next block is short, and that way goes through no scheduler but the kernel's.
type loop struct {
	poll int // epoll
	wake int // eventfd
	done chan struct{}

	mu       sync.Mutex
	arrived  []*transfer
	canceled []*transfer
	repeated []*transfer
	closed   bool

	// The rest belongs to the thread.
	transfers map[int32]*transfer
	next      time.Time // no deadline is before it
	// packets and content of the window that is being sent.
	packets, content []byte
	reply            [516]byte
}

// errFinished ends a transfer whose client has the whole file.
var errFinished = errors.New("finished")

func newLoop() (*loop, error) {
	l := &loop{done: make(chan struct{}), transfers: map[int32]*transfer{}, wake: -1,
		packets: make([]byte, 0, packetMemory), content: make([]byte, max(windowMemory, maxBlockSize))}
	var err error
	if l.poll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return nil, fmt.Errorf("epoll: %w", err)
	}
	if l.wake, err = unix.Eventfd(0, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC); err == nil {
		err = unix.EpollCtl(l.poll, unix.EPOLL_CTL_ADD, l.wake, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(l.wake)})
	}
	if err != nil {
		unix.Close(l.poll)
		unix.Close(l.wake)
		return nil, fmt.Errorf("eventfd: %w", err)
	}
	go l.run()
	return l, nil
}

// packetMemory holds the packets of the largest window.
const packetMemory = max(windowMemory, maxBlockSize) + 4*(windowMemory/minBlockSize)

func (l *loop) close() {
	l.mu.Lock()
	l.closed = true
	l.mu.Unlock()
	l.signal()
	<-l.done
	unix.Close(l.wake)
	unix.Close(l.poll)
}

func (l *loop) signal() {
	var one [8]byte
	binary.NativeEndian.PutUint64(one[:], 1)
	_, _ = unix.Write(l.wake, one[:]) // it can only be full, and then the thread is about to wake up
}

// serve gives a transfer to the loop and waits for its end.
func (l *loop) serve(ctx context.Context, t *transfer) error {
	t.ended = make(chan error, 1)
	stop := context.AfterFunc(ctx, func() {
		l.mu.Lock()
		l.canceled = append(l.canceled, t)
		l.mu.Unlock()
		l.signal()
	})
	defer stop()
	l.mu.Lock()
	l.arrived = append(l.arrived, t)
	l.mu.Unlock()
	l.signal()
	if err := <-t.ended; !errors.Is(err, errFinished) {
		return err
	}
	return nil
}

// again has the first packet of a transfer sent once more.
func (l *loop) again(t *transfer) {
	l.mu.Lock()
	l.repeated = append(l.repeated, t)
	l.mu.Unlock()
	l.signal()
}

func (l *loop) run() {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	defer close(l.done)
	var events [128]unix.EpollEvent
	for {
		n, err := unix.EpollWait(l.poll, events[:], l.patience())
		if err != nil && !errors.Is(err, unix.EINTR) {
			n = 0
		}
		for _, event := range events[:max(n, 0)] {
			if event.Fd == int32(l.wake) {
				if l.look() {
					return
				}
				continue
			}
			if t := l.transfers[event.Fd]; t != nil {
				l.read(t)
			}
		}
		l.expire()
	}
}

// patience is how long to wait for a packet, in milliseconds; -1 for as long as it takes.
func (l *loop) patience() int {
	if len(l.transfers) == 0 {
		return -1
	}
	return int(max(0, time.Until(l.next)+time.Millisecond-1) / time.Millisecond)
}

// look sees what other goroutines want. It is true when the loop shall end.
func (l *loop) look() bool {
	var count [8]byte
	_, _ = unix.Read(l.wake, count[:])
	l.mu.Lock()
	arrived, canceled, repeated, closed := l.arrived, l.canceled, l.repeated, l.closed
	l.arrived, l.canceled, l.repeated = nil, nil, nil
	l.mu.Unlock()
	for _, t := range arrived {
		t.adopted = true
		l.transfers[int32(t.fd)] = t
		err := unix.EpollCtl(l.poll, unix.EPOLL_CTL_ADD, t.fd, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(t.fd)})
		if err == nil {
			err = t.begin()
		}
		l.settle(t, err)
	}
	for _, t := range canceled {
		if l.transfers[int32(t.fd)] == t {
			l.settle(t, context.Canceled)
		}
	}
	for _, t := range repeated {
		if t.adopted && l.transfers[int32(t.fd)] == t {
			l.settle(t, t.again())
		}
	}
	return closed && len(l.transfers) == 0
}

// settle takes note of what a step of a transfer has led to.
func (l *loop) settle(t *transfer, err error) {
	if err == nil {
		if len(l.transfers) == 1 || t.deadline.Before(l.next) {
			l.next = t.deadline
		}
		return
	}
	delete(l.transfers, int32(t.fd))
	_ = unix.EpollCtl(l.poll, unix.EPOLL_CTL_DEL, t.fd, nil)
	t.ended <- err
}

func (l *loop) read(t *transfer) {
	n, err := receive(t.fd, l.reply[:])
	switch {
	case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EINTR):
		return
	case err != nil:
		l.settle(t, t.end(err))
		return
	}
	done, err := t.receive(l.reply[:n])
	if done {
		err = errFinished
	}
	l.settle(t, err)
}

// expire looks at all transfers when the earliest deadline that was ever set has come; most have moved on since,
// so this is rare, and cheaper than to keep them in order.
func (l *loop) expire() {
	if len(l.transfers) == 0 {
		return
	}
	now := time.Now()
	if now.Before(l.next) {
		return
	}
	l.next = now.Add(mostTimeout)
	for _, t := range l.transfers {
		if !now.Before(t.deadline) {
			l.settle(t, t.expire(now))
			continue
		}
		if t.deadline.Before(l.next) {
			l.next = t.deadline
		}
	}
}

// receive is recv(2) on a socket that does not block; it costs no preparation for a call that does.
func receive(fd int, buffer []byte) (int, error) {
	n, _, errno := unix.RawSyscall6(unix.SYS_RECVFROM, uintptr(fd), uintptr(unsafe.Pointer(&buffer[0])), uintptr(len(buffer)), 0, 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}

// Limits of one send with UDP_SEGMENT: the kernel's UDP_MAX_SEGMENTS, and an IP packet's size.
const (
	gsoSegments = 64
	gsoBytes    = 65000
)

// errSingle says that packets must be sent one by one here.
var errSingle = errors.New("the path does not take several packets at once")

// sendPackets sends packets of a size, of which the last may be shorter, in one system call (UDP_SEGMENT).
func (t *transfer) sendPackets(packets []byte, size int) error {
	if len(packets) <= size {
		return t.write(packets)
	}
	var control [24]byte // unix.CmsgSpace(2), on every 64-bit architecture
	header := (*unix.Cmsghdr)(unsafe.Pointer(&control[0]))
	header.Level, header.Type = unix.SOL_UDP, unix.UDP_SEGMENT
	header.SetLen(unix.CmsgLen(2))
	binary.NativeEndian.PutUint16(control[unix.CmsgLen(0):], uint16(size))
	_, err := unix.SendmsgN(t.fd, packets, control[:unix.CmsgSpace(2)], nil, 0)
	switch {
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.EIO), errors.Is(err, unix.EMSGSIZE), errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.ENOPROTOOPT):
		// Blocks larger than the link takes unfragmented, an interface that computes no checksums, an old kernel.
		return errSingle
	case errors.Is(err, unix.EAGAIN):
		t.awaitRoom()
		_, err = unix.SendmsgN(t.fd, packets, control[:unix.CmsgSpace(2)], nil, 0)
	}
	return dropped(err)
}

// write sends one packet.
func (t *transfer) write(packet []byte) error {
	for try := 0; ; try++ {
		_, _, errno := unix.RawSyscall(unix.SYS_WRITE, uintptr(t.fd), uintptr(unsafe.Pointer(&packet[0])), uintptr(len(packet)))
		switch {
		case errno == 0:
			return nil
		case errno == unix.EAGAIN && try == 0:
			t.awaitRoom()
		default:
			return dropped(errno)
		}
	}
}

// dropped makes an ordinary loss of what the kernel had no room for: it will be sent again.
func dropped(err error) error {
	if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.ENOBUFS) {
		return nil
	}
	return err
}

// awaitRoom waits a little for the socket to take more. A window is smaller than its buffer, so this is rare.
func (t *transfer) awaitRoom() {
	_, _ = unix.Poll([]unix.PollFd{{Fd: int32(t.fd), Events: unix.POLLOUT}}, 20)
}

// loops are as many as can run at once, up to a few.
type loops struct {
	all  []*loop
	turn atomic.Uint32
}

func newLoops() (*loops, error) {
	s := &loops{}
	for range min(runtime.GOMAXPROCS(0), 4) {
		l, err := newLoop()
		if err != nil {
			s.close()
			return nil, err
		}
		s.all = append(s.all, l)
	}
	return s, nil
}

func (s *loops) next() *loop { return s.all[int(s.turn.Add(1))%len(s.all)] }

func (s *loops) close() {
	for _, l := range s.all {
		l.close()
	}
}
