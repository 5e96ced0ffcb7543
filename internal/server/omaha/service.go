// Package omaha is an update server for update_engine, as CoreOS Container Linux and Flatcar have it: it answers by the Omaha protocol,
// hands out the packages of a folder, and lets groups update at the pace of their policies. What decides is package rollout.
package omaha

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"coldrack.dev/internal/base/durable"
	"coldrack.dev/internal/server/omaha/rollout"
)

const (
	// maxInstances that are remembered. One more replaces the one that was silent for longest.
	maxInstances = 20_000
	// maxHistory is how many events of an instance are kept.
	maxHistory = 20
	// lately is how long an instance counts after its last request.
	lately = 24 * time.Hour
)

// Instance is a machine with an application.
type Instance struct {
	ID      string    `json:"id"`
	App     string    `json:"application"`
	Track   string    `json:"track"`
	Board   string    `json:"board"`
	OEM     string    `json:"oem,omitempty"`
	Address string    `json:"address"`
	First   time.Time `json:"first"`
	Last    time.Time `json:"last"`
	rollout.Instance
	// Reached is when it first had the version that it has.
	Reached time.Time `json:"reached"`
	History []Record  `json:"history,omitempty"`
}

// Record is something that happened to an instance.
type Record struct {
	At   time.Time `json:"at"`
	What string    `json:"what"`
}

func (i *Instance) note(now time.Time, format string, args ...any) {
	i.History = append(i.History, Record{now.UTC().Truncate(time.Second), fmt.Sprintf(format, args...)})
	if n := len(i.History) - maxHistory; n > 0 {
		i.History = slices.Delete(i.History, 0, n)
	}
}

// Service keeps what is known of instances and answers them. It is safe for concurrent use.
type Service struct {
	dir, file string
	log       *slog.Logger
	now       func() time.Time

	mu        sync.Mutex
	apps      map[string]app
	packages  map[string]Package // by BOARD/VERSION
	problems  []string
	instances map[string]*Instance // by application and id
	dirty     bool
	stats     Stats
}

// Stats of a service.
type Stats struct{ Requests, Refused, Granted uint64 }

// Open reads a folder of updates and a file with instances, which need not exist.
func Open(dir, file string, log *slog.Logger) (*Service, error) {
	s := &Service{dir: dir, file: file, log: log, now: time.Now, apps: map[string]app{}, packages: map[string]Package{}, instances: map[string]*Instance{}}
	text, err := os.ReadFile(file)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("instances of the update server: %w", err)
	}
	if err == nil {
		var all []*Instance
		if err := json.Unmarshal(text, &all); err != nil {
			return nil, fmt.Errorf("instances of the update server: %s: %w; move the file away to begin with none", file, err)
		}
		for _, i := range all {
			s.instances[i.App+" "+i.ID] = i
		}
	}
	s.reload()
	return s, nil
}

// Run follows the folder and keeps the instances until ctx ends.
func (s *Service) Run(ctx context.Context) error {
	look, keep := time.NewTicker(10*time.Second), time.NewTicker(time.Minute)
	defer look.Stop()
	defer keep.Stop()
	for {
		select {
		case <-look.C:
			s.reload()
		case <-keep.C:
			s.keep()
		case <-ctx.Done():
			s.keep()
			return nil
		}
	}
}

func (s *Service) keep() {
	s.mu.Lock()
	if !s.dirty {
		s.mu.Unlock()
		return
	}
	s.dirty = false
	all := []*Instance{}
	for _, i := range s.instances {
		all = append(all, i)
	}
	text, err := json.Marshal(all)
	s.mu.Unlock()
	if err == nil {
		err = durable.WriteFile(s.file, text, 0o600)
	}
	if err != nil {
		s.log.Error("what instances of updates did is not kept; trying again", "err", err)
		s.mu.Lock()
		s.dirty = true
		s.mu.Unlock()
	}
}

// reload reads the folder. What is wrong there leaves what was there before, and is shown.
func (s *Service) reload() {
	s.mu.Lock()
	apps, known := s.apps, s.packages
	s.mu.Unlock()
	var problems []string
	switch read, err := readSettings(s.dir); {
	case errors.Is(err, fs.ErrNotExist):
		problems, apps = append(problems, fmt.Sprintf("%s: there is no such file, so that there is no group", filepath.Join(s.dir, SettingsFile))), map[string]app{}
	case err != nil:
		problems = append(problems, err.Error())
	default:
		apps = read
	}
	packages := map[string]Package{}
	for _, a := range apps {
		for _, c := range a.channels {
			for _, version := range append([]string{c.Version}, c.Floors...) {
				key := c.Board + "/" + version
				if _, done := packages[key]; done {
					continue
				}
				p, err := readPackage(s.dir, c.Board, version, known[key])
				if err != nil {
					problems = append(problems, fmt.Sprintf("channel %s: %v", c.Name, err))
					continue
				}
				packages[key] = p
			}
		}
	}
	slices.Sort(problems)
	problems = slices.Compact(problems)
	s.mu.Lock()
	defer s.mu.Unlock()
	if !slices.Equal(problems, s.problems) {
		for _, p := range problems {
			s.log.Warn("updates are not as they should be", "problem", p)
		}
	}
	s.apps, s.packages, s.problems = apps, packages, problems
}

// ask answers one application of a request.
func (s *Service) ask(r AppRequest, from, base string) AppResponse {
	now := s.now()
	s.mu.Lock()
	defer s.mu.Unlock()
	answer := AppResponse{ID: r.ID, Status: "ok"}
	a, known := s.apps[normalID(r.ID)]
	if !known {
		answer.Status = "error-unknownApplication"
		return answer
	}
	if r.MachineID == "" {
		answer.Status = "error-invalidMachine"
		return answer
	}
	i := s.instance(a.id, r, from, now)
	for _, e := range r.Events {
		i.happened(e, now)
		answer.Events = append(answer.Events, ok{"ok"})
	}
	if r.Ping {
		answer.Ping = &ok{"ok"}
	}
	if !r.UpdateCheck {
		return answer
	}
	answer.UpdateCheck = &UpdateCheck{Status: "noupdate"}
	d := s.decide(a, i, now, surveys{})
	if d.Version == "" {
		return answer
	}
	if d.Reason == rollout.Now {
		i.State, i.Target, i.Since = rollout.Granted, d.Version, now
		i.note(now, "granted %s", d.Version)
		s.stats.Granted++
	}
	answer.UpdateCheck = offer(s.packages[i.Board+"/"+d.Version], base+i.Board+"/"+d.Version+"/")
	return answer
}

// instance finds or makes the instance of a request and notes what it says of itself. The caller holds mu.
func (s *Service) instance(app string, r AppRequest, from string, now time.Time) *Instance {
	key := app + " " + r.MachineID
	i := s.instances[key]
	if i == nil {
		if len(s.instances) >= maxInstances {
			oldest := ""
			for k, o := range s.instances {
				if oldest == "" || o.Last.Before(s.instances[oldest].Last) {
					oldest = k
				}
			}
			delete(s.instances, oldest)
		}
		i = &Instance{ID: r.MachineID, App: app, First: now, Reached: now, Instance: rollout.Instance{State: rollout.Undefined, Version: r.Version}}
		s.instances[key] = i
	}
	i.Last, i.Address, i.Track, i.Board, i.OEM = now, from, r.Track, r.Board, r.OEM
	if r.Version != "" && r.Version != i.Version {
		i.note(now, "runs %s, before %s", r.Version, i.Version)
		i.Version, i.Reached = r.Version, now
	}
	if i.Target != "" && i.Version == i.Target && i.State != rollout.Complete {
		i.State, i.FailedAt = rollout.Complete, time.Time{}
		i.note(now, "updated to %s", i.Version)
	}
	s.dirty = true
	return i
}

// happened notes an event. Only one about an update that was granted here changes its state.
func (i *Instance) happened(e Event, now time.Time) {
	state, what := rollout.State(""), ""
	switch e.Type + "/" + e.Result {
	case "13/1":
		state, what = rollout.Downloading, "downloads %s"
	case "14/1":
		state, what = rollout.Downloaded, "has downloaded %s"
	case "3/1":
		state, what = rollout.Installed, "has installed %s and waits for a reboot"
	case "800/1":
		state, what = rollout.OnHold, "has installed %s and is told to wait"
	case "3/0":
		state, what = rollout.Failed, "failed to update to %s"
	default:
		return // 3/2, in every check, says what ran before: the version says it as well
	}
	if i.Target == "" || i.State == rollout.Complete || i.State == state {
		return
	}
	if state == rollout.Failed {
		i.FailedAt = now
		what += ", error " + e.ErrorCode
	}
	i.State = state
	i.note(now, strings.Replace(what, "%s", "%[1]s", 1), i.Target)
}

// surveys of groups, by application, group and board, for who decides about many instances at one time.
type surveys map[[3]string]rollout.Group

// decide is rollout.Decide for an instance. The caller holds mu.
func (s *Service) decide(a app, i *Instance, now time.Time, known surveys) rollout.Decision {
	g, exists := a.groups[i.Track]
	if !exists {
		return rollout.Decision{Reason: rollout.NoPackage, Detail: fmt.Sprintf("no group has the track %q", i.Track)}
	}
	// Most ask for nothing new, and need nobody counted.
	switch d := rollout.Decide(i.Instance, s.offered(a, g, i.Board), now); d.Reason {
	case rollout.NoPackage, rollout.UpToDate, rollout.NeedsReboot:
		return d
	}
	key := [3]string{a.id, g.name, i.Board}
	if _, done := known[key]; !done {
		known[key] = s.survey(a, g, i.Board, now)
	}
	return rollout.Decide(i.Instance, known[key], now)
}

// offered is a group without its instances: what its channel has for a board. The caller holds mu.
func (s *Service) offered(a app, of group, board string) rollout.Group {
	g := rollout.Group{Policy: of.policy}
	for _, c := range a.channels {
		if c.Name == of.channel && c.Board == board {
			if _, there := s.packages[board+"/"+c.Version]; there {
				g.Target = c.Version
			}
			g.Floors = c.Floors
			for _, f := range c.Floors {
				if _, there := s.packages[board+"/"+f]; !there {
					g.Target = "" // a floor must not be left out
				}
			}
		}
	}
	return g
}

// survey counts a group's instances of a board. The caller holds mu.
func (s *Service) survey(a app, of group, board string, now time.Time) rollout.Group {
	g := s.offered(a, of, board)
	done := map[string]bool{} // by version, of which there are few
	hasTarget := func(version string) bool {
		known, compared := done[version]
		if !compared {
			known = g.Target != "" && rollout.Compare(version, g.Target) >= 0
			done[version] = known
		}
		return known
	}
	g.Canary.Known = slices.ContainsFunc(mapsValues(a.groups), func(o group) bool { return o.name == of.policy.After })
	for _, i := range s.instances {
		its, known := a.groups[i.Track]
		if !known || i.App != a.id || i.Board != board || now.Sub(i.Last) > lately {
			continue
		}
		done := hasTarget(i.Version)
		failed := !done && !i.FailedAt.IsZero() && !i.State.InProgress() && i.Target != "" && rollout.Compare(i.Target, i.Version) > 0
		switch its.name {
		case of.name:
			g.Size++
			if t := of.policy.Timeout; t > 0 && i.State.InProgress() && now.Sub(i.Since) > t {
				i.State, i.FailedAt = rollout.Failed, now
				i.note(now, "has not updated to %s within %s", i.Target, t)
				failed = !done
			}
			if i.State.InProgress() {
				g.InProgress++
			}
			if left := i.Since.Add(of.policy.Period); !i.Since.IsZero() && now.Before(left) {
				g.Begun++
				if g.NextBegin.IsZero() || left.Before(g.NextBegin) {
					g.NextBegin = left
				}
			}
			if done {
				g.Done++
			}
			if failed {
				g.Failed++
			}
		case of.policy.After:
			g.Canary.Size++
			if done {
				g.Canary.Done++
				if i.Reached.After(g.Canary.Since) {
					g.Canary.Since = i.Reached
				}
			}
			if failed {
				g.Canary.Failed++
			}
		}
	}
	return g
}

func mapsValues(groups map[string]group) (all []group) {
	for _, g := range groups {
		all = append(all, g)
	}
	return all
}
