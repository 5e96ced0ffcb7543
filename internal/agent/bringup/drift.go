package bringup

import (
	"slices"
)

// look tells which files somebody else has changed while this node is paused, and changes nothing. Files of a phase that has not
// succeeded are not compared: it may not have written them yet.
func (e *Executor) look() {
	e.mu.Lock()
	paused, begun := e.paused, e.begun
	e.mu.Unlock()
	if !paused || begun == nil {
		return
	}
	var changed []string
	for _, ph := range begun.Plan.Phases {
		if !e.track.succeeded(ph.Name) {
			continue
		}
		for _, name := range ph.Files {
			f := *fileAt(begun.Plan, name)
			if f.Soft {
				continue
			}
			// A static pod whose certificates are gone has no content that it should have.
			if content, err := fileContent(e.disk, begun.Plan, f); err != nil || !e.disk.Holds(f, content) {
				changed = append(changed, f.Path)
			}
		}
	}
	slices.Sort(changed)
	e.track.found(changed[:min(len(changed), maxDrift)])
}
