package imagestore

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"coldrack.dev/internal/base/durable"
)

// Image is one that was loaded, as people see it.
type Image struct {
	// Name is the full name with its tag; with @ and the digest for one that no tag stands for.
	Name   string
	Digest string // of its manifest or index
	// Size of all that it needs and that is here, bytes; images may share some of it.
	Size int64
	// Platforms of those of its images that are here.
	Platforms []string
	Pinned    bool
	Added     time.Time
	By        string
	// LastUsed is when somebody fetched its manifest last, or when it came.
	LastUsed time.Time
}

// Images lists all, by name.
func (s *Store) Images() []Image {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.images()
}

func (s *Store) images() []Image {
	var all []Image
	for _, name := range slices.Sorted(maps.Keys(s.repos)) {
		r := s.repos[name]
		named := map[string]bool{}
		for _, tag := range slices.Sorted(maps.Keys(r.Tags)) {
			all = append(all, s.image(r, name+":"+tag, r.Tags[tag]))
			maps.Copy(named, s.closure(r, r.Tags[tag]))
		}
		for _, root := range s.roots(r, named) {
			all = append(all, s.image(r, name+"@"+root, root))
		}
	}
	return all
}

// roots are manifests that nothing else leads to: neither a tag nor an index, and that say nothing about another.
func (s *Store) roots(r *repository, named map[string]bool) []string {
	led := maps.Clone(named)
	for name := range r.Manifests {
		for _, d := range s.parsed[name].Manifests {
			led[d.Digest] = true
		}
		if subject := s.parsed[name].Subject; subject != "" {
			if _, ok := r.Manifests[subject]; ok {
				led[name] = true
			}
		}
	}
	var roots []string
	for _, name := range slices.Sorted(maps.Keys(r.Manifests)) {
		if !led[name] {
			roots = append(roots, name)
		}
	}
	return roots
}

func (s *Store) image(r *repository, name, root string) Image {
	added := r.Manifests[root]
	i := Image{Name: name, Digest: root, Pinned: s.pins[name], Added: added.Added, By: added.By, LastUsed: s.blobs[root].used}
	counted := map[string]bool{}
	for manifest := range s.closure(r, root) {
		m := s.parsed[manifest]
		counted[manifest] = true
		for _, d := range m.Blobs {
			counted[d.Digest] = true
		}
		if p := s.platform(m); p != "" && !slices.Contains(i.Platforms, p) {
			i.Platforms = append(i.Platforms, p)
		}
	}
	for blob := range counted {
		i.Size += s.blobs[blob].size
	}
	slices.Sort(i.Platforms)
	return i
}

// maxConfig is how much of a config is read for its platform, bytes.
const maxConfig = 1 << 20

// platform of an image; empty for an index, and for what is no image to run.
func (s *Store) platform(m Manifest) string {
	if m.IsIndex() || m.Config.Size > maxConfig || !strings.Contains(m.Config.MediaType, "image") {
		return ""
	}
	var p Platform
	if json.Unmarshal(s.readSmall(m.Config.Digest, maxConfig), &p) != nil || p.OS == "" || p.Architecture == "" {
		return ""
	}
	return p.String()
}

// Pin keeps an image from being removed, or lets go of it. Its name need not be one of this store's.
func (s *Store) Pin(name string, pinned bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	pins := maps.Clone(s.pins)
	if pinned {
		pins[name] = true
	} else {
		delete(pins, name)
	}
	raw, err := json.MarshalIndent(pins, "", "  ")
	if err == nil {
		err = durable.WriteFile(s.path("pins.json"), raw, 0o644)
	}
	if err != nil {
		return fmt.Errorf("keep the pins of images: %w", err)
	}
	s.pins = pins
	return nil
}

// Pinned are the names that are pinned.
func (s *Store) Pinned() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Sorted(maps.Keys(s.pins))
}

// Pruned is what a prune did with an image.
type Pruned struct {
	Image
	// Kept says why it stays; empty: it is removed.
	Kept string
}

// Prune removes the images for which keep says no reason to stay, and what only they need. Those that are pinned stay. With dry
// nothing is removed. freed is what it makes free, bytes.
func (s *Store) Prune(keep func(Image) string, dry bool) (images []Pruned, freed int64, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.problems) > 0 {
		return nil, 0, fmt.Errorf("part of the list of loaded images is damaged, so none is removed: %w", errors.Join(s.problems...))
	}
	after := map[string]*repository{}
	for name, r := range s.repos {
		after[name] = r.clone()
		clear(after[name].Manifests)
	}
	for _, i := range s.images() {
		p := Pruned{Image: i}
		switch {
		case i.Pinned:
			p.Kept = "pinned"
		case strings.Contains(i.Name, "@") && s.opts.Now().Sub(i.Added) < grace:
			p.Kept = "came lately, and the index that it is for may still come"
		default:
			p.Kept = keep(i)
		}
		images = append(images, p)
		repo, tag := split(i.Name)
		r := after[repo]
		if p.Kept == "" {
			delete(r.Tags, tag)
			continue
		}
		s.retain(s.repos[repo], r, i.Digest)
	}
	before := s.repos
	s.repos = after
	needed := s.reachable()
	s.repos = before
	for name, b := range s.blobs {
		if !needed[name] && !s.coming(name, before) {
			freed += b.size
		}
	}
	if dry {
		return images, freed, nil
	}
	return images, freed, s.replace(after)
}

// retain keeps a manifest of a repository, those that it names, and those that say something about one of them.
func (s *Store) retain(from, into *repository, root string) {
	for name := range s.closure(from, root) {
		if _, done := into.Manifests[name]; done {
			continue
		}
		into.Manifests[name] = from.Manifests[name]
		for other := range from.Manifests {
			if s.parsed[other].Subject == name {
				s.retain(from, into, other)
			}
		}
	}
}

// coming says whether a blob came lately, and no manifest names it yet.
func (s *Store) coming(name string, repos map[string]*repository) bool {
	young := s.opts.Now().Add(-grace)
	for repo, blobs := range s.links {
		if at, ok := blobs[name]; ok && at.After(young) && (repos[repo] == nil || s.named(repos[repo], name) == "") {
			return true
		}
	}
	return false
}

// replace writes repositories that have less than before, and removes what nobody needs any more. s.mu is held.
func (s *Store) replace(after map[string]*repository) error {
	for name, r := range after {
		before := s.repos[name]
		if len(r.Manifests) == len(before.Manifests) && len(r.Tags) == len(before.Tags) {
			continue
		}
		for manifest := range before.Manifests {
			if _, stays := r.Manifests[manifest]; stays {
				continue
			}
			for _, d := range s.parsed[manifest].Blobs {
				delete(s.links[name], d.Digest)
			}
		}
		if err := s.write(r); err != nil {
			return err
		}
	}
	_, err := s.sweep(grace)
	return err
}

// split cuts the name of an Image.
func split(name string) (repo, tag string) {
	if repo, _, ok := strings.Cut(name, "@"); ok {
		return repo, ""
	}
	at := strings.LastIndexByte(name, ':')
	return name[:at], name[at+1:]
}
