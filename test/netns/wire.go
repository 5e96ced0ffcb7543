package netns

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Faults says what a Wire does to IPv4 frames, each as a chance out of 1; other frames pass
// unharmed, so that neighbours always find each other.
type Faults struct {
	Seed      uint64
	Lose      float64
	Duplicate float64
	// Delay holds a frame back until two later ones of the same direction have passed, or 5 ms.
	Delay float64
}

// Wire connects two namespaces by a bad cable: a TAP device in each and a pump between them. It needs
// no queueing discipline in the kernel, and its faults follow the seed.
func Wire(t testing.TB, a *NS, linkA string, b *NS, linkB string, faults Faults) {
	t.Helper()
	endA, endB := a.tap(linkA), b.tap(linkB)
	var pumps sync.WaitGroup
	pumps.Go(func() { pump(endA, endB, faults, 1) })
	pumps.Go(func() { pump(endB, endA, faults, 2) })
	t.Cleanup(func() {
		endA.Close()
		endB.Close()
		pumps.Wait()
	})
}

func (ns *NS) tap(name string) *os.File {
	ns.t.Helper()
	var file *os.File
	err := ns.Do(func() error {
		fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		request, err := unix.NewIfreq(name)
		if err != nil {
			return err
		}
		request.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI)
		if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, request); err != nil {
			unix.Close(fd)
			return fmt.Errorf("create %s: %w", name, err)
		}
		file = os.NewFile(uintptr(fd), name)
		return nil
	})
	if err != nil {
		ns.t.Fatalf("TAP device: %v", err)
	}
	ns.Run("ip", "link", "set", name, "up")
	return file
}

func pump(from, to *os.File, faults Faults, direction uint64) {
	type held struct {
		frame []byte
		after int
	}
	var (
		dice    = rand.New(rand.NewPCG(faults.Seed, direction))
		buffer  = make([]byte, 65536)
		waiting []held
	)
	flush := func(all bool) {
		kept := waiting[:0]
		for _, h := range waiting {
			h.after--
			if all || h.after <= 0 {
				to.Write(h.frame)
				continue
			}
			kept = append(kept, h)
		}
		waiting = kept
	}
	for {
		var deadline time.Time
		if len(waiting) > 0 {
			deadline = time.Now().Add(5 * time.Millisecond)
		}
		from.SetReadDeadline(deadline)
		n, err := from.Read(buffer)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			flush(true)
			continue
		}
		if err != nil {
			return
		}
		frame := buffer[:n]
		if n < 14 || binary.BigEndian.Uint16(frame[12:]) != unix.ETH_P_IP {
			to.Write(frame)
			continue
		}
		// All dice are thrown for every frame, so that one fault's chance does not shift another's.
		lose, double, delay := dice.Float64(), dice.Float64(), dice.Float64()
		switch {
		case lose < faults.Lose:
		case delay < faults.Delay:
			waiting = append(waiting, held{append([]byte(nil), frame...), 3})
		default:
			to.Write(frame)
			if double < faults.Duplicate {
				to.Write(frame)
			}
		}
		flush(false)
	}
}
