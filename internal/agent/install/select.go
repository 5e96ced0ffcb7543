package install

import (
	"fmt"
	"slices"
	"strings"

	"coldrack.dev/internal/agent/probe"
	"coldrack.dev/internal/contract/pattern"
	"coldrack.dev/internal/contract/validate"
	"coldrack.dev/internal/contract/wire"
)

// SelectDisk finds the one disk that all hints describe. None or several are refused: an install must
// never guess which disk to overwrite. minSize is what the layout needs; inUse names disks that the
// running system uses, with the reason.
func SelectDisk(disks []wire.Disk, hints wire.DiskHints, minSize int64, inUse map[string]string) (wire.Disk, error) {
	if err := badHints(hints); err != nil {
		return wire.Disk{}, err
	}
	var matches []wire.Disk
	reasons := make([]string, len(disks))
	for i, d := range disks {
		if reasons[i] = unfit(d, hints, minSize, inUse); reasons[i] == "" {
			matches = append(matches, d)
		}
	}
	if hints.Smallest && len(matches) > 1 {
		matches = smallest(matches, disks, reasons)
	}
	if len(matches) == 1 {
		return matches[0], nil
	}
	return wire.Disk{}, &SelectError{Disks: disks, Reasons: reasons, Matches: len(matches), Hints: hints}
}

// smallest keeps the smallest disks, and gives the others their reason. Two of the same size stay two.
func smallest(matches, disks []wire.Disk, reasons []string) []wire.Disk {
	low := matches[0].SizeBytes
	for _, d := range matches {
		low = min(low, d.SizeBytes)
	}
	var kept []wire.Disk
	for i, d := range disks {
		if reasons[i] != "" {
			continue
		}
		if d.SizeBytes == low {
			kept = append(kept, d)
		} else {
			reasons[i] = "is not the smallest"
		}
	}
	return kept
}

// SelectError lists every disk, and why it was not chosen.
type SelectError struct {
	Disks   []wire.Disk
	Reasons []string // "" for those that match
	Matches int
	Hints   wire.DiskHints
}

func (e *SelectError) Error() string {
	var b strings.Builder
	switch {
	case len(e.Disks) == 0:
		return "this machine shows no disk at all: check that the disks are plugged in and that the controller is not in a mode without a driver (RAID, Intel VMD)"
	case e.Matches == 0:
		b.WriteString("no disk matches")
	default:
		fmt.Fprintf(&b, "%d disks match, and Coldrack does not guess which to overwrite", e.Matches)
	}
	if h := hintText(e.Hints); h != "" {
		b.WriteString(" (rootDisk: " + h + ")")
	} else {
		b.WriteString(" (no rootDisk hint is set)")
	}
	b.WriteString(":")
	for i, d := range e.Disks {
		reason := e.Reasons[i]
		if reason == "" {
			reason = "matches"
		}
		fmt.Fprintf(&b, " %s: %s;", describe(d), reason)
	}
	b.WriteString(" set spec.rootDisk of the profile or the machine so that exactly one matches, byID or serial being the surest")
	return b.String()
}

// describe names a disk so that a person finds it.
func describe(d wire.Disk) string {
	s := d.Name + " (" + probe.Size(d.SizeBytes)
	for _, part := range []string{d.Transport, strings.TrimSpace(d.Vendor + " " + d.Model)} {
		if part != "" {
			s += ", " + part
		}
	}
	if d.Serial != "" {
		s += ", serial " + d.Serial
	}
	return s + ")"
}

func hintText(h wire.DiskHints) string {
	var parts []string
	add := func(name, value string) {
		if value != "" {
			parts = append(parts, name+"="+value)
		}
	}
	add("byID", h.ByID)
	add("serial", h.Serial)
	add("wwn", h.WWN)
	add("model", h.Model)
	add("transport", h.Transport)
	if h.MinSizeBytes > 0 {
		add("minSize", probe.Size(h.MinSizeBytes))
	}
	if h.MaxSizeBytes > 0 {
		add("maxSize", probe.Size(h.MaxSizeBytes))
	}
	if h.Rotational != nil {
		add("rotational", fmt.Sprint(*h.Rotational))
	}
	if h.Smallest {
		add("smallest", "true")
	}
	return strings.Join(parts, ", ")
}

func badHints(h wire.DiskHints) error {
	if err := validate.DiskID(h.ByID); err != nil {
		return fmt.Errorf("rootDisk.byID: %q %w", h.ByID, err)
	}
	if err := validate.PatternSyntax(h.Model); err != nil {
		return fmt.Errorf("rootDisk.model: %q %w", h.Model, err)
	}
	return nil
}

// unfit says why a disk is out of the question, or "". What cannot be installed to comes before what the
// hints exclude: the first is the more useful answer.
func unfit(d wire.Disk, h wire.DiskHints, minSize int64, inUse map[string]string) string {
	switch {
	case inUse[d.Name] != "":
		return "is in use by the running system: " + inUse[d.Name]
	case d.ReadOnly:
		return "is read-only"
	case d.Removable:
		return "is removable"
	case d.SizeBytes < minSize:
		return fmt.Sprintf("is too small: the image needs %s", probe.Size(minSize))
	}
	switch {
	case h.ByID != "" && !slices.ContainsFunc(d.ByID, func(name string) bool { return pattern.Match(h.ByID, name) }):
		return fmt.Sprintf("none of its %d by-id names matches", len(d.ByID))
	case h.Serial != "" && !strings.EqualFold(h.Serial, d.Serial):
		return "has another serial"
	case h.WWN != "" && bareWWN(h.WWN) != bareWWN(d.WWN):
		return "has another WWN"
	case h.Model != "" && !pattern.Match(h.Model, d.Model):
		return "is of another model"
	case h.Transport != "" && !strings.EqualFold(h.Transport, d.Transport):
		return fmt.Sprintf("is attached by %q", d.Transport)
	case h.MinSizeBytes > 0 && d.SizeBytes < h.MinSizeBytes:
		return "is smaller than minSize"
	case h.MaxSizeBytes > 0 && d.SizeBytes > h.MaxSizeBytes:
		return "is larger than maxSize"
	case h.Rotational != nil && *h.Rotational != d.Rotational:
		if d.Rotational {
			return "rotates"
		}
		return "does not rotate"
	}
	return ""
}

// bareWWN removes the prefixes under which the same number is written.
func bareWWN(s string) string {
	s = strings.ToLower(s)
	for _, prefix := range []string{"0x", "naa.", "eui.", "wwn-"} {
		s = strings.TrimPrefix(s, prefix)
	}
	return s
}
