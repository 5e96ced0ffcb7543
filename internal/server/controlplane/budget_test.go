package controlplane

import (
	"context"
	"fmt"
	"os"
	"regexp"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// residentMiB is how much memory a process holds.
func residentMiB(t testing.TB, pid int) int {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	check(t, err)
	found := regexp.MustCompile(`VmRSS:\s+(\d+) kB`).FindSubmatch(status)
	if found == nil {
		t.Fatalf("no VmRSS in %s", status)
	}
	kb, err := strconv.Atoi(string(found[1]))
	check(t, err)
	return kb >> 10
}

func TestAnIdleServerIsSmall(t *testing.T) {
	t.Parallel()
	cfg := testConfig(t, newTestCA(t))
	for _, start := range []string{"the first", "a later"} {
		began := time.Now()
		s := startServer(t, cfg)
		took, resident := time.Since(began), residentMiB(t, s.cmd.Process.Pid)
		t.Logf("%s start: ready after %s, %d MiB resident", start, took.Round(time.Millisecond), resident)
		// The race detector alone takes twice that.
		if resident >= 200 && !raceDetector {
			t.Errorf("%d MiB resident, the budget is 200", resident)
		}
		check(t, s.signal(t, 15))
	}
}

// BenchmarkMachines measures writes over the wire, with everything on: TLS, audit, admission, fsync.
func BenchmarkMachines(b *testing.B) {
	ctx := context.Background()
	ca := newTestCA(b)
	s := startServer(b, testConfig(b, ca))
	machines := resource(b, ca.person(b, s.address, "root", GroupAdmin), "machines")
	parallel := func(b *testing.B, work func(i int) error) {
		b.ResetTimer()
		var next atomic.Int64
		var workers sync.WaitGroup
		for range 32 {
			workers.Go(func() {
				for i := next.Add(1); i <= int64(b.N); i = next.Add(1) {
					if err := work(int(i)); err != nil {
						b.Error(err)
						return
					}
				}
			})
		}
		workers.Wait()
		b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "writes/s")
		b.ReportMetric(float64(residentMiB(b, s.cmd.Process.Pid)), "MiB")
	}
	var created atomic.Int64
	b.Run("create", func(b *testing.B) {
		parallel(b, func(int) error {
			n := created.Add(1)
			mac := fmt.Sprintf("52:54:%02x:%02x:%02x:%02x", n>>24&255, n>>16&255, n>>8&255, n&255)
			_, err := machines.Create(ctx, object("Machine", fmt.Sprint("m", n), map[string]any{"spec": map[string]any{
				"identifiers": map[string]any{"macs": []any{mac}, "serial": fmt.Sprint("S", n)}}}), metav1.CreateOptions{})
			return err
		})
	})
	b.Run("status", func(b *testing.B) {
		parallel(b, func(i int) error {
			_, err := machines.Patch(ctx, fmt.Sprint("m", 1+i%int(created.Load())), types.MergePatchType,
				fmt.Appendf(nil, `{"status":{"phase":"Installing","currentStep":"image %d"}}`, i), metav1.PatchOptions{}, "status")
			return err
		})
	})
}
