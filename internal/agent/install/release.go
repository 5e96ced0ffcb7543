package install

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"coldrack.dev/internal/contract/wire"
)

// release wipes the disks that carry a marker of this machine's own installs, and no others.
type release struct {
	*operation
	policy string
	disks  []wire.Disk
}

func (r *release) preflight(ctx context.Context) (string, error) {
	if err := r.look(ctx); err != nil {
		return "", err
	}
	if len(r.own) == 0 {
		return "", errors.New("the plan names no intent whose disks may be wiped")
	}
	if r.policy != "" { // from a server that is older than policies of releases
		return "", wire.CheckWipe(r.policy)
	}
	return "", nil
}

func (r *release) selectDisks(ctx context.Context) (string, error) {
	if r.policy == wire.WipeNever {
		return "none: the profile says wipe: Never, so all disks keep what is on them, and can start this machine again", nil
	}
	inUse := r.InUse()
	var names []string
	for _, d := range r.inv.Disks {
		if inUse[d.Name] != "" || d.ReadOnly {
			continue
		}
		dev, err := openDevice(d.Name)
		if err != nil {
			r.Log.Warn("cannot read a disk", "disk", d.Name, "err", err)
			continue
		}
		found, err := inspect(ctx, dev)
		_ = dev.Close()
		if err != nil {
			r.Log.Warn("cannot read a disk", "disk", d.Name, "err", err)
			continue
		}
		if r.owns(found.Report) {
			r.disks = append(r.disks, d)
			names = append(names, describe(d))
		}
	}
	if len(names) == 0 {
		// Also what a release finds that was cut off after its wipe.
		return "no disk carries anything that Coldrack wrote", nil
	}
	return strings.Join(names, ", "), nil
}

func (r *release) wipe(ctx context.Context) (string, error) {
	var results []string
	for _, d := range r.disks {
		dev, err := openDevice(d.Name)
		if err != nil {
			return "", err
		}
		r.disk = dev // for close, if what follows fails
		found, err := inspect(ctx, dev)
		if err != nil {
			return "", err
		}
		if !r.owns(found.Report) {
			return "", fmt.Errorf("disk %s changed while it was looked at", describe(d))
		}
		if found.Firmware != "" {
			return "", fmt.Errorf("disk %s is a member of a RAID that this machine's firmware manages: %s. %s", describe(d), found.Firmware, leaveFirmwareRAID)
		}
		how, err := r.erase(ctx, dev, found.Report, nil, r.policy == wire.WipeSecure)
		if err != nil {
			return "", err
		}
		if err := dev.forgetPartitions(); err != nil {
			return "", err
		}
		if err := r.close(); err != nil {
			return "", err
		}
		results = append(results, d.Name+": "+how)
	}
	return strings.Join(results, ", "), nil
}
