package bringup

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"coldrack.dev/internal/agent/nodecert"
	"coldrack.dev/internal/agent/systemd"
	"coldrack.dev/internal/contract/wire"
)

// pass is one walk through all phases of a plan. It compares what the plan wants with what is there and makes up
// the difference; after a pass that went through, another one does nothing.
type pass struct {
	*Executor
	plan *wire.NodePlan
	// former is the plan that a roll-back would lead to, nil for none.
	former *wire.NodePlan
	// signed are the certificates as the server signs them now; empty: as the plan has them.
	signed []wire.NodeCertificate
	// hold: it is not this node's turn to restart anything.
	hold bool
	// restoring is the restore of etcd that comes before all phases, or instead of them; nil for none.
	restoring *wire.EtcdRestore
	// renew: it is taken to renew certificates.
	renew bool
	// hard ends with the agent. What must not be cut in two runs under it.
	hard context.Context
	// soft ends when this plan is no longer the one to carry out: waiting is pointless from then on.
	soft context.Context
	// open ends with soft and when bring-up is paused: from then on no phase begins.
	open context.Context

	// left is the number of phases that still have something to do besides waiting.
	left atomic.Int32
	// busy is the number of phases that do something now and do not just wait.
	busy atomic.Int32
	done map[string]chan struct{}
	// reading is held by the phase that brings programs: all phases share one file of digests.
	reading sync.Mutex
	// introduced says, under introducing, that systemd knows the plan's units.
	introducing sync.Mutex
	introduced  bool
}

// part is a pass as one of its phases sees it.
type part struct {
	*pass
	name string
	// again: the phase had succeeded before for this version of the plan.
	again bool
}

func (e *Executor) newPass(hard, soft, open context.Context, s *state) *pass {
	plan := s.Plan
	renew := !s.Hold && strings.HasPrefix(s.Operation, wire.OperationRenew+" ")
	p := &pass{Executor: e, plan: plan, former: s.Former, signed: s.Signed, hold: s.Hold, renew: renew, restoring: s.Restore, hard: hard, soft: soft, open: open,
		done: map[string]chan struct{}{}}
	for _, ph := range plan.Phases {
		p.done[ph.Name] = make(chan struct{})
		if worksOn(plan, ph) {
			p.left.Add(1)
		}
	}
	return p
}

// run returns when every phase has succeeded, or when none that has not may begin.
func (p *pass) run() (complete bool) {
	if !p.restoreFirst() {
		return false
	}
	if p.restoring != nil && p.restoring.Stop {
		return true // nothing may begin
	}
	var wg sync.WaitGroup
	var failed atomic.Bool
	for _, ph := range p.plan.Phases {
		wg.Go(func() {
			if !(&part{pass: p, name: ph.Name, again: p.track.succeeded(ph.Name)}).phase(ph) {
				failed.Store(true)
			}
		})
	}
	wg.Wait()
	return !failed.Load()
}

// phase does ph once those before it are done, as often as it takes.
func (p *part) phase(ph wire.Phase) bool {
	for _, name := range ph.After {
		select {
		case <-p.done[name]:
		case <-p.open.Done():
			p.held()
			return false
		}
	}
	counted := false
	for failures := 0; ; {
		if p.open.Err() != nil {
			p.held()
			return false
		}
		p.track.begin(p.name)
		err := p.carryOut(ph, &counted)
		if err == nil {
			p.track.succeed(p.name)
			close(p.done[p.name])
			return true
		}
		if p.soft.Err() != nil {
			return false // begins again in the next pass
		}
		failures++
		wait := p.Pace.backoff(failures)
		p.track.fail(p.name, fmt.Sprintf("%v (tried %d times, again in %s)", err, failures, wait.Round(time.Second)))
		if failures&(failures-1) == 0 { // the first, and then ever fewer
			p.Log.Error("phase failed", "phase", p.name, "err", err, "failures", failures, "again", wait)
		}
		p.Sleep(p.open, wait)
	}
}

func (p *part) held() {
	if errors.Is(context.Cause(p.open), errHeld) {
		p.track.hold(p.name, pausedText)
	}
}

// carryOut does a phase once. Its order is that of wire.Phase.
func (p *part) carryOut(ph wire.Phase, counted *bool) error {
	if err := p.do(ph); err != nil {
		return err
	}
	if worksOn(p.plan, ph) {
		if !*counted {
			*counted = true
			p.left.Add(-1)
		}
		if p.left.Load() == 0 {
			if err := p.tidy(); err != nil {
				return err
			}
		}
	}
	if ph.AwaitAPI {
		if err := p.awaitAPI(p.soft, time.Duration(ph.PatienceSeconds)*time.Second); err != nil {
			return err
		}
	}
	if err := p.awaitReplaced(p.soft, ph.Files); err != nil {
		return err
	}
	for _, target := range ph.Probes {
		if err := p.probe(p.soft, target); err != nil {
			return err
		}
	}
	return nil
}

// do is what a phase does besides waiting.
func (p *part) do(ph wire.Phase) error {
	p.busy.Add(1)
	defer p.busy.Add(-1)
	if programs := programsOf(p.plan, ph.Name); len(programs) > 0 {
		if err := p.programs(p.soft, programs); err != nil {
			return err
		}
	}
	var files []wire.NodeFile
	for _, name := range ph.Files {
		files = append(files, *fileAt(p.plan, name))
	}
	if err := p.write(files); err != nil {
		return err
	}
	for _, name := range ph.Certificates {
		c := find(p.plan.Certificates, func(c wire.NodeCertificate) bool { return c.Name == name })
		changed, err := p.certificate(p.soft, c)
		if err != nil {
			return err
		}
		if changed {
			p.track.working(p.name)
		}
	}
	for _, name := range ph.Kubeconfigs {
		k := find(p.plan.Kubeconfigs, func(k wire.NodeKubeconfig) bool { return k.Path == name })
		content, err := nodecert.Kubeconfig(p.disk, p.plan, k)
		if err != nil {
			return err
		}
		if err := p.write([]wire.NodeFile{{Path: k.Path, Mode: 0o600, Content: content, Secret: true}}); err != nil {
			return err
		}
	}
	if err := p.system(p.hard, ph.Files); err != nil {
		return err
	}
	if err := p.units(p.hard, ph.Units); err != nil {
		return err
	}
	if ph.Routes {
		if err := p.Router.Set(p.plan.Routes, p.plan.ServiceRoutes); err != nil {
			return err
		}
	}
	if ph.LoadBalancer {
		return p.Balancer.Set(balancerOf(p.plan))
	}
	return nil
}

func balancerOf(plan *wire.NodePlan) wire.LoadBalancer {
	if plan.LoadBalancer == nil {
		return wire.LoadBalancer{}
	}
	return *plan.LoadBalancer
}

// write makes the disk hold files: folders before what is in them, as the plan sorts them.
func (p *part) write(files []wire.NodeFile) error {
	type change struct {
		file    wire.NodeFile
		content []byte
	}
	var changes []change
	var paths, pods []string
	for _, f := range files {
		content, err := fileContent(p.disk, p.plan, f)
		if err != nil {
			return err
		}
		if !p.disk.Holds(f, content) {
			changes = append(changes, change{f, content})
			paths = append(paths, f.Path)
			if was, err := p.disk.Read(f.Path); err == nil && path.Dir(f.Path) == manifestsDir && !bytes.Equal(was, content) {
				pods = append(pods, podOf(f.Path))
			}
		}
	}
	if len(changes) == 0 {
		return nil
	}
	p.track.working(p.name)
	if err := errors.Join(p.prepare(paths), p.replacing(pods)); err != nil {
		return err
	}
	if len(pods) > 0 {
		if err := p.stopFirst(p.hard); err != nil {
			return err
		}
	}
	for _, c := range changes {
		if err := p.disk.Put(c.file, c.content); err != nil {
			return err
		}
		if p.again && p.untouched(c.file, c.content) {
			p.track.drift(c.file.Path)
		}
		// Never the content: it may be a secret.
		p.Log.Info("file written", "phase", p.name, "path", c.file.Path, "bytes", len(c.content))
	}
	return nil
}

// untouched says that only somebody else can have changed a file: what it contains follows from the plan alone, and it is not soft.
func (p *pass) untouched(f wire.NodeFile, content []byte) bool {
	ours := fileAt(p.plan, f.Path) != nil || strings.HasPrefix(f.Path, systemd.UnitDir+"/")
	return ours && !f.Soft && bytes.Equal(f.Content, content)
}

// prepare notes what is about to be changed. Folders that were there before us are not ours.
func (p *pass) prepare(paths []string) error {
	var note, units []string
	for _, file := range paths {
		if info, err := os.Lstat(p.disk.At(file)); err != nil || !info.IsDir() {
			note = append(note, file)
		}
		note = append(note, p.disk.MissingParents(file)...)
		f := fileAt(p.plan, file)
		for _, unit := range readers(p.plan, file) {
			if f != nil && f.Soft {
				unit = reloadOf(unit)
			}
			units = append(units, unit)
		}
	}
	slices.Sort(units)
	return p.ledger.Prepare(note, slices.Compact(units))
}

// say tells what the phase does.
func (p *part) say(format string, args ...any) { p.track.say(p.name, fmt.Sprintf(format, args...)) }

// changed notes and logs a change.
func (p *part) changed(what string, args ...any) {
	p.track.working(p.name)
	p.Log.Info(what, append([]any{"phase", p.name}, args...)...)
}

// tidy removes what an earlier plan had written and this one has no use for. It comes when everything that this
// plan wants is in place, so that nothing that still runs misses it.
func (p *part) tidy() error {
	p.tidying.Lock()
	defer p.tidying.Unlock()
	gone := stale(p.plan, append(keepsakes(p.former), prefetched(p.prefetchWanted())...), p.ledger.Paths())
	if len(gone) == 0 {
		return nil
	}
	var units []string
	for _, file := range gone {
		for _, u := range readers(p.plan, file) {
			if !slices.Contains(units, u) {
				units = append(units, u)
			}
		}
	}
	if err := p.ledger.Prepare(nil, units); err != nil {
		return err
	}
	reload := len(units) > 0
	for _, file := range gone {
		removed, err := p.remove(file)
		if err != nil {
			return err
		}
		reload = reload || removed && strings.HasPrefix(file, systemd.UnitDir+"/")
	}
	if reload {
		if err := p.Systemd.Do(p.hard, "daemon-reload"); err != nil {
			return err
		}
	}
	if err := p.ledger.Forget(gone, unitsAt(gone)); err != nil {
		return err
	}
	for _, name := range units {
		if find(p.plan.Units, func(u wire.NodeUnit) bool { return u.Name == name }).Name == "" {
			// One of the system's own. A kernel parameter that no file sets any more keeps its value until the
			// next boot.
			e := find(effects(), func(e effect) bool { return e.unit == name })
			due := p.ledger.Pending(name)
			if err := p.Systemd.Do(p.hard, e.verb, e.unit); err != nil {
				return p.withLog(p.hard, err, e.unit)
			}
			if err := p.ledger.Restarted(name, due); err != nil {
				return err
			}
			continue
		}
		if err := p.unit(p.hard, name); err != nil {
			return err
		}
	}
	return nil
}

// unitsAt are the units whose files are among paths.
func unitsAt(paths []string) []string {
	var units []string
	for _, file := range paths {
		if path.Dir(file) == systemd.UnitDir {
			units = append(units, path.Base(file))
		}
	}
	return units
}

func (p *part) remove(file string) (bool, error) {
	info, err := os.Lstat(p.disk.At(file))
	if err != nil {
		return false, nil
	}
	if !info.IsDir() {
		if name := strings.TrimPrefix(file, systemd.UnitDir+"/"); name != file && !strings.Contains(name, "/") {
			state, err := p.Systemd.State(p.hard, name)
			if err != nil {
				return false, err
			}
			if state.Load != "not-found" {
				if err := p.Systemd.Do(p.hard, "stop", name); err != nil {
					return false, err
				}
				if err := p.Systemd.Do(p.hard, "disable", name); err != nil {
					return false, err
				}
			}
		}
	}
	if former := p.formerProgram(file); former.Path != "" {
		if err := p.keepProgram(file, former.Digest); err != nil { // putting it back looks at what it is
			return false, err
		}
	}
	if err := os.Remove(p.disk.At(file)); err != nil {
		if info.IsDir() {
			return false, nil // something else is in it
		}
		return false, fmt.Errorf("remove %s, which is not part of the plan any more: %w", file, err)
	}
	p.changed("removed what the plan has no more", "path", file)
	return true, nil
}

// backoff doubles, with jitter, so that nodes that failed together do not come back together.
func (p Pace) backoff(failures int) time.Duration {
	wait := min(p.Retry<<min(failures-1, 20), p.MaxRetry)
	return wait/2 + rand.N(wait)
}
