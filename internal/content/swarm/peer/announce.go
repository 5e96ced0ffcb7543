package peer

import (
	"context"
	"time"

	"coldrack.dev/internal/base/retry"
	"coldrack.dev/internal/content/swarm"
	"coldrack.dev/internal/contract/wire"
)

// announce tells the server what is here, as often as it wants to hear it and whenever the origin's help is wanted.
func (x *Exchange) announce() {
	for x.ctx.Err() == nil {
		x.mu.Lock()
		due := x.announceAt
		if wants, _ := x.picker.Wants(); wants && !x.done && x.askAt.Before(due) {
			due = x.askAt
		}
		wait := time.Until(due)
		x.mu.Unlock()
		if wait > 0 {
			timer := time.NewTimer(wait)
			select {
			case <-x.ctx.Done():
			case <-x.kick:
			case <-timer.C:
			}
			timer.Stop()
			continue
		}
		if !x.speak() {
			return
		}
	}
}

// announcement as things stand; needs x.mu.
func (x *Exchange) announcement() wire.SwarmAnnounce {
	have := x.picker.Have()
	a := wire.SwarmAnnounce{
		Blob: x.index.Blob, Chunks: have.Size(), Have: have.Bytes(), Port: x.port,
		Returned: x.returned, Lost: x.picker.Lost(), Bad: x.bad, Known: x.known,
	}
	if !x.done {
		a.Wants, a.Idle = x.picker.Wants()
	}
	return a
}

// speak makes one announcement. It is false when the server wants none.
func (x *Exchange) speak() bool {
	x.mu.Lock()
	a := x.announcement()
	x.returned, x.bad = nil, nil
	x.mu.Unlock()
	answer, err := x.Server.Swarm(x.ctx, a)
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.closed || x.ctx.Err() != nil {
		return false
	}
	now := time.Now()
	switch {
	case err != nil && !retry.Transient(err) || err == nil && answer.Off:
		if err != nil {
			x.Log.Info("server has peer distribution off; using the server only", "err", err)
		}
		x.alone, x.off = true, true
		x.introduce(nil)
		x.pump()
		return false
	case err != nil:
		x.returned, x.bad = append(a.Returned, x.returned...), append(a.Bad, x.bad...)
		x.failures++
		wait := min(time.Second<<min(x.failures, 4), 15*time.Second)
		x.announceAt = now.Add(wait/2 + time.Duration(float64(wait)*x.chance()))
		x.askAt = x.announceAt
		if x.failures >= 2 && !x.alone {
			x.Log.Warn("cannot get the list of peers; using the server only", "err", err)
			x.alone = true
		}
		x.pump()
		return true
	}
	x.failures, x.alone = 0, answer.Alone
	x.announceAt = now.Add(max(time.Duration(answer.AgainMillis)*time.Millisecond, 100*time.Millisecond))
	x.askAt = now.Add(max(time.Duration(answer.AskMillis)*time.Millisecond, 10*time.Millisecond))
	x.bucket.Rate, x.bucket.Burst = float64(answer.UploadLimit), float64(answer.UploadLimit)/10
	if answer.PeersVersion != x.known {
		x.known = answer.PeersVersion
		x.introduce(answer.Peers)
	}
	for _, i := range answer.Fetch {
		if i < 0 || i >= len(x.index.Chunks) || !x.fetchOrigin(i) {
			x.returned = append(x.returned, i)
		}
	}
	x.pump()
	return true
}

// chance between 0 and 1; needs x.mu.
func (x *Exchange) chance() float64 { return float64(time.Now().UnixNano()%1000) / 1000 }

// introduce replaces the peers; needs x.mu.
func (x *Exchange) introduce(list []wire.SwarmPeer) {
	var peers []swarm.Peer
	next := map[string]*peer{}
	for _, l := range list {
		p := x.peers[l.Machine]
		if p == nil || p.SwarmPeer != l {
			p = x.newPeer(l)
		}
		next[l.Machine] = p
		peers = append(peers, swarm.Peer{ID: l.Machine, Near: l.Near})
	}
	for name, p := range x.peers {
		if next[name] != p {
			p.forget()
		}
	}
	x.peers = next
	x.picker.SetPeers(peers)
	for _, p := range next {
		if !p.listening {
			p.listening = true
			x.group.Go(func() error { x.follow(p); return nil })
		}
	}
}

// follow learns what a peer has until it is forgotten. When this machine has nothing to do, the answer is held back
// by the peer until there is news.
func (x *Exchange) follow(p *peer) {
	count := -1
	for p.ctx.Err() == nil {
		x.mu.Lock()
		full, starving := x.picker.Have().Full(), x.picker.Starving()
		x.mu.Unlock()
		if full {
			return
		}
		wait := time.Duration(0)
		if starving && count >= 0 {
			wait = time.Second
		}
		has, load, err := p.have(p.ctx, x.index.Blob, len(x.index.Chunks), count, wait)
		pause := time.Second
		x.mu.Lock()
		switch {
		case p.ctx.Err() != nil:
		case err != nil:
			x.Log.Debug("cannot get a peer's list of chunks", "peer", p.Machine, "err", err)
			x.picker.Unreachable(time.Now(), p.Machine)
			pause = 2 * time.Second
		default:
			count = has.Count()
			x.picker.Tell(p.Machine, has, load)
			x.pump()
			if x.picker.Starving() {
				pause = 50 * time.Millisecond
			}
		}
		x.mu.Unlock()
		sleep(p.ctx, pause)
	}
}

func sleep(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}
