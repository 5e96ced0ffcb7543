package kube

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"coldrack.dev/api/v1alpha1"
)

// RequirementsOf says what bundles must contain for a cluster whose machines all have the cluster's version. It needs no
// machines, so that it can be asked at home, before there are any.
func RequirementsOf(cluster *v1alpha1.Cluster) (Requirements, error) {
	r := &renderer{cluster: cluster.DeepCopy()}
	r.cluster.Default()
	var err error
	if r.release, err = releaseOf(r.cluster.Spec.Version); err != nil {
		return Requirements{}, fmt.Errorf("spec.version: %w", err)
	}
	return r.requirements(), nil
}

// Supply is what there is for a cluster. A Place says to a person where something comes from.
type Supply struct {
	// Images are places by full name with tag.
	Images map[string]string
	// Programs for the cluster's version, and those for any.
	Programs []SuppliedProgram
	// Systems that the machines may be installed with.
	Systems []System
}

// SuppliedProgram is a program that there is.
type SuppliedProgram struct{ Name, Path, Version, Place string }

// System is an operating-system image with its Debian packages.
type System struct {
	Name, Place string
	Packages    []string
}

// Need is one thing that a cluster needs, and whether it is there.
type Need struct {
	Kind string `json:"kind"` // image, program or package
	Name string `json:"name"`
	// Wanted version, "v1.37.2" or "2.2 or later"; empty: any.
	Wanted string `json:"wanted,omitempty"`
	// For whom.
	For string `json:"for"`
	// Found is the place; empty: missing.
	Found string `json:"found,omitempty"`
	// Note says why what is there does not do, or where a thing comes from that is in no bundle.
	Note string `json:"note,omitempty"`
}

// Kinds of needs.
const (
	NeedImage   = "image"
	NeedProgram = "program"
	NeedPackage = "package"
)

// Check looks for everything that is required in what there is.
func (r Requirements) Check(s Supply) []Need {
	var needs []Need
	for _, image := range r.Images {
		needs = append(needs, Need{Kind: NeedImage, Name: image, Found: s.Images[image]})
	}
	for _, p := range r.Programs {
		needs = append(needs, s.program(p))
	}
	for _, p := range r.Packages {
		if len(s.Systems) == 0 {
			needs = append(needs, Need{Kind: NeedPackage, Name: p, Note: "there is no operating-system image"})
		}
		for _, system := range s.Systems {
			need := Need{Kind: NeedPackage, Name: p}
			if need.Found = system.place(p); need.Found == "" {
				need.Note = "not in image " + system.Name
			}
			needs = append(needs, need)
		}
	}
	return needs
}

// Lacking is what of the images and programs is not there, for people. Packages of the operating system are not looked at, and neither are
// programs that may come as one: machines have been installed with an image of their own choice.
func (r Requirements) Lacking(s Supply) []string {
	var list []string
	for _, need := range r.Check(s) {
		if need.Found != "" || need.Kind == NeedPackage || need.Kind == NeedProgram && need.Wanted == "" {
			continue
		}
		text := strings.TrimSpace(need.Kind + " " + need.Name + " " + need.Wanted)
		if need.Note != "" {
			text += " (" + need.Note + ")"
		}
		list = append(list, text)
	}
	slices.Sort(list)
	return slices.Compact(list)
}

// place is empty when the system has no such package.
func (s System) place(name string) string {
	if slices.Contains(s.Packages, name) {
		return s.Name + " in " + s.Place
	}
	return ""
}

// program finds one by its path, where units and configurations expect it. The operating system may bring it, too, as a
// package of its name.
func (s Supply) program(p Program) Need {
	need := Need{Kind: NeedProgram, Name: p.Name, Wanted: p.Version}
	if p.Least {
		need.Wanted += " or later"
	}
	for _, have := range s.Programs {
		if have.Path != p.Path {
			continue
		}
		if p.Version == "" || have.Version == p.Version || p.Least && !older(have.Version, p.Version) {
			need.Found, need.Note = have.Place, ""
			return need
		}
		need.Note = fmt.Sprintf("there is %s of %s", have.Version, have.Place)
	}
	if p.Version == "" && len(s.Systems) > 0 {
		var places []string
		for _, system := range s.Systems {
			place := system.place(p.Name)
			if place == "" {
				need.Note = fmt.Sprintf("no program at %s, and no package %s in image %s", p.Path, p.Name, system.Name)
				return need
			}
			places = append(places, place)
		}
		need.Found = strings.Join(places, ", ")
	}
	return need
}

// older compares the numbers of two versions; what is no number counts as 0.
func older(a, b string) bool {
	numbers := func(s string) []int {
		s, _, _ = strings.Cut(strings.TrimPrefix(s, "v"), "-")
		var out []int
		for part := range strings.SplitSeq(s, ".") {
			n, _ := strconv.Atoi(part)
			out = append(out, n)
		}
		return out
	}
	x, y := numbers(a), numbers(b)
	for i := range max(len(x), len(y)) {
		var m, n int
		if i < len(x) {
			m = x[i]
		}
		if i < len(y) {
			n = y[i]
		}
		if c := cmp.Compare(m, n); c != 0 {
			return c < 0
		}
	}
	return false
}

// ImageReferences are the images that a manifest's pods run, wherever in it their templates are. It takes a
// decoded document of any kind, of which only the fields of pods are known here: containers of all sorts, and
// images that are mounted as volumes.
func ImageReferences(document any) []string {
	var found []string
	add := func(value any) {
		if s, ok := value.(string); ok && s != "" && !slices.Contains(found, s) {
			found = append(found, s)
		}
	}
	var walk func(value any)
	walk = func(value any) {
		switch value := value.(type) {
		case []any:
			for _, item := range value {
				walk(item)
			}
		case map[string]any:
			for key, field := range value {
				items, _ := field.([]any)
				for _, item := range items {
					fields, _ := item.(map[string]any)
					switch key {
					case "containers", "initContainers", "ephemeralContainers":
						add(fields["image"])
					case "volumes":
						if volume, ok := fields["image"].(map[string]any); ok {
							add(volume["reference"])
						}
					}
				}
				walk(field)
			}
		}
	}
	walk(document)
	slices.Sort(found)
	return found
}
