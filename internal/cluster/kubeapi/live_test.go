package kubeapi

import (
	"context"
	"log/slog"
	"net/netip"
	"sync"
	"testing"
	"time"

	"coldrack.dev/internal/cluster/kube"
)

// TestAtARealAPIServer tells one story, in order: each part builds on the cluster that the one before left.
func TestAtARealAPIServer(t *testing.T) {
	c := startCluster(t)
	t.Run("objects are applied and kept", c.testApply)
	t.Run("people's add-ons are applied, compared, pruned and removed", c.testAddons)
	t.Run("people of each role may do what belongs to it", c.testPeople)
	t.Run("budgets are looked at as a drain would meet them", c.testBudgets)
	t.Run("deprecated APIs that are in use are known", c.testDeprecated)
	t.Run("nodes get what is theirs", c.testNodes)
	t.Run("a Node goes only while it is what was judged", c.testFormer)
	t.Run("certificate requests are judged", c.testRequests)
	t.Run("an approval by kube-controller-manager steals nothing", c.testStolenApproval)
	t.Run("plans change while it runs", c.testUpdate)
	t.Run("it is verified", c.testVerify)
	t.Run("it survives the loss of API servers", c.testFailover)
}

// watched is a Runner whose reports can be waited for.
type watched struct {
	*Runner
	mu    sync.Mutex
	state State
}

// run starts a Runner that ends with the test.
func (c *testCluster) run(t *testing.T, change func(*Options)) *watched {
	t.Helper()
	w := &watched{}
	options := w.options(c)
	if change != nil {
		change(&options)
	}
	runner, err := NewRunner(options)
	check(t, err)
	w.Runner = runner
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- runner.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("Run: %v", err)
			}
		case <-time.After(2 * time.Minute):
			t.Error("Run does not end")
		}
	})
	return w
}

func (w *watched) options(c *testCluster) Options {
	return Options{
		Target: c.target(), Wanted: c.wanted(), Log: slog.New(slog.DiscardHandler),
		PodCIDRs: func(node string) ([]netip.Prefix, error) {
			return []netip.Prefix{netip.MustParsePrefix("10.244.77.0/24")}, nil
		},
		Sign: c.authorities[kube.AuthorityKubernetes].sign,
		Report: func(s State) {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.state = s
		},
	}
}

func (w *watched) last() State {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.state
}
