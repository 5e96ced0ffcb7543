// Package drift compares the hardware that a machine reports with the hardware that was accepted for it: what is missing, which link is
// slower than it could be, which disk fails. It is pure.
package drift

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"coldrack.dev/api/v1alpha1"
)

// maxParts is how many parts of a machine are compared; the API keeps no more.
const maxParts = 512

// Parts are what a machine consists of, in an order that depends on nothing but them.
func Parts(h *v1alpha1.Hardware) []v1alpha1.HardwarePart {
	var parts []v1alpha1.HardwarePart
	add := func(p v1alpha1.HardwarePart) {
		same := slices.IndexFunc(parts, func(o v1alpha1.HardwarePart) bool { return o.Kind == p.Kind && o.ID == p.ID })
		if same < 0 {
			parts = append(parts, p)
			return
		}
		parts[same].Count += p.Count
	}
	for _, d := range h.Disks {
		add(v1alpha1.HardwarePart{Kind: v1alpha1.PartDisk, ID: diskID(d), Name: strings.TrimSpace(cmp.Or(d.Model, "disk") + ", " + d.Size.String() + "B"), Count: 1})
	}
	for _, m := range h.MemoryModules {
		add(v1alpha1.HardwarePart{Kind: v1alpha1.PartMemoryModule, ID: moduleID(m), Name: moduleName(m), Count: 1})
	}
	for _, d := range h.Devices {
		// The disk itself tells more than its controller.
		if nvme(d) {
			continue
		}
		add(v1alpha1.HardwarePart{Kind: v1alpha1.PartDevice, ID: d.ID, Name: d.Name, Accelerator: d.Kind, Count: d.Count})
	}
	for _, link := range slowLinks(h) {
		add(link)
	}
	slices.SortFunc(parts, func(a, b v1alpha1.HardwarePart) int {
		return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.ID, b.ID))
	})
	return parts[:min(len(parts), maxParts)]
}

func nvme(d v1alpha1.PCIDevice) bool { return strings.HasPrefix(d.Class, "0108") }

// diskID is what is printed on the disk. Disks of a hypervisor may have none, and are told apart by what they are.
func diskID(d v1alpha1.DiskState) string {
	return cmp.Or(d.Serial, d.WWN, strings.TrimSpace(d.Model+" "+d.Size.String()+"B"))
}

func moduleID(m v1alpha1.MemoryModule) string {
	return strings.TrimSpace(cmp.Or(m.Slot, "?") + " " + cmp.Or(m.Serial, m.PartNumber, m.Size.String()+"B"))
}

func moduleName(m v1alpha1.MemoryModule) string {
	return strings.Join(slices.DeleteFunc([]string{m.Size.String() + "B", m.Type, m.Manufacturer, m.PartNumber}, func(s string) bool { return s == "" }), " ")
}

// slowLinks are links with fewer lanes, or slower ones, than the device and the port above it could have. A speed of 0 says nothing.
func slowLinks(h *v1alpha1.Hardware) []v1alpha1.HardwarePart {
	var slow []v1alpha1.HardwarePart
	for _, d := range h.Devices {
		l := d.Link
		if l == nil || l.Width >= l.MaxWidth && (l.SpeedMTs == 0 || l.SpeedMTs >= l.MaxSpeedMTs) {
			continue
		}
		for _, address := range d.Addresses {
			slow = append(slow, v1alpha1.HardwarePart{Kind: v1alpha1.PartSlowLink, ID: address, Name: linkText(d), Count: 1, Width: l.Width, SpeedMTs: l.SpeedMTs})
		}
	}
	return slow
}

// linkText is "link x8 instead of x16 (NVIDIA A100)".
func linkText(d v1alpha1.PCIDevice) string {
	var texts []string
	if d.Link.Width < d.Link.MaxWidth {
		texts = append(texts, fmt.Sprintf("link x%d instead of x%d", d.Link.Width, d.Link.MaxWidth))
	}
	if d.Link.SpeedMTs > 0 && d.Link.SpeedMTs < d.Link.MaxSpeedMTs {
		texts = append(texts, fmt.Sprintf("%g instead of %g GT/s", float64(d.Link.SpeedMTs)/1000, float64(d.Link.MaxSpeedMTs)/1000))
	}
	return fmt.Sprintf("%s (%s)", strings.Join(texts, ", "), cmp.Or(d.Name, d.ID))
}

// Digest stands for parts: a person accepts those that were shown, and no others.
func Digest(parts []v1alpha1.HardwarePart) string {
	text, err := json.Marshal(parts)
	if err != nil {
		panic(err) // a struct of ours always has a JSON form
	}
	sum := sha256.Sum256(text)
	return hex.EncodeToString(sum[:8])
}

// Drift is what has become of the hardware that was accepted, each in a few words.
type Drift struct{ Missing, Degraded, Added []string }

// None says whether all is there, and as fast as it was accepted.
func (d Drift) None() bool { return len(d.Missing) == 0 && len(d.Degraded) == 0 }

// Reason for a condition: Missing, or Degraded where nothing is missing.
func (d Drift) Reason() string {
	if len(d.Missing) > 0 {
		return "Missing"
	}
	return "Degraded"
}

// Message for a person, in one line.
func (d Drift) Message() string {
	const most = 8
	var texts []string
	for _, part := range []struct {
		what string
		list []string
	}{{"missing", d.Missing}, {"degraded", d.Degraded}, {"new", d.Added}} {
		if part.what == "new" && len(d.Missing) == 0 {
			continue
		}
		list := part.list
		if more := len(list) - most; more > 0 {
			list = append(slices.Clone(list[:most]), fmt.Sprintf("and %d more", more))
		}
		if len(list) > 0 {
			texts = append(texts, part.what+": "+strings.Join(list, ", "))
		}
	}
	return strings.Join(texts, "; ")
}

// Compare says what has become of the accepted parts.
func Compare(accepted, now []v1alpha1.HardwarePart) Drift {
	var d Drift
	for _, was := range accepted {
		if was.Kind == v1alpha1.PartSlowLink {
			continue
		}
		is, _ := find(now, was)
		if gone := was.Count - is.Count; gone > 0 {
			d.Missing = append(d.Missing, text(was, gone))
		}
	}
	for _, is := range now {
		was, known := find(accepted, is)
		switch {
		case is.Kind == v1alpha1.PartSlowLink:
			if !known || is.Width < was.Width || is.SpeedMTs < was.SpeedMTs {
				d.Degraded = append(d.Degraded, is.ID+" "+is.Name)
			}
		case is.Count > was.Count:
			d.Added = append(d.Added, text(is, is.Count-was.Count))
		}
	}
	return d
}

func find(parts []v1alpha1.HardwarePart, p v1alpha1.HardwarePart) (v1alpha1.HardwarePart, bool) {
	if i := slices.IndexFunc(parts, func(o v1alpha1.HardwarePart) bool { return o.Kind == p.Kind && o.ID == p.ID }); i >= 0 {
		return parts[i], true
	}
	return v1alpha1.HardwarePart{}, false
}

// text names some of a part: "disk S5XX (P5500, 1920GB)", "memory module A1 19D2B5F3 (16GiB DDR4)", "2 of 8 NVIDIA A100 (10de:20b5)".
func text(p v1alpha1.HardwarePart, n int32) string {
	name := p.ID
	switch {
	case p.Kind == v1alpha1.PartDevice && p.Name != "":
		name = fmt.Sprintf("%s (%s)", p.Name, p.ID)
	case p.Kind == v1alpha1.PartDisk:
		name = fmt.Sprintf("disk %s (%s)", p.ID, p.Name)
	case p.Kind == v1alpha1.PartMemoryModule:
		name = fmt.Sprintf("memory module %s (%s)", p.ID, p.Name)
	}
	if p.Count > 1 {
		name = fmt.Sprintf("%d of %d %s", n, p.Count, name)
	}
	return name
}

// Accept says what is accepted of a machine now: at the first report after its approval all but slow links, what a person accepted when
// it is what the machine reports, and otherwise what was accepted, with what was added while nothing is missing. asked is the digest that
// a person accepted, "" for none.
func Accept(was *v1alpha1.AcceptedHardware, now []v1alpha1.HardwarePart, asked string) (_ *v1alpha1.AcceptedHardware, changed bool) {
	digest := Digest(now)
	if was != nil {
		// A name once accepted stays, so that the labels by which groups choose machines do not change with a list of names; what a device
		// counts as comes from the running system, which may know more than the one before.
		now = slices.Clone(now)
		for i, p := range now {
			if known, ok := find(was.Parts, p); ok && p.Kind == v1alpha1.PartDevice {
				now[i].Name, now[i].Accelerator = cmp.Or(known.Name, p.Name), cmp.Or(p.Accelerator, known.Accelerator)
			}
		}
	}
	if asked == digest && (was == nil || was.Digest != asked) {
		return &v1alpha1.AcceptedHardware{Digest: digest, Parts: now}, true
	}
	fast := slices.DeleteFunc(slices.Clone(now), func(p v1alpha1.HardwarePart) bool { return p.Kind == v1alpha1.PartSlowLink })
	if was == nil {
		return &v1alpha1.AcceptedHardware{Parts: fast}, true
	}
	if len(Compare(was.Parts, now).Missing) > 0 {
		return was, false
	}
	next := &v1alpha1.AcceptedHardware{At: was.At, Digest: was.Digest, Parts: fast}
	for _, p := range was.Parts {
		if p.Kind == v1alpha1.PartSlowLink {
			next.Parts = append(next.Parts, p)
		}
	}
	next.Parts = next.Parts[:min(len(next.Parts), maxParts)]
	if slices.Equal(next.Parts, was.Parts) {
		return was, false
	}
	return next, true
}

// Failing names the disks that fail, "" when none does.
func Failing(h *v1alpha1.Hardware) string {
	var texts []string
	for _, d := range h.Disks {
		var why []string
		if d.State != "" {
			why = append(why, "the kernel says "+d.State)
		}
		if d.Health != nil {
			if len(d.Health.Warnings) > 0 {
				why = append(why, "it warns of "+strings.Join(d.Health.Warnings, ", "))
			}
			if d.Health.UsedPercent >= 100 {
				why = append(why, fmt.Sprintf("%d%% of its life is used", d.Health.UsedPercent))
			}
		}
		if len(why) > 0 {
			texts = append(texts, fmt.Sprintf("%s %s: %s", d.Name, diskID(d), strings.Join(why, ", ")))
		}
	}
	const most = 8
	if more := len(texts) - most; more > 0 {
		texts = append(texts[:most], fmt.Sprintf("and %d more", more))
	}
	return strings.Join(texts, "; ")
}
