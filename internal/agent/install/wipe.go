package install

import (
	"cmp"
	"context"
	"fmt"
	"os/exec"
	"strings"

	"coldrack.dev/internal/agent/probe"
)

// edge is how much of the beginning and end of a disk and of each partition is overwritten: more than any
// partition table, superblock or label that is found from there.
const edge = 4 << 20

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
		f.rare = secondOpinion(ctx, d.Name())
	}
	return f, nil
}

// secondOpinion asks blkid's low-level probing about a disk that looks blank. When blkid cannot tell, the disk is not blank.
func secondOpinion(ctx context.Context, path string) string {
	cmd := exec.CommandContext(ctx, "blkid", "-p", "-o", "export", path)
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

// erase removes what makes a disk's content recognisable: not a secure erase, which takes hours.
//
// The end of the disk comes last. It holds the backup of the partition table with our marker, so that a
// disk whose wipe was cut off is still known as ours.
func (o *operation) erase(ctx context.Context, d *device, found probe.Report) (string, error) {
	discarded, err := d.discard(ctx)
	if err != nil {
		return "", err
	}
	if err := d.zero(0, edge); err != nil {
		return "", err
	}
	for _, p := range found.Parts {
		for _, at := range []int64{p.Start, p.Start + p.Size - edge} {
			at = max(at, 0)
			if err := d.zero(at, min(edge, d.size-at)); err != nil {
				return "", err
			}
		}
	}
	if err := d.zero(d.size-edge, edge); err != nil {
		return "", err
	}
	if err := d.flush(); err != nil {
		return "", fmt.Errorf("flush disk %s: %w", d.name, err)
	}
	if left, err := probe.Disk(d, d.size, d.sector); err != nil {
		return "", err
	} else if !left.Blank() {
		return "", fmt.Errorf("disk %s still shows %s after it was wiped: it does not take writes; replace it", d.name, strings.Join(left.Lines(), "; "))
	}
	if discarded {
		return "discarded", nil
	}
	return "signatures overwritten", nil
}
