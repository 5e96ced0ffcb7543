package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// tftpGet loads a file with as little work of its own as can be: one thread that blocks in its system calls.
// It gives the bytes received. What is lost is asked for again after the timeout.
func tftpGet(server netip.Addr, port uint16, name string, blockSize, window int, timeout time.Duration) (int64, error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 4<<20)
	wait := unix.NsecToTimeval(timeout.Nanoseconds())
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &wait); err != nil {
		return 0, err
	}
	to := &unix.SockaddrInet4{Port: int(port), Addr: server.As4()}
	request := []byte{0, 1}
	for _, word := range []string{name, "octet", "blksize", strconv.Itoa(blockSize)} {
		request = append(append(request, word...), 0)
	}
	if window > 1 {
		request = append(append(append(append(request, "windowsize"...), 0), strconv.Itoa(window)...), 0)
	}
	last := request
	var (
		buffer    = make([]byte, 65536)
		ack       = []byte{0, 4, 0, 0}
		connected bool
		received  int64
		block     uint16
		inWindow  int
		tries     int
		size      = 512
		wide      = 1
	)
	send := func() error {
		if connected {
			_, err := unix.Write(fd, last)
			return err
		}
		return unix.Sendto(fd, last, 0, to)
	}
	if err := send(); err != nil {
		return 0, err
	}
	for {
		n, from, err := unix.Recvfrom(fd, buffer, 0)
		if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) {
			if tries++; tries == 6 {
				return received, fmt.Errorf("no answer at byte %d", received)
			}
			if err := send(); err != nil {
				return received, err
			}
			continue
		}
		if err != nil {
			return received, err
		}
		if !connected {
			if err := unix.Connect(fd, from); err != nil {
				return received, err
			}
			connected = true
		}
		if n < 4 {
			continue
		}
		switch buffer[1] {
		case 5:
			return received, fmt.Errorf("server says: %s", buffer[4:n])
		case 6:
			for i, fields := 0, splitZero(buffer[2:n]); i+1 < len(fields); i += 2 {
				v, _ := strconv.Atoi(fields[i+1])
				switch fields[i] {
				case "blksize":
					size = v
				case "windowsize":
					wide = v
				}
			}
			last = ack
			if err := send(); err != nil {
				return received, err
			}
		case 3:
			tries = 0
			number := binary.BigEndian.Uint16(buffer[2:])
			last = ack
			if number != block+1 {
				binary.BigEndian.PutUint16(ack[2:], block)
				inWindow = 0
				if number == block {
					if err := send(); err != nil {
						return received, err
					}
				}
				continue
			}
			block++
			inWindow++
			received += int64(n - 4)
			done := n-4 < size
			if done || inWindow >= wide {
				inWindow = 0
				binary.BigEndian.PutUint16(ack[2:], block)
				if err := send(); err != nil {
					return received, err
				}
			}
			if done {
				return received, nil
			}
		}
	}
}

func splitZero(b []byte) (out []string) {
	start := 0
	for i, c := range b {
		if c == 0 {
			out = append(out, string(b[start:i]))
			start = i + 1
		}
	}
	return out
}

// tftpLoad runs transfers one after the other in a number of threads, and gives bytes a second and failures.
func tftpLoad(server netip.Addr, port uint16, name string, blockSize, window, parallel, each int) (rate float64, failed int, slowest time.Duration) {
	var mu sync.Mutex
	var total int64
	var times []time.Duration
	var all sync.WaitGroup
	began := time.Now()
	for range parallel {
		all.Go(func() {
			for range each {
				start := time.Now()
				n, err := tftpGet(server, port, name, blockSize, window, 4*time.Second)
				mu.Lock()
				total += n
				times = append(times, time.Since(start))
				if err != nil {
					failed++
				}
				mu.Unlock()
			}
		})
	}
	all.Wait()
	return float64(total) / time.Since(began).Seconds(), failed, slices.Max(times)
}
