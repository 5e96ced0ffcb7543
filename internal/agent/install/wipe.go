package install

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os/exec"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"coldrack.dev/internal/agent/probe"
	"coldrack.dev/internal/contract/wire"
)

// finding is what a disk holds in the eyes of package probe and of blkid, which knows rarer things.
type finding struct {
	probe.Report
	rare string
}

func (f finding) blank() bool { return f.Report.Blank() && f.rare == "" }

func (f finding) lines() []string {
	out := f.Report.Lines()
	if f.rare != "" {
		out = append(out, f.rare)
	}
	return out
}

func inspect(ctx context.Context, d *device) (finding, error) {
	rep, err := probe.Disk(d, d.size, d.sector)
	if err != nil {
		return finding{}, fmt.Errorf("look at disk %s: %w", d.name, err)
	}
	f := finding{Report: rep}
	if rep.Blank() {
		f.rare = secondOpinion(ctx, d.Name(), probe.Range{Size: d.size})
	}
	return f, nil
}

// secondOpinion asks blkid's low-level probing about a volume that looks blank. When blkid cannot tell, the volume is not blank.
func secondOpinion(ctx context.Context, path string, v probe.Range) string {
	cmd := exec.CommandContext(ctx, "blkid", "-p", "-o", "export", "-O", fmt.Sprint(v.Start), "-S", fmt.Sprint(v.Size), path)
	var complaint strings.Builder
	cmd.Stderr = &complaint
	out, err := cmd.Output()
	code := -1
	if cmd.ProcessState != nil {
		code = cmd.ProcessState.ExitCode()
	}
	switch {
	case code == 8: // "ambivalent"
		return "signatures of several kinds (see wipefs " + path + ")"
	case code == 2: // nothing found, or not readable; package probe has read the disk
		return ""
	case err != nil:
		return fmt.Sprintf("unknown content, because blkid failed (%s)", cmp.Or(strings.TrimSpace(complaint.String()), err.Error()))
	}
	var kinds []string
	for line := range strings.SplitSeq(string(out), "\n") {
		if k, v, ok := strings.Cut(line, "="); ok && (k == "TYPE" || k == "PTTYPE") {
			kinds = append(kinds, v)
		}
	}
	return strings.Join(kinds, ", ")
}

// allowed says why what is on a disk must stay, or nil. unit names the disk for a person.
func (o *operation) allowed(policy, unit string, found finding) error {
	content := strings.Join(found.lines(), "; ")
	switch {
	case found.blank():
		return nil
	case found.Firmware != "":
		return fmt.Errorf("disk %s is a member of a RAID that this machine's firmware manages: %s. Nothing was changed. %s", unit, content, leaveFirmwareRAID)
	case policy == wire.WipeNever:
		return fmt.Errorf("disk %s is not blank: %s. Nothing was changed: the profile says wipe: Never. If it may go: set wipe: IfOurs, or Always for what Coldrack did not write",
			unit, content)
	case o.owns(found.Report):
		o.Log.Info("disk was installed by this machine before; overwriting it", "disk", unit)
		return nil
	case policy == wire.WipeAlways:
		o.Log.Warn("overwriting foreign data: the profile allows it", "disk", unit, "found", found.lines())
		return nil
	}
	return fmt.Errorf("disk %s holds data that Coldrack did not write: %s. Nothing was changed. If it may go: set wipe: Always in the profile", unit, content)
}

// leaveFirmwareRAID is what to do about a member of a BIOS' RAID.
const leaveFirmwareRAID = "Delete the array in the firmware's set-up and switch its RAID mode off, or, if the array is long gone, remove its mark with wipefs --all"

// erase removes all from a disk by which Linux or firmware would find something on it, also in partitions that it has, and in those that
// are about to be made, at whose places older ones may have been. With thorough set, everything else goes as well. It returns what
// was done, and what could not be, for a person.
//
// The end of the disk comes last. It holds the backup of the partition table with our marker, so that a
// disk whose wipe was cut off is still known as ours.
func (o *operation) erase(ctx context.Context, d *device, found probe.Report, next []probe.Range, thorough bool) (string, error) {
	disk := probe.Range{Size: d.size}
	inner := slices.Clone(next)
	for _, p := range found.Parts {
		inner = append(inner, probe.Range{Start: p.Start, Size: p.Size})
	}
	var did []string
	if thorough {
		how, err := o.overwrite(ctx, d)
		if err != nil {
			return "", err
		}
		did = append(did, how)
	} else {
		discarded, err := d.discard(ctx, d.size)
		if err != nil {
			return "", err
		}
		if discarded {
			did = append(did, "discarded")
		}
	}
	places := probe.Places(d.size)
	ranges, end := places[:len(places)-1], places[len(places)-1]
	for _, v := range inner {
		for _, r := range probe.Places(v.Size) {
			ranges = append(ranges, probe.Range{Start: v.Start + r.Start, Size: r.Size})
		}
	}
	for _, r := range append(ranges, end) {
		if err := ctx.Err(); err != nil {
			return "", context.Cause(ctx)
		}
		if err := d.zero(r.Start, r.Size); err != nil {
			return "", err
		}
	}
	if err := d.flush(); err != nil {
		return "", fmt.Errorf("flush disk %s: %w", d.name, err)
	}
	if left, err := remains(ctx, d, append(inner, disk)); err != nil {
		return "", err
	} else if left != "" {
		return "", fmt.Errorf("disk %s still shows %s after it was wiped: it does not take writes; replace it", d.name, left)
	}
	did = append(did, "signatures overwritten")
	read, held, err := d.sample()
	switch {
	case err != nil:
		return "", fmt.Errorf("read disk %s back after its wipe: %w", d.name, err)
	case held > 0 && thorough:
		return "", fmt.Errorf("disk %s still holds data at %d of %d places after it was erased: it does not take writes; destroy it", d.name, held, read)
	case held > 0:
		did = append(did, fmt.Sprintf("read back: %d of %d sampled places still hold data, which wipe: Secure would erase", held, read))
	default:
		did = append(did, fmt.Sprintf("read back: zeros at all of %d sampled places", read))
	}
	return strings.Join(did, "; "), nil
}

// remains is what can still be found in any of the volumes of a disk.
func remains(ctx context.Context, d *device, volumes []probe.Range) (string, error) {
	whole, err := probe.Disk(d, d.size, d.sector)
	if err != nil {
		return "", fmt.Errorf("look at disk %s: %w", d.name, err)
	}
	left := whole.Lines()
	for _, v := range volumes {
		left = append(left, probe.Signatures(io.NewSectionReader(d, v.Start, v.Size), v.Size)...)
		if rare := secondOpinion(ctx, d.Name(), v); rare != "" {
			left = append(left, rare)
		}
	}
	slices.Sort(left)
	return strings.Join(slices.Compact(left), "; "), nil
}

// overwrite erases the disk but for its last bytes, which erase overwrites in the end: until then a disk whose erasure was cut off is known
// as ours, and is erased again. It leaves zeros, or fails.
func (o *operation) overwrite(ctx context.Context, d *device) (string, error) {
	const step = 256 << 20
	end := max(d.size-probe.Edge, 0)
	secure := d.secureDiscard(ctx, 0, end)
	// Flash then gives up what it holds beside what can be addressed.
	if _, err := d.discard(ctx, end); err != nil {
		return "", err
	}
	o.bytes(wire.StepWipe, 0, d.size)
	for off := int64(0); off < end; off += step {
		if err := ctx.Err(); err != nil {
			return "", context.Cause(ctx)
		}
		n := min(step, end-off)
		if err := rangeIoctl(d.File, blkZeroOut, off, n); err != nil {
			return "", fmt.Errorf("overwrite disk %s at byte %d: %w", d.name, off, err)
		}
		o.bytes(wire.StepWipe, off+n, d.size)
	}
	if secure == nil {
		return "securely discarded by the disk and overwritten with zeros, the last 4 MiB only overwritten", nil
	}
	why := "its own secure discard failed: " + secure.Error()
	if errors.Is(secure, unix.EOPNOTSUPP) {
		why = "it has no secure discard"
	}
	return "overwritten with zeros, not erased by the disk itself (" + why + "): replaced sectors and spare flash were not reached", nil
}

// samples is how many places of a disk are read back.
const samples = 1024

// sample reads a block at a random place in each of so many equal parts of the disk. held is how many do not read as zeros.
func (d *device) sample() (read, held int, err error) {
	const block = 4096
	part := max(d.size/samples/block, 1) * block
	b := make([]byte, block)
	for start := int64(0); start+part <= d.size && read < samples; start += part {
		off := start + rand.Int64N(part/block)*block
		if n, err := d.ReadAt(b, off); n < len(b) {
			return read, held, fmt.Errorf("at byte %d: %w", off, err)
		}
		read++
		if slices.ContainsFunc(b, func(c byte) bool { return c != 0 }) {
			held++
		}
	}
	return read, held, nil
}
