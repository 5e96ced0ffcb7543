package omaha

import (
	"cmp"
	"slices"
	"time"

	"coldrack.dev/internal/server/omaha/rollout"
	"coldrack.dev/internal/server/peopleapi/peoplewire"
)

// Stats gives the present numbers.
func (s *Service) Stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.stats
}

// Groups says how far each group is on each board.
func (s *Service) Groups() []peoplewire.UpdateGroup {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.groups(s.now())
}

// groups needs mu.
func (s *Service) groups(now time.Time) []peoplewire.UpdateGroup {
	all := []peoplewire.UpdateGroup{}
	for _, a := range s.apps {
		for track, g := range a.groups {
			for _, c := range a.channels {
				if c.Name != g.channel {
					continue
				}
				n := s.survey(a, g, c.Board, now)
				all = append(all, peoplewire.UpdateGroup{
					Application: a.name, Name: g.name, Track: track, Channel: g.channel, Board: c.Board, Version: n.Target, Paused: g.policy.Paused,
					Instances: n.Size, UpToDate: n.Done, InProgress: n.InProgress, Failed: n.Failed,
				})
			}
		}
	}
	slices.SortFunc(all, func(a, b peoplewire.UpdateGroup) int {
		return cmp.Or(cmp.Compare(a.Application, b.Application), cmp.Compare(a.Name, b.Name), cmp.Compare(a.Board, b.Board))
	})
	return all
}

// Status is what people see: the groups by board, what is wrong with the folder, and each instance with why it gets no update now.
func (s *Service) Status() peoplewire.UpdateStatus {
	s.mu.Lock()
	defer s.mu.Unlock()
	now, known := s.now(), surveys{}
	status := peoplewire.UpdateStatus{Folder: s.dir, Problems: s.problems, Groups: s.groups(now), Instances: []peoplewire.UpdateInstance{}}
	for _, i := range s.instances {
		a, exists := s.apps[i.App]
		d := rollout.Decision{Reason: rollout.NoPackage, Detail: "its application is in no settings"}
		if exists {
			d = s.decide(a, i, now, known)
		}
		shown := peoplewire.UpdateInstance{
			ID: i.ID, Application: cmp.Or(a.name, i.App), Group: a.groups[i.Track].name, Board: i.Board, Version: i.Version, Address: i.Address, Last: i.Last,
			State: string(i.State), Target: i.Target, Reason: string(d.Reason), Detail: d.Detail,
		}
		for _, h := range i.History {
			shown.History = append(shown.History, peoplewire.UpdateRecord{At: h.At, What: h.What})
		}
		status.Instances = append(status.Instances, shown)
	}
	slices.SortFunc(status.Instances, func(a, b peoplewire.UpdateInstance) int {
		return cmp.Or(cmp.Compare(a.Application, b.Application), cmp.Compare(a.Group, b.Group), cmp.Compare(a.ID, b.ID))
	})
	return status
}

// Retry forgets the failures of a group, and returns of how many instances.
func (s *Service) Retry(name string) (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, i := range s.instances {
		if g, known := s.apps[i.App].groups[i.Track]; known && g.name == name && !i.FailedAt.IsZero() {
			i.FailedAt = time.Time{}
			if i.State == rollout.Failed {
				i.State, i.Target = rollout.Undefined, ""
			}
			i.note(s.now(), "may try again")
			n++
		}
	}
	s.dirty = s.dirty || n > 0
	return n
}

// Forget removes an instance, and says whether there was one.
func (s *Service) Forget(id string) (found bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for key, i := range s.instances {
		if i.ID == id {
			delete(s.instances, key)
			found, s.dirty = true, true
		}
	}
	return found
}
