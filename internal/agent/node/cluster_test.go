package node

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"time"

	"coldrack.dev/internal/agent/client"
	"coldrack.dev/internal/contract/wire"
)

// plans answers questions in turn; when there are no more answers, the test ends.
type plans struct {
	mu      sync.Mutex
	asked   []string // versions
	answers []any
	end     func()
}

func (p *plans) Node(_ context.Context, version string, _ time.Duration) (wire.NodeAssignment, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.asked = append(p.asked, version)
	if len(p.answers) == 0 {
		p.end()
		return wire.NodeAssignment{}, errors.New("the test is over")
	}
	next := p.answers[0]
	p.answers = p.answers[1:]
	if err, ok := next.(error); ok {
		return wire.NodeAssignment{}, err
	}
	return wire.NodeAssignment{Version: next.(string)}, nil
}

type executor struct {
	version  string
	mu       sync.Mutex
	assigned []string
	retold   int
}

func (e *executor) Version() string { return e.version }

func (e *executor) Assign(a wire.NodeAssignment) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.assigned = append(e.assigned, a.Version)
}

func (e *executor) Retell() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.retold++
}

func (e *executor) Run(ctx context.Context) error {
	<-ctx.Done()
	return nil
}

func TestOneQuestionIsAlwaysOpen(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	server := &plans{end: cancel, answers: []any{"v2", errors.New("connection refused"), errors.New("connection refused"), "v2", "v3",
		&client.Error{Status: 404}, &client.Error{Status: 403, Code: wire.CodeForbidden}, "v4"}}
	e := &executor{version: "v1"}
	var waits []time.Duration
	beside := 0
	m := &Membership{Log: slog.New(slog.DiscardHandler), Server: server, Executor: e,
		Beside: []Task{func(ctx context.Context) error { beside++; <-ctx.Done(); return nil }},
		Sleep:  func(_ context.Context, d time.Duration) { waits = append(waits, d) }}
	if err := m.Run(ctx); err != nil {
		t.Fatal(err)
	}
	if want := []string{"v1", "v2", "v2", "v2", "v2", "v3", "v3", "v3", "v4"}; !slices.Equal(server.asked, want) {
		t.Errorf("asked with %q, want %q", server.asked, want)
	}
	if want := []string{"v2", "v2", "v3", "v4"}; !slices.Equal(e.assigned, want) {
		t.Errorf("assigned %q, want %q", e.assigned, want)
	}
	if e.retold != 2 || beside != 1 {
		t.Errorf("retold %d times, beside ran %d times", e.retold, beside)
	}
	for i, want := range []time.Duration{0, time.Second, 2 * time.Second, 0, 0, 5 * time.Minute, 30 * time.Second, 0} {
		if want == 0 {
			want = 100 * time.Millisecond
		}
		if waits[i] < want || waits[i] > want*12/10 {
			t.Errorf("wait %d was %s, want about %s", i, waits[i], want)
		}
	}
}
