package swarm

import (
	"fmt"
	"os"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"coldrack.dev/test/noise"
)

func TestAnImageSpreadsAlthoughAThirdOfTheMachinesDie(t *testing.T) {
	index, blob := noise.Image(64, 4<<20, 32<<10, 64<<10)
	s := newSite(t, 6, 40, 40, index, blob)
	out, err := s.run(true, 1./3, 0.5)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("first %s, last %s, %.2f images, %+v", out.first, out.last, out.images, out.stats)
	if out.images > 4 || out.stats.Bad > 0 || out.stats.FromPeers < index.BlobSize {
		t.Errorf("the origin sent %.2f images to %d machines: %+v", out.images, out.survivors, out.stats)
	}
}

// TestBench prints a table. COLDRACK_BENCH_SWARM is a list such as "n=1,8,32 link=100 origin=1000 chunks=40
// chunk=1600000 kill=0.33 how=ours,http,udpcast,aria2"; rates are in Mbit/s.
func TestBench(t *testing.T) {
	args := os.Getenv("COLDRACK_BENCH_SWARM")
	if args == "" {
		t.Skip("a measurement, not a test: set COLDRACK_BENCH_SWARM")
	}
	link, origin, kill, chunks, size, counts, only := 100., 1000., 0., 40, 1_600_000, "1,8", ""
	for _, f := range strings.Fields(args) {
		key, value, _ := strings.Cut(f, "=")
		to := map[string]any{"link": &link, "origin": &origin, "kill": &kill, "chunks": &chunks, "chunk": &size, "n": &counts, "how": &only}[key]
		if to == nil {
			t.Fatalf("%q is not known", key)
		}
		if _, err := fmt.Sscan(value, to); err != nil {
			t.Fatalf("%s: %v", f, err)
		}
	}
	index, blob := noise.Image(chunks, 4<<20, size/2, size)
	alone := time.Duration(float64(len(blob)) * 8 / min(link, origin) / 1e6 * float64(time.Second))
	fmt.Printf("%.1f MB in %d chunks, machines %.0f Mbit/s, origin %.0f Mbit/s, the wire alone takes %.1f s, %d cores\n", float64(len(blob))/1e6, chunks, link, origin, alone.Seconds(), runtime.NumCPU())
	fmt.Printf("%9s %7s %8s %8s %8s %8s %8s %8s\n", "machines", "how", "first s", "last s", "× wire", "images", "CPU s", "refused")
	for field := range strings.SplitSeq(counts, ",") {
		var n int
		if _, err := fmt.Sscan(field, &n); err != nil {
			t.Fatal(err)
		}
		s := newSite(t, n, link, origin, index, blob)
		for _, how := range []string{"http", "ours", "udpcast", "aria2"} {
			if only != "" && !strings.Contains(","+only+",", ","+how+",") {
				continue
			}
			before := cpu()
			var out outcome
			var err error
			switch how {
			case "http":
				out, err = s.run(false, 0, 0)
			case "ours":
				out, err = s.run(true, kill, 0.5)
			case "udpcast":
				// Told what the slowest link takes, less what headers need.
				out, err = s.udpcast(min(link, origin) * 0.93)
			case "aria2":
				out, err = s.aria2()
			}
			if err != nil {
				t.Errorf("%d machines, %s: %v", n, how, err)
				continue
			}
			fmt.Printf("%9d %7s %8.1f %8.1f %8.2f %8.2f %8.1f %8d\n", n, how, out.first.Seconds(), out.last.Seconds(),
				float64(out.last)/float64(alone), out.images, (cpu() - before).Seconds(), out.stats.Refused)
		}
	}
}

// cpu time that this process has used, and its children that ended.
func cpu() (sum time.Duration) {
	for _, who := range []int{syscall.RUSAGE_SELF, syscall.RUSAGE_CHILDREN} {
		var u syscall.Rusage
		if err := syscall.Getrusage(who, &u); err == nil {
			sum += time.Duration(u.Utime.Nano() + u.Stime.Nano())
		}
	}
	return sum
}
