package swarm

import (
	"context"
	"crypto/sha1"
	"encoding/binary"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"time"

	innetns "coldrack.dev/internal/base/netns"
	"coldrack.dev/test/netns"
)

// inside prepares a program to run in a namespace; it ends with ctx, and with the test.
func inside(ctx context.Context, ns *netns.NS, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "nsenter", append([]string{"--net=" + ns.Path(), "--"}, args...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	cmd.WaitDelay = 5 * time.Second
	return cmd
}

// outcomeOf puts together how long each machine took.
func (s *site) outcomeOf(before int64) outcome {
	out := outcome{images: float64(s.sent()-before) / float64(s.index.BlobSize), survivors: len(s.machines)}
	for _, m := range s.machines {
		out.last = max(out.last, m.ended)
		if out.first == 0 || m.ended < out.first {
			out.first = m.ended
		}
	}
	return out
}

// udpcast sends the image once, by multicast, to all machines (udp-sender and udp-receiver). It does not find out how fast
// the links are by itself: rate is what it is told, Mbit/s.
func (s *site) udpcast(rate float64) (outcome, error) {
	file := filepath.Join(s.t.TempDir(), "image")
	if err := os.WriteFile(file, s.blob, 0o644); err != nil {
		return outcome{}, err
	}
	ctx, stop := context.WithTimeout(s.t.Context(), 10*time.Minute)
	defer stop()
	var receivers []*exec.Cmd
	for _, m := range s.machines {
		cmd := inside(ctx, m.ns, "udp-receiver", "--nokbd", "--interface", "eth0", "--file", "/dev/null", "--start-timeout", "120")
		if err := cmd.Start(); err != nil {
			return outcome{}, err
		}
		receivers = append(receivers, cmd)
	}
	time.Sleep(2 * time.Second) // they listen
	before, began := s.sent(), time.Now()
	var all sync.WaitGroup
	failures := make([]error, len(receivers))
	for i, cmd := range receivers {
		all.Go(func() {
			failures[i] = cmd.Wait()
			s.machines[i].ended = time.Since(began)
		})
	}
	sender := inside(ctx, s.origin, "udp-sender", "--nokbd", "--interface", "eth0", "--file", file, "--full-duplex",
		"--min-receivers", strconv.Itoa(len(receivers)), "--max-wait", "60", "--max-bitrate", fmt.Sprintf("%.0fk", rate*1000))
	text, err := sender.CombinedOutput()
	if err != nil {
		err = fmt.Errorf("udp-sender: %w: %.500s", err, text)
	}
	all.Wait()
	return s.outcomeOf(before), errors.Join(append(failures, err)...)
}

// swarmTracker is as much of a BitTorrent tracker (BEP 3, compact as BEP 23) as aria2 needs.
type swarmTracker struct {
	mu    sync.Mutex
	peers map[netip.AddrPort]bool
}

func (t *swarmTracker) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	from, err := netip.ParseAddrPort(r.RemoteAddr)
	port, err2 := strconv.Atoi(r.FormValue("port"))
	if err != nil || err2 != nil {
		http.Error(w, "who are you?", http.StatusBadRequest)
		return
	}
	own := netip.AddrPortFrom(from.Addr().Unmap(), uint16(port))
	t.mu.Lock()
	defer t.mu.Unlock()
	t.peers[own] = true
	var compact []byte
	for p := range t.peers {
		if p != own {
			compact = binary.BigEndian.AppendUint16(append(compact, p.Addr().AsSlice()...), p.Port())
		}
	}
	fmt.Fprintf(w, "d8:intervali2e12:min intervali1e5:peers%d:%se", len(compact), compact)
}

// torrent describes the image for BitTorrent, in pieces of 256 KiB.
func (s *site) torrent(announce string) []byte {
	const piece = 256 << 10
	var sums []byte
	for at := 0; at < len(s.blob); at += piece {
		sum := sha1.Sum(s.blob[at:min(at+piece, len(s.blob))])
		sums = append(sums, sum[:]...)
	}
	return fmt.Appendf(nil, "d8:announce%d:%s4:infod6:lengthi%de4:name5:image12:piece lengthi%de6:pieces%d:%see", len(announce), announce, len(s.blob), piece, len(sums), sums)
}

// aria2 spreads the image by BitTorrent; every machine goes on seeding until the last one is done.
func (s *site) aria2() (outcome, error) {
	dir := s.t.TempDir()
	ctx, stop := context.WithTimeout(s.t.Context(), 10*time.Minute)
	defer stop()
	l, err := innetns.Listen(ctx, s.origin.Path(), "tcp", "10.99.0.1:6969")
	if err != nil {
		return outcome{}, err
	}
	tracker := &http.Server{Handler: &swarmTracker{peers: map[netip.AddrPort]bool{}}}
	go func() { _ = tracker.Serve(l) }()
	defer tracker.Close()
	torrent, hook, seed := filepath.Join(dir, "image.torrent"), filepath.Join(dir, "done.sh"), filepath.Join(dir, "seed")
	if err := errors.Join(
		os.WriteFile(torrent, s.torrent("http://10.99.0.1:6969/announce"), 0o644),
		os.WriteFile(hook, []byte("#!/bin/sh\n: >\"$(dirname \"$3\")/done\"\n"), 0o755),
		os.Mkdir(seed, 0o755), os.WriteFile(filepath.Join(seed, "image"), s.blob, 0o644),
	); err != nil {
		return outcome{}, err
	}
	start := func(ns *netns.NS, address, folder string, more ...string) error {
		cmd := inside(ctx, ns, append([]string{"aria2c", "--no-conf", "--quiet", "--dir", folder, "--enable-dht=false", "--enable-dht6=false", "--bt-enable-lpd=false",
			"--listen-port=6881", "--interface", address, "--seed-ratio=0.0", "--file-allocation=none", "--bt-tracker-interval=1", "--bt-max-peers=0",
			"--summary-interval=0", "--on-bt-download-complete", hook, "--allow-overwrite=true", "--disk-cache=8M"}, append(more, torrent)...)...)
		if err := cmd.Start(); err != nil {
			return err
		}
		s.t.Cleanup(func() { stop(); _ = cmd.Wait() })
		return nil
	}
	if err := start(s.origin, "10.99.0.1", seed, "--check-integrity=true"); err != nil {
		return outcome{}, err
	}
	time.Sleep(3 * time.Second) // it has read its file and told the tracker
	before, began := s.sent(), time.Now()
	for _, m := range s.machines {
		m.ended = 0
		if err := start(m.ns, m.address, filepath.Join(dir, m.name)); err != nil {
			return outcome{}, err
		}
	}
	for left := len(s.machines); left > 0; time.Sleep(20 * time.Millisecond) {
		if ctx.Err() != nil {
			return outcome{}, fmt.Errorf("%d of %d machines have not got the image by BitTorrent: %w", left, len(s.machines), ctx.Err())
		}
		left = 0
		for _, m := range s.machines {
			if m.ended > 0 {
				continue
			}
			info, err := os.Stat(filepath.Join(dir, m.name, "done"))
			if err != nil {
				left++
				continue
			}
			m.ended = info.ModTime().Sub(began)
		}
	}
	return s.outcomeOf(before), nil
}
