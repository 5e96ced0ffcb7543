// Package install carries out what the server assigns to a machine in discovery: writing an operating
// system to a disk, or wiping what Coldrack wrote.
//
// An operation is a table of named steps. Before the first the server must have acknowledged the operation, before
// the wipe everything that can be checked has been, and the disk that is wiped carries nothing foreign
// unless the plan says that this does not matter. A machine whose power fails starts over: its disk
// bears the marker of the intent (see package gpt), so it knows the half-written disk as its own.
package install

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"coldrack.dev/internal/agent/gpt"
	"coldrack.dev/internal/agent/identity"
	"coldrack.dev/internal/agent/journal"
	"coldrack.dev/internal/agent/target"
	"coldrack.dev/internal/base/retry"
	"coldrack.dev/internal/content/diskimage"
	"coldrack.dev/internal/content/fetch"
	"coldrack.dev/internal/content/swarm/peer"
	"coldrack.dev/internal/contract/nodeconfig"
	"coldrack.dev/internal/contract/wire"
)

// Server is the part of the machine API that an operation uses.
type Server interface {
	Progress(context.Context, wire.Progress) (wire.ProgressResponse, error)
	Identity(context.Context, wire.IdentityRequest) (wire.IdentityResponse, error)
	Time(context.Context) (wire.Time, error)
}

// Installer carries out plans, one at a time.
type Installer struct {
	Log     *slog.Logger
	Server  Server
	Content *fetch.Source
	// Exchange lets this machine fetch its image from others, and give it to them; nil for the server alone.
	Exchange *peer.Config
	// Inventory is read anew for each operation: disks may have been changed since the last.
	Inventory func() wire.Inventory
	// Settle returns when drivers have found the hardware, nil where that is known: a controller with many disks takes
	// minutes, and who looks earlier takes the wrong disk, or wipes too few.
	Settle func(context.Context) error
	// DiskPatience is how long an install waits for a disk that fits when none does: not every driver tells when it has
	// found all.
	DiskPatience time.Duration
	// InUse names disks that must not be touched; the function of this package on a machine.
	InUse func() map[string]string
	// Settings become those of the installed node; Machine comes from the plan.
	Settings identity.Settings
	// Agent is the binary that the node gets.
	Agent string
	// WorkDir is where the new system is mounted.
	WorkDir string
	// CommandLine of the running kernel, whose consoles the node gets when the plan names none.
	CommandLine string
	// Watch is told of every change of a step, for the console. It must not block.
	Watch func(wire.Step)
	Now   func() time.Time
}

// ESP and BIOS boot partition of every installed disk.
const (
	biosBytes = 1 << 20
	espBytes  = 512 << 20
	// overhead is what a disk needs beyond image and ESP: both partition tables, alignment, and room for
	// the node to breathe.
	overhead = 64 << 20
)

// operation is one running install or release.
type operation struct {
	*Installer
	*tracker
	intentID string
	own      map[gpt.GUID]bool

	plan   *wire.InstallPlan
	inv    wire.Inventory
	ops    []nodeconfig.Op
	index  diskimage.Index
	files  bootFiles
	choice wire.Disk
	disk   *device
	table  *gpt.Table
	espID  uint32
	rootID gpt.GUID
	root   string // where the new system is mounted, "" when it is not
	system *target.Target
	shared *shared // nil when the server alone serves the image

	whole      *whole // of a whole-disk image
	identityAt string // folder of the node's identity, if it is not where the agent keeps it
}

// look reads the inventory when the hardware is complete.
func (o *operation) look(ctx context.Context) error {
	if o.Settle != nil {
		if err := o.Settle(ctx); err != nil {
			return fmt.Errorf("find this machine's disks: %w", err)
		}
	}
	o.inv = o.Inventory()
	return nil
}

type bootFiles struct{ boot, core, shim, grub []byte }

// step is one row of the table.
type step struct {
	name string
	run  func(context.Context) (message string, err error)
}

// Install carries plan out up to the reboot, which is left running in the steps: the caller acknowledges
// the intent with what is returned, and then boots the machine. The error is ErrCancelled, or that of the
// ended ctx; a failure of the install itself is in the Complete.
func (i *Installer) Install(ctx context.Context, plan wire.InstallPlan) (wire.Complete, error) {
	o := i.operation(plan.IntentID, plan.OwnIntentIDs, plan.OwnMarkers, wire.InstallSteps())
	o.plan = &plan
	o.rootID = gpt.Derive(plan.IntentID, "root file system")
	id := gpt.Derive(plan.IntentID, "ESP volume")
	o.espID = uint32(id[0])<<24 | uint32(id[1])<<16 | uint32(id[2])<<8 | uint32(id[3])
	steps := []step{
		{wire.StepPreflight, o.preflight},
		{wire.StepSelectDisk, o.selectDisk},
		{wire.StepWipe, o.wipe},
		{wire.StepPartition, o.partition},
		{wire.StepFilesystem, o.filesystem},
		{wire.StepImage, o.image},
		{wire.StepBootloader, o.bootloader},
		{wire.StepNodeConfig, o.nodeConfig},
		{wire.StepIdentity, o.identity},
	}
	if o.wholeDisk() {
		steps = append(steps[:3:3], []step{
			{wire.StepPartition, o.reserve},
			{wire.StepFilesystem, o.noFilesystem},
			{wire.StepImage, o.diskImage},
			{wire.StepBootloader, o.addedPartition},
			{wire.StepNodeConfig, o.tell},
			{wire.StepIdentity, o.complete},
		}...)
	}
	done, err := o.carryOut(ctx, steps)
	if done.State == wire.StateSucceeded {
		done.Disk, done.ImageDigest = stableName(o.choice), plan.Image.Digest
	}
	return done, err
}

// Release wipes every disk that carries a marker of the plan's intents.
func (i *Installer) Release(ctx context.Context, plan wire.ReleasePlan) (wire.Complete, error) {
	o := i.operation(plan.IntentID, plan.OwnIntentIDs, plan.OwnMarkers, wire.ReleaseSteps())
	r := &release{operation: o, policy: plan.Wipe}
	return o.carryOut(ctx, []step{
		{wire.StepPreflight, r.preflight},
		{wire.StepSelectDisk, r.selectDisks},
		{wire.StepWipe, r.wipe},
	})
}

func (i *Installer) operation(intentID string, own, markers, names []string) *operation {
	if i.Watch == nil {
		i.Watch = func(wire.Step) {}
	}
	tracker := newTracker(intentID, names, i.Server, i.Now, i.Watch)
	// What is logged during the operation goes to the server with its progress.
	logged := *i
	logged.Log = slog.New(journal.Handler(i.Log.Handler(), func(_ slog.Level, line string) { tracker.note(line) }))
	o := &operation{Installer: &logged, intentID: intentID, own: map[gpt.GUID]bool{}, tracker: tracker}
	for _, id := range own {
		o.own[gpt.Marker(id)] = true
	}
	for _, marker := range markers {
		if id, err := uuid.Parse(marker); err == nil {
			o.own[id] = true
		}
	}
	return o
}

func (o *operation) carryOut(ctx context.Context, steps []step) (wire.Complete, error) {
	// The server counts the attempt, and may have withdrawn the intent: nothing happens before it said yes.
	err := retry.Do(ctx, func(err error, wait time.Duration) {
		o.Log.Warn("cannot start: the server does not answer", "err", err, "wait", wait)
	}, o.report)
	if err != nil {
		return wire.Complete{}, err
	}
	operating, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	reporting, stopReports := context.WithCancel(ctx)
	defer stopReports()
	var reports errgroup.Group
	reports.Go(func() error {
		err := o.run(reporting)
		if err != nil {
			stop(err)
		}
		return err
	})
	failed := o.runSteps(operating, steps)
	cleanup := o.close()
	if failed == nil {
		failed = cleanup
	}
	interrupted := operating.Err() != nil
	stopReports()
	if err := reports.Wait(); err != nil {
		return wire.Complete{}, err
	}
	if interrupted {
		return wire.Complete{}, context.Cause(operating)
	}
	done := wire.Complete{IntentID: o.intentID, State: wire.StateSucceeded}
	if failed != nil {
		done.State, done.Message = wire.StateFailed, failed.Error()
	} else {
		o.start(wire.StepReboot)
	}
	done.Steps = o.snapshot()
	return done, nil
}

// runSteps runs the steps in order until one fails.
func (o *operation) runSteps(ctx context.Context, steps []step) error {
	for _, s := range steps {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		o.start(s.name)
		o.Log.Info("step started", "step", s.name)
		message, err := s.run(ctx)
		if err != nil {
			err = explain(err)
			if ctx.Err() == nil {
				o.finish(s.name, wire.StateFailed, err.Error())
			}
			o.Log.Error("step failed", "step", s.name, "err", err)
			return fmt.Errorf("%s: %w", s.name, err)
		}
		o.finish(s.name, wire.StateSucceeded, message)
		o.Log.Info("step finished", "step", s.name, "result", message)
	}
	return nil
}

// close unmounts and lets go of the disk, whatever happened.
func (o *operation) close() error {
	errs := []error{o.leave()}
	errs = append(errs, o.unmountSystem())
	if o.disk != nil {
		errs = append(errs, o.disk.Sync(), o.disk.Close())
		o.disk = nil
	}
	unix.Sync()
	return errors.Join(errs...)
}

func unmount(dir string) error {
	var err error
	// Something may look at the new file system for a moment, such as udev's rules.
	for range 50 {
		if err = unix.Unmount(dir, 0); !errors.Is(err, unix.EBUSY) {
			break
		}
		time.Sleep(100 * time.Millisecond)
	}
	if err != nil {
		return fmt.Errorf("unmount the new system: %w", err)
	}
	return nil
}

// explain adds what to do to errors that say only what happened.
func explain(err error) error {
	for _, known := range []struct {
		is   error
		what string
	}{
		{unix.EIO, "the disk reports an input/output error: check its cable and slot, or replace it"},
		{unix.EREMOTEIO, "the disk reports an error: check its cable and slot, or replace it"},
		{unix.ENODEV, "the disk has gone: check its cable and slot"},
		{unix.ENXIO, "the disk has gone: check its cable and slot"},
		{unix.ENOSPC, "the new system's disk is full: use a larger disk or a smaller image"},
		{unix.ENOMEM, "out of memory: this machine needs more memory to install"},
		{unix.EROFS, "the disk turned read-only: it may be failing or write-protected"},
	} {
		if errors.Is(err, known.is) {
			return fmt.Errorf("%w (%s)", err, known.what)
		}
	}
	return err
}

// stableName is the name of a disk that will still hold tomorrow, if it has one.
func stableName(d wire.Disk) string {
	if len(d.ByID) > 0 {
		return "/dev/disk/by-id/" + d.ByID[0]
	}
	return "/dev/" + d.Name
}

// memoryAvailable in bytes, as the kernel estimates it; 0 if unknown.
func memoryAvailable() int64 {
	b, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0
	}
	for line := range strings.SplitSeq(string(b), "\n") {
		if v, ok := strings.CutPrefix(line, "MemAvailable:"); ok {
			var kib int64
			if _, err := fmt.Sscan(v, &kib); err == nil {
				return kib << 10
			}
		}
	}
	return 0
}

func (o *operation) mountPoint() (string, error) {
	dir := filepath.Join(o.WorkDir, "target")
	return dir, os.MkdirAll(dir, 0o700)
}
