package controllers

import (
	"context"
	"sync"
	"time"

	"coldrack.dev/internal/cluster/kubeapi"
	"coldrack.dev/internal/cluster/members"
	"coldrack.dev/internal/cluster/planner"
)

// askAgain is how long the answer of the API servers holds that an upgrade waits for: it is long.
const askAgain = 30 * time.Second

// inUse remembers for a while which deprecated APIs are in use, by cluster.
type inUse struct {
	mu   sync.Mutex
	seen map[string]apisSeen
}

type apisSeen struct {
	at   time.Time
	apis []kubeapi.DeprecatedAPI
	err  error
}

func (u *inUse) of(ctx context.Context, cluster string, api *kubeapi.Connection, now time.Time) ([]kubeapi.DeprecatedAPI, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if s, ok := u.seen[cluster]; ok && now.Sub(s.at) < askAgain {
		return s.apis, s.err
	}
	ctx, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()
	s := apisSeen{at: now}
	s.apis, s.err = api.DeprecatedAPIs(ctx)
	if u.seen == nil {
		u.seen = map[string]apisSeen{}
	}
	u.seen[cluster] = s
	return s.apis, s.err
}

// preflight is what stands against an upgrade that has not begun.
func (o *operation) preflight(ctx context.Context) []planner.Block {
	seen := members.Preflight{Lacking: o.Clusters.Lacking(o.c)}
	apis, err := o.inUse.of(ctx, o.c.Name, o.sight.api, o.Now())
	if err != nil {
		seen.Unasked = err.Error()
	}
	for _, api := range apis {
		seen.Requested = append(seen.Requested, members.RequestedAPI(api))
	}
	for _, m := range o.sight.members {
		seen.Etcd = append(seen.Etcd, members.EtcdState{Name: memberName(m), Answers: m.Answers, Problems: m.Problems, Size: m.Size, Quota: m.Quota})
	}
	return seen.Blocks(o.c, o.in)
}

// noContent is what stands against a change of the configuration of nodes. An upgrade that has begun has fetched what it needs.
func (o *operation) noContent(ctx context.Context) *planner.Block {
	for _, n := range o.c.Status.Nodes {
		if n.Version != o.c.Spec.Version {
			return nil
		}
	}
	return o.Clusters.LackingBlock(o.c, func() (map[string]bool, error) {
		ctx, cancel := context.WithTimeout(ctx, lookTimeout)
		defer cancel()
		return o.sight.api.NodeImages(ctx)
	})
}
