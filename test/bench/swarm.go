package main

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
)

// swarm spreads one image over shaped links, with the measurement of test/swarm.
func (b *bench) swarm(ctx context.Context) error {
	const share = 0.33
	for _, run := range []struct{ origin, args, how string }{
		{"1 Gbit/s", "origin=1000", "http,ours,udpcast,aria2"},
		// By plain HTTP that is arithmetic: the image's time for each machine.
		{"100 Mbit/s", "origin=100", "ours,udpcast,aria2"},
		{"1 Gbit/s, a third dies", fmt.Sprint("origin=1000 kill=", share), "ours"},
	} {
		counts := "1,8,32,64"
		if strings.Contains(run.args, "kill") {
			counts = "64"
		}
		cmd := exec.CommandContext(ctx, b.swarmTest, "-test.run", "^TestBench$", "-test.timeout", "20m")
		cmd.Dir = b.dir
		cmd.Env = append(os.Environ(), fmt.Sprintf("COLDRACK_BENCH_SWARM=n=%s link=100 chunks=40 chunk=1600000 %s how=%s", counts, run.args, run.how))
		cmd.Stderr = os.Stderr
		out, err := cmd.Output()
		fmt.Fprint(os.Stderr, string(out))
		if err != nil {
			return fmt.Errorf("%s: %w", run.args, err)
		}
		if err := b.swarmRows(string(out), run.origin); err != nil {
			return err
		}
	}
	return nil
}

// swarmRows reads the table that the measurement prints.
func (b *bench) swarmRows(text, origin string) error {
	type seen struct{ last, images float64 }
	results := map[int]map[string]seen{}
	var counts []int
	for lines := bufio.NewScanner(strings.NewReader(text)); lines.Scan(); {
		var n, refused int
		var how string
		var first, last, ratio, images, cpu float64
		if fields, _ := fmt.Sscan(lines.Text(), &n, &how, &first, &last, &ratio, &images, &cpu, &refused); fields != 8 {
			continue
		}
		if results[n] == nil {
			results[n] = map[string]seen{}
			counts = append(counts, n)
		}
		results[n][how] = seen{last, images}
	}
	if len(counts) == 0 {
		return fmt.Errorf("the measurement printed no table: %s", text)
	}
	names := map[string]string{"http": "plain HTTP", "udpcast": "udp-sender", "aria2": "BitTorrent (aria2)"}
	for _, n := range counts {
		ours := results[n]["ours"]
		what := fmt.Sprintf("64 MB to %d machines of 100 Mbit/s, origin %s: ", n, origin)
		compared := false
		for _, how := range []string{"http", "udpcast", "aria2"} {
			peer, there := results[n][how]
			if !there {
				continue
			}
			compared = true
			r := b.row(what+"the last after", "s", names[how], "", nil)
			r.ours, r.peer = append(r.ours, ours.last), append(r.peer, peer.last)
		}
		if !compared {
			r := b.row(what+"the last after", "s", "", "", nil)
			r.ours = append(r.ours, ours.last)
		}
		r := b.row(what+"images from the origin", "", "", "below 5", func(a, _ float64) bool { return a < 5 })
		r.ours = append(r.ours, ours.images)
		if alone, there := results[1]["ours"]; there && n == counts[len(counts)-1] {
			r := b.row(what+"times a single machine's", "", "", "at most 1.3", func(a, _ float64) bool { return a <= 1.3 })
			r.ours = append(r.ours, ours.last/alone.last)
		}
	}
	return nil
}
