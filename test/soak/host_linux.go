package soak

import (
	"os"
	"strconv"
	"strings"
	"sync"
	"time"
)

// host tells when this host's processors were busy with something else than the soak: firmware gives up on a server that gets none, and
// that says nothing of the server.
type host struct {
	mu      sync.Mutex
	last    sample
	starved []span // since the soak began, oldest first
}

// sample of the processors' time, all of them together.
type sample struct {
	at         time.Duration
	busy, ours time.Duration
}

// foreign is the share of the processors' time that others had, from which on the soak counts as starved.
const foreignShare = 0.4

// observe takes one more sample in.
func (h *host) observe(now sample, processors int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	before := h.last
	h.last = now
	wall := now.at - before.at
	if before.busy == 0 || wall <= 0 || now.ours < before.ours {
		return // the first one, or a process of ours has ended meanwhile
	}
	others := (now.busy - before.busy) - (now.ours - before.ours)
	if float64(others) < foreignShare*float64(wall)*float64(processors) {
		return
	}
	if n := len(h.starved); n > 0 && h.starved[n-1].to == before.at {
		h.starved[n-1].to = now.at
		return
	}
	h.starved = append(h.starved, span{before.at, now.at})
}

// starvedFor is for how long of a span others had the processors.
func (h *host) starvedFor(from, to time.Duration) (sum time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, s := range h.starved {
		sum += max(0, min(s.to, to)-max(s.from, from))
	}
	return sum
}

// busyTime is what all processors have worked since the host was started: proc_stat(5), in ticks of 10 ms.
func busyTime() time.Duration {
	text, _ := os.ReadFile("/proc/stat")
	first, _, _ := strings.Cut(string(text), "\n")
	fields := strings.Fields(first)
	if len(fields) < 9 || fields[0] != "cpu" {
		return 0
	}
	sum := int64(0)
	for i, field := range fields[1:9] {
		if i == 3 || i == 4 { // idle, and waiting for disks
			continue
		}
		ticks, _ := strconv.ParseInt(field, 10, 64)
		sum += ticks
	}
	return time.Duration(sum) * 10 * time.Millisecond
}
