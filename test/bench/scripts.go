package main

import (
	"bufio"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"slices"
	"sync"
	"time"
)

// scriptConnections ask in turn, so that one slow answer does not hold up the next question.
const scriptConnections = 64

// scriptLoad asks for boot scripts at a rate, whatever the server does: a question that could not be sent in time counts
// from when it was due. It gives the rate of answers and how long they took.
func scriptLoad(address string, rate, seconds int) (answered float64, p99, slowest time.Duration, err error) {
	n := rate * seconds
	took := make([]time.Duration, n)
	failures := make([]error, scriptConnections)
	began := time.Now().Add(50 * time.Millisecond)
	var all sync.WaitGroup
	for c := range scriptConnections {
		all.Go(func() { failures[c] = scriptClient(address, began, rate, c, took) })
	}
	all.Wait()
	last := time.Since(began)
	for _, err := range failures {
		if err != nil {
			return 0, 0, 0, err
		}
	}
	slices.Sort(took)
	return float64(n) / last.Seconds(), took[n*99/100], took[n-1], nil
}

// scriptClient asks every question whose number modulo the number of clients is its own.
func scriptClient(address string, began time.Time, rate, own int, took []time.Duration) error {
	conn, err := net.Dial("tcp4", address)
	if err != nil {
		return err
	}
	defer conn.Close()
	in := bufio.NewReader(conn)
	for i := own; i < len(took); i += scriptConnections {
		due := began.Add(time.Duration(i) * time.Second / time.Duration(rate))
		time.Sleep(time.Until(due))
		m := rand.N(inventory)
		if _, err := fmt.Fprintf(conn, "GET /boot/ipxe?mac=02-00-00-00-%02x-%02x&serial=BENCH%05d&arch=x86_64&platform=efi HTTP/1.1\r\nHost: bench\r\n\r\n", m>>8, m&255, m); err != nil {
			return err
		}
		resp, err := http.ReadResponse(in, nil)
		if err != nil {
			return err
		}
		if resp.StatusCode != http.StatusOK || resp.ContentLength < 0 {
			return fmt.Errorf("answer %s with length %d", resp.Status, resp.ContentLength)
		}
		if _, err := in.Discard(int(resp.ContentLength)); err != nil {
			return err
		}
		took[i] = time.Since(due)
	}
	return nil
}
